// Package scheduler wakes holds at maturity. Redis holds triggers of the next
// minutes, PostgreSQL drives whatever is overdue, and the coordinator, reached
// through Driver, decides: a trigger is only a hint, and one that is early,
// late, doubled, forged or lost changes nothing but the delay. So the scheduler
// may lose everything it has in Redis or in memory at any moment, may run many
// times over, and may be paused for longer than any lease.
//
// It promises that no hold is handed to the coordinator before its maturity by
// Redis's or the shard's clock, that a matured hold is handed over within about
// two seconds once nothing is broken any more, and that after an outage the
// backlog goes in maturity order at a bounded rate.
//
// It must not know how a payment is made, move money, or write anything on a
// shard but the watermark.
package scheduler

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Scheduler runs the loops of every shard. Start it once, Close it to stop.
type Scheduler struct {
	*link
	runner
	cfg     Config
	metrics *metrics
	zset    *zset
	filler  *Filler
	shards  []*shardState

	open atomic.Bool // the payment breaker lets calls through
	// backlogMS: holds that matured before this moment had to wait for an
	// outage. They are PostgreSQL's to drive, in order and at the drain rate.
	backlogMS atomic.Int64
	reopened  atomic.Int64 // how often the breaker let calls through again
}

// shardState is what the loops of one shard share.
type shardState struct {
	n     int
	label string
	store *store
	meter meter
	retry retries

	wake        chan struct{} // an earlier trigger has come than the claim loop sleeps for
	sleepingFor atomic.Int64  // Redis's ms of the next trigger that the claim loop knows
	looked      chan struct{} // Redis was looked at
	clocks      atomic.Int32  // clocksUnread, clocksAgree or clocksDisagree
	shardRead   atomic.Bool   // the shard's clock was read once

	candidate moment    // the dispatcher's own; see advance
	lock      lockWatch // the dispatcher's own

	ages ages // the dispatcher's own

	mu     sync.Mutex // guards what follows
	memory memory
	// oldestEpochMS: a fill that was finished before is of no use any more,
	// because triggers were dropped or lost since.
	oldestEpochMS int64
	mySweepMS     int64 // where my own last sweep ended
	status        ShardStatus
}

// Status is the JSON view of GET /admin/v1/scheduler.
type Status struct {
	RedisUp     bool          `json:"redis_up"`
	BreakerOpen bool          `json:"breaker_open"` // the payment breaker: nothing is popped or filled
	Shards      []ShardStatus `json:"shards"`
}

// ShardStatus is one shard as the scheduler last saw it.
type ShardStatus struct {
	Shard          int             `json:"shard"`
	Pending        int64           `json:"pending"`  // triggers in Redis
	Inflight       int64           `json:"inflight"` // triggers under a lease
	Epoch          string          `json:"epoch,omitempty"`
	SweptTo        time.Time       `json:"swept_to,omitzero"`
	LastSweep      time.Time       `json:"last_sweep,omitzero"` // by this process
	LastSweepAdded int             `json:"last_sweep_added"`
	Drift          int64           `json:"drift"`
	Watermark      holdfast.HoldID `json:"watermark"`
	OldestOverdueS float64         `json:"oldest_overdue_seconds"`
	Draining       bool            `json:"draining"`
	ShardOffsetMS  int64           `json:"shard_offset_ms"` // shard − process
	RedisOffsetMS  int64           `json:"redis_offset_ms"` // Redis − process
	ClocksDisagree bool            `json:"clocks_disagree"`
	Error          string          `json:"error,omitempty"` // why PostgreSQL could not be looked at
}

// New checks the settings; it connects to nothing. Redis may be away, now and
// at any time.
func New(cfg Config) (*Scheduler, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	n := cfg.Shards.N()
	z, err := newZset(cfg.RedisURL, n*(cfg.Workers+4)+2, cfg.Log)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	s := &Scheduler{link: &link{log: cfg.Log, gauge: m.redisUp}, cfg: cfg, metrics: m, zset: z}
	s.filler = newFiller(&cfg, n, z, &m.fillMetrics, s.link, s.open.Load)
	s.filler.added = func(shard int, firstMS int64) { s.shards[shard].dueAt(firstMS) }
	for i := range n {
		// A shard that cannot be looked at from the start has a series too.
		m.looked.WithLabelValues(strconv.Itoa(i)).Set(0)
		s.shards = append(s.shards, &shardState{
			n: i, label: strconv.Itoa(i), store: newStore(cfg.Shards.Reads(i), lockIdle(cfg.Lease)),

			wake: make(chan struct{}, 1), looked: make(chan struct{}, 1),
			status: ShardStatus{Shard: i},
		})
	}
	return s, nil
}

// Start starts the loops; they end with ctx or Close.
func (s *Scheduler) Start(ctx context.Context) {
	ctx = s.begin(ctx)
	s.backlogMS.Store(s.cfg.Now().UnixMilli())
	s.askGate(ctx)
	s.loops.Go(func() { s.gateLoop(ctx) })
	s.loops.Go(func() { s.lookLoop(ctx) })
	for _, st := range s.shards {
		s.loops.Go(func() { s.clockLoop(ctx, st) })
		s.loops.Go(func() { s.dispatchLoop(ctx, st) })
		if s.zset.rdb == nil {
			continue
		}
		s.loops.Go(func() { s.sweepLoop(ctx, st) })
		s.loops.Go(func() { s.claimLoop(ctx, st) })
	}
	s.filler.startQueues(ctx, &s.loops)
}

// Triggers is told of new holds after their commit; see Filler.Triggers.
func (s *Scheduler) Triggers(ctx context.Context, shard int, holds []holdfast.HoldID) {
	s.filler.Triggers(ctx, shard, holds)
}

// Close stops popping, waits for the batches that the coordinator has, and
// gives the locks up. A trigger whose batch is not answered by the deadline of
// ctx keeps its lease.
func (s *Scheduler) Close(ctx context.Context) error {
	if err := s.end(ctx, "scheduler"); err != nil {
		return err
	}
	return s.zset.close()
}

// Status is what GET /admin/v1/scheduler shows; it asks nobody.
func (s *Scheduler) Status(context.Context) any {
	out := Status{RedisUp: s.redisUp.Load(), BreakerOpen: !s.open.Load()}
	for _, st := range s.shards {
		st.mu.Lock()
		v := st.status
		v.Pending, v.Inflight, v.Epoch = st.memory.pending, st.memory.inflight, st.memory.epoch
		if st.memory.sweptToMS > 0 {
			v.SweptTo = time.UnixMilli(st.memory.sweptToMS).UTC()
		}
		st.mu.Unlock()
		v.ClocksDisagree = st.clocks.Load() == clocksDisagree
		out.Shards = append(out.Shards, v)
	}
	return out
}

// mayDrive reports whether ids of a shard may be handed to the coordinator.
func (s *Scheduler) mayDrive(st *shardState) bool {
	return s.open.Load() && st.clocks.Load() == clocksAgree
}

// gateEvery bounds how long after the breaker has opened triggers are popped;
// the coordinator's permits stop their claims in any case.
const gateEvery = 100 * time.Millisecond

func (s *Scheduler) gateLoop(ctx context.Context) {
	for sleep(ctx, gateEvery) {
		s.askGate(ctx)
	}
}

func (s *Scheduler) askGate(ctx context.Context) {
	asking, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	open := s.cfg.Driver.Open(asking)
	if ctx.Err() != nil || s.open.Load() == open {
		return
	}
	if open {
		// What matured meanwhile is a backlog. Triggers were not filled, so the
		// horizon must be read again.
		s.backlogMS.Store(s.cfg.Now().UnixMilli())
		s.reopened.Add(1)
		for _, st := range s.shards {
			st.refill(s.cfg.Now())
		}
		s.log.Info("triggers run: the coordinator takes holds")
	} else {
		s.log.Warn("triggers pause: the payment breaker is open or the coordinator does not answer")
	}
	s.open.Store(open)
}

// update changes the shard's status under its lock.
func (st *shardState) update(f func(*ShardStatus)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	f(&st.status)
}
