package scheduler

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// sweepPage is how many ids are read and added at a time.
const sweepPage = 5000

// driftMost is how many triggers may be missing in Redis before the horizon is
// filled again; the dispatcher finds the few.
const driftMost = 500

// lookLoop looks at Redis's memory: whether it answers, what time it is there,
// and whether each shard's fill is still the one we know.
func (s *Scheduler) lookLoop(ctx context.Context) {
	if s.zset.rdb == nil {
		s.log.Warn("no Redis: overdue holds are driven from PostgreSQL")
		return
	}
	all := make([]int, len(s.shards))
	for i := range all {
		all[i] = i
	}
	for first := true; ; first = false {
		sent := s.cfg.Now()
		seen, err := s.zset.look(ctx, all...)
		if err != nil && ctx.Err() == nil {
			s.redisFailed(err, first)
		}
		if err == nil {
			s.redisAnswered(seen, offset(time.UnixMilli(seen[0].nowMS), sent, s.cfg.Now()))
		}
		if !sleep(ctx, s.cfg.CheckEvery) {
			return
		}
	}
}

func (s *Scheduler) redisAnswered(seen []memory, off time.Duration) {
	back := !s.redisUp.Load()
	for i, st := range s.shards {
		m := seen[i]
		st.mu.Lock()
		st.memory = m
		st.status.RedisOffsetMS = off.Milliseconds()
		// Whatever was to be added while Redis was away was dropped. And an
		// epoch older than one we have seen is a memory restored from a copy.
		if back {
			st.oldestEpochMS = max(st.oldestEpochMS, m.nowMS)
		}
		st.oldestEpochMS = max(st.oldestEpochMS, m.filledAtMS())
		if m.sweptToMS > st.mySweepMS {
			s.metrics.drift.DeleteLabelValues(st.label) // another process sweeps and measures
		}
		st.mu.Unlock()
		s.judgeClocks(st, true)
		s.metrics.triggers.WithLabelValues(st.label).Set(float64(m.pending + m.inflight))
	}
	s.redisAnswers()
	for _, st := range s.shards {
		poke(st.looked)
	}
}

// refill makes every fill until now worthless, so that the next sweep reads the
// whole horizon.
func (st *shardState) refill(now time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	at := now.UnixMilli() + st.status.RedisOffsetMS
	st.oldestEpochMS = max(st.oldestEpochMS, at)
}

// sweepLoop sweeps when a slice of the horizon is due, by whichever process
// last swept, or when Redis lost its memory.
func (s *Scheduler) sweepLoop(ctx context.Context, st *shardState) {
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.looked:
		}
		st.mu.Lock()
		due := s.sweepDue(st, st.memory)
		st.mu.Unlock()
		if !due || !s.redisUp.Load() || !s.open.Load() {
			continue
		}
		err := s.sweep(ctx, st)
		switch {
		case err == nil:
			failing = false
		case ctx.Err() == nil && !failing:
			failing = true
			s.log.Warn("sweep did not finish and will be repeated", "shard", st.n, "error", err)
		}
	}
}

// sweepDue reports whether there is something to add. Call with st.mu held.
func (s *Scheduler) sweepDue(st *shardState, m memory) bool {
	return st.lost(m) || m.sweptToMS < s.cfg.Now().Add(s.cfg.Horizon).UnixMilli()
}

// lost reports whether the triggers in Redis may not be all that were added.
func (st *shardState) lost(m memory) bool {
	filled := m.filledAtMS()
	return filled == 0 || filled < st.oldestEpochMS
}

// sweep adds what is PENDING in the next slice of the horizon, or in all of it
// after Redis lost its memory. What is shared about it, the epoch and where the
// next slice begins, is written only after Redis has acknowledged every add.
func (s *Scheduler) sweep(ctx context.Context, st *shardState) error {
	token, ttl := rand.Text(), max(s.cfg.SweepEvery/2, 10*time.Millisecond)
	got, err := s.zset.lock(ctx, st.n, token, ttl)
	if err != nil || !got {
		return err // another process is at it
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), redisTimeout)
		defer cancel()
		_ = s.zset.unlock(ctx, st.n, token) // the lock ends by itself
	}()
	seen, err := s.zset.look(ctx, st.n)
	if err != nil {
		return err
	}
	m := seen[0]
	st.mu.Lock()
	whole, due := st.lost(m), s.sweepDue(st, m)
	st.mu.Unlock()
	if !due {
		return nil
	}
	began := s.cfg.Now()
	// What matured in the last moments may have been lost with Redis's memory
	// and is worth a trigger; what is older is the dispatcher's.
	fromMS := began.Add(-s.cfg.OverdueAfter).UnixMilli()
	toMS := began.Add(s.cfg.Horizon + s.cfg.SweepEvery).UnixMilli()
	epoch := m.epoch
	if whole {
		// The time in the epoch is when the fill began: whatever was dropped
		// after that makes it worthless.
		epoch = fmt.Sprintf("%s:%d:%s", m.runID, m.nowMS, rand.Text())
	} else {
		fromMS = max(fromMS, m.sweptToMS)
	}
	added, err := s.fill(ctx, st, idAt(fromMS), idAt(toMS), token, ttl)
	if err != nil {
		return err
	}
	ok, err := s.zset.swept(ctx, st.n, token, m.epoch, epoch, toMS)
	if err != nil || !ok {
		return err // Redis forgot the lock: the next look sees why
	}
	st.mu.Lock()
	st.mySweepMS = toMS
	st.status.LastSweep, st.status.LastSweepAdded = began.UTC(), added
	st.mu.Unlock()
	return s.measureDrift(ctx, st, toMS, whole)
}

// fill adds the PENDING holds from one id to before another and keeps the lock
// while it does. A lock that was lost ends it: its new owner reads the same.
func (s *Scheduler) fill(ctx context.Context, st *shardState, from, to holdfast.HoldID, token string, ttl time.Duration) (added int, err error) {
	leaves, err := st.store.leaves(ctx, from, to)
	if err != nil {
		return 0, err
	}
	for _, leaf := range leaves {
		for after := from.Prior(); ; {
			page, err := st.store.page(ctx, leaf, isPending, after, to, sweepPage)
			if err != nil {
				return added, err
			}
			if len(page) > 0 {
				if err := s.filler.add(ctx, st.n, page); err != nil {
					return added, err
				}
				added += len(page)
				after = page[len(page)-1]
			}
			ok, err := s.zset.renew(ctx, st.n, token, ttl)
			if err != nil {
				return added, err
			}
			if !ok {
				return added, fmt.Errorf("the sweep lock was lost after %d adds", added)
			}
			if len(page) < sweepPage {
				break
			}
		}
	}
	return added, nil
}

// measureDrift compares the horizon in PostgreSQL with the triggers in Redis.
// More holds than triggers by more than the creates of a moment means that
// triggers were lost without a trace, and the horizon is filled anew, but not
// right after it was: a Redis that forgets as fast as it is told is not helped.
func (s *Scheduler) measureDrift(ctx context.Context, st *shardState, toMS int64, whole bool) error {
	now := s.cfg.Now()
	// The next moments are left out: they move while we count.
	fromMS := now.Add(time.Second).UnixMilli()
	holds, err := st.store.count(ctx, idAt(fromMS), idAt(toMS))
	if err != nil {
		return err
	}
	triggers, err := s.zset.countTriggers(ctx, st.n, fromMS, toMS)
	if err != nil {
		return err
	}
	drift := holds - triggers
	s.metrics.drift.WithLabelValues(st.label).Set(float64(drift))
	st.update(func(v *ShardStatus) { v.Drift = drift })
	if !whole && drift > max(driftMost, holds/20) {
		s.log.Warn("triggers are missing in Redis: the horizon is filled again", "shard", st.n,
			"holds", holds, "triggers", triggers)
		st.refill(now)
	}
	return nil
}
