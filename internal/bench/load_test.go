package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// api is a Holdfast that only answers.
type api struct {
	*httptest.Server
	creates, cancels atomic.Int64
	keys             sync.Map
	before           func(n int64, w http.ResponseWriter) bool // true: has answered
	t                *testing.T
}

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{t: t}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer token" {
		http.Error(w, `{"code":"unauthenticated"}`, http.StatusUnauthorized)
		return
	}
	switch r.Method {
	case http.MethodPost:
		n := a.creates.Add(1)
		if a.before != nil && a.before(n, w) {
			return
		}
		a.check(r)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"hold_id":"01990000-0000-8123-8000-%012d","status":"PENDING"}`, n)
	case http.MethodDelete:
		a.cancels.Add(1)
		io.WriteString(w, `{"status":"CANCELLED"}`)
	}
}

func (a *api) check(r *http.Request) {
	var body struct {
		Sender    string    `json:"sender_id"`
		Recipient string    `json:"recipient_id"`
		Amount    int64     `json:"amount"`
		UnlockAt  time.Time `json:"unlock_at"`
		Key       string    `json:"idempotency_key"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		a.t.Errorf("a create has the body %v", err)
	}
	if body.Sender == body.Recipient || body.Amount != 1 || !body.UnlockAt.After(time.Now()) {
		a.t.Errorf("a create asks for %+v", body)
	}
	if _, twice := a.keys.LoadOrStore(body.Key, true); twice {
		a.t.Errorf("the key %s was used twice", body.Key)
	}
}

func (a *api) config() Config {
	c := Config{API: a.URL, Admin: a.URL, Token: "token", Scenario: "create", Duration: time.Second, Clients: 4, Senders: 10, Recipients: 10}
	if err := c.Check(); err != nil {
		a.t.Fatal(err)
	}
	return c
}

func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	t.Parallel()
	const stall, rate = 500 * time.Millisecond, 200.0
	a := newAPI(t)
	a.before = func(n int64, _ http.ResponseWriter) bool {
		if n == 10 {
			timer := time.NewTimer(stall)
			<-timer.C
		}
		return false
	}
	run := func(rate float64) (slow int64) {
		a.creates.Store(0)
		cfg := a.config()
		cfg.Rate, cfg.Clients = rate, 1
		g := newGenerator(&cfg, uint64(time.Now().UnixNano()), time.Now(), 0, time.Second)
		seen, err := g.run(context.Background(), (*worker).create)
		if err != nil || seen.created < 50 {
			t.Fatalf("created %d, %v", seen.created, err)
		}
		for _, bar := range seen.create.Distribution() {
			if bar.From >= (stall / 2).Microseconds() {
				slow += bar.Count
			}
		}
		return slow
	}
	// While the server stalls, requests fall due; half of them wait for more
	// than half of the stall. Counted from when they were really sent, only
	// the stalled one would be slow.
	if slow, want := run(rate), int64(rate*stall.Seconds()/4); slow < want {
		t.Errorf("the open loop saw %d slow requests, want at least %d", slow, want)
	}
}

func TestOpenLoopKeepsItsSchedule(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	cfg := a.config()
	cfg.Rate = 300
	g := newGenerator(&cfg, 1, time.Now(), 500*time.Millisecond, time.Second)
	seen, err := g.run(context.Background(), (*worker).create)
	if err != nil {
		t.Fatal(err)
	}
	// 1.5 s at 300/s are 450 intended starts whatever the speed; those of the
	// first half second are not counted.
	if n := a.creates.Load(); n != 450 || seen.acked != 450 {
		t.Errorf("sent %d and counted %d, want 450 of both", n, seen.acked)
	}
	if seen.created != 300 {
		t.Errorf("%d are in the measured window, want 300", seen.created)
	}
	if seen.create.TotalCount() != seen.created {
		t.Errorf("%d latencies for %d creates", seen.create.TotalCount(), seen.created)
	}
}

func TestCancelRatio(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	cfg := a.config()
	cfg.Rate, cfg.CancelRatio = 500, 1
	g := newGenerator(&cfg, 2, time.Now(), 0, time.Second)
	seen, err := g.run(context.Background(), (*worker).create)
	if err != nil || seen.cancelled != seen.created || a.cancels.Load() != a.creates.Load() {
		t.Errorf("created %d, cancelled %d, %v", seen.created, seen.cancelled, err)
	}
}

func TestErrorsAreCountedByCodeAndAreNotFatal(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.before = func(n int64, w http.ResponseWriter) bool {
		switch {
		case n%4 == 0:
			w.WriteHeader(http.StatusPaymentRequired)
			io.WriteString(w, `{"code": "insufficient_funds"}`)
		case n%4 == 1:
			panic(http.ErrAbortHandler) // the connection is lost
		default:
			return false
		}
		return true
	}
	cfg := a.config()
	cfg.Rate = 100
	g := newGenerator(&cfg, 3, time.Now(), 0, time.Second)
	seen, err := g.run(context.Background(), (*worker).create)
	if err != nil {
		t.Fatal(err)
	}
	if seen.errors["insufficient_funds"] != 25 || seen.errors["connection_lost"] != 25 || seen.acked != 50 {
		t.Errorf("errors %v, acknowledged %d; want 25, 25 and 50", seen.errors, seen.acked)
	}
}

func TestServerThatIsAwayIsReported(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	cfg := a.config()
	a.Close()
	g := newGenerator(&cfg, 4, time.Now(), 0, time.Second)
	seen, err := g.run(context.Background(), (*worker).create)
	if err != nil || seen.errors["connection_refused"] == 0 || seen.acked != 0 {
		t.Errorf("errors %v, acknowledged %d, %v", seen.errors, seen.acked, err)
	}
	// Four clients that pause after each failure cannot storm a server.
	if n := seen.errors["connection_refused"]; n > 4*60 {
		t.Errorf("%d attempts in a second", n)
	}
}

func TestRunEndsEarlyWithItsContext(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	cfg := a.config()
	ctx, cancel := context.WithCancel(context.Background())
	a.before = func(n int64, _ http.ResponseWriter) bool {
		if n == 20 {
			cancel()
		}
		return false
	}
	g := newGenerator(&cfg, 5, time.Now(), 0, time.Hour)
	seen, err := g.run(ctx, (*worker).create)
	if err != nil || seen.acked < 17 || seen.acked > 20+4 {
		t.Errorf("acknowledged %d, %v", seen.acked, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	good := Config{Scenario: "lifecycle", Duration: time.Second, Clients: 1, Senders: 1, Recipients: 1}
	if err := good.Check(); err != nil || good.DelayMax != 10*time.Second || !good.settles() {
		t.Fatalf("%v, %+v", err, good)
	}
	for name, spoil := range map[string]func(*Config){
		"scenario": func(c *Config) { c.Scenario = "party" }, "rate": func(c *Config) { c.Rate = -1 },
		"duration": func(c *Config) { c.Duration = 0 }, "clients": func(c *Config) { c.Clients = 0 },
		"sender": func(c *Config) { c.Senders = 0 }, "Zipf": func(c *Config) { c.Zipf = 0.5 },
		"delay": func(c *Config) { c.DelayMin, c.DelayMax = 5*time.Second, time.Second }, "cancel": func(c *Config) { c.CancelRatio = 2 },
		"batch": func(c *Config) { c.Batch = 101 },
	} {
		c := Config{Scenario: "create", Duration: time.Second, Clients: 1, Senders: 1, Recipients: 1}
		spoil(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
}
