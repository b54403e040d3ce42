package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/prometheus/client_golang/prometheus"
)

// maxQueued bounds the triggers of new holds that wait for Redis, per shard.
const maxQueued = 100_000

// FillerConfig is what a filler needs. Fields left zero take the default named.
type FillerConfig struct {
	RedisURL   string        // redis://, rediss:// or unix://
	Shards     int           // how many there are
	Horizon    time.Duration // 5 min, and
	SweepEvery time.Duration // 1 min: the same as the schedulers', which sweep what lies beyond
	// Open reports whether holds are driven at all; nil = they are. While they
	// are not nothing is filled: Redis is not made to hold the backlog.
	Open    func() bool
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Now     func() time.Time
}

// Filler sets the triggers of new holds in Redis. It is a part of every
// Scheduler, and stands alone in a coordinator process whose schedulers run
// elsewhere; it needs no shard for that and claims nothing.
type Filler struct {
	*link
	runner
	zset    *zset
	queues  []*queue
	reach   time.Duration
	every   time.Duration // between looks at Redis
	open    func() bool
	now     func() time.Time
	added   func(shard int, firstMS int64) // told of every add; nil when it stands alone
	dropped *prometheus.CounterVec
}

// queue collects the triggers of new holds for one shard.
type queue struct {
	mu   sync.Mutex
	ids  []holdfast.HoldID
	more chan struct{}
}

// NewFiller makes a filler that stands alone; it connects to nothing yet.
func NewFiller(cfg FillerConfig) (*Filler, error) {
	if cfg.RedisURL == "" || cfg.Shards < 1 {
		return nil, errors.New("scheduler: a filler needs a RedisURL and the number of Shards")
	}
	if cfg.Open == nil {
		cfg.Open = func() bool { return true }
	}
	all := Config{Horizon: cfg.Horizon, SweepEvery: cfg.SweepEvery, Log: cfg.Log, Metrics: cfg.Metrics, Now: cfg.Now}
	if err := all.complete(); err != nil {
		return nil, err
	}
	z, err := newZset(cfg.RedisURL, cfg.Shards+1, all.Log)
	if err != nil {
		return nil, err
	}
	m, err := newFillMetrics(all.Metrics)
	if err != nil {
		return nil, err
	}
	return newFiller(&all, cfg.Shards, z, m, &link{log: all.Log, gauge: m.redisUp}, cfg.Open), nil
}

func newFiller(cfg *Config, shards int, z *zset, m *fillMetrics, l *link, open func() bool) *Filler {
	f := &Filler{link: l, zset: z, reach: cfg.reach(), every: cfg.CheckEvery, open: open, now: cfg.Now, dropped: m.dropped}
	for range shards {
		f.queues = append(f.queues, &queue{more: make(chan struct{}, 1)})
	}
	return f
}

// Start starts the loops; they end with ctx or Close.
func (f *Filler) Start(ctx context.Context) {
	ctx = f.begin(ctx)
	f.loops.Go(func() { f.lookLoop(ctx) })
	f.startQueues(ctx, &f.loops)
}

func (f *Filler) startQueues(ctx context.Context, loops *sync.WaitGroup) {
	for shard := range f.queues {
		loops.Go(func() { f.fillLoop(ctx, shard) })
	}
}

// Close adds what is still queued, if Redis takes it, and stops.
func (f *Filler) Close(ctx context.Context) error {
	if err := f.end(ctx, "filler"); err != nil {
		return err
	}
	return f.zset.close()
}

// Triggers is told of new holds after their commit. It never blocks and keeps
// no promise: what does not fit or does not reach Redis is found by the sweeper
// or the dispatcher.
func (f *Filler) Triggers(_ context.Context, shard int, holds []holdfast.HoldID) {
	if shard < 0 || shard >= len(f.queues) || f.zset.rdb == nil {
		return
	}
	q := f.queues[shard]
	reach := f.now().Add(f.reach).UnixMilli()
	dropped := 0
	q.mu.Lock()
	for _, id := range holds {
		if id.UnlockAtMS() >= reach {
			continue // a later sweep finds it
		}
		if len(q.ids) >= maxQueued {
			dropped++
			continue
		}
		q.ids = append(q.ids, id)
	}
	q.mu.Unlock()
	f.drop(shard, dropped)
	poke(q.more)
}

func (f *Filler) drop(shard, n int) {
	if n > 0 {
		f.dropped.WithLabelValues(strconv.Itoa(shard)).Add(float64(n))
	}
}

func (f *Filler) fillLoop(ctx context.Context, shard int) {
	q := f.queues[shard]
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false // after one last look at the queue
		case <-q.more:
		}
		q.mu.Lock()
		ids := q.ids
		q.ids = nil
		q.mu.Unlock()
		if len(ids) == 0 {
			continue
		}
		// While the breaker is open nothing is filled; when it lets calls
		// through again the schedulers fill the whole horizon.
		if !f.open() || !f.redisUp.Load() {
			f.drop(shard, len(ids))
			continue
		}
		if err := f.add(context.WithoutCancel(ctx), shard, ids); err != nil {
			f.redisFailed(err, false)
			f.drop(shard, len(ids))
		}
	}
}

// add adds triggers, which wakes the claim loop of this process if one is due
// before it would wake by itself.
func (f *Filler) add(ctx context.Context, shard int, ids []holdfast.HoldID) error {
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	if err := f.zset.add(ctx, shard, ids); err != nil {
		return err
	}
	if f.added != nil {
		first := slices.MinFunc(ids, func(a, b holdfast.HoldID) int { return int(a.UnlockAtMS() - b.UnlockAtMS()) })
		f.added(shard, first.UnlockAtMS())
	}
	return nil
}

// lookLoop finds out whether Redis answers; a scheduler does so while it looks
// at Redis's memory.
func (f *Filler) lookLoop(ctx context.Context) {
	for first := true; ; first = false {
		_, err := f.zset.look(ctx, 0)
		switch {
		case err == nil:
			f.redisAnswers()
		case ctx.Err() == nil:
			f.redisFailed(err, first)
		}
		if !sleep(ctx, f.every) {
			return
		}
	}
}

// link is what is known of the way to Redis.
type link struct {
	log     *slog.Logger
	gauge   prometheus.Gauge
	redisUp atomic.Bool
}

// RedisUp reports whether Redis answered when it was last asked.
func (l *link) RedisUp() bool { return l.redisUp.Load() }

// redisFailed says once that Redis is away; always forces the line, for a
// Redis that never answered.
func (l *link) redisFailed(err error, always bool) {
	if l.redisUp.Swap(false) || always {
		l.gauge.Set(0)
		l.log.Warn("Redis does not answer: overdue holds are driven from PostgreSQL", "error", err)
	}
}

func (l *link) redisAnswers() {
	if !l.redisUp.Swap(true) {
		l.gauge.Set(1)
		l.log.Info("Redis answers: triggers run")
	}
}
