package main

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"time"
)

func TestQuantileAndMedian(t *testing.T) {
	t.Parallel()
	values := make([]int64, 100)
	for i := range values {
		values[i] = int64(i + 1)
	}
	for _, c := range []struct {
		q    float64
		want int64
	}{{0.5, 50}, {0.99, 99}, {1, 100}, {0, 1}} {
		if got := quantile(values, c.q); got != c.want {
			t.Errorf("quantile %v of 1 … 100: want %d, got %d", c.q, c.want, got)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("quantile of nothing: want 0, got %d", got)
	}
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 2}, 3}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v: want %v, got %v", c.in, c.want, got)
		}
	}
}

// TestWindow: the rate counts by the time of the end, the lag by the due time,
// so that a transfer that comes very late is not left out of the lag.
func TestWindow(t *testing.T) {
	t.Parallel()
	from := time.UnixMicro(1_000_000_000)
	to := from.Add(10 * time.Second)
	at := func(due, lag time.Duration) done {
		return done{AtUS: from.Add(due + lag).UnixMicro(), LagUS: lag.Microseconds()}
	}
	w := overWindow([]done{
		at(-time.Second, 10*time.Millisecond),    // due and done before
		at(-time.Second, 3*time.Second),          // due before, done inside
		at(time.Second, 20*time.Millisecond),     // both inside
		at(2*time.Second, -400*time.Millisecond), // early
		at(9*time.Second, time.Minute),           // due inside, done long after
	}, from, to)
	if w.inWindow != 3 || math.Abs(w.perS-0.3) > 1e-9 {
		t.Errorf("want 3 done inside, 0.3/s, got %d, %v/s", w.inWindow, w.perS)
	}
	if w.p50 != 20 || w.max != 60_000 {
		t.Errorf("want a median lag of 20 ms and a minute at most, got %v and %v ms", w.p50, w.max)
	}
	if w.early != 1 || math.Abs(w.earlyShare-1.0/3) > 1e-9 {
		t.Errorf("want one of three early, got %d, %v", w.early, w.earlyShare)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	base := load{clients: 4, duration: 300 * time.Millisecond, senders: 3, recipients: 3}
	t.Run("an_open_loop_makes_as_many_as_its_rate", func(t *testing.T) {
		t.Parallel()
		l := base
		l.rate = 100
		l.create = func(context.Context, transfer) error { return nil }
		if r := l.run(t.Context()); r.acked != 30 || r.failed != 0 {
			t.Errorf("want 30 creates, got %d and %d failed", r.acked, r.failed)
		}
	})
	t.Run("an_error_is_counted_and_kept", func(t *testing.T) {
		t.Parallel()
		l, broken := base, errors.New("broken")
		l.create = func(context.Context, transfer) error { return broken }
		if r := l.run(t.Context()); r.acked != 0 || r.failed == 0 || !errors.Is(r.firstError, broken) {
			t.Errorf("want only failures, got %d acked, %d failed, %v", r.acked, r.failed, r.firstError)
		}
	})
	t.Run("clients_wait_for_a_worker_that_is_behind", func(t *testing.T) {
		t.Parallel()
		l := base
		var made atomic.Int64
		l.create = func(ctx context.Context, _ transfer) error {
			made.Add(1)
			wait(ctx, 100*time.Microsecond)
			return nil
		}
		free := l
		free.run(t.Context())
		unbraked := made.Swap(0)
		l.finished = func(context.Context) int64 { return -2 * maxOverdue } // nothing is ever done
		l.run(t.Context())
		if made.Load()*2 > unbraked {
			t.Errorf("made %d with the brake on, %d without", made.Load(), unbraked)
		}
	})
}
