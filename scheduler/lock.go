package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const (
	dispatchLock = 0x686f6c64 // advisory lock of the dispatcher, one per shard's database
	// lockMargin is for the reads of a pass and its last answers.
	lockMargin = 15 * time.Second
	// lockStuckAfter is how long another process may have the lock without
	// getting on before that is said.
	lockStuckAfter = 30 * time.Second
)

// lockIdle is how long a session that has the lock may be silent: as long as a
// pass takes, which does not speak on it. At worst the pass of a slow
// coordinator loses the lock, which does no harm.
func lockIdle(lease time.Duration) time.Duration { return passMost + lease + lockMargin }

// A lock that a frozen process keeps would keep the shard's dispatcher away from
// everybody: its kernel goes on acknowledging, so no keepalive ends the session.
// The bound on its silence comes in the statement that takes the lock, so that
// there is no moment with the one and without the other.
const (
	tryLockSQL = `
SELECT CASE WHEN pg_try_advisory_lock($1) THEN set_config('idle_session_timeout', $2, false) IS NOT NULL ELSE false END`
	unlockSQL   = `SELECT pg_advisory_unlock($1)`
	endBoundSQL = `RESET idle_session_timeout`
)

// tryLock takes the dispatcher's lock on a connection of its own; release is
// nil when another process has it.
//
// The server takes the lock back from a holder that is silent for too long, so
// for a moment there may be two that believe in it: one that was frozen wakes
// up. That does no harm. A hold that is handed over twice is claimed once; floor
// and watermark only ever go up; and what a stale pass knows stays true: the
// floor that it raised was committed, the transactions that it saw ended have
// ended, and which holds lie open below that floor it reads anew.
func (s *store) tryLock(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("take the dispatcher's lock: %w", err)
	}
	var got bool
	bound := strconv.FormatInt(s.lockIdle.Milliseconds(), 10) // a setting without a unit is in ms
	if err := conn.QueryRow(ctx, tryLockSQL, dispatchLock, bound).Scan(&got); err != nil {
		// The answer may have been lost after the lock was taken; closing the
		// connection gives it up.
		err = errors.Join(err, conn.Conn().Close(ctx))
		conn.Release()
		return nil, fmt.Errorf("take the dispatcher's lock: %w", err)
	}
	if !got {
		conn.Release()
		return nil, nil
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
		defer cancel()
		_, err := conn.Exec(ctx, unlockSQL, dispatchLock)
		if err == nil {
			_, err = conn.Exec(ctx, endBoundSQL)
		}
		if err != nil {
			_ = conn.Conn().Close(ctx) // neither lock nor bound may go back into the pool
		}
		conn.Release()
	}, nil
}

// lockWatch is what the dispatcher has seen of the lock in other hands.
type lockWatch struct {
	since            time.Time
	floor, watermark holdfast.HoldID
	xmin             uint64
	said             bool
}

// refused takes in that another process has the lock at the moment m, and
// answers for how long it has had it without getting on: each pass of a
// dispatcher that is well raises the floor, unless a long transaction is in its
// way, which keeps xmin where it is.
func (w *lockWatch) refused(m moment, now time.Time) time.Duration {
	pinned := m.xmin == w.xmin && m.xmin < m.xmax
	if w.since.IsZero() || m.floor != w.floor || m.watermark != w.watermark || pinned {
		w.since, w.floor, w.watermark = now, m.floor, m.watermark
	}
	w.xmin = m.xmin
	return now.Sub(w.since)
}

// watchLock says when overdue holds of a shard are driven by nobody because of
// a process that has the lock and does nothing.
func (s *Scheduler) watchLock(st *shardState, m moment, mine bool) {
	var stuck time.Duration
	// With clocks that disagree nobody raises the floor, and that is told.
	if mine || st.clocks.Load() != clocksAgree {
		st.lock.since = time.Time{}
	} else {
		stuck = st.lock.refused(m, time.Now())
	}
	s.metrics.stuck.WithLabelValues(st.label).Set(stuck.Seconds())
	switch {
	case stuck > lockStuckAfter && !st.lock.said:
		st.lock.said = true
		s.log.Warn("overdue holds are not driven: another process has the dispatcher's lock and does not get on",
			"shard", st.n, "for", stuck.Round(time.Second).String(), "ends_by_itself_after", st.store.lockIdle.String())
	case stuck <= lockStuckAfter && st.lock.said:
		st.lock.said = false
		s.log.Info("the dispatcher's lock is free again", "shard", st.n)
	}
}
