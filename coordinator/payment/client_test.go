package payment

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/prometheus/client_golang/prometheus"
)

var testHold = holdfast.Hold{
	ID:        holdfast.NewHoldID(1_700_000_000_000, 9, 4711),
	Sender:    holdfast.UserID{1, 2, 3},
	Recipient: holdfast.UserID{4, 5, 6},
	Amount:    9007199254740991,
	Currency:  "RBX",
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestRequest(t *testing.T) {
	t.Parallel()
	type seen struct{ method, path, key, contentType, body string }
	calls := make(chan seen, 2)
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		calls <- seen{r.Method, r.URL.Path, r.Header.Get("Idempotency-Key"), r.Header.Get("Content-Type"), string(b)}
		io.WriteString(w, good(nil))
	})
	c := newClient(t, Config{URL: url + "/base/"})
	expect(t, "pay", c.Pay(t.Context(), testHold), Succeeded, "")
	expect(t, "look-up", c.Lookup(t.Context(), testHold), Succeeded, "")
	key := testHold.ID.String() + ":EXECUTED"
	body := fmt.Sprintf(`{"hold_id":%q,"sender_id":%q,"recipient_id":%q,"amount":9007199254740991,"currency":"RBX"}`,
		testHold.ID, testHold.Sender, testHold.Recipient)
	if got, want := <-calls, (seen{"POST", "/base/v1/payments", key, "application/json", body}); got != want {
		t.Errorf("pay sent %+v, want %+v", got, want)
	}
	if got, want := <-calls, (seen{"GET", "/base/v1/payments/" + key, "", "", ""}); got != want {
		t.Errorf("look-up sent %+v, want %+v", got, want)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1); strings.HasPrefix(r.URL.Path, "/v1/") {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
			return
		}
		io.WriteString(w, good(nil))
	})
	c := newClient(t, Config{URL: url})
	expect(t, "pay", c.Pay(t.Context(), testHold), Unknown, "")
	expect(t, "look-up", c.Lookup(t.Context(), testHold), Unknown, "")
	if n := calls.Load(); n != 2 {
		t.Errorf("%d requests for 2 calls", n)
	}
}

func TestSlowAnswersEndWithTheTimeout(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"no headers": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"slow body": func(w http.ResponseWriter, r *http.Request) {
			drip := time.NewTicker(20 * time.Millisecond)
			defer drip.Stop()
			for r.Context().Err() == nil {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				<-drip.C
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gone := make(chan struct{})
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				io.ReadAll(r.Body)
				answer(w, r)
				close(gone)
			})
			got := newClient(t, Config{URL: url, Timeout: 200 * time.Millisecond}).Pay(t.Context(), testHold)
			expect(t, name, got, Unknown, "")
			if got.SureNotSent || errors.Is(got.Err, ErrAbandoned) || !strings.Contains(got.Err.Error(), "within 200ms") {
				t.Errorf("got %+v", got)
			}
			select { // the connection was dropped, not kept for the next call
			case <-gone:
			case <-time.After(10 * time.Second):
				t.Error("the connection is still there")
			}
		})
	}
}

func TestEndlessAnswerIsCutOff(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, good(nil)) // whoever stops reading early would take it for paid
		block := []byte(strings.Repeat(" ", 64<<10))
		for range 100 << 20 / len(block) {
			n, err := w.Write(block)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	})
	expect(t, "100 MB", newClient(t, Config{URL: url}).Pay(t.Context(), testHold), Unknown, "")
	if n := sent.Load(); n >= 100<<20 {
		t.Errorf("the client read all %d bytes", n)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	t.Parallel()
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			w.WriteHeader(403)
			io.WriteString(w, `{"code":"recipient_banned"}`)
			return
		}
		io.WriteString(w, good(nil))
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c := newClient(t, Config{URL: srv.URL, MaxConns: 4})
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for range 20 {
				expect(t, "pay", c.Pay(t.Context(), testHold), Succeeded, "")
				expect(t, "look-up", c.Lookup(t.Context(), testHold), Refused, "recipient_banned")
			}
		})
	}
	callers.Wait()
	// A connection may be lost to a scheduler that is late; a pool that keeps
	// nothing would make hundreds.
	if n := conns.Load(); n > 16 {
		t.Errorf("%d connections for 640 calls, want about 4", n)
	}
}

func TestNotSent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c := newClient(t, Config{URL: "http://" + l.Addr().String()})
	if got := c.Pay(t.Context(), testHold); got.Outcome != Unknown || !got.SureNotSent {
		t.Errorf("nobody listens: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := c.Pay(ctx, testHold); !got.SureNotSent || !errors.Is(got.Err, ErrAbandoned) {
		t.Errorf("cancelled before: %+v", got)
	}
}

// rawServer hands each connection, with its number, to handle and closes it after.
func rawServer(t *testing.T, handle func(n int, c net.Conn, r *bufio.Reader)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	t.Cleanup(func() { l.Close(); conns.Wait() })
	conns.Go(func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); handle(n, c, bufio.NewReader(c)) })
		}
	})
	return "http://" + l.Addr().String()
}

func readRequest(r *bufio.Reader) error {
	req, err := http.ReadRequest(r)
	if err == nil {
		_, err = io.Copy(io.Discard, req.Body)
	}
	return err
}

// The standard transport repeats a request that carries an idempotency key when
// a kept-alive connection breaks. A payment that was sent must not be.
func TestSentPaymentIsNotRepeated(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	url := rawServer(t, func(n int, c net.Conn, r *bufio.Reader) {
		for first := true; readRequest(r) == nil; first = false {
			requests.Add(1)
			if !first {
				return // closes the connection instead of an answer
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(good(nil)), good(nil))
		}
	})
	c := newClient(t, Config{URL: url})
	expect(t, "first", c.Pay(t.Context(), testHold), Succeeded, "")
	got := c.Pay(t.Context(), testHold)
	expect(t, "second", got, Unknown, "")
	if got.SureNotSent || requests.Load() != 2 {
		t.Errorf("%d requests arrived for 2 calls: %+v", requests.Load(), got)
	}
}

func TestBrokenAnswers(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"reset":             "",
		"not HTTP":          "\x16\x03\x01 hello\r\n\r\n",
		"short body":        "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + good(nil),
		"short refusal":     "HTTP/1.1 403 No\r\nContent-Length: 500\r\n\r\n" + `{"code":"recipient_banned"}`,
		"cut chunk":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + good(nil),
		"endless headers":   "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxAnswer) + "\r\n\r\n" + good(nil),
		"switching":         "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + good(nil),
		"long garbage line": "HTTP/1.1 " + strings.Repeat("\x00\xffz", 2000) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := rawServer(t, func(n int, c net.Conn, r *bufio.Reader) {
				if readRequest(r) == nil {
					io.WriteString(c, raw)
				}
			})
			got := newClient(t, Config{URL: url}).Pay(t.Context(), testHold)
			expect(t, name, got, Unknown, "")
			if got.SureNotSent || strings.Contains(got.Err.Error(), "\x00") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestAbandoned(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.ReadAll(r.Body)
		close(arrived)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		select {
		case <-arrived:
		case <-t.Context().Done():
		}
	}()
	got := newClient(t, Config{URL: url}).Pay(ctx, testHold)
	expect(t, "cancelled", got, Unknown, "")
	if !errors.Is(got.Err, ErrAbandoned) || got.SureNotSent {
		t.Errorf("got %+v", got)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	status := atomic.Int32{}
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(int(status.Load()))
		io.WriteString(w, map[int32]string{200: good(nil), 403: `{"code":"recipient_closed"}`}[status.Load()])
	})
	registry := prometheus.NewRegistry()
	c := newClient(t, Config{URL: url, Metrics: registry})
	for _, s := range []int32{200, 403, 404, 500} {
		status.Store(s)
		c.Lookup(t.Context(), testHold)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	c.Pay(cancelled, testHold)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "holdfast_payment_attempts_total" {
				got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	want := map[string]float64{"succeeded": 1, "refused": 1, "never_seen": 1, "unknown": 1, "not_sent": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("attempts %v, want %v", got, want)
	}
	if _, err := New(Config{URL: url, Metrics: registry}); err == nil {
		t.Error("two clients share their metrics")
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	const url = "http://localhost:1"
	for name, cfg := range map[string]Config{
		"payment URL":           {},
		"http or https":         {URL: "ftp://x"},
		"credentials":           {URL: "http://u:secret@x"},
		"query":                 {URL: "http://x?a=b"},
		"ratio":                 {URL: url, ErrorRatio: 1.5},
		"window":                {URL: url, Window: time.Second},
		"refusal code":          {URL: url, Refusals: []string{"a", " b"}},
		"negative":              {URL: url, MinCalls: -1},
		"open time -1s":         {URL: url, OpenFor: -time.Second},
		"payment timeout -1s":   {URL: url, Timeout: -time.Second},
		"parse \"http://a b/\"": {URL: "http://a b/"},
	} {
		c, err := New(cfg)
		if err == nil {
			c.Close()
			t.Errorf("%s: accepted", name)
		} else if !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := newClient(t, Config{URL: url})
	if c.Timeout() != 5*time.Second || c.State() != Closed {
		t.Errorf("defaults: %v, %s", c.Timeout(), c.State())
	}
}
