package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/checker"
	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

const (
	cutEvery    = 500 * time.Millisecond
	warmUp      = 700 * time.Millisecond // of load before the strike
	coolDown    = 500 * time.Millisecond // of load after the heal
	prepareTime = 30 * time.Second
	mendTime    = 60 * time.Second
	settleTime  = 60 * time.Second // beyond the promised recovery, until everything has ended
	overdueSlip = time.Second      // a hold that matured this short ago is not overdue
	// maxRuns is how many worlds one cluster sees: every cut reads all of them.
	maxRuns = 15
)

// timings scale the product's hours to a fault's seconds. Every one of them is
// an ordinary setting; the proportions are those of the defaults.
var timings = map[string]string{
	"HOLDFAST_PAYMENT_TIMEOUT":    "1s",
	"HOLDFAST_PAYMENT_RETRY_MOST": "1s",
	"HOLDFAST_REFUSAL_QUIET":      "2s",
	"HOLDFAST_LEASE_MARGIN":       "1500ms",
	"HOLDFAST_BREAKER_OPEN_FOR":   "1s",
	"HOLDFAST_TRIGGER_LEASE":      "2s",
	"HOLDFAST_HORIZON":            "20s",
	"HOLDFAST_SWEEP_EVERY":        "1s",
	"HOLDFAST_LOG_LEVEL":          "info",
}

// theater is the real stage: a cluster of processes.
type theater struct {
	runner  *Runner
	dir     string
	binary  string // what the processes run; a link that a fault may turn
	cluster *cluster.Cluster
	runs    int
	base    []checker.Usage // of each process at rest, before the first fault

	panicked int // processes that died of a panic, so far
}

// load is what goes on around a strike.
type load struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	quiet context.CancelFunc // ends the cuts
	cuts  sync.WaitGroup
}

// realStage starts a cluster for a fault and those that share it.
func (s *session) realStage(ctx context.Context, f *Fault, seed int64) (stage, error) {
	dir, err := os.MkdirTemp(s.Dir, "cluster-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for a cluster: %w", err)
	}
	// The servers may run as another user than root.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	t := &theater{runner: s.Runner, dir: dir, binary: filepath.Join(dir, "holdfast")}
	if err := os.Symlink(s.Binary, t.binary); err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, set := range []map[string]string{timings, f.Settings} {
		for name, value := range set {
			env[name] = value
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	t.cluster, err = cluster.Start(ctx, cluster.Config{Binary: t.binary, Dir: filepath.Join(dir, "cluster"), Env: env, Seed: seed, Log: s.Log})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Begin opens fresh accounts, so that no run sees the holds of another, and
// lets load and cuts run.
func (t *theater) Begin(ctx context.Context, r *Run) (err error) {
	t.runs++
	r.Cluster, r.theater = t.cluster, t
	cfg := workload.Config{APIs: t.cluster.APIs(), Token: t.cluster.Token(), Seed: r.Seed, Map: t.cluster.Map(),
		Salt: fmt.Sprintf("%s %d", r.Fault.Name, time.Now().UnixNano()), Senders: 24, Recipients: 24, Clients: 16, Rate: 80, MaxDelay: 3 * time.Second}
	if r.Fault.Load != nil {
		r.Fault.Load(&cfg)
	}
	preparing, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	if r.World, err = workload.Prepare(preparing, cfg); err != nil {
		return err
	}
	if err := r.Payments(ctx, paysim.Faults{}); err != nil {
		return err
	}
	if t.base == nil {
		t.base = t.usage()
	}
	r.Checker = t.checker(r)
	r.load = &load{}
	var working, watching context.Context
	working, r.load.stop = context.WithCancel(ctx)
	watching, r.load.quiet = context.WithCancel(ctx)
	r.load.done.Go(func() { r.World.Run(working) })
	r.load.cuts.Go(func() { r.Checker.Watch(watching, cutEvery, func(v []checker.Violation) { r.Violate(v...) }) })
	return r.Wait(ctx, warmUp)
}

func (t *theater) checker(r *Run) *checker.Checker {
	return checker.New(checker.Config{Target: checker.Target{DSNs: t.cluster.DSNs(), Map: t.cluster.Map(),
		PaymentURL: t.cluster.PaymentAdmin(), Prove: r.prove},
		History: r.World.History, Pictures: t.dir, Bound: 2*r.Fault.within() + r.Fault.Clocks, Clocks: r.Fault.Clocks})
}

// prove asks the product for its own proof, for the checker to compare.
func (r *Run) prove(ctx context.Context) (bool, string, error) {
	proof, text, err := r.API(0).Prove(ctx)
	return proof.OK, string(text), err
}

// Heal mends the cluster. Payments to the refusable are refused all the same:
// that is no fault.
func (t *theater) Heal(ctx context.Context, r *Run) error {
	ctx, cancel := context.WithTimeout(ctx, mendTime)
	defer cancel()
	if err := t.cluster.Mend(ctx); err != nil {
		return err
	}
	r.Checker.FaultOver(time.Now())
	return r.calm(ctx)
}

// calm lets the payment API be well, but for those whom it always refuses.
func (r *Run) calm(ctx context.Context) error { return r.Payments(ctx, paysim.Faults{}) }

// endLoad lets the operations in flight end.
func (r *Run) endLoad() {
	if r.load != nil && r.load.stop != nil {
		r.load.stop()
		r.load.done.Wait()
	}
}

// endCuts lets the last cut under load end.
func (r *Run) endCuts() {
	r.load.quiet()
	r.load.cuts.Wait()
}

// Rest is what a run has promised to show.
func (t *theater) Rest(ctx context.Context, r *Run) error {
	recovered := make(chan error, 1)
	go func() { recovered <- r.recover(ctx) }()
	if err := r.Wait(ctx, coolDown); err != nil {
		return err
	}
	r.endLoad()
	if err := <-recovered; err != nil {
		r.Fail("%v", err)
	}
	if r.Fault.Before != nil {
		if err := r.Fault.Before(ctx, r); err != nil {
			r.Fail("%v", err)
		}
	}
	patience := settleTime
	if r.over != nil {
		patience = settleTime / 6
	}
	settling, cancel := context.WithTimeout(ctx, r.Fault.within()+patience)
	defer cancel()
	settled := r.World.Settle(settling)
	if !settled.OK() {
		r.Fail("the clients' world did not come to rest: %s", settled)
		for _, h := range settled.Open[:min(3, len(settled.Open))] {
			r.Fail("hold %s is %s, matured at %s", h.ID, h.Status, h.UnlockAt.Format(time.RFC3339Nano))
		}
	}
	r.endCuts()
	report, err := r.Checker.AtRest(ctx, r.World.History)
	if err != nil {
		return err
	}
	r.Violate(report.Violations...)
	if r.result.Undecided = report.Undecided; report.Undecided > 0 {
		r.Note("%d histories of holds were too long to decide whether they are linearizable", report.Undecided)
	}
	t.fill(ctx, r)
	if err := t.backToBase(ctx, r); err != nil {
		r.Fail("%v", err)
	}
	t.finish(r)
	return nil
}

// recover measures how long after the heal something was overdue.
func (r *Run) recover(ctx context.Context) error {
	within := r.Fault.within()
	deadline := time.Now().Add(2 * within)
	if r.over != nil {
		deadline = time.Now().Add(within + time.Second)
	}
	for {
		n, oldest, err := r.Checker.Overdue(ctx)
		took := time.Since(r.Healed)
		if err == nil && (n == 0 || oldest < overdueSlip) {
			r.mu.Lock()
			r.result.RecoverMS = took.Milliseconds()
			r.mu.Unlock()
			if took > within {
				return fmt.Errorf("something was overdue for %s after the heal, at most %s is promised", took.Round(time.Millisecond), within)
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d holds are overdue %s after the heal, the oldest for %s%s", n, took.Round(time.Millisecond), oldest.Round(time.Millisecond), because(err))
		}
		if err := r.Wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// fill writes the figures of a run into its result.
func (t *theater) fill(ctx context.Context, r *Run) {
	counts := r.World.History.Counts()
	x := r.result
	x.Ops = Ops{OK: counts.Of("", workload.OK), Refused: counts.Of("", workload.Refused), Unknown: counts.Of("", workload.Unknown)}
	stats := r.Checker.Stats()
	x.Cuts, x.CutsMissed = stats.Cuts, stats.Missed
	x.Holds = len(r.World.History.Lifetimes())
	x.WorstLagMS = r.worstLag(ctx)
	if n := r.panics(); n > 0 {
		r.Fail("%d processes died of a panic", n)
	}
}

// finish drops what a run had; a failed one leaves its history behind.
func (t *theater) finish(r *Run) {
	r.endLoad()
	if r.load != nil {
		r.endCuts()
		r.load = nil
		r.Checker.Close()
		r.World.Close()
	}
	if len(r.result.Violations)+len(r.result.Failed) == 0 || r.World == nil {
		return
	}
	f, err := os.Create(filepath.Join(t.dir, fmt.Sprintf("history-%s-%d.jsonl", r.Fault.Name, r.Seed)))
	if err != nil {
		return
	}
	defer f.Close()
	_ = r.World.History.Export(f) // the violations tell the essential
}

func (t *theater) Abandon(r *Run) {
	if r.World != nil && r.Checker != nil {
		t.fill(context.Background(), r)
	}
	t.finish(r)
}

// Spent reports that the cluster has seen enough worlds.
func (t *theater) Spent() bool { return t.runs >= maxRuns }

// Close stops the cluster. Of a failure the logs, the history and the pictures
// stay; with Runner.Keep the data too.
func (t *theater) Close(ctx context.Context, keep bool) (string, error) {
	err := t.cluster.Stop(ctx)
	if t.runner.Keep {
		return t.dir, err
	}
	err = errors.Join(err, embed.Remove(filepath.Join(t.dir, "cluster", "servers")))
	if keep {
		return t.dir, err
	}
	return "", errors.Join(err, os.RemoveAll(t.dir))
}

// because adds an error to a sentence, if there is one.
func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}
