package paysim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// stand is a simulator behind a real server.
type stand struct {
	t   *testing.T
	sim *Sim
	url string
}

func open(t *testing.T, dir string) *stand {
	t.Helper()
	sim, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(sim)
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		srv.Close()
	})
	return &stand{t, sim, srv.URL}
}

func testPayment(n byte) payment {
	return payment{
		Hold:      holdfast.NewHoldID(1_700_000_000_000, 7, uint64(n)+1),
		Sender:    holdfast.UserID{1, n},
		Recipient: holdfast.UserID{2, n},
		Amount:    100 + int64(n),
		Currency:  "RBX",
	}
}

func keyOf(p payment) string { return p.Hold.String() + ":EXECUTED" }

// do returns status 0 when the connection broke.
func (s *stand) do(method, path, key string, body any) (int, string) {
	s.t.Helper()
	raw, isRaw := body.(string)
	if !isRaw && body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		raw = string(b)
	}
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(raw))
	if err != nil {
		s.t.Fatal(err)
	}
	req.GetBody = nil // no repeats by the transport
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

func (s *stand) pay(p payment) (int, string) { return s.do("POST", "/v1/payments", keyOf(p), p) }

func (s *stand) lookup(p payment) (int, string) {
	return s.do("GET", "/v1/payments/"+keyOf(p), "", nil)
}

func (s *stand) fault(body string) {
	s.t.Helper()
	if status, b := s.do("PUT", "/sim/faults", "", body); status != 200 {
		s.t.Fatalf("set faults %s: %d %s", body, status, b)
	}
}

func (s *stand) effects(p payment) int {
	s.t.Helper()
	status, b := s.do("GET", "/sim/effects?hold_id="+p.Hold.String(), "", nil)
	var e HoldEffects
	if err := json.Unmarshal([]byte(b), &e); err != nil || status != 200 || len(e.PaymentIDs) != e.Effects {
		s.t.Fatalf("effects: %d %s: %v", status, b, err)
	}
	return e.Effects
}

func (s *stand) want(what string, status int, body string, wantStatus, wantEffects int, p payment) {
	s.t.Helper()
	if status != wantStatus {
		s.t.Errorf("%s: status %d, want %d: %s", what, status, wantStatus, body)
	}
	if n := s.effects(p); n != wantEffects {
		s.t.Errorf("%s: %d effects, want %d", what, n, wantEffects)
	}
}

func TestPayment(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	p := testPayment(1)
	status, body := s.lookup(p)
	s.want("look-up before", status, body, 404, 0, p)
	status, first := s.pay(p)
	s.want("first", status, first, 200, 1, p)
	for _, part := range []string{`"status":"succeeded"`, `"payment_id":"pay_`, `"amount":101`, p.Hold.String(), p.Recipient.String()} {
		if !strings.Contains(first, part) {
			t.Errorf("answer %s lacks %s", first, part)
		}
	}
	status, again := s.pay(p)
	s.want("again", status, again, 200, 1, p)
	status, found := s.lookup(p)
	s.want("look-up", status, found, 200, 1, p)
	if again != first || found != first {
		t.Errorf("three answers to one key: %s, %s, %s", first, again, found)
	}
	other := p
	other.Amount++
	status, body = s.do("POST", "/v1/payments", keyOf(p), other)
	s.want("other body", status, body, 422, 1, p)
	if !strings.Contains(body, codeKeyReused) {
		t.Errorf("other body: %s", body)
	}
	status, body = s.do("POST", "/v1/payments", "another key", p)
	s.want("another key is a double", status, body, 200, 2, p)
	if got := s.sim.Totals(); got != (Totals{Payments: 2, Holds: 1, Doubles: 1, Amount: 202}) {
		t.Errorf("totals %+v", got)
	}
	if status, body := s.do("GET", "/sim/effects", "", nil); status != 200 || !strings.Contains(body, `"payments":2,"holds":1,"doubles":1`) {
		t.Errorf("totals: %d %s", status, body)
	}
	if status, _ := s.do("POST", "/sim/reset", "", nil); status != 200 {
		t.Errorf("reset: %d", status)
	}
	status, body = s.lookup(p)
	s.want("after reset", status, body, 404, 0, p)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	p := testPayment(1)
	for name, c := range map[string]struct {
		key  string
		body any
	}{
		"no key":    {"", p},
		"long key":  {strings.Repeat("k", 256), p},
		"no body":   {"k", ""},
		"no JSON":   {"k", "{"},
		"no amount": {"k", strings.Replace(mustJSON(t, p), `"amount":101`, `"amount":0`, 1)},
		"no hold":   {"k", `{"amount":1,"currency":"RBX"}`},
		"too long":  {"k", strings.Repeat(" ", maxPaymentBody) + "{}"},
	} {
		if status, body := s.do("POST", "/v1/payments", c.key, c.body); status != 400 {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	for _, bad := range []string{
		"", "null", "[]", `{"mode":"ok"} x`, `{"mode":"broken"}`, `{"mood":"ok"}`, `{"Mode":"ok"}`, `{"error_ratio":1.1}`,
		`{"error_ratio":-0.1}`, `{"latency_ms":-1}`, `{"latency_ms":1e9}`, `{"banned":["x"]}`, `{"seed":-1}`,
	} {
		if status, body := s.do("PUT", "/sim/faults", "", bad); status != 400 {
			t.Errorf("faults %s: %d %s", bad, status, body)
		}
	}
	if status, _ := s.do("GET", "/sim/effects?hold_id=x", "", nil); status != 400 {
		t.Errorf("effects of a bad id: %d", status)
	}
	if got := s.sim.Totals(); got != (Totals{}) {
		t.Errorf("bad requests had effects: %+v", got)
	}
	if f := s.sim.Faults(); f.Mode != ModeOK || f.ErrorRatio != 0 {
		t.Errorf("bad faults were set: %+v", f)
	}
}

func mustJSON(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestModes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode                    string
		pay, effects, lookUp    int
		lookUpAfter, totalAfter int
	}{
		{"ok", 200, 1, 200, 200, 1},
		{"down", 0, 0, 0, 404, 1},
		{"lost_response", 0, 1, 200, 200, 1},
		{"unauthorized", 401, 0, 401, 404, 1},
		{"garbage", 200, 1, 200, 200, 1},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			s := open(t, "")
			p := testPayment(1)
			s.fault(`{"mode":"` + c.mode + `"}`)
			if status, b := s.do("GET", "/livez", "", nil); status != 200 {
				t.Errorf("livez: %d %s", status, b)
			}
			status, paid := s.pay(p)
			s.want("pay", status, paid, c.pay, c.effects, p)
			if status, b := s.lookup(p); status != c.lookUp {
				t.Errorf("look-up: %d %s", status, b)
			}
			if c.mode == "garbage" && json.Valid([]byte(paid)) {
				t.Errorf("this is no garbage: %s", paid)
			}
			s.fault(`{}`)
			if status, b := s.lookup(p); status != c.lookUpAfter {
				t.Errorf("look-up after: %d %s", status, b)
			}
			status, b := s.pay(p)
			s.want("pay after", status, b, 200, c.totalAfter, p)
		})
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"mode":"hang"}`)
	p := testPayment(1)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "POST", s.url+"/v1/payments", strings.NewReader(mustJSON(t, p)))
	req.Header.Set("Idempotency-Key", keyOf(p))
	if res, err := http.DefaultTransport.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a hanging call answered: %v, %v", res, err)
	}
	if n := s.effects(p); n != 0 {
		t.Errorf("%d effects of a call that hung", n)
	}
	hung := make(chan int)
	go func() { status, _ := s.pay(p); hung <- status }()
	if err := s.sim.Close(); err != nil {
		t.Fatal(err)
	}
	if status := <-hung; status == 200 {
		t.Errorf("Close let a hanging call answer %d", status)
	}
}

func TestLatencyOutlastsTheClient(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"latency_ms":3000}`)
	p := testPayment(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "POST", s.url+"/v1/payments", strings.NewReader(mustJSON(t, p)))
	req.Header.Set("Idempotency-Key", keyOf(p))
	if _, err := http.DefaultTransport.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the client did not leave first: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); s.effects(p) != 1; {
		if time.Now().After(deadline) {
			t.Fatal("the payment of a client that left was not made")
		}
	}
}

func TestBannedIsRefusedForGood(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	p, q := testPayment(1), testPayment(2)
	s.fault(fmt.Sprintf(`{"banned":[%q]}`, p.Recipient))
	status, refused := s.pay(p)
	s.want("banned", status, refused, 403, 0, p)
	if !strings.Contains(refused, `"code":"recipient_banned"`) {
		t.Errorf("refusal: %s", refused)
	}
	status, body := s.pay(q)
	s.want("another recipient", status, body, 200, 1, q)
	s.fault(`{}`)
	status, again := s.pay(p)
	s.want("the key after the ban", status, again, 403, 0, p)
	if _, found := s.lookup(p); again != refused || found != refused {
		t.Errorf("three answers to one key: %s, %s, %s", refused, again, found)
	}
}

func TestErrorRatio(t *testing.T) {
	t.Parallel()
	run := func() (failed, done int) {
		s := open(t, "")
		s.fault(`{"error_ratio":0.3,"seed":42}`)
		for n := range 200 {
			p := testPayment(byte(n))
			status, _ := s.pay(p)
			if status == 500 {
				failed++
				done += s.effects(p)
			}
		}
		return failed, done
	}
	failed, done := run()
	if failed < 30 || failed > 90 || done < failed/4 || done > failed*3/4 {
		t.Errorf("%d of 200 failed, %d of them after the payment; want about 60 and 30", failed, done)
	}
	if f, d := run(); f != failed || d != done {
		t.Errorf("the same seed gave %d, %d and then %d, %d", failed, done, f, d)
	}
}

func TestConcurrentCallsPayOnce(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	var calls sync.WaitGroup
	for n := range 64 {
		calls.Go(func() {
			if status, body := s.pay(testPayment(byte(n % 8))); status != 200 {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	calls.Wait()
	if got := s.sim.Totals(); got.Payments != 8 || got.Doubles != 0 {
		t.Errorf("totals %+v", got)
	}
}

func BenchmarkPay(b *testing.B) {
	sim, err := New(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer sim.Close()
	var n uint64
	var mu sync.Mutex
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			p := testPayment(1)
			p.Hold = holdfast.NewHoldID(1, 1, n)
			mu.Unlock()
			body, _ := json.Marshal(p)
			r := httptest.NewRequest("POST", "/v1/payments", bytes.NewReader(body))
			r.Header.Set("Idempotency-Key", keyOf(p))
			w := httptest.NewRecorder()
			sim.ServeHTTP(w, r)
			if w.Code != 200 {
				b.Fatal(w.Code, w.Body)
			}
		}
	})
}
