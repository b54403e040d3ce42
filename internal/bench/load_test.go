package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
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

func (a *api) phase(rate float64) phase {
	return phase{API: a.URL, Token: "token", Seed: 7, Nonce: rand.Uint64(), Step: stepCreate, Rate: rate, Clients: 4,
		RequestTimeout: 15 * time.Second, Start: time.Now(), Duration: time.Second, Senders: 10, Recipients: 10,
		DelayMin: time.Hour, DelayMax: 2 * time.Hour, Batch: 100, OnlyShard: -1, AvoidShard: -1}
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
		p := a.phase(rate)
		p.Clients = 1
		seen, err := newGenerator(p, nil).run(context.Background())
		if err != nil || seen.Created < 50 {
			t.Fatalf("created %d, %v", seen.Created, err)
		}
		for _, bar := range seen.Create.Distribution() {
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
	p := a.phase(300)
	p.Warmup = 500 * time.Millisecond
	seen, err := newGenerator(p, nil).run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// 1.5 s at 300/s are 450 intended starts whatever the speed; those of the
	// first half second are not counted.
	if n := a.creates.Load(); n != 450 || seen.Acked != 450 {
		t.Errorf("sent %d and counted %d, want 450 of both", n, seen.Acked)
	}
	if seen.Created != 300 {
		t.Errorf("%d are in the measured window, want 300", seen.Created)
	}
	if seen.Create.TotalCount() != seen.Created {
		t.Errorf("%d latencies for %d creates", seen.Create.TotalCount(), seen.Created)
	}
}

func TestCancelRatio(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := a.phase(500)
	p.CancelRatio = 1
	seen, err := newGenerator(p, nil).run(context.Background())
	if err != nil || seen.Cancelled != seen.Created || a.cancels.Load() != a.creates.Load() {
		t.Errorf("created %d, cancelled %d, %v", seen.Created, seen.Cancelled, err)
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
	seen, err := newGenerator(a.phase(100), nil).run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if seen.Errors["insufficient_funds"] != 25 || seen.Errors["connection_lost"] != 25 || seen.Acked != 50 {
		t.Errorf("errors %v, acknowledged %d; want 25, 25 and 50", seen.Errors, seen.Acked)
	}
}

func TestServerThatIsAwayIsReported(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := a.phase(0)
	a.Close()
	seen, err := newGenerator(p, nil).run(context.Background())
	if err != nil || seen.Errors["connection_refused"] == 0 || seen.Acked != 0 {
		t.Errorf("errors %v, acknowledged %d, %v", seen.Errors, seen.Acked, err)
	}
	// Four clients that pause after each failure cannot storm a server.
	if n := seen.Errors["connection_refused"]; n > 4*60 {
		t.Errorf("%d attempts in a second", n)
	}
}

func TestRunEndsEarlyWithItsContext(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	ctx, cancel := context.WithCancel(context.Background())
	a.before = func(n int64, _ http.ResponseWriter) bool {
		if n == 20 {
			cancel()
		}
		return false
	}
	p := a.phase(0)
	p.Duration = time.Hour
	seen, err := newGenerator(p, nil).run(ctx)
	if err != nil || seen.Acked < 17 || seen.Acked > 20+4 {
		t.Errorf("acknowledged %d, %v", seen.Acked, err)
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
		"duration": func(c *Config) { c.Duration = 0 }, "clients": func(c *Config) { c.Clients = -1 },
		"sender": func(c *Config) { c.Senders = -1 }, "Zipf": func(c *Config) { c.Zipf = 0.5 },
		"delay": func(c *Config) { c.DelayMin, c.DelayMax = 5*time.Second, time.Second }, "cancel": func(c *Config) { c.CancelRatio = 2 },
		"batch": func(c *Config) { c.Batch = 101 }, "processes": func(c *Config) { c.Clients, c.Processes = 2, 3 },
		"holds": func(c *Config) { c.Holds = -1 }, "outage": func(c *Config) { c.Outage = time.Millisecond },
	} {
		c := Config{Scenario: "create", Duration: time.Second, Clients: 1, Senders: 1, Recipients: 1}
		spoil(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
}
