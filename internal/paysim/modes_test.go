package paysim

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func (s *stand) struck(name string, want int) {
	s.t.Helper()
	st, err := Control{URL: s.url}.Stats(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if got := st.Struck[name]; got != want {
		s.t.Errorf("%s struck %d times, want %d: %v", name, got, want, st.Struck)
	}
}

// TestAnswers sends one payment and one look-up into each mode that answers.
func TestAnswers(t *testing.T) {
	t.Parallel()
	p := testPayment(1)
	other := p
	other.Hold[15] ^= 1
	stranger := p
	stranger.Recipient[15] ^= 1
	for _, c := range []struct {
		mode         Mode
		pay, effects int
		says         string // in the answer to the payment
		lookUp       int    // in the mode
		struck       int
	}{
		{ModeForbidden, 403, 0, `"forbidden"`, 403, 2},
		{ModeRateLimited, 429, 0, `"rate_limited"`, 429, 2},
		{ModeError, 500, 0, "nothing was done", 500, 2},
		{ModeUnavailable, 503, 0, "nothing was done", 503, 2},
		{ModeNotFound, 404, 0, "payment_not_found", 404, 2},
		{ModeRedirect, 307, 0, "", 307, 2},
		{ModeAccepted, 200, 0, `"pending"`, 404, 1},
		{ModeLie, 200, 0, `"succeeded"`, 404, 1},
		{ModeMixedUp, 200, 0, other.Hold.String(), 404, 1},
		{ModeErrorAfter, 500, 1, "after the payment", 500, 2},
		{ModeTruncated, 0, 1, "unexpected EOF", 0, 2},
		{ModeWrongAmount, 200, 1, `"amount":102`, 200, 2},
		{ModeWrongID, 200, 1, other.Hold.String(), 200, 2},
		{ModeWrongRecipient, 200, 1, stranger.Recipient.String(), 200, 2},
	} {
		t.Run(string(c.mode), func(t *testing.T) {
			t.Parallel()
			s := open(t, "")
			s.fault(`{"mode":"` + string(c.mode) + `"}`)
			status, body := s.pay(p)
			s.want("pay", status, body, c.pay, c.effects, p)
			if !strings.Contains(body, c.says) {
				t.Errorf("answer %s does not contain %s", body, c.says)
			}
			if status, body := s.lookup(p); status != c.lookUp {
				t.Errorf("look-up: %d %s", status, body)
			}
			s.struck(string(c.mode), c.struck)
			s.fault(`{}`)
			status, body = s.pay(p)
			s.want("pay after", status, body, 200, 1, p)
			if !strings.Contains(body, p.Hold.String()) || !strings.Contains(body, `"amount":101`) {
				t.Errorf("the truth after: %s", body)
			}
		})
	}
}

func TestRedirectCountsWhoFollows(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"mode":"redirect"}`)
	p := testPayment(1)
	req, _ := http.NewRequest("POST", s.url+"/v1/payments", strings.NewReader(mustJSON(t, p)))
	req.Header.Set("Idempotency-Key", keyOf(p))
	res, err := http.DefaultClient.Do(req) // follows, unlike the product
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 500 || s.effects(p) != 0 {
		t.Errorf("a followed redirect: %d, %d effects", res.StatusCode, s.effects(p))
	}
	s.struck(struckFollowed, 1)
}

func TestLieIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	s.fault(`{"mode":"lie"}`)
	p := testPayment(1)
	s.pay(p)
	e, err := Control{URL: s.url}.Effects(t.Context(), p.Hold)
	if err != nil || e.Effects != 0 || e.Lies != 1 {
		t.Errorf("effects of a lie: %+v, %v", e, err)
	}
	if err := s.sim.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := s.sim.Effects(p.Hold); got.Lies != 1 || got.Effects != 0 {
		t.Errorf("after a restart: %+v", got)
	}
	if page, err := s.sim.EffectsAfter(0, 10); err != nil || len(page.Effects) != 0 || len(page.Lies) != 1 {
		t.Errorf("page: %+v, %v", page, err)
	}
}

func TestSlowBody(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"mode":"slow_body"}`)
	p := testPayment(1)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "POST", s.url+"/v1/payments", strings.NewReader(mustJSON(t, p)))
	req.Header.Set("Idempotency-Key", keyOf(p))
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(res.Body, first); err != nil || first[0] != '{' {
		t.Fatalf("the first byte: %q, %v", first, err)
	}
	rest, err := io.ReadAll(res.Body)
	if !errors.Is(err, context.DeadlineExceeded) || len(rest) > int(res.ContentLength)/2 {
		t.Errorf("the rest came at once: %q of %d bytes, %v", rest, res.ContentLength, err)
	}
	s.want("slow", res.StatusCode, "", 200, 1, p)
}

func TestHugeBody(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"mode":"huge_body"}`)
	p := testPayment(1)
	req, _ := http.NewRequest("POST", s.url+"/v1/payments", strings.NewReader(mustJSON(t, p)))
	req.Header.Set("Idempotency-Key", keyOf(p))
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	head := make([]byte, 400)
	if _, err := io.ReadFull(res.Body, head); err != nil || !strings.HasPrefix(string(head), `{"payment_id":"pay_`) {
		t.Errorf("head %q, %v", head, err)
	}
	n, err := io.Copy(io.Discard, res.Body)
	if n += int64(len(head)); err != nil || n != hugeBody || res.ContentLength != hugeBody {
		t.Errorf("%d bytes of %d, %v", n, res.ContentLength, err)
	}
	s.want("huge", res.StatusCode, "", 200, 1, p)
}

// TestSuccessLater: the payment is made after its time, seen or unseen before.
func TestSuccessLater(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode                       Mode
		pay, again, lookUp, effect int
	}{
		{ModePending, 200, 200, 200, 1},
		{ModeLate, 0, 409, 404, 1},
	} {
		t.Run(string(c.mode), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir)
			s.fault(`{"mode":"` + string(c.mode) + `","settle_after_ms":3600000}`)
			p := testPayment(1)
			status, body := s.pay(p)
			s.want("pay", status, body, c.pay, 0, p)
			s.fault(`{}`)
			status, body = s.pay(p)
			s.want("again", status, body, c.again, 0, p)
			if status, body = s.lookup(p); status != c.lookUp || status == 200 && !strings.Contains(body, `"status":"pending"`) {
				t.Errorf("look-up: %d %s", status, body)
			}
			other := p
			other.Amount++
			if status, body = s.do("POST", "/v1/payments", keyOf(p), other); status != 422 {
				t.Errorf("another body: %d %s", status, body)
			}
			// It is on its way even if the simulator dies meanwhile.
			if err := s.sim.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			if got := s.sim.Totals(); got.UnderWay != 1 || got.Payments != 0 {
				t.Errorf("after a restart: %+v", got)
			}
			s.sim.mu.Lock()
			s.sim.ripen(time.Now().Add(2 * time.Hour))
			s.sim.mu.Unlock()
			status, body = s.lookup(p)
			s.want("look-up after", status, body, 200, 1, p)
			s.struck(struckSettledLate, 1)
			status, body = s.pay(p)
			s.want("pay after", status, body, 200, 1, p)
			if !strings.Contains(body, `"succeeded"`) {
				t.Errorf("pay after: %s", body)
			}
			if err := s.sim.Close(); err != nil {
				t.Fatal(err)
			}
			if got := open(t, dir).sim.Totals(); got.UnderWay != 0 || got.Payments != 1 || got.Doubles != 0 {
				t.Errorf("after a second restart: %+v", got)
			}
		})
	}
}

func TestSettlesByItself(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"mode":"late","settle_after_ms":1}`)
	p := testPayment(1)
	s.pay(p)
	for deadline := time.Now().Add(10 * time.Second); s.effects(p) != 1; {
		if time.Now().After(deadline) {
			t.Fatal("the late payment was never made")
		}
	}
}

func TestKeysAreForgotten(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	p := testPayment(1)
	s.pay(p)
	s.fault(`{"key_lifetime_ms":3600000}`)
	status, body := s.lookup(p)
	s.want("a young key", status, body, 200, 1, p)
	s.sim.mu.Lock()
	for k, r := range s.sim.results {
		r.at -= 3600000
		s.sim.results[k] = r
	}
	s.sim.mu.Unlock()
	status, body = s.lookup(p)
	s.want("an old key", status, body, 404, 1, p)
	s.struck(struckKeyForgotten, 1)
	status, body = s.pay(p)
	s.want("a payment under it is a double", status, body, 200, 2, p)
}

func TestListing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	const holds = 25
	for n := range holds {
		p := testPayment(byte(n))
		s.pay(p)
		s.pay(p) // a repeat is no effect
	}
	double := testPayment(3)
	s.do("POST", "/v1/payments", "a key = of its own", double)
	s.fault(`{"banned":["` + testPayment(99).Recipient.String() + `"]}`)
	s.pay(testPayment(99))

	count := map[holdfast.HoldID]int{}
	var keys []string
	next := int64(0)
	for pages := 1; ; pages++ {
		p, err := s.sim.EffectsAfter(next, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Effects {
			count[e.Hold]++
			keys = append(keys, e.Key)
			if time.Since(e.At).Abs() > time.Hour || e.Amount < 100 || e.Recipient.IsZero() {
				t.Errorf("effect %+v", e)
			}
		}
		if next = p.Next; !p.More {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if len(count) != holds || len(keys) != holds+1 || count[double.Hold] != 2 || keys[holds] != "a key = of its own" || keys[0] != keyOf(testPayment(0)) {
		t.Errorf("%d holds, double %d, keys %q", len(count), count[double.Hold], keys)
	}
	c := Control{URL: s.url}
	s.pay(testPayment(50))
	var last []Effect
	if end, err := c.EachEffect(t.Context(), next, func(e Effect) { last = append(last, e) }); err != nil || len(last) != 1 || end <= next {
		t.Errorf("the rest: %+v, %v", last, err)
	}
	for _, bad := range []string{"after=-1", "after=1", "after=x", "after=999999999", "after=0&limit=0", "after=0&limit=100001"} {
		if status, body := s.do("GET", "/sim/effects?"+bad, "", nil); status != 400 {
			t.Errorf("%s: %d %s", bad, status, body)
		}
	}
}

func TestControlRoundTrip(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	c := Control{URL: s.url}
	f := Faults{LatencyMS: 5, JitterMS: 2, Rules: []Rule{{Mode: ModeHang, Calls: Lookups, Next: 3}, {Mode: ModeLie, Ratio: 0.5}}, Seed: 7}
	if err := c.SetFaults(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	got, err := c.Faults(t.Context())
	f.Mode, f.SettleAfterMS, f.Banned = ModeOK, settleAfterMS, []holdfast.UserID{}
	if a, b := mustJSON(t, got), mustJSON(t, f); err != nil || a != b {
		t.Errorf("set %s, got %s, %v", b, a, err)
	}
	if err := c.SetFaults(t.Context(), Faults{Mode: "broken"}); err == nil || !strings.Contains(err.Error(), "slow_body") {
		t.Errorf("a bad mode: %v", err)
	}
	if err := c.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Faults(t.Context()); err != nil || len(got.Rules) != 0 {
		t.Errorf("after reset: %+v, %v", got, err)
	}
}

func TestJournalOfAnOlderVersion(t *testing.T) {
	t.Parallel()
	p := testPayment(1)
	r := record{word: wordPaid, key: hashKey(keyOf(p)), name: keyOf(p), result: result{hold: p.Hold, recipient: p.Recipient, amount: p.Amount, body: p.hash(), at: 5}}
	line := string(appendLine(nil, r))
	old := strings.Join(strings.Split(strings.TrimSpace(line), " ")[:6], " ")
	got, err := parseLine([]byte(old))
	if r.at = 0; err != nil || got != r {
		t.Errorf("old line %q: %+v, %v", old, got, err)
	}
	var e Effect
	if err := json.Unmarshal([]byte(mustJSON(t, Effect{Hold: p.Hold})), &e); err != nil || e.Hold != p.Hold {
		t.Errorf("an effect does not survive JSON: %+v, %v", e, err)
	}
}
