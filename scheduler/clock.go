package scheduler

import (
	"context"
	"time"
)

// maxDisagreement is how far the clocks of shard, Redis and process may be
// apart. Beyond it nobody can say what is due, and maturity is a promise.
const maxDisagreement = 2 * time.Second

// What is known of the clocks of a shard.
const (
	clocksUnread int32 = iota
	clocksAgree
	clocksDisagree
)

// clockLoop keeps comparing the three clocks and stops the driving of a shard
// while they disagree. A clock that cannot be read changes nothing: then its
// owner is away, which is somebody else's to report.
func (s *Scheduler) clockLoop(ctx context.Context, st *shardState) {
	for {
		s.compareClocks(ctx, st)
		if !sleep(ctx, s.cfg.CheckEvery) {
			return
		}
	}
}

func (s *Scheduler) compareClocks(ctx context.Context, st *shardState) {
	asking, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	sent := s.cfg.Now()
	t, err := st.store.clock(asking)
	if err != nil {
		return
	}
	off := offset(t, sent, s.cfg.Now())
	st.update(func(v *ShardStatus) { v.ShardOffsetMS = off.Milliseconds() })
	st.shardRead.Store(true)
	s.judgeClocks(st, s.redisUp.Load())
}

// judgeClocks decides from the last readings whether the shard may be driven.
// Before the shard's clock was read once, it may not.
func (s *Scheduler) judgeClocks(st *shardState, withRedis bool) {
	if !st.shardRead.Load() {
		return
	}
	var shard, ofRedis time.Duration
	st.update(func(v *ShardStatus) {
		shard = time.Duration(v.ShardOffsetMS) * time.Millisecond
		ofRedis = time.Duration(v.RedisOffsetMS) * time.Millisecond
	})
	worst := shard.Abs()
	if withRedis {
		worst = max(worst, ofRedis.Abs(), (shard - ofRedis).Abs())
	}
	s.metrics.clocks.WithLabelValues(st.label).Set(worst.Seconds())
	now := clocksAgree
	if worst > maxDisagreement {
		now = clocksDisagree
	}
	was := st.clocks.Swap(now)
	if was == now {
		return
	}
	if now == clocksDisagree {
		s.log.Error("clocks disagree: the shard is not driven until they agree", "shard", st.n,
			"shard_minus_process_ms", shard.Milliseconds(), "redis_minus_process_ms", ofRedis.Milliseconds())
	} else if was == clocksDisagree {
		s.log.Info("clocks agree again: the shard is driven", "shard", st.n)
	}
}

// offset is a remote clock minus ours, supposing that it was read in the middle
// of the question.
func offset(remote, sent, received time.Time) time.Duration {
	return remote.Sub(sent.Add(received.Sub(sent) / 2))
}
