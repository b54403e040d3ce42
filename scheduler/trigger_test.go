package scheduler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func TestTriggers(t *testing.T) {
	t.Parallel()
	t.Run("due_ids_are_driven_once_and_never_early", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 2)
		s := w.start(nil)
		var all []holdfast.HoldID
		for shard := range 2 {
			ids := w.holds(shard, 100, time.Second, 5*time.Millisecond)
			s.Triggers(t.Context(), shard, ids)
			all = append(all, ids...)
		}
		w.waitClaimed(s, all)
		w.driver.mu.Lock()
		defer w.driver.mu.Unlock()
		for id, n := range w.driver.claimed {
			if n != 1 {
				t.Errorf("%s was claimed %d times", id, n)
			}
		}
		if len(w.driver.early) > 0 {
			t.Errorf("driven before maturity: %v", w.driver.early)
		}
	})
	t.Run("an_earlier_trigger_wakes_the_sleeping_loop", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		// Without the dispatcher, only the claim loop can drive.
		s := w.start(func(c *Config) { c.OverdueAfter = time.Hour })
		later := w.hold(0, time.Minute)
		s.Triggers(t.Context(), 0, []holdfast.HoldID{later})
		w.waitPending(s, 0, 1)
		soon := w.hold(0, 50*time.Millisecond)
		s.Triggers(t.Context(), 0, []holdfast.HoldID{soon})
		w.waitClaimed(s, []holdfast.HoldID{soon})
		if n := w.driver.timesSeen(later); n != 0 {
			t.Errorf("the later one was driven %d times", n)
		}
	})
	t.Run("beyond_the_reach_is_left_to_the_sweeper", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		s := w.start(nil)
		waitEpoch(t, s, "") // before, Redis was not looked at and triggers are dropped
		near := newID(6 * time.Minute)
		s.Triggers(t.Context(), 0, []holdfast.HoldID{newID(time.Hour), near})
		w.waitPending(s, 0, 1)
	})
}

func TestUnsettled(t *testing.T) {
	t.Parallel()
	t.Run("not_due_is_put_back", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		id := w.hold(0, 300*time.Millisecond)
		w.driver.bend = func(_ int, id holdfast.HoldID) (branch.DriveResult, bool) {
			return branch.DriveResult{Code: branch.CodeNotDue, InMS: 100}, w.driver.seen[id] <= 3
		}
		s := w.start(func(c *Config) { c.OverdueAfter = time.Hour })
		s.Triggers(t.Context(), 0, []holdfast.HoldID{id})
		w.waitClaimed(s, []holdfast.HoldID{id})
		if n := w.driver.timesSeen(id); n != 4 {
			t.Errorf("seen %d times, want 3 early and 1 due", n)
		}
	})
	t.Run("deferred_is_left_to_the_dispatcher", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		id := w.hold(0, 100*time.Millisecond)
		w.driver.bend = func(_ int, id holdfast.HoldID) (branch.DriveResult, bool) {
			return branch.DriveResult{Code: branch.DriveDeferred}, w.driver.seen[id] == 1
		}
		s := w.start(func(c *Config) { c.OverdueAfter = 300 * time.Millisecond })
		s.Triggers(t.Context(), 0, []holdfast.HoldID{id})
		w.waitClaimed(s, []holdfast.HoldID{id})
		w.waitPending(s, 0, 0)
	})
	t.Run("two_schedulers_claim_each_once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		a, b := w.start(nil), w.start(nil)
		ids := w.holds(0, 200, time.Second, 3*time.Millisecond)
		a.Triggers(t.Context(), 0, ids[:100])
		b.Triggers(t.Context(), 0, ids[100:])
		w.waitClaimed(a, ids)
		w.driver.mu.Lock()
		defer w.driver.mu.Unlock()
		if len(w.driver.order) != len(ids) || len(w.driver.early) > 0 {
			t.Errorf("%d claims of %d holds, early: %v", len(w.driver.order), len(ids), w.driver.early)
		}
	})
}

func newZ(t *testing.T) *zset {
	t.Helper()
	return newZAt(t, testkit.Redis(t))
}

func newZAt(t *testing.T, url string) *zset {
	t.Helper()
	z, err := newZset(url, 4, testkit.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = z.close() })
	return z
}

func claim(t *testing.T, z *zset, most int, lease time.Duration) claimed {
	t.Helper()
	c, err := z.claim(t.Context(), 0, most, lease)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClaim(t *testing.T) {
	t.Parallel()
	t.Run("takes_due_ids_in_order_and_tells_the_next", func(t *testing.T) {
		t.Parallel()
		z := newZ(t)
		ids := []holdfast.HoldID{newID(-3 * time.Second), newID(-2 * time.Second), newID(-time.Second), newID(time.Hour)}
		if err := z.add(t.Context(), 0, ids); err != nil {
			t.Fatal(err)
		}
		first := claim(t, z, 2, 2*time.Hour)
		rest := claim(t, z, 500, 2*time.Hour)
		if fmt.Sprint(first.ids, rest.ids) != fmt.Sprint(ids[:2], ids[2:3]) {
			t.Errorf("claimed %v and %v of %v", first.ids, rest.ids, ids)
		}
		if first.nextMS != ids[2].UnlockAtMS() || rest.nextMS != ids[3].UnlockAtMS() {
			t.Errorf("next %d and %d", first.nextMS, rest.nextMS)
		}
		if err := z.forget(t.Context(), 0, append(first.ids, rest.ids...)); err != nil {
			t.Fatal(err)
		}
		m, err := z.look(t.Context(), 0)
		if err != nil || m[0].pending != 1 || m[0].inflight != 0 {
			t.Errorf("after forgetting: %+v, %v", m, err)
		}
	})
	t.Run("a_lease_that_is_over_comes_back", func(t *testing.T) {
		t.Parallel()
		z := newZ(t)
		id := newID(-time.Second)
		if err := z.add(t.Context(), 0, []holdfast.HoldID{id}); err != nil {
			t.Fatal(err)
		}
		c := claim(t, z, 500, 200*time.Millisecond)
		if len(c.ids) != 1 || c.nextMS != c.nowMS+200 {
			t.Fatalf("claimed %+v", c)
		}
		testkit.Eventually(t, patience, func() (bool, string) {
			again := claim(t, z, 500, time.Hour)
			if len(again.ids) > 0 && again.nowMS < c.nextMS {
				t.Fatalf("came back %d ms before its lease was over", c.nextMS-again.nowMS)
			}
			return len(again.ids) == 1 && again.ids[0] == id, "still leased"
		})
	})
	t.Run("an_add_does_not_move_a_trigger_that_was_put_back", func(t *testing.T) {
		t.Parallel()
		z := newZ(t)
		id := newID(-time.Second)
		if err := z.add(t.Context(), 0, []holdfast.HoldID{id}); err != nil {
			t.Fatal(err)
		}
		c := claim(t, z, 500, time.Hour)
		at, err := z.putBack(t.Context(), 0, c.ids, []int64{60_000})
		if err != nil || at < c.nowMS+60_000 {
			t.Fatalf("put back for %d: %v", at, err)
		}
		if err := z.add(t.Context(), 0, []holdfast.HoldID{id}); err != nil {
			t.Fatal(err)
		}
		if c := claim(t, z, 500, time.Hour); len(c.ids) != 0 || c.nextMS != at {
			t.Errorf("claimed %+v, want nothing until %d", c, at)
		}
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	t.Run("waits_for_the_batches_that_the_coordinator_has", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		entered, release := make(chan struct{}), make(chan struct{})
		slow := &slowDriver{fakeDriver: w.driver, entered: entered, release: release}
		s, err := New(Config{Shards: w.shards, RedisURL: w.redis, Driver: slow, Log: testkit.Logger(t), OverdueAfter: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		s.Start(t.Context())
		id := w.hold(0, 100*time.Millisecond)
		s.Triggers(t.Context(), 0, []holdfast.HoldID{id})
		// Redis may be looked at for the first time after the trigger came; then
		// the sweep adds it.
		<-entered
		closed := make(chan error, 1)
		go func() { closed <- s.Close(context.WithoutCancel(t.Context())) }()
		select {
		case err := <-closed:
			t.Fatalf("closed while a batch was out: %v", err)
		case <-time.After(200 * time.Millisecond):
		}
		close(release)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if w.driver.claimed[id] != 1 {
			t.Error("the batch was cut short")
		}
	})
}

// slowDriver answers when it is released.
type slowDriver struct {
	*fakeDriver
	once             sync.Once
	entered, release chan struct{}
}

func (d *slowDriver) Drive(ctx context.Context, shard int, ids []holdfast.HoldID) []branch.DriveResult {
	d.once.Do(func() { close(d.entered) })
	<-d.release
	return d.fakeDriver.Drive(ctx, shard, ids)
}
