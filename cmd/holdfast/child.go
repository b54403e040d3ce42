package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/embed"
)

// child is a `holdfast up` and a payment simulator in processes of their own, so
// that the CPU of each can be told from that of the load generator.
type child struct {
	up, sim *program
	dir     string
}

// startChild starts a fresh stack for a benchmark and fills in where it is.
func (a *app) startChild(ctx context.Context, b *benchFlags) (*child, error) {
	dir := b.dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "holdfast-bench-"); err != nil {
			return nil, err
		}
		// The servers may run as another user than root.
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, err
		}
	} else if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("--dir %s is not empty: a benchmark starts fresh and removes its directory after", dir)
	}
	c := &child{dir: filepath.Join(dir, "stack")}
	if err := a.spawnAll(ctx, c, b); err != nil {
		c.stop()
		return nil, err
	}
	b.target.Note("starting a fresh stack in %s", c.dir)
	run, err := c.wait(ctx)
	if err != nil {
		c.stop()
		return nil, err
	}
	t := &b.target
	t.API, t.Admin = apiclient.BaseURL(run.API), apiclient.BaseURL(run.Admin)
	t.DSNs, t.PID, t.RedisURL = run.Shards, run.PID, run.RedisURL
	cfg, err := a.settings(map[string]string{"HOLDFAST_DATA": c.dir})
	if err == nil {
		cfg.JWTSecret = ""
		t.Token, err = serviceToken(cfg)
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// spawnAll starts the payment simulator and the stack that pays through it.
func (a *app) spawnAll(ctx context.Context, c *child, b *benchFlags) error {
	sim, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// The port is free again in a moment; the simulator says so if not.
	addr := sim.Addr().String()
	sim.Close()
	c.sim, err = a.spawn("payment-sim", "--data", c.dir+"-payments", "--sim-addr", addr)
	if err != nil {
		return err
	}
	b.target.Sim, b.target.SimPID = apiclient.BaseURL(addr), c.sim.cmd.Process.Pid
	args := []string{"up", "--data", c.dir, "--api-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--payment-url", b.target.Sim}
	if b.shardsCount > 0 {
		args = append(args, "--shard-count", strconv.Itoa(b.shardsCount))
	}
	c.up, err = a.spawn(args...)
	return err
}

// program is a child process with what it says.
type program struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	text bytes.Buffer  // to be read after that
}

// spawn starts our own program with other arguments.
func (a *app) spawn(args ...string) (*program, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find my own program: %w", err)
	}
	p := &program{cmd: exec.Command(self, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.text, &p.text
	// A proof that nobody asked for must not fall into a measurement. Set from
	// outside as well, the later one counts.
	p.cmd.Env = append(p.cmd.Env, "HOLDFAST_PROOF_EVERY=0")
	for _, kv := range a.environ {
		// Where it listens and what it uses is decided here; how it works may
		// be set from outside.
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "HOLDFAST_SHARDS", "HOLDFAST_REDIS_URL", "HOLDFAST_JWT_SECRET", "HOLDFAST_BRANCH_ADDR", "HOLDFAST_PAYMENT_URL", "HOLDFAST_SHARD_COUNT":
		default:
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	p.cmd.SysProcAttr = childAttributes()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the stack: %w", err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // what it has to say about its end is in text
	}()
	return p, nil
}

// stop ends a program, the hard way if it does not obey.
func (p *program) stop() {
	if p == nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// startLimit is how long a fresh stack may take until it is ready.
const startLimit = 3 * time.Minute

func (c *child) wait(ctx context.Context) (runFile, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-c.up.done:
			return runFile{}, fmt.Errorf("the stack did not start: %s", strings.TrimSpace(c.up.text.String()))
		case <-c.sim.done:
			return runFile{}, fmt.Errorf("the payment simulator did not start: %s", strings.TrimSpace(c.sim.text.String()))
		case <-ctx.Done():
			return runFile{}, fmt.Errorf("the stack was not ready in time: %w", ctx.Err())
		case <-tick.C:
		}
		if run, ok := readRunFile(c.dir); ok && run.PID == c.up.cmd.Process.Pid && ready(ctx, run.Admin) {
			return run, nil
		}
	}
}

func ready(ctx context.Context, admin string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, apiclient.BaseURL(admin)+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// stop ends the children and removes their data.
func (c *child) stop() {
	c.up.stop()
	c.sim.stop()
	if err := embed.Remove(c.dir); err != nil {
		os.RemoveAll(c.dir)
	}
	os.RemoveAll(c.dir + "-payments")
	os.Remove(filepath.Dir(c.dir))
}
