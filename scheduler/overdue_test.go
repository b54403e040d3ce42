package scheduler

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

const executingSQL = `UPDATE holds SET status = 2, claimed_at = now(), next_attempt_at = now() + $2::interval WHERE id = $1`

func TestOverdue(t *testing.T) {
	t.Parallel()
	t.Run("is_driven_in_maturity_order_without_redis", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.redis = ""
		ids := w.holds(0, 1200, -10*time.Minute, time.Millisecond)
		s := w.start(func(c *Config) { c.Workers = 1; c.DrainRate = 1e6 })
		w.waitClaimed(s, ids)
		w.driver.mu.Lock()
		defer w.driver.mu.Unlock()
		for i := 0; i < len(w.driver.order); i += dispatchBatch {
			batch := w.driver.order[i:min(i+dispatchBatch, len(w.driver.order))]
			slices.SortFunc(batch, compareIDs) // RETURNING knows no order
		}
		if !slices.IsSortedFunc(w.driver.order, compareIDs) || len(w.driver.order) != len(ids) {
			t.Errorf("%d claims of %d holds, in order: %v", len(w.driver.order), len(ids),
				slices.IsSortedFunc(w.driver.order, compareIDs))
		}
	})
	t.Run("is_driven_whatever_redis_says", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		s := w.start(func(c *Config) { c.OverdueAfter = 500 * time.Millisecond })
		waitEpoch(t, s, "")
		ids := w.holds(0, 30, time.Second, time.Millisecond) // Redis was never told
		w.waitClaimed(s, ids)
		testkit.Eventually(t, patience, func() (bool, string) {
			v := s.Status(t.Context()).(Status).Shards[0]
			return v.OldestOverdueS == 0, fmt.Sprintf("%+v", v)
		})
	})
	t.Run("spans_days", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		// A partition of the day before yesterday, as after a long outage.
		day := time.Now().UTC().Truncate(24 * time.Hour).Add(-48 * time.Hour)
		w.exec(0, fmt.Sprintf(`CREATE TABLE IF NOT EXISTS holds_%s PARTITION OF holds FOR VALUES FROM ('%s') TO ('%s')`,
			day.Format("20060102"), idAt(day.UnixMilli()), idAt(day.Add(24*time.Hour).UnixMilli())))
		w.exec(0, fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE ON holds_%s TO %s`, day.Format("20060102"), shards.AppRole))
		old := w.hold(0, time.Until(day.Add(time.Hour)))
		recent := w.hold(0, time.Millisecond)
		s := w.start(nil)
		w.waitClaimed(s, []holdfast.HoldID{old, recent})
		testkit.Eventually(t, patience, func() (bool, string) {
			return before(recent, w.watermark(0)), "watermark " + w.watermark(0).String()
		})
	})
}

func TestOverdueAgain(t *testing.T) {
	t.Parallel()
	t.Run("deferred_ids_delay_nobody_and_do_not_spin", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.redis = ""
		dead := w.holds(0, 600, -10*time.Minute, time.Millisecond)
		good := w.holds(0, 50, -5*time.Minute, time.Millisecond)
		isDead := map[holdfast.HoldID]bool{}
		for _, id := range dead {
			isDead[id] = true
		}
		var away atomic.Bool
		away.Store(true)
		w.driver.bend = func(_ int, id holdfast.HoldID) (branch.DriveResult, bool) {
			return branch.DriveResult{Code: branch.DriveDeferred, InMS: 1000}, isDead[id] && away.Load()
		}
		s := w.start(func(c *Config) { c.DrainRate = 1e6 })
		w.waitClaimed(s, good)
		began := time.Now()
		later := w.hold(0, 1500*time.Millisecond)
		w.waitClaimed(s, []holdfast.HoldID{later})
		// Waits of 1, 1, 2, 4 … s: about log2 of the time, and not once per pass.
		if n := w.driver.timesSeen(dead[0]); n > 3+int(time.Since(began)/time.Second) {
			t.Errorf("a deferred id was driven %d times in %s", n, time.Since(began))
		}
		away.Store(false)
		w.waitClaimed(s, dead)
	})
	t.Run("an_abandoned_drive_is_taken_up_when_its_time_is_over", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		abandoned, owned := w.hold(0, -time.Minute), w.hold(0, -time.Minute)
		w.exec(0, executingSQL, [16]byte(abandoned), "-1 second")
		w.exec(0, executingSQL, [16]byte(owned), "1 hour")
		s := w.start(nil)
		w.waitClaimed(s, []holdfast.HoldID{abandoned})
		if n := w.driver.timesSeen(owned); n != 0 {
			t.Errorf("a hold that another driver owns was driven %d times", n)
		}
	})
	t.Run("what_a_clock_that_was_ahead_put_off_is_driven", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		w.redis = ""
		abandoned, paused, watched := w.hold(0, -time.Minute), w.hold(0, -time.Minute), w.hold(0, -time.Minute)
		for id, in := range map[holdfast.HoldID]string{abandoned: "2 hours", paused: "2 hours", watched: "1 hour"} {
			w.exec(0, executingSQL, [16]byte(id), in)
		}
		w.exec(0, dueAttemptSQL, [16]byte(paused), "2 hours")
		w.exec(0, dueAttemptSQL, [16]byte(watched), "1 hour") // the longest there is
		due := w.hold(0, -time.Minute)
		w.exec(0, dueAttemptSQL, [16]byte(due), "-1 second")
		s := w.start(nil)
		w.waitClaimed(s, []holdfast.HoldID{abandoned, paused, due})
		if n := w.driver.timesSeen(watched); n != 0 {
			t.Errorf("a hold was driven %d times before its time", n)
		}
	})
}

func compareIDs(a, b holdfast.HoldID) int {
	if before(a, b) {
		return -1
	}
	if before(b, a) {
		return 1
	}
	return 0
}

func TestBreaker(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.driver.open.Store(false)
	matured := w.holds(0, 40, 50*time.Millisecond, time.Millisecond)
	future := w.holds(0, 10, time.Minute, time.Second)
	s := w.start(func(c *Config) { c.OverdueAfter = 100 * time.Millisecond; c.DrainRate = 40 })
	s.Triggers(t.Context(), 0, slices.Concat(matured, future))
	// The gauge follows PostgreSQL while nothing may be driven.
	testkit.Eventually(t, patience, func() (bool, string) {
		v := s.Status(t.Context()).(Status).Shards[0]
		return v.OldestOverdueS > 0.5 && s.redisUp.Load(), fmt.Sprintf("%+v", v)
	})
	w.driver.mu.Lock()
	if len(w.driver.seen) > 0 {
		t.Errorf("%d holds were driven while the breaker was open", len(w.driver.seen))
	}
	w.driver.mu.Unlock()
	if n := w.pending(s, 0); n != 0 {
		t.Errorf("%d triggers were filled while the breaker was open", n)
	}
	began := time.Now()
	w.driver.open.Store(true)
	w.waitClaimed(s, matured)
	// 40 at 40/s take a second; the first quarter goes at once.
	if took := time.Since(began); took < 600*time.Millisecond {
		t.Errorf("the backlog went in %s, faster than the drain rate", took)
	}
	w.waitPending(s, 0, int64(len(future)))
}

func TestWatermark(t *testing.T) {
	t.Parallel()
	t.Run("passes_a_hanging_hold_once_it_has_an_attempts_row", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		hanging := w.hold(0, -time.Minute)
		w.exec(0, executingSQL, [16]byte(hanging), "1 hour")
		after := w.hold(0, -30*time.Second)
		s := w.start(nil)
		w.waitClaimed(s, []holdfast.HoldID{after})
		testkit.Eventually(t, patience, func() (bool, string) {
			return w.watermark(0) == hanging, "watermark " + w.watermark(0).String()
		})
		w.exec(0, `INSERT INTO attempts (hold_id, next_at, n, active_ms, last_error) VALUES ($1, now() + interval '1 hour', 1, 0, 'hangs')`, [16]byte(hanging))
		testkit.Eventually(t, patience, func() (bool, string) {
			return before(after, w.watermark(0)), "watermark " + w.watermark(0).String()
		})
		if n := w.driver.timesSeen(hanging); n != 0 {
			t.Errorf("driven %d times before its time", n)
		}
		w.exec(0, `UPDATE attempts SET next_at = now()`)
		w.waitClaimed(s, []holdfast.HoldID{hanging})
	})
	t.Run("stays_below_what_a_running_transaction_may_insert", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		s := w.start(nil)
		tx, err := w.shards.Money(0).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if _, err := tx.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
		id := newID(100 * time.Millisecond)
		if _, err := tx.Exec(t.Context(), insertSQL, [16]byte(id), id.UnlockAt(), int16(holdfast.Pending)); err != nil {
			t.Fatal(err)
		}
		// The shard's clock is well past the hold and the margin, and many
		// passes have been.
		testkit.Eventually(t, patience, func() (bool, string) {
			if at := w.watermark(0); !before(at, id) {
				t.Fatalf("the watermark %s is above the uncommitted hold %s", at, id)
			}
			return time.Now().UnixMilli() > id.UnlockAtMS()+watermarkMargin.Milliseconds()+1000, "waiting"
		})
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.waitClaimed(s, []holdfast.HoldID{id})
		testkit.Eventually(t, patience, func() (bool, string) {
			return before(id, w.watermark(0)), "watermark " + w.watermark(0).String()
		})
	})
	t.Run("never_goes_back", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		now := idAt(time.Now().UnixMilli())
		w.exec(0, `UPDATE watermark SET id = $1`, [16]byte(now))
		st := newStore(w.shards.Reads(0), time.Minute)
		if err := st.moveWatermark(t.Context(), holdfast.HoldID{}, idAt(1000)); err != nil {
			t.Fatal(err)
		}
		if at := w.watermark(0); at != now {
			t.Errorf("went from %s to %s", now, at)
		}
	})
}

func TestClocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	ids := w.holds(0, 5, 10*time.Millisecond, time.Millisecond)
	var ahead atomic.Int64
	ahead.Store(int64(10 * time.Second))
	s := w.start(func(c *Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	testkit.Eventually(t, patience, func() (bool, string) {
		v := s.Status(t.Context()).(Status).Shards[0]
		return v.ClocksDisagree && v.OldestOverdueS > 2.5, fmt.Sprintf("%+v", v)
	})
	if n := w.driver.timesSeen(ids[0]); n != 0 {
		t.Errorf("driven %d times while the clocks disagreed", n)
	}
	ahead.Store(0)
	w.waitClaimed(s, ids)
}

func TestRetries(t *testing.T) {
	t.Parallel()
	var r retries
	now := time.Now()
	id := newID(0)
	note := func(c branch.Code, in int64) { r.note(id, branch.DriveResult{Code: c, InMS: in}, now) }
	ready := func(in time.Duration) bool { return len(r.ready([]holdfast.HoldID{id}, now.Add(in))) == 1 }
	if !ready(0) {
		t.Error("an unknown id is not ready")
	}
	note(branch.DriveDeferred, 0)
	if ready(postponeFirst-1) || !ready(postponeFirst) {
		t.Error("the first wait is not postponeFirst")
	}
	note(branch.DriveDeferred, 0)
	if ready(2*postponeFirst-1) || !ready(2*postponeFirst) {
		t.Error("the second wait is not twice as long")
	}
	note(branch.CodeBusy, 7000)
	if ready(6999*time.Millisecond) || !ready(7*time.Second) {
		t.Error("busy does not wait for as long as it says")
	}
	note(branch.CodeBusy, 1e9)
	if !ready(postponeMost) {
		t.Error("waits longer than postponeMost")
	}
	note(branch.DriveDeferred, 100)
	if ready(99*time.Millisecond) || !ready(100*time.Millisecond) {
		t.Error("no room for a moment waits for longer")
	}
	note(branch.CodeClaimed, 0)
	if !ready(0) {
		t.Error("a claimed id is still postponed")
	}
	for range maxPostponed + 10 {
		r.note(newID(0), branch.DriveResult{Code: branch.DriveDeferred}, now)
	}
	if len(r.ids) > maxPostponed {
		t.Errorf("%d ids remembered", len(r.ids))
	}
}
