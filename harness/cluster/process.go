package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Role is what a process runs, in the words of `holdfast serve --role`.
type Role string

const (
	Coordinator Role = "coordinator"
	Participant Role = "participant"
	Scheduler   Role = "scheduler"
	PaymentSim  Role = "payment-sim"
)

const (
	pollEvery = 10 * time.Millisecond
	// listenTime is how long a start may take until the process answers.
	listenTime = 30 * time.Second
	// stopTime is how long a graceful stop may take; serve itself allows less.
	stopTime = 75 * time.Second
	// pauseTime is what a busy machine may need until a stopped process stands.
	pauseTime = 5 * time.Second
)

// Process is one process of the real binary. It keeps its name, its addresses
// and its log over any number of deaths and starts.
type Process struct {
	Name  string // coordinator0, …
	Role  Role
	Index int
	// Where it listens itself, past every link; empty where it does not.
	API, Admin, Branch, Sim string

	c        *Cluster
	settings map[string]string
	log      *logFile

	op sync.Mutex // one start or stop at a time

	mu     sync.Mutex
	life   *life
	starts int
	paused bool
}

// life is one run of a process, from its start to its end.
type life struct {
	cmd   *exec.Cmd
	extra []string
	done  chan struct{} // closed when it has ended and is reaped
}

func (l *life) running() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

func (p *Process) current() *life {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life
}

// Pid is its number, 0 when it does not run.
func (p *Process) Pid() int {
	if l := p.current(); l != nil && l.running() {
		return l.cmd.Process.Pid
	}
	return 0
}

// Alive reports whether the process exists; a paused one does.
func (p *Process) Alive() bool { return p.Pid() != 0 }

// Starts is how often it was started.
func (p *Process) Starts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts
}

// Ended is closed when the present run is over; of a dead process it is closed
// already.
func (p *Process) Ended() <-chan struct{} {
	if l := p.current(); l != nil {
		return l.done
	}
	never := make(chan struct{})
	close(never)
	return never
}

// ExitCode is the code of the last run: -1 while it runs, when a signal ended
// it, or when there was none.
func (p *Process) ExitCode() int {
	l := p.current()
	if l == nil || l.running() {
		return -1
	}
	return l.cmd.ProcessState.ExitCode()
}

// Start runs it, at the addresses it always had, and returns when it answers
// its /livez; Ready waits for more. env ("NAME=value") holds for this run only.
// A process that ends before it answers is an error with the last of its log.
// It is no error if it runs.
func (p *Process) Start(ctx context.Context, env ...string) error {
	p.op.Lock()
	defer p.op.Unlock()
	return p.start(ctx, env)
}

func (p *Process) start(ctx context.Context, env []string) error {
	if p.Alive() {
		return nil
	}
	out, err := p.log.append()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer out.Close()
	cmd := exec.Command(p.c.cfg.Binary, "serve", "--role", string(p.Role))
	cmd.Env = p.environ(env)
	cmd.Stdout, cmd.Stderr = out, out
	if err := p.c.spawner.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	l := &life{cmd: cmd, extra: slices.Clone(env), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		_ = cmd.Wait() // how it ended is in ProcessState
		_ = p.c.behind(p.Name, false)
	}()
	p.mu.Lock()
	p.life, p.paused = l, false
	p.starts++
	p.mu.Unlock()
	return p.answers(ctx, l)
}

func (p *Process) environ(extra []string) []string {
	set := maps.Clone(p.settings)
	maps.Copy(set, p.c.cfg.Env)
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	return append(env, extra...) // the last one wins
}

// answers waits for /livez: everything has started when it is served.
func (p *Process) answers(ctx context.Context, l *life) error {
	ctx, cancel := context.WithTimeout(ctx, listenTime)
	defer cancel()
	for {
		code, _, err := p.c.get(ctx, p.opsURL()+"/livez")
		if err == nil && code == http.StatusOK && l.running() {
			return p.c.behind(p.Name, true)
		}
		select {
		case <-l.done:
			return fmt.Errorf("%s ended at its start with exit code %d: %s", p.Name, l.cmd.ProcessState.ExitCode(), p.log.last())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer (last: %d, %v): %w", p.Name, code, err, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// opsURL is where /livez is; a simulator has it beside its payments.
func (p *Process) opsURL() string {
	if p.Role == PaymentSim {
		return "http://" + p.Sim
	}
	return "http://" + p.Admin
}

// Ready waits until the process says that everything it needs is there: every
// shard and Redis, not merely some. It fails at once when the process ends.
func (p *Process) Ready(ctx context.Context) error {
	path := "/readyz"
	if p.Role == PaymentSim {
		path = "/livez"
	}
	for {
		code, text, err := p.c.get(ctx, p.opsURL()+path)
		if err == nil && code == http.StatusOK && (p.Role == PaymentSim || strings.Contains(text, `"status":"ready"`)) {
			return nil
		}
		select {
		case <-p.Ended():
			return fmt.Errorf("%s does not run, exit code %d: %s", p.Name, p.ExitCode(), p.log.last())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready (last answer: %d %s, %v): %w", p.Name, code, strings.TrimSpace(text), err, ctx.Err())
		case <-time.After(2 * pollEvery):
		}
	}
}

// signal reaches this process only, and only while it is ours: one that is not
// reaped keeps its number.
func (p *Process) signal(sig syscall.Signal) error {
	l := p.current()
	if l == nil || !l.running() {
		return fmt.Errorf("%s does not run", p.Name)
	}
	if err := l.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("%s to %s: %w", sig, p.Name, err)
	}
	return nil
}

// Kill ends it as kill -9 does and returns when it is gone. A dead one can be
// killed.
func (p *Process) Kill() error {
	l := p.current()
	if l == nil || !l.running() {
		return nil
	}
	if err := l.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	<-l.done
	return nil
}

// Pause stops it where it stands (SIGSTOP): its connections stay open. It
// returns when every thread stands still, which on a busy machine is a while
// after the signal.
func (p *Process) Pause() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	p.setPaused(true)
	for deadline := time.Now().Add(pauseTime); !standsStill(p.Pid()); <-time.After(pollEvery) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s was sent SIGSTOP %s ago and still runs", p.Name, pauseTime)
		}
	}
	return nil
}

// Resume lets a paused process go on (SIGCONT).
func (p *Process) Resume() error {
	if err := p.signal(syscall.SIGCONT); err != nil {
		return err
	}
	p.setPaused(false)
	return nil
}

func (p *Process) setPaused(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = is
}

// StopGracefully asks it to end (SIGTERM), waits, and reports an exit code that
// is not 0. One that does not obey in time is killed, which is an error too.
func (p *Process) StopGracefully(ctx context.Context) error {
	p.op.Lock()
	defer p.op.Unlock()
	return p.stop(ctx)
}

func (p *Process) stop(ctx context.Context) error {
	l := p.current()
	if l == nil || !l.running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	for _, sig := range []syscall.Signal{syscall.SIGCONT, syscall.SIGTERM} {
		if err := p.signal(sig); err != nil && l.running() {
			return err
		}
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s did not stop on SIGTERM: %w", p.Name, ctx.Err()), p.Kill())
	}
	if code := l.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s stopped with exit code %d: %s", p.Name, code, p.log.last())
	}
	return nil
}

// Restart stops it gracefully and starts it with these variables.
func (p *Process) Restart(ctx context.Context, env ...string) error {
	p.op.Lock()
	defer p.op.Unlock()
	if err := p.stop(ctx); err != nil {
		return err
	}
	return p.start(ctx, env)
}

// mend brings it back to an ordinary run. What runs with variables of its own
// may hang in one of them: it is killed.
func (p *Process) mend(ctx context.Context) error {
	p.op.Lock()
	defer p.op.Unlock()
	if l := p.current(); l != nil && l.running() {
		if len(l.extra) == 0 {
			return p.Resume()
		}
		if err := p.Kill(); err != nil {
			return err
		}
	}
	return p.start(ctx, nil)
}
