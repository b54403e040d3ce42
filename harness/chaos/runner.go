package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/checker"
	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

const (
	// strikeTime bounds one strike; a heavy one may take heavyTime.
	strikeTime = 90 * time.Second
	heavyTime  = 12 * time.Minute
	// startTries bounds the attempts to start a cluster.
	startTries = 3
	// aroundTime bounds what the runner does around it: load, heal, rest.
	aroundTime = 4 * time.Minute
)

// Runner tries faults, one after the other on each of its clusters.
type Runner struct {
	Binary  string // the holdfast built with the tag failpoints
	Dir     string // for the clusters and for what is kept of failures
	Source  string // the module's folder, for faults that build another binary; may be empty
	Program string // how a person called it, for replays: "holdfast"
	Command string // runs all of this again, for the report
	Version string
	Machine string
	Budget  time.Duration // no new run begins after it; 0: no limit
	Keep    bool          // keep the clusters' folders
	Side    int           // clusters that stand side by side, each with a fault of its own; 0: one
	Out     io.Writer
	Log     io.Writer // what the clusters have to say; nil: nobody listens

	// hasty runs end at the first red check: whoever hunts a bug has seen enough.
	hasty bool
	// newStage puts up what the faults strike; nil: a real cluster.
	newStage func(context.Context, *Fault, int64) (stage, error)
}

// stage is a cluster under load, as the runner uses it.
type stage interface {
	// Begin puts a fresh world and its load on the cluster.
	Begin(context.Context, *Run) error
	// Heal ends every fault of the cluster.
	Heal(context.Context, *Run) error
	// Rest ends the load, waits until nothing is overdue and everything has
	// ended, and checks. It fills in the result.
	Rest(context.Context, *Run) error
	// Spent reports that the next run wants a fresh cluster.
	Spent() bool
	// Abandon ends the load of a run that cannot go on.
	Abandon(*Run)
	// Close takes the cluster down; keep leaves its folder and says where.
	Close(ctx context.Context, keep bool) (folder string, err error)
}

// Run is one fault with one seed while it is tried; a Strike has it in hand.
type Run struct {
	Fault   *Fault
	Seed    int64
	Rand    *rand.Rand // for Strike alone, which is one goroutine
	Cluster *cluster.Cluster
	World   *workload.World
	Checker *checker.Checker
	Runner  *Runner

	Began  time.Time // of the load
	Healed time.Time

	struck atomic.Int64
	mu     sync.Mutex
	result *Result
	over   context.CancelFunc // of a hasty run
	// Of the real stage.
	load    *load
	theater *theater
}

// Struck counts strikes that really happened.
func (r *Run) Struck(n int) {
	if n > 0 {
		r.struck.Add(int64(n))
	}
}

// Strikes is the count so far.
func (r *Run) Strikes() int { return int(r.struck.Load()) }

// Note adds a line to the report.
func (r *Run) Note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Notes = append(r.result.Notes, fmt.Sprintf(format, args...))
}

// Fail records a demand that was not met.
func (r *Run) Fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Failed = append(r.result.Failed, fmt.Sprintf(format, args...))
}

// strikeFailed begins a demand that says only that the fault could not be
// brought about.
const strikeFailed = "strike: "

// maxViolations bounds what one run reports: the first are the interesting ones.
const maxViolations = 50

// Violate records broken invariants.
func (r *Run) Violate(vs ...checker.Violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(vs) > 0 && r.over != nil {
		r.over()
	}
	left := maxViolations - len(r.result.Violations)
	r.result.Violations = append(r.result.Violations, vs[:max(0, min(left, len(vs)))]...)
}

// Wait lets the load run on for d; it is an error only when the time is over.
func (r *Run) Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Until polls a condition; the error says what did not come.
func (r *Run) Until(ctx context.Context, within time.Duration, what string, is func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !is() {
		if err := r.Wait(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s: not within %s", what, within)
		}
	}
	return nil
}

// Run tries every fault with every seed, brings results to the display as they
// come, and reports. An error means that the harness itself could not go on.
func (r *Runner) Run(ctx context.Context, faults []Fault, seeds []int64) (*Report, error) {
	report := &Report{Version: r.Version, Machine: r.Machine, Began: time.Now(), Command: r.Command}
	show := newDisplay(r.Out, len(faults)*len(seeds))
	show.head()
	q := &queue{budget: r.Budget, report: report}
	q.left = slices.DeleteFunc(byCluster(faults), func(f Fault) bool { return f.Alone })
	var sessions sync.WaitGroup
	for range max(1, r.Side) {
		sessions.Go(func() { r.session(ctx, q, show, seeds) })
	}
	sessions.Wait()
	q.left = slices.DeleteFunc(byCluster(faults), func(f Fault) bool { return !f.Alone })
	r.session(ctx, q, show, seeds)
	report.TookMS = time.Since(report.Began).Milliseconds()
	show.summary(report)
	return report, ctx.Err()
}

// session tries faults, one after the other, until none is left.
func (r *Runner) session(ctx context.Context, q *queue, show *display, seeds []int64) {
	s := &session{Runner: r, show: show}
	defer func() { s.close(context.WithoutCancel(ctx), r.Keep) }()
	for f := q.next(s); f != nil && ctx.Err() == nil; f = q.next(s) {
		for _, seed := range seeds {
			x := s.try(ctx, f, seed)
			q.done(x)
			show.result(x)
		}
	}
}

// queue gives the faults out and takes the results.
type queue struct {
	mu     sync.Mutex
	left   []Fault
	budget time.Duration
	report *Report
}

// next is a fault for the cluster that a session has, or else any; nil when
// nothing is left or the time is over.
func (q *queue) next(s *session) *Fault {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.budget > 0 && time.Since(q.report.Began) > q.budget {
		for _, f := range q.left {
			q.report.NotTried = append(q.report.NotTried, f.Name)
		}
		q.left = nil
	}
	if len(q.left) == 0 {
		return nil
	}
	i := slices.IndexFunc(q.left, func(f Fault) bool { return s.stage != nil && f.Cluster == s.name })
	f := q.left[max(0, i)]
	q.left = slices.Delete(q.left, max(0, i), max(0, i)+1)
	return &f
}

func (q *queue) done(x *Result) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.report.Results = append(q.report.Results, *x)
}

// session is the cluster that stands while faults are tried on it.
type session struct {
	*Runner
	show  *display
	stage stage
	name  string // of the stage's cluster
}

// replay is the exact command that runs a fault again.
func (s *session) replay(f *Fault, seed int64) string {
	return fmt.Sprintf("%s chaos run %s --seed %d", s.Program, f.Name, seed)
}

func (s *session) try(ctx context.Context, f *Fault, seed int64) *Result {
	x := &Result{Fault: f.Name, Theme: f.Theme, About: f.About, Covers: f.Covers, Seed: seed, Began: time.Now(), Replay: s.replay(f, seed),
		Violations: []checker.Violation{}, Failed: []string{}}
	defer func() { x.TookMS = time.Since(x.Began).Milliseconds() }()
	if f.Can != nil {
		if x.Skipped = f.Can(); x.Skipped != "" {
			return x
		}
	}
	limit := aroundTime + strikeTime
	if f.Heavy {
		limit = aroundTime + heavyTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	run := &Run{Fault: f, Seed: seed, Runner: s.Runner, result: x, Rand: rand.New(rand.NewPCG(uint64(seed), 0x6368616f73))}
	if s.hasty {
		run.over = cancel
	}
	if err := s.ready(ctx, f, x); err != nil {
		x.Failed = append(x.Failed, "start of the cluster: "+err.Error())
		x.noStart = true
		return x
	}
	if err := s.perform(ctx, run); err != nil {
		run.Fail("%v", err)
		s.stage.Abandon(run)
	}
	x.Struck = run.Strikes()
	if len(x.Violations) > 0 || len(x.Failed) > 0 {
		// What is broken now would be seen in every later run as well.
		x.Kept = s.close(context.WithoutCancel(ctx), true)
	}
	return x
}

// ready has a cluster of the right kind standing.
func (s *session) ready(ctx context.Context, f *Fault, x *Result) (err error) {
	if s.stage != nil && s.name == f.Cluster && !s.stage.Spent() {
		return nil
	}
	s.close(ctx, s.Keep)
	s.show.now(x, "starting a cluster")
	start := s.newStage
	if start == nil {
		start = s.realStage
	}
	// The ports are free when they are chosen and may be taken by a stranger
	// before the process listens.
	for try := 1; ; try++ {
		if s.stage, err = start(ctx, f, x.Seed); err == nil {
			s.name = f.Cluster
			return nil
		}
		s.stage = nil
		if try == startTries || ctx.Err() != nil {
			return err
		}
		s.show.line("    a cluster did not start and is started again: " + err.Error())
	}
}

// perform is the life of a run: load, strike, heal, rest.
func (s *session) perform(ctx context.Context, run *Run) error {
	f := run.Fault
	s.show.now(run.result, "load")
	if err := s.stage.Begin(ctx, run); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	run.Began = time.Now()
	s.show.now(run.result, "strike")
	limit := strikeTime
	if f.Heavy {
		limit = heavyTime
	}
	striking, cancel := context.WithTimeout(ctx, limit)
	err := f.Strike(striking, run)
	cancel()
	if err != nil {
		run.Fail(strikeFailed+"%v", err)
	}
	s.show.now(run.result, "heal")
	if err := s.stage.Heal(ctx, run); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	run.Healed = time.Now()
	s.show.now(run.result, "rest")
	if err := s.stage.Rest(ctx, run); err != nil {
		return fmt.Errorf("rest: %w", err)
	}
	if f.After == nil || err != nil {
		return nil
	}
	return f.After(ctx, run)
}

// close takes the present cluster down and says where its folder is kept.
func (s *session) close(ctx context.Context, keep bool) string {
	if s.stage == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	folder, err := s.stage.Close(ctx, keep)
	s.stage = nil
	if err != nil && !errors.Is(err, context.Canceled) {
		s.show.line("    taking the cluster down: " + err.Error())
	}
	return folder
}
