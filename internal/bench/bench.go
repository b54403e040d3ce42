// Package bench is the load generator behind `holdfast bench`: it drives the
// public API of a running Holdfast in open or closed loop and reports rates,
// latencies from the intended start, execution lag, CPU and WAL per hold, and
// whether the ledger is whole afterwards. It uses the product only from outside:
// HTTP, and read-only SQL on the shards where it is given their DSNs (funding
// many accounts is the one thing it writes there).
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/apiclient"
)

// Scenarios lists the loads in the order in which the help shows them.
var Scenarios = []string{"lifecycle", "create", "batch", "cancel", "cliff"}

// Config is what a run needs. API is a base URL.
type Config struct {
	API, Admin, Token string
	DSNs              []string // optional: the shards, for lag, WAL and funding of many accounts
	PID               int      // optional: the process whose family is the product, for CPU
	PgBench           string   // path of pgbench; empty: no yardstick

	Scenario           string
	Rate               float64 // holds per second; 0: closed loop
	Warmup, Duration   time.Duration
	Clients            int
	Senders            int
	Recipients         int
	Zipf               float64 // 0: uniform
	DelayMin, DelayMax time.Duration
	CancelRatio        float64
	Batch              int
	RequestTimeout     time.Duration
	Settle             time.Duration // how long after the last maturity every hold must have ended
	Yardstick          time.Duration // length of the pgbench run; 0: none

	Acked io.Writer // optional: every acknowledged hold id, a line each
	Note  func(format string, args ...any)
}

// cliffAfter is how long after the load the holds of a cliff mature.
const cliffAfter = 2 * time.Second

// Check fills in defaults and refuses what makes no sense, in one line.
func (c *Config) Check() error {
	if !slices.Contains(Scenarios, c.Scenario) {
		return fmt.Errorf("there is no scenario %q: choose one of %s", c.Scenario, strings.Join(Scenarios, ", "))
	}
	if c.Scenario == "cliff" {
		// All mature at one moment right after the load, whatever is asked for.
		c.DelayMin, c.DelayMax = cliffAfter, cliffAfter
	}
	if c.DelayMax == 0 {
		c.DelayMin, c.DelayMax = time.Second, 10*time.Second
		if c.Scenario != "lifecycle" {
			// Far enough ahead that nothing but the creates is measured.
			c.DelayMin, c.DelayMax = 6*time.Hour, 12*time.Hour
		}
	}
	if c.Batch == 0 {
		c.Batch = 100
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 15 * time.Second
	}
	if c.Settle == 0 {
		c.Settle = 2 * time.Minute
	}
	if c.Note == nil {
		c.Note = func(string, ...any) {}
	}
	switch {
	case c.Duration < time.Second:
		return errors.New("the duration must be a second or more")
	case c.Rate < 0 || c.Rate > 1e7:
		return errors.New("the rate must be between 0 and 10,000,000 per second")
	case c.Clients < 1 || c.Clients > 20000:
		return errors.New("the number of clients must be between 1 and 20,000")
	case c.Senders < 1 || c.Recipients < 1:
		return errors.New("there must be a sender and a recipient at least")
	case c.Zipf != 0 && c.Zipf <= 1:
		return errors.New("the Zipf exponent must be above 1, or 0 for uniform")
	case c.DelayMin < time.Second || c.DelayMax < c.DelayMin || c.DelayMax > 89*24*time.Hour:
		return errors.New("the delay must lie between 1s and 89d")
	case c.CancelRatio < 0 || c.CancelRatio > 1:
		return errors.New("the cancel ratio must be between 0 and 1")
	case c.Batch < 1 || c.Batch > 100:
		return errors.New("a batch has 1 to 100 holds")
	}
	return nil
}

// settles reports whether the run waits for the end of its holds.
func (c *Config) settles() bool { return c.DelayMax <= 10*time.Minute && c.Scenario != "cancel" }

// Run makes one run. When ctx ends early it reports what was measured until
// then. An error means that no measurement was possible.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	b := &run{cfg: &cfg, seed: uint64(time.Now().UnixNano()), report: newReport(&cfg)}
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	if err := b.load(ctx); err != nil {
		return nil, err
	}
	// What follows must also be done after a Ctrl-C: it is the result. The
	// waiting for the holds alone is cut short by it.
	b.settle(ctx)
	b.conclude(context.WithoutCancel(ctx))
	return b.report, nil
}

// run is one run between its steps.
type run struct {
	cfg    *Config
	seed   uint64
	report *Report
	shards *shardReader // nil without DSNs

	start, measured, loadEnd time.Time
	seen                     *recorder
	cpu0                     map[string]float64
	wal0                     int64
}

func (b *run) prepare(ctx context.Context) error {
	if len(b.cfg.DSNs) > 0 {
		var err error
		if b.shards, err = newShardReader(b.cfg.DSNs); err != nil {
			return err
		}
		if b.cfg.Yardstick > 0 && b.cfg.PgBench != "" {
			b.cfg.Note("yardstick: pgbench, 64 clients, %s", b.cfg.Yardstick)
			if b.report.YardstickPerS, err = yardstick(ctx, b.cfg.PgBench, b.cfg.DSNs[0], b.cfg.Yardstick); err != nil {
				b.cfg.Note("no yardstick: %v", err)
			}
		}
	}
	b.cfg.Note("funding %d senders, opening %d recipients", b.cfg.Senders, b.cfg.Recipients)
	return fund(ctx, b.cfg, b.shards, b.seed)
}

// load runs the phases of the scenario and keeps the counters around them.
func (b *run) load(ctx context.Context) error {
	g := b.begin(ctx)
	step := (*worker).create
	switch b.cfg.Scenario {
	case "batch":
		step = (*worker).createBatch
	case "cancel":
		g.keep = true
	case "cliff":
		g.unlockAt = g.end.Add(cliffAfter).Truncate(time.Millisecond)
	}
	b.cfg.Note("%s", b.describe())
	seen, err := g.run(ctx, step)
	if err != nil {
		return err
	}
	b.seen, b.loadEnd = seen, time.Now()
	// An open loop counts every request of its schedule and took as long as it
	// took; a closed one counts what ended inside the window.
	elapsed := b.loadEnd.Sub(b.measured).Seconds()
	if b.cfg.Rate == 0 {
		elapsed = min(elapsed, b.cfg.Duration.Seconds())
	}
	b.report.load(seen, elapsed, g)
	if b.cfg.Scenario != "cancel" || ctx.Err() != nil {
		return nil
	}
	return b.cancelAll(ctx, g.ids)
}

func (b *run) begin(ctx context.Context) *generator {
	b.cpu0 = cpuOfFamily(b.cfg.PID)
	if b.shards != nil {
		b.wal0, _ = b.shards.wal(ctx)
	}
	b.start = time.Now()
	b.measured = b.start.Add(b.cfg.Warmup)
	return newGenerator(b.cfg, b.seed, b.start, b.cfg.Warmup, b.cfg.Duration)
}

// cancelAll measures the cancels alone, of the holds that were just created.
func (b *run) cancelAll(ctx context.Context, ids []holdID) error {
	b.cfg.Note("cancelling %d holds", len(ids))
	created := b.report.Created
	g := newGenerator(b.cfg, b.seed, time.Now(), 0, 10*time.Minute)
	g.stopAt.Store(int64(len(ids)))
	if len(ids) == 0 {
		return nil
	}
	seen, err := g.run(ctx, cancelKept(ids))
	if err != nil {
		return err
	}
	elapsed := time.Since(g.schedule.start).Seconds()
	b.seen.merge(seen)
	b.loadEnd = time.Now()
	b.report.cancels(seen, elapsed)
	b.report.Created = created
	return nil
}

func (b *run) describe() string {
	how := "as fast as it goes"
	if b.cfg.Rate > 0 {
		how = fmt.Sprintf("%.0f holds/s", b.cfg.Rate)
	}
	return fmt.Sprintf("%s: %s with %d clients for %s, delay %s to %s", b.cfg.Scenario, how, b.cfg.Clients,
		b.cfg.Warmup+b.cfg.Duration, b.cfg.DelayMin, b.cfg.DelayMax)
}

// conclude reads the counters after the run and proves the ledger.
func (b *run) conclude(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	b.report.cpu(b.cpu0, cpuOfFamily(b.cfg.PID))
	if b.shards != nil {
		if err := b.shards.outcome(ctx, b); err != nil {
			b.cfg.Note("the shards could not be read: %v", err)
		}
	} else {
		b.sampleLag(ctx)
	}
	b.report.derive()
	api := &apiclient.Client{API: b.cfg.API, Admin: b.cfg.Admin, Token: b.cfg.Token,
		HTTP: &http.Client{Timeout: 9 * time.Minute}}
	proof, raw, err := api.Prove(ctx)
	if err != nil {
		b.cfg.Note("the ledger could not be proven: %v", err)
		return
	}
	b.report.LedgerOK = proof.OK
	if !proof.OK {
		b.cfg.Note("the ledger is NOT whole: %s", raw)
	}
}
