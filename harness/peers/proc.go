package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// proc is a process of a run.
type proc struct {
	cmd  *exec.Cmd
	name string
	done chan struct{}

	mu   sync.Mutex
	tail bytes.Buffer // the end of what it said
}

const maxTail = 64 << 10

func (p *proc) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tail.Write(b)
	if over := p.tail.Len() - maxTail; over > 0 {
		p.tail.Next(over)
	}
	return len(b), nil
}

func (p *proc) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.tail.String())
}

// spawn starts a program; each line of its stderr goes to onLine, if there is
// one. The kernel ends it when this process is killed.
func spawn(name, program string, args, env []string, stdout io.Writer, onLine func(string)) (*proc, error) {
	p := &proc{name: name, done: make(chan struct{})}
	p.cmd = exec.Command(program, args...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = childAttributes()
	p.cmd.Stdout = p
	if stdout != nil {
		p.cmd.Stdout = stdout
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			fmt.Fprintln(p, lines.Text())
			if onLine != nil {
				onLine(lines.Text())
			}
		}
		io.Copy(p, stderr)
		_ = p.cmd.Wait() // what it has to say about its end is in tail
	}()
	return p, nil
}

// kill is kill -9; it returns when the process is gone.
func (p *proc) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// stop asks the process to end, and ends it after ten seconds.
func (p *proc) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}

// until polls ready and fails when the process ends or the time is over.
func (p *proc) until(ctx context.Context, ready func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !ready(ctx) {
		select {
		case <-p.done:
			return fmt.Errorf("%s has ended: %s", p.name, p.said())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready in time: %s", p.name, p.said())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
