package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/embed"
)

// child is a `holdfast up` in a process of its own, so that its CPU can be told
// from that of the load generator.
type child struct {
	cmd  *exec.Cmd
	dir  string
	done chan struct{} // closed when it has ended
	text bytes.Buffer
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
	c, err := a.spawn(filepath.Join(dir, "stack"))
	if err != nil {
		return nil, err
	}
	b.cfg.Note("starting a fresh stack in %s", c.dir)
	run, err := c.wait(ctx)
	if err != nil {
		c.stop()
		return nil, err
	}
	b.cfg.API, b.cfg.Admin = apiclient.BaseURL(run.API), apiclient.BaseURL(run.Admin)
	b.cfg.DSNs, b.cfg.PID = run.Shards, run.PID
	cfg, err := a.settings(map[string]string{"HOLDFAST_DATA": c.dir})
	if err == nil {
		cfg.JWTSecret = ""
		b.cfg.Token, err = serviceToken(cfg)
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

func (a *app) spawn(dir string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find my own program: %w", err)
	}
	c := &child{dir: dir, done: make(chan struct{})}
	c.cmd = exec.Command(self, "up", "--data", dir, "--api-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--sim-addr", "127.0.0.1:0")
	c.cmd.Stdout, c.cmd.Stderr = &c.text, &c.text
	for _, kv := range a.environ {
		// Where it listens and what it uses is decided here; how it works may
		// be set from outside.
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "HOLDFAST_SHARDS", "HOLDFAST_REDIS_URL", "HOLDFAST_JWT_SECRET", "HOLDFAST_BRANCH_ADDR":
		default:
			c.cmd.Env = append(c.cmd.Env, kv)
		}
	}
	c.cmd.SysProcAttr = childAttributes()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the stack: %w", err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait() // what it has to say about its end is in text
	}()
	return c, nil
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
		case <-c.done:
			return runFile{}, fmt.Errorf("the stack did not start: %s", strings.TrimSpace(c.text.String()))
		case <-ctx.Done():
			return runFile{}, fmt.Errorf("the stack was not ready in time: %w", ctx.Err())
		case <-tick.C:
		}
		if run, ok := readRunFile(c.dir); ok && run.PID == c.cmd.Process.Pid && ready(ctx, run.Admin) {
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

// stop ends the child and removes its data.
func (c *child) stop() {
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(time.Minute):
		c.cmd.Process.Kill()
		<-c.done
	}
	if err := embed.Remove(c.dir); err != nil {
		os.RemoveAll(c.dir)
	}
	os.Remove(filepath.Dir(c.dir))
}
