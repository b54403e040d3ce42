package scheduler

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// newFillerAt runs a filler as a coordinator process does that has no scheduler.
func newFillerAt(t *testing.T, url string, shards int, open func() bool) *Filler {
	t.Helper()
	f, err := NewFiller(FillerConfig{RedisURL: url, Shards: shards, Open: open, Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	f.Start(t.Context())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *Filler) waitUp(t *testing.T, want bool) {
	t.Helper()
	testkit.Eventually(t, patience, func() (bool, string) { return f.RedisUp() == want, fmt.Sprintf("Redis up is %v", !want) })
}

func TestFiller(t *testing.T) {
	t.Parallel()
	t.Run("wakes_a_scheduler_of_another_process", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 2)
		// Without the dispatcher and after the first sweep only a trigger drives.
		s := w.start(func(c *Config) { c.OverdueAfter = time.Hour })
		waitEpoch(t, s, "")
		f := newFillerAt(t, w.redis, 2, nil)
		f.waitUp(t, true)
		later := w.hold(1, time.Minute)
		f.Triggers(t.Context(), 1, []holdfast.HoldID{later})
		w.waitPending(s, 1, 1)
		var soon []holdfast.HoldID
		for shard := range 2 {
			ids := w.holds(shard, 20, time.Second, 10*time.Millisecond)
			f.Triggers(t.Context(), shard, ids)
			soon = append(soon, ids...)
		}
		w.waitClaimed(s, soon)
		if n := w.driver.timesSeen(later); n != 0 {
			t.Errorf("the later one was driven %d times", n)
		}
	})
	t.Run("fills_nothing_while_the_breaker_is_open", func(t *testing.T) {
		t.Parallel()
		var open atomic.Bool
		f := newFillerAt(t, testkit.Redis(t), 1, open.Load)
		f.waitUp(t, true)
		closed, opened := newID(time.Minute), newID(time.Minute)
		f.Triggers(t.Context(), 0, []holdfast.HoldID{closed})
		testkit.Eventually(t, patience, func() (bool, string) {
			q := f.queues[0]
			q.mu.Lock()
			defer q.mu.Unlock()
			return len(q.ids) == 0, "still queued"
		})
		open.Store(true)
		f.Triggers(t.Context(), 0, []holdfast.HoldID{opened})
		var got []string
		testkit.Eventually(t, patience, func() (bool, string) {
			got = f.zset.rdb.ZRange(t.Context(), triggerKeys(0)[0], 0, -1).Val()
			return len(got) > 0, "no trigger was set"
		})
		if len(got) != 1 || got[0] != string(opened[:]) {
			t.Errorf("%d triggers are set, want the one after the breaker closed", len(got))
		}
	})
	t.Run("adds_what_is_queued_when_it_stops", func(t *testing.T) {
		t.Parallel()
		url := testkit.Redis(t)
		f, err := NewFiller(FillerConfig{RedisURL: url, Shards: 1, Log: testkit.Logger(t)})
		if err != nil {
			t.Fatal(err)
		}
		f.redisAnswers()
		f.Triggers(t.Context(), 0, []holdfast.HoldID{newID(time.Minute), newID(time.Hour)})
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		f.Start(stopped)
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		m, err := newZAt(t, url).look(t.Context(), 0)
		if err != nil || m[0].pending != 1 {
			t.Errorf("%+v, %v; want the trigger within reach", m, err)
		}
	})
	t.Run("follows_a_redis_that_dies_and_comes_back", func(t *testing.T) {
		t.Parallel()
		stack := testkit.Stack(t, 1)
		f := newFillerAt(t, stack.RedisURL, 1, nil)
		f.waitUp(t, true)
		if err := stack.Redis.Kill(); err != nil {
			t.Fatal(err)
		}
		f.Triggers(t.Context(), 0, []holdfast.HoldID{newID(time.Minute)})
		f.waitUp(t, false)
		if err := stack.Redis.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.waitUp(t, true)
	})
	t.Run("wants_a_redis_and_shards", func(t *testing.T) {
		t.Parallel()
		for _, cfg := range []FillerConfig{{Shards: 1}, {RedisURL: "redis://127.0.0.1:1"}, {RedisURL: "nonsense", Shards: 1},
			{RedisURL: "redis://127.0.0.1:1", Shards: 1, Horizon: time.Nanosecond}} {
			if _, err := NewFiller(cfg); err == nil {
				t.Errorf("%+v is accepted", cfg)
			}
		}
	})
}
