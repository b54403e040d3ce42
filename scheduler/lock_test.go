package scheduler

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func TestDispatchersLock(t *testing.T) {
	t.Parallel()
	t.Run("of_a_process_that_fell_silent_is_taken_back", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		frozen := newStore(w.shards.Reads(0), 3*time.Second)
		release, err := frozen.tryLock(t.Context()) // and says nothing more
		if err != nil || release == nil {
			t.Fatalf("the lock was not free: %v", err)
		}
		release = sync.OnceFunc(release)
		t.Cleanup(release) // or a failure waits for ever for the connection
		other := newStore(w.shards.Reads(0), time.Minute)
		if r, err := other.tryLock(t.Context()); err != nil || r != nil {
			t.Fatalf("two have the lock, or %v", err)
		}
		due := w.hold(0, -time.Minute)
		w.exec(0, dueAttemptSQL, [16]byte(due), "-1 second")
		w.redis = "" // only the dispatcher drives
		s := w.start(nil)
		w.waitClaimed(s, []holdfast.HoldID{due})

		// It wakes up and gives up what is no longer its own.
		var mine func()
		testkit.Eventually(t, patience, func() (bool, string) {
			mine, err = other.tryLock(t.Context())
			return mine != nil, fmt.Sprint("the lock is not to be had: ", err)
		})
		release()
		if r, err := newStore(w.shards.Reads(0), time.Minute).tryLock(t.Context()); err != nil || r != nil {
			t.Errorf("who woke up gave away another's lock, or %v", err)
		}
		mine()
	})
	t.Run("leaves_no_bound_on_the_connections_of_the_pool", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, 1)
		release, err := newStore(w.shards.Reads(0), time.Hour).tryLock(t.Context())
		if err != nil || release == nil {
			t.Fatalf("the lock was not free: %v", err)
		}
		release()
		conns := w.shards.Reads(0).AcquireAllIdle(t.Context())
		if len(conns) == 0 {
			t.Error("the connection did not come back")
		}
		for _, c := range conns {
			var bound string
			if err := c.QueryRow(t.Context(), `SELECT current_setting('idle_session_timeout')`).Scan(&bound); err != nil || bound != "0" {
				t.Errorf("idle_session_timeout is %q, %v", bound, err)
			}
			c.Release()
		}
	})
}

func TestLockWatch(t *testing.T) {
	t.Parallel()
	var w lockWatch
	now := time.Now()
	at := func(after time.Duration, m moment, want time.Duration) {
		t.Helper()
		if got := w.refused(m, now.Add(after)); got != want {
			t.Errorf("after %s: stuck for %s, want %s", after, got, want)
		}
	}
	m := moment{floor: idAt(1), watermark: idAt(1)}
	at(0, m, 0)
	at(time.Minute, m, time.Minute)
	m.floor = idAt(2) // the holder gets on
	at(2*time.Minute, m, 0)
	at(3*time.Minute, m, time.Minute)
	m.watermark = idAt(2)
	at(4*time.Minute, m, 0)
	m.xmin, m.xmax = 7, 9 // somebody's long transaction keeps the floor where it is
	at(5*time.Minute, m, time.Minute)
	at(6*time.Minute, m, 0)
	m.xmin = 9
	at(7*time.Minute, m, time.Minute)
}
