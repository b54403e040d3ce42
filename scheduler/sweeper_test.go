package scheduler

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

func TestSweep(t *testing.T) {
	t.Parallel()
	t.Run("fills_the_horizon_with_what_is_pending", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 2)
		w.holds(0, 20, time.Minute, 10*time.Second)   // up to 4:10
		w.holds(0, 5, 10*time.Minute, 10*time.Second) // beyond horizon and sweep
		cancelled := newID(2 * time.Minute)
		w.exec(0, insertSQL, [16]byte(cancelled), cancelled.UnlockAt(), int16(holdfast.Cancelled))
		w.holds(1, 3, time.Minute, time.Second)
		s := w.start(nil)
		w.waitPending(s, 0, 20)
		w.waitPending(s, 1, 3)
		testkit.Eventually(t, patience, func() (bool, string) {
			v := s.Status(t.Context()).(Status).Shards[0]
			return v.LastSweepAdded == 20 && v.Drift == 0 && v.Epoch != "" && v.Pending == 20, fmt.Sprintf("%+v", v)
		})
	})
	t.Run("the_next_slice_follows_the_horizon", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.holds(0, 1, time.Minute, 0)
		// Holds beyond the first slice come in as time passes, each once.
		w.holds(0, 20, 61*time.Second, 100*time.Millisecond)
		s := w.start(func(c *Config) { c.Horizon = time.Minute; c.SweepEvery = 500 * time.Millisecond })
		w.waitPending(s, 0, 21)
		epoch := s.Status(t.Context()).(Status).Shards[0].Epoch
		testkit.Eventually(t, patience, func() (bool, string) {
			v := s.Status(t.Context()).(Status).Shards[0]
			return v.Epoch != "" && v.LastSweepAdded < 21, fmt.Sprintf("%+v, was %s", v, epoch)
		})
	})
}

func TestMemory(t *testing.T) {
	t.Parallel()
	t.Run("a_flush_is_noticed_and_filled_again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.holds(0, 50, time.Minute, time.Second)
		s := w.start(nil)
		w.waitPending(s, 0, 50)
		if err := s.zset.rdb.FlushDB(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		w.waitPending(s, 0, 50)
	})
	t.Run("an_older_memory_is_filled_again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.holds(0, 50, time.Minute, time.Second)
		s := w.start(nil)
		w.waitPending(s, 0, 50)
		waitEpoch(t, s, "")
		old := s.Status(t.Context()).(Status).Shards[0].Epoch
		rdb := s.zset.rdb
		if err := rdb.Del(t.Context(), "epoch:{0}").Err(); err != nil {
			t.Fatal(err)
		}
		waitEpoch(t, s, old)
		// As a copy of the old memory would have it: old epoch, no new triggers.
		pipe := rdb.TxPipeline()
		pipe.Set(t.Context(), "epoch:{0}", old, 0)
		pipe.Del(t.Context(), "pending_triggers:{0}")
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.waitPending(s, 0, 50)
	})
}

func TestSweepers(t *testing.T) {
	t.Parallel()
	t.Run("two_schedulers_agree_on_one_epoch", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.holds(0, 10, time.Minute, time.Second)
		a, b := w.start(nil), w.start(nil)
		w.waitPending(a, 0, 10)
		epoch := ""
		steady := 0
		testkit.Eventually(t, patience, func() (bool, string) {
			x := a.Status(t.Context()).(Status).Shards[0].Epoch
			y := b.Status(t.Context()).(Status).Shards[0].Epoch
			if x == "" || x != y || x != epoch {
				epoch, steady = x, 0
			}
			steady++
			return steady > 100, fmt.Sprintf("epochs %q and %q", x, y)
		})
	})
	t.Run("a_lost_lock_records_nothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		z, err := newZset(w.redis, 2, testkit.Logger(t))
		if err != nil {
			t.Fatal(err)
		}
		defer z.close()
		ctx := t.Context()
		if ok, err := z.lock(ctx, 0, "mine", time.Minute); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if ok, err := z.lock(ctx, 0, "theirs", time.Minute); ok || err != nil {
			t.Fatal("two hold the lock", err)
		}
		if err := z.rdb.FlushDB(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		if ok, err := z.swept(ctx, 0, "mine", "", "run:1:x", 1); ok || err != nil {
			t.Errorf("a sweep without its lock was recorded: %v", err)
		}
		if ok, err := z.renew(ctx, 0, "mine", time.Minute); ok || err != nil {
			t.Errorf("a lost lock was renewed: %v", err)
		}
	})
}

// waitEpoch waits for an epoch that is another one.
func waitEpoch(t *testing.T, s *Scheduler, than string) {
	t.Helper()
	testkit.Eventually(t, patience, func() (bool, string) {
		v := s.Status(t.Context()).(Status).Shards[0]
		return v.Epoch != "" && v.Epoch != than, "epoch is " + v.Epoch
	})
}

func TestRedis(t *testing.T) {
	t.Parallel()
	t.Run("killed_and_started_empty", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		stack := testkit.Stack(t, 1)
		w.redis = stack.Redis.URL(0)
		far := w.holds(0, 30, time.Minute, time.Second)
		s := w.start(func(c *Config) { c.OverdueAfter = time.Hour })
		w.waitPending(s, 0, int64(len(far)))
		if err := stack.Redis.Kill(); err != nil {
			t.Fatal(err)
		}
		// PostgreSQL drives alone, and at once, although OverdueAfter is long.
		testkit.Eventually(t, patience, func() (bool, string) { return !s.redisUp.Load(), "Redis still counts as up" })
		soon := w.holds(0, 10, 100*time.Millisecond, time.Millisecond)
		w.waitClaimed(s, soon)
		if err := stack.Redis.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.waitPending(s, 0, int64(len(far)))
	})
	t.Run("absent_at_start", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.redis = "redis://127.0.0.1:1/0"
		s := w.start(nil)
		ids := w.holds(0, 20, 50*time.Millisecond, 10*time.Millisecond)
		s.Triggers(t.Context(), 0, ids)
		w.waitClaimed(s, ids)
		w.driver.mu.Lock()
		defer w.driver.mu.Unlock()
		if len(w.driver.early) > 0 {
			t.Errorf("driven early: %v", w.driver.early)
		}
	})
	t.Run("a_malformed_url_is_refused", func(t *testing.T) {
		t.Parallel()
		if _, err := New(Config{Shards: &shards.Set{}, Driver: &fakeDriver{}, RedisURL: "http://x"}); err == nil {
			t.Error("no error")
		}
	})
}
