// Package bench is the load generator behind `holdfast bench`: it drives the
// public API of a running Holdfast in open or closed loop and reports rates,
// latencies from the intended start, execution lag, CPU, memory, log and disk
// bytes per hold, and whether the ledger is whole afterwards. It uses the
// product only from outside: HTTP, and read-only SQL on the shards where it is
// given their DSNs (funding many accounts is the one thing it writes there).
package bench

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
)

// Bench makes runs against one Holdfast. Its users are made once and serve all
// of them. Runs follow one another.
type Bench struct {
	Target
	seed                uint64
	senders, recipients int          // funded so far
	shards              *shardReader // nil without DSNs
	shardMap            *holdfast.ShardMap
}

// Open prepares runs against a target; it sends nothing yet.
func Open(t Target) (*Bench, error) {
	if t.Note == nil {
		t.Note = func(string, ...any) {}
	}
	b := &Bench{Target: t, seed: uint64(time.Now().UnixNano())}
	if len(t.DSNs) > 0 {
		var err error
		if b.shards, err = newShardReader(t.DSNs); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Run makes one run. When ctx ends early it reports what was measured until
// then. An error means that no measurement was possible.
func (t *Bench) Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	s := scenarios[slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == cfg.Scenario })]
	if err := s.possible(t); err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	b := &run{Bench: t, cfg: &cfg, report: newReport(&cfg), series: series{}}
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	b.begin(ctx)
	if cfg.PaymentLatency > 0 {
		if err := b.faults(ctx, simFaults{LatencyMS: cfg.PaymentLatency.Milliseconds()}); err != nil {
			return nil, err
		}
		defer b.mend(ctx)
	}
	if err := s.play(ctx, b); err != nil {
		return nil, err
	}
	// What follows must also be done after a Ctrl-C: it is the result. The
	// waiting for the holds alone is cut short by it.
	b.settle(ctx)
	if b.watched != nil {
		b.report.witnessed(b.watched().of(b.steadyFrom, b.steadyTo))
	}
	b.conclude(context.WithoutCancel(ctx))
	if b.acked == 0 && ctx.Err() == nil {
		return nil, fmt.Errorf("nothing was acknowledged, there is nothing to report: %v", b.report.Errors)
	}
	return b.report, nil
}

// run is one run between its steps.
type run struct {
	*Bench
	cfg    *Config
	report *Report

	start   time.Time // of the first request
	loadEnd time.Time
	lastDue time.Time // when the last hold that the run waits for matures; zero: it waits for none
	// Executions between these are counted per second; zero: from the first to
	// the last.
	steadyFrom, steadyTo time.Time
	before               counters
	watched              func() *witness // ends the watch; nil: there was none
	triggers             triggerMemory
	finish               func(firstExecuted, lastExecuted time.Time) // figures of the scenario; may be nil
	recovered            time.Time                                   // shard-down: when no hold was overdue

	mu     sync.Mutex // for what phases add to at the same time
	acked  int64
	sample []string
	series series
}

func (b *run) prepare(ctx context.Context) error {
	if len(b.DSNs) > 0 && b.cfg.Yardstick > 0 && b.PgBench != "" {
		b.Note("yardstick: pgbench, 64 clients, %s", b.cfg.Yardstick)
		var err error
		if b.report.YardstickPerS, err = yardstick(ctx, b.PgBench, b.DSNs[0], b.cfg.Yardstick); err != nil {
			b.Note("no yardstick: %v", err)
		}
	}
	return b.fund(ctx, b.cfg)
}

// begin remembers the counters before the load.
func (b *run) begin(ctx context.Context) {
	b.before = b.count(ctx)
	b.triggers.from(b.redis(ctx))
	resetPeak(b.PID)
	b.start = time.Now()
}

// main drives the phase whose rates and latencies are those of the report.
func (b *run) main(ctx context.Context, p phase) (*seen, error) {
	p.Start = time.Now()
	if b.shards != nil && b.cfg.settles() && b.watched == nil {
		b.watched = b.shards.watch(ctx)
	}
	s, err := b.load(ctx, p)
	if err != nil {
		return nil, err
	}
	b.loadEnd = time.Now()
	b.triggers.to(b.redis(ctx))
	elapsed := p.elapsed(b.loadEnd)
	if p.Step == stepCancel {
		b.report.cancels(s, elapsed)
		return s, nil
	}
	b.report.creates(s, elapsed)
	b.report.cancels(s, elapsed)
	switch {
	case !p.UnlockAt.IsZero():
		b.due(p.UnlockAt.Add(p.UnlockSpread))
	case b.cfg.settles():
		b.due(b.loadEnd.Add(p.DelayMax))
		// Maturities arrive at the full rate from the longest delay after the
		// start to the end of the load, if the run is that long.
		if from := p.Start.Add(p.Warmup + p.DelayMax); b.loadEnd.Sub(from) >= time.Second {
			b.steadyFrom, b.steadyTo = from, b.loadEnd
		}
	}
	return s, nil
}

// due makes the run wait for holds that mature until t.
func (b *run) due(t time.Time) {
	if t.After(b.lastDue) {
		b.lastDue = t
	}
}

// conclude reads the counters after the run and proves the ledger.
func (b *run) conclude(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	b.report.Acknowledged = b.acked
	b.report.used(b.before, b.count(ctx))
	b.report.RedisBytesPerTrigger, b.report.Triggers = b.triggers.perTrigger(), b.triggers.most
	b.report.RSSBytes = peakRSS(b.PID)
	if b.shards != nil {
		if err := b.outcome(ctx); err != nil {
			b.Note("the shards could not be read: %v", err)
		}
	} else {
		b.sampleLag(ctx)
	}
	b.report.line(b.start, b.series)
	b.report.derive()
	b.prove(ctx)
}

func (b *run) prove(ctx context.Context) {
	api := &apiclient.Client{API: b.API, Admin: b.Admin, Token: b.Token, HTTP: &http.Client{Timeout: 9 * time.Minute}}
	proof, raw, err := api.Prove(ctx)
	if err != nil {
		b.Note("the ledger could not be proven: %v", err)
		return
	}
	b.report.LedgerOK = proof.OK
	if !proof.OK {
		b.Note("the ledger is NOT whole: %s", raw)
	}
}
