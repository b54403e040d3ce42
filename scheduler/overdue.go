package scheduler

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const (
	// passMost bounds one pass, so that the watermark and the gauges follow a
	// drain that takes hours.
	passMost = 5 * time.Second
	// dispatchBatch is how many ids the coordinator is given at a time.
	dispatchBatch = 500
	// watermarkMargin is how far the watermark stays behind the shard's clock:
	// that clock may be set back a little, and a hold made after that must still
	// lie above.
	watermarkMargin = maxDisagreement
)

// dispatchLoop drives from PostgreSQL what Redis did not, whatever the reason.
func (s *Scheduler) dispatchLoop(ctx context.Context, st *shardState) {
	failing, reopened := false, s.reopened.Load()
	for pause := s.cfg.DispatchEvery; sleep(ctx, pause); {
		if n := s.reopened.Load(); n != reopened {
			reopened = n
			st.retry.clear() // what came back undone did so because of the breaker
		}
		began := time.Now()
		drove, err := s.pass(ctx, st)
		// Without Redis this is the only way a hold is driven, so look twice as
		// often; but never spend more than half of the time looking in vain.
		pause = s.cfg.DispatchEvery
		if !s.redisUp.Load() {
			pause /= 2
		}
		if drove == 0 {
			pause = max(pause, time.Since(began))
		}
		if ctx.Err() != nil {
			return
		}
		text := ""
		if err = errors.Join(err, st.ages.err); err != nil {
			text = err.Error()
			if !failing {
				s.log.Warn("the shard could not be looked at and will be again", "shard", st.n, "error", err)
			}
		} else if failing {
			s.log.Info("the shard is looked at again", "shard", st.n)
		}
		failing = err != nil
		st.update(func(v *ShardStatus) { v.Error = text })
	}
}

// pass looks once at one shard: it measures, moves the watermark, and drives
// what is overdue. Only one process per shard goes beyond the measuring. It
// answers how many ids it handed over.
func (s *Scheduler) pass(ctx context.Context, st *shardState) (drove int, err error) {
	m, err := st.store.moment(ctx)
	if err != nil {
		return 0, err
	}
	oldest, err := s.measure(ctx, st, m)
	if err != nil {
		return 0, err
	}
	release, err := st.store.tryLock(ctx)
	if err != nil {
		return 0, err
	}
	s.watchLock(st, m, release != nil)
	if release == nil {
		return 0, nil
	}
	defer release()
	if err := s.advance(ctx, st, m); err != nil {
		return 0, err
	}
	// The rule of the design is that PostgreSQL drives from OverdueAfter on;
	// without Redis there is nobody to wait for.
	after := s.cfg.OverdueAfter
	if !s.redisUp.Load() {
		after = 0
	}
	late := time.Duration(m.nowMS-oldest.UnlockAtMS()) * time.Millisecond
	drain := s.mayDrive(st) && late > after
	st.update(func(v *ShardStatus) { v.Draining = drain })
	if !s.mayDrive(st) {
		return 0, nil
	}
	return s.dispatch(ctx, st, m, drain)
}

// measure finds the oldest matured PENDING hold above the watermark and says
// how late it is. Below the watermark PENDING holds wait for their row in
// attempts; of these the first few are looked at.
func (s *Scheduler) measure(ctx context.Context, st *shardState, m moment) (holdfast.HoldID, error) {
	now := idAt(m.nowMS)
	oldest, err := st.store.first(ctx, isPending+noAttempts, m.watermark, now)
	if err != nil {
		return oldest, err
	}
	waiting, err := st.store.oldestWaiting(ctx)
	if err != nil {
		return oldest, err
	}
	seconds := float64(m.nowMS-min(oldest.UnlockAtMS(), waiting.UnlockAtMS(), m.nowMS)) / 1000
	s.metrics.overdue.WithLabelValues(st.label).Set(seconds)
	st.update(func(v *ShardStatus) { v.OldestOverdueS, v.Watermark = seconds, m.watermark })
	// A look that ends with an error leaves the gauges at what the last one
	// found; only this one tells that they are old. What cannot be aged must
	// not stop the driving: the loop tells the error.
	if s.age(ctx, st, m); st.ages.err == nil {
		s.metrics.looked.WithLabelValues(st.label).Set(float64(s.cfg.Now().UnixMilli()) / 1000)
	}
	return oldest, nil
}

// advance moves the watermark up to the first hold that has not ended and has
// no row in attempts, in two steps. First the floor: from its commit on no Try
// makes a hold below it, whatever the shard's clock does. A Try takes its
// transaction id before it reads the floor; so once every transaction that had
// an id right after that commit has ended, nothing can appear below the floor
// any more, and the watermark follows.
func (s *Scheduler) advance(ctx context.Context, st *shardState, m moment) error {
	if st.clocks.Load() != clocksAgree {
		// A shard whose clock is ahead must not carry the floor to where holds
		// are still to be made.
		st.candidate = moment{}
		return nil
	}
	if was := st.candidate; was.xmax != 0 {
		if m.xmin < was.xmax {
			return nil
		}
		if before(m.watermark, was.floor) {
			// This reads in a snapshot later than m's, so it sees what they committed.
			if err := st.store.moveWatermark(ctx, m.watermark, was.floor); err != nil {
				return err
			}
		}
	}
	floor := idAt(min(m.nowMS, s.cfg.Now().UnixMilli()) - watermarkMargin.Milliseconds())
	if err := st.store.raiseFloor(ctx, floor); err != nil {
		return err
	}
	after, err := st.store.moment(ctx)
	if err != nil {
		return err
	}
	st.candidate = after
	return nil
}

// run is one pass of driving: a few batches in flight, ids in order.
type run struct {
	s       *Scheduler
	st      *shardState
	slots   chan struct{}
	batches sync.WaitGroup
	pacer   pacer
	drove   int
	until   time.Time
}

// dispatch drives what is overdue at the moment m: rows of attempts that are
// due, EXECUTING holds whose driver went away, and, when draining, PENDING ones.
func (s *Scheduler) dispatch(ctx context.Context, st *shardState, m moment, drain bool) (drove int, err error) {
	r := &run{s: s, st: st, slots: make(chan struct{}, s.cfg.Workers), until: time.Now().Add(passMost)}
	defer r.batches.Wait() // the lock is held until the last answer
	if err := r.stragglers(ctx); err != nil {
		return r.drove, err
	}
	where := isAbandoned
	if drain {
		where = isDue
	}
	end := idAt(m.nowMS)
	leaves, err := st.store.leaves(ctx, m.watermark, end)
	if err != nil {
		return r.drove, err
	}
	for _, leaf := range leaves {
		for after := m.watermark.Prior(); ; {
			page, err := st.store.page(ctx, leaf, where, after, end, dispatchBatch)
			if err != nil {
				return r.drove, err
			}
			if !r.drive(ctx, page) {
				return r.drove, nil
			}
			if len(page) < dispatchBatch {
				break
			}
			after = page[len(page)-1]
		}
	}
	return r.drove, nil
}

// stragglers drives the due rows of attempts. It takes at most half of a pass,
// so that many of them do not starve the range above the watermark.
func (r *run) stragglers(ctx context.Context) error {
	half := time.Now().Add(passMost / 2)
	var after straggler
	for time.Now().Before(half) {
		rows, err := r.st.store.stragglers(ctx, after, dispatchBatch)
		if err != nil {
			return err
		}
		page := make([]holdfast.HoldID, len(rows))
		for i, row := range rows {
			page[i] = row.ID
		}
		if !r.drive(ctx, page) || len(rows) < dispatchBatch {
			return nil
		}
		after = rows[len(rows)-1]
	}
	return nil
}

// drive hands ids over when there is room, at the drain rate as far as they are
// the backlog of an outage, and reports whether the pass may go on.
func (r *run) drive(ctx context.Context, page []holdfast.HoldID) bool {
	s, st := r.s, r.st
	page = st.retry.ready(page, s.cfg.Now())
	for len(page) > 0 {
		n := len(page)
		if page[0].UnlockAtMS() < s.backlogMS.Load() {
			// Pieces of a quarter of a second, so that the rate is a rate and not
			// a row of bursts.
			rate := s.drainRate(st)
			n = min(n, max(1, int(rate/4)))
			if !r.pacer.wait(ctx, n, rate) {
				return false
			}
		}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		if !s.mayDrive(st) || time.Now().After(r.until) {
			<-r.slots
			return false
		}
		batch := page[:n]
		page = page[n:]
		r.drove += n
		r.batches.Go(func() {
			defer func() { <-r.slots }()
			for i, answer := range s.drive(context.WithoutCancel(ctx), st, "postgresql", batch) {
				st.retry.note(batch[i], answer, s.cfg.Now())
			}
		})
	}
	return true
}
