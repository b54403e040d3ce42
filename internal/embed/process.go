package embed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// pollEvery is how often a state of the operating system is looked at that
// nobody announces.
const pollEvery = 10 * time.Millisecond

const (
	// portTries bounds how often a first start looks for another port.
	portTries = 10
	// portTimeout is how long a restart waits for its own port.
	portTimeout = 10 * time.Second
)

// patience is how long a start may take before the terminal is told why.
const patience = 5 * time.Second

// errPortTaken means that somebody else listens where a server was to listen.
var errPortTaken = errors.New("port is taken")

// spawner starts the servers from one thread that lives as long as they do.
// Linux ties "signal the child when the parent dies" to the thread that made
// the child; from an ordinary goroutine the servers would be shut down when the
// runtime retires a thread.
type spawner struct {
	jobs chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(s.done)
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

// close may be called when all children are gone.
func (s *spawner) close() {
	close(s.jobs)
	<-s.done
}

// start runs the command in a process group of its own, so that the Ctrl-C of
// a terminal reaches us alone and we stop the servers in order. death is the
// signal that the child gets should we die first.
func (s *spawner) start(cmd *exec.Cmd, user *osUser, death syscall.Signal) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: user.credential()}
	setDeathSignal(cmd.SysProcAttr, death)
	p := &process{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error, 1)
	s.jobs <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	go func() {
		defer close(p.exited)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// process is one child of ours.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // how it ended; readable once exited is closed
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.pid(), err)
	}
	return nil
}

func (p *process) wait(ctx context.Context, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("process %d still runs after %s", p.pid(), limit)
	}
}

// server is what PostgreSQL and Redis have in common.
type server struct {
	env  *environment
	name string // for people
	log  string // path of the log file
	port int

	// op lets one start, stop or kill run at a time; mu guards proc alone, so
	// that Pid answers while one of them runs.
	op   sync.Mutex
	mu   sync.Mutex
	proc *process
}

func (s *server) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// Pid is the process number of the server (of PostgreSQL: of the postmaster),
// or 0 when it does not run.
func (s *server) Pid() int {
	if p := s.current(); p != nil && p.running() {
		return p.pid()
	}
	return 0
}

// Addr is host:port; it stays the same over stops and kills.
func (s *server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// launch starts the command with its output in the log and waits until ready
// says nil. It returns errPortTaken when the port was the reason.
func (s *server) launch(ctx context.Context, cmd *exec.Cmd, death syscall.Signal, ready func(context.Context) error) error {
	logFile, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", s.name, err)
	}
	defer logFile.Close()
	from, err := logFile.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", s.name, err)
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	proc, err := s.env.spawner.start(cmd, s.env.user, death)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.mu.Lock()
	s.proc = proc
	s.mu.Unlock()

	return s.await(ctx, proc, from, ready)
}

// await asks until the server is ready or gone. Its log is ours from the offset.
func (s *server) await(ctx context.Context, proc *process, from int64, ready func(context.Context) error) error {
	// A stranger on our port may never answer: the question ends with the server.
	asking, stopAsking := context.WithCancel(ctx)
	defer stopAsking()
	go func() {
		select {
		case <-proc.exited:
			stopAsking()
		case <-asking.Done():
		}
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	patience := time.AfterFunc(patience, func() {
		s.env.say("%s is still starting; after a crash it first repeats its log …", s.name)
	})
	defer patience.Stop()
	for {
		err := ready(asking)
		// Whoever answered may be a stranger on our port while ours is dying.
		if err == nil && proc.running() {
			return nil
		}
		select {
		case <-proc.exited:
			why := lastLine(s.log, from)
			if saysPortTaken(why) || !portFree(s.port) {
				return fmt.Errorf("%s: %w: %d", s.name, errPortTaken, s.port)
			}
			return fmt.Errorf("%s ended at its start: %s (log: %s)", s.name, why, s.log)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s (last answer: %v): %w", s.name, err, ctx.Err())
		case <-tick.C:
		}
	}
}

// saysPortTaken knows what PostgreSQL and Redis log last when they cannot listen.
func saysPortTaken(line string) bool {
	return strings.Contains(line, "could not create any TCP/IP sockets") || strings.Contains(line, "Failed listening on port")
}

// onNewPort runs start on the port of the last time, or on another one while
// that is taken.
func (s *server) onNewPort(start func() error) error {
	for try := 1; ; try++ {
		if s.port == 0 || !portFree(s.port) {
			port, err := freePort()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.port = port
		}
		err := start()
		if err == nil || !errors.Is(err, errPortTaken) || try == portTries {
			return err
		}
	}
}

// onSamePort runs start on the port that clients know already. Whoever holds it
// may only be passing: a probe, or a connection that is being closed.
func (s *server) onSamePort(ctx context.Context, start func() error) error {
	deadline := time.Now().Add(portTimeout)
	var taken error
	for {
		err := start()
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errPortTaken):
			if taken != nil {
				err = fmt.Errorf("%w (before: %w)", err, taken)
			}
			return err
		case time.Now().After(deadline):
			return err
		}
		taken = err
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * pollEvery):
		}
	}
}

// watch reports a death that nobody asked for. asked is set by whoever ends
// the process on purpose.
func (s *server) watch(proc *process, asked *atomic.Bool) {
	go func() {
		<-proc.exited
		if !asked.Load() {
			s.env.log.Error("embedded server ended by itself", "server", s.name,
				"pid", proc.pid(), "error", fmt.Sprint(proc.err), "log", s.log)
		}
	}()
}

// stopSteps sends one signal after the other until the process is gone.
func (s *server) stopSteps(ctx context.Context, proc *process, signals ...syscall.Signal) error {
	for _, sig := range signals {
		if err := proc.signal(sig); err != nil {
			return err
		}
		if err := proc.wait(ctx, stopTimeout); err == nil {
			return nil
		}
		s.env.log.Warn("embedded server does not stop", "server", s.name, "pid", proc.pid(), "signal", sig.String())
	}
	return nil
}

// killAll ends a process and its children at once, as if the machine had lost
// power, and returns when none of them is left.
func (s *server) killAll(proc *process) error {
	if !proc.running() {
		return nil
	}
	// Stopped first, so that it cannot make a child between look and kill.
	if err := proc.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	awaitStopped(proc.pid())
	children := childrenOf(proc.pid())
	if err := proc.signal(syscall.SIGKILL); err != nil {
		return err
	}
	for _, c := range children {
		c.signal(syscall.SIGKILL)
	}
	<-proc.exited
	deadline := time.Now().Add(stopTimeout)
	for _, c := range children {
		for c.alive() {
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: child %d outlives its kill", s.name, c.pid)
			}
			<-time.After(pollEvery)
		}
	}
	return nil
}

// freeze sends SIGSTOP or SIGCONT to the server and its children.
func (s *server) freeze(sig syscall.Signal) error {
	s.op.Lock()
	defer s.op.Unlock()
	proc := s.current()
	if proc == nil || !proc.running() {
		return fmt.Errorf("%s does not run", s.name)
	}
	if sig == syscall.SIGCONT {
		return thaw(proc)
	}
	// The parent first: one that stands still makes no further child.
	if err := proc.signal(sig); err != nil {
		return err
	}
	awaitStopped(proc.pid())
	for _, c := range childrenOf(proc.pid()) {
		c.signal(sig)
	}
	return nil
}

// thaw lets a frozen server and its children run; a frozen one obeys no signal
// but the kill.
func thaw(proc *process) error {
	for _, c := range childrenOf(proc.pid()) {
		c.signal(syscall.SIGCONT)
	}
	return proc.signal(syscall.SIGCONT)
}
