package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func testLinkFaults(t *testing.T, w *world) {
	l := w.c.Link("client", "coordinator0")
	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		client := *w.clients[0]
		client.HTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		_, err := client.Account(ctx, w.sender)
		return err
	}
	expect := func(what string, fail bool) {
		t.Helper()
		before := l.Struck()
		if err := ask(); (err != nil) != fail {
			t.Errorf("%s: the answer is %v", what, err)
		}
		if l.Struck() == before {
			t.Errorf("%s is not counted", what)
		}
		check(t, l.Heal())
		if err := ask(); err != nil {
			t.Errorf("healed after %s: %v", what, err)
		}
	}
	begin := time.Now()
	l.Latency(100*time.Millisecond, 20*time.Millisecond)
	expect("latency", false)
	if took := time.Since(begin); took < 160*time.Millisecond {
		t.Errorf("there and back took %s", took)
	}
	check(t, l.ResetPeer(1))
	expect("reset", true)
	l.Bandwidth(100)
	expect("bandwidth", false)
	l.LimitBytes(Down, 10)
	expect("byte limit", true)
	l.CutAt(Up, "GET /v1/accounts", false, 1)
	expect("cut at a text", true)
	l.CutAt(Down, "", true, 1)
	before := l.Struck()
	if err := ask(); err != nil {
		t.Errorf("cut after the answer: %v", err)
	}
	if l.Struck() != before+1 {
		t.Errorf("cut after the answer struck %d times", l.Struck()-before)
	}
	l.Refuse()
	if err := ask(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a refusing link answers %v", err)
	}
	check(t, l.Heal())
	check(t, ask())
	if conns, chunks, bytes := l.Traffic(); conns == 0 || chunks == 0 || bytes < chunks {
		t.Errorf("traffic: %d connections, %d chunks, %d bytes", conns, chunks, bytes)
	}
}

func testPause(t *testing.T, w *world) {
	for _, p := range []*Process{w.c.Process(Participant, 0), w.c.Process(Scheduler, 1)} {
		check(t, p.Pause())
		if !p.Alive() {
			t.Errorf("%s is paused, not dead", p.Name)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := p.Ready(ctx); err == nil {
			t.Errorf("%s is paused and answers", p.Name)
		}
		cancel()
		check(t, p.Resume())
		check(t, p.Ready(t.Context()))
	}
	check(t, w.c.Process(Coordinator, 0).Pause()) // for Mend
	check(t, w.c.Shard(1).Pause())
}

func testServers(t *testing.T, w *world) {
	id := w.create(t, -1)
	check(t, w.c.Shard(0).StopImmediate(t.Context()))
	check(t, w.c.Shard(1).Kill())
	check(t, w.c.Redis.Kill())
	testkit.Eventually(t, patience, func() (bool, string) {
		conn, err := net.Dial("tcp", w.c.Link("scheduler0", "redis").Addr)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED), fmt.Sprintf("the link to a dead Redis: %v", err)
	})
	mend(t, w.c)
	w.executed(t, id)
}

func (w *world) shardTime(t *testing.T, i int) time.Time {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.c.DSN(i))
	check(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	var at time.Time
	check(t, conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&at))
	return at
}

func testClock(t *testing.T, w *world) {
	if err := w.c.ShardClock(t.Context(), 1, 2*time.Hour); errors.Is(err, ErrNoFakeTime) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	off := func() time.Duration { return time.Until(w.shardTime(t, 1)).Round(time.Minute) }
	if got := off(); got != 2*time.Hour {
		t.Errorf("the clock is off by %s", got)
	}
	pid := w.c.Shard(1).Pid()
	check(t, w.c.ShardClock(t.Context(), 1, -2*time.Hour))
	if got := off(); got != -2*time.Hour {
		t.Errorf("the clock is off by %s", got)
	}
	if w.c.Shard(1).Pid() != pid {
		t.Error("the server was restarted to change its clock again")
	}
	p := w.c.Process(Scheduler, 0)
	check(t, p.Restart(t.Context(), "HOLDFAST_CLOCK_OFFSET=+5m"))
	testkit.Eventually(t, patience, func() (bool, string) {
		return strings.Contains(p.Log(), `"shard_minus_process_ms":-`), "the scheduler's clock is not off: " + p.Log()
	})
	mend(t, w.c)
	if got := off(); got != 0 {
		t.Errorf("the clock is off by %s after Mend", got)
	}
}

func testDisk(t *testing.T, w *world) {
	id := w.create(t, -1)
	d, err := w.c.SmallDisk(t.Context(), 0, 256<<20)
	if errors.Is(err, ErrNoMount) {
		t.Skip(err)
	}
	check(t, err)
	w.executed(t, id)
	check(t, d.Fill(0))
	conn, err := pgx.Connect(t.Context(), w.c.DSN(0))
	check(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err = conn.Exec(t.Context(), "CREATE TABLE too_much AS SELECT repeat('x', 1000) FROM generate_series(1, 400000)")
	if err == nil {
		t.Error("a full disk takes 400 MB")
	}
	id = w.create(t, -1) // there may be room in the log; otherwise this waits
	mend(t, w.c)
	w.executed(t, id)
}

func testUsage(t *testing.T, w *world) {
	for _, p := range w.c.Processes() {
		fds, goroutines, rss := p.Usage()
		if fds < 3 || rss < 1<<20 || (goroutines == 0) != (p.Role == PaymentSim) {
			t.Errorf("%s: %d file descriptors, %d goroutines, %d bytes", p.Name, fds, goroutines, rss)
		}
		if p.Panics() != 0 {
			t.Errorf("%s died of a panic:\n%s", p.Name, p.Log())
		}
	}
	if got := len(w.c.Links("", "shard1")); got != 4 {
		t.Errorf("%d links to a shard, want 4", got)
	}
}
