package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/jackc/pgx/v5"
)

// lab is what all runs share: PostgreSQL servers with the settings that
// Holdfast's embedded ones have, Redis, the payment simulator, and the programs. Each run gets fresh databases.
type lab struct {
	o      *options
	dir    string
	self   string // this program, which is the peers' worker too
	binary string // holdfast
	stack  *embed.Stack
	sim    *proc
	pay    *payments
	runs   int
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func newLab(ctx context.Context, o *options) (_ *lab, err error) {
	l := &lab{o: o, binary: o.binary}
	if l.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if l.dir, err = os.MkdirTemp("", "holdfast-peers-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	// The servers may run as another user than this process.
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return nil, err
	}
	if l.binary == "" {
		if err := l.build(ctx); err != nil {
			return nil, err
		}
	}
	say("starting PostgreSQL servers and Redis")
	if l.stack, err = embed.Start(ctx, embed.Config{Dir: filepath.Join(l.dir, "servers")}); err != nil {
		return nil, err
	}
	return l, l.startSim(ctx)
}

// moduleDir is where the go command keeps a module's files.
func moduleDir(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		return "", fmt.Errorf("find the module %s (run this in harness/peers): %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func (l *lab) build(ctx context.Context) error {
	root, err := moduleDir(ctx, "github.com/holdfast-escrow/holdfast")
	if err != nil {
		return err
	}
	l.binary = filepath.Join(l.dir, "holdfast")
	say("building holdfast")
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-o", l.binary, "./cmd/holdfast")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build holdfast: %w\n%s", err, out)
	}
	return nil
}

func (l *lab) startSim(ctx context.Context) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	l.pay = newPayments("http://" + addr)
	env := []string{"HOLDFAST_DATA=" + filepath.Join(l.dir, "payments"), "HOLDFAST_LOG_LEVEL=error"}
	if l.sim, err = spawn("payment simulator", l.binary, []string{"payment-sim", "--sim-addr", addr}, env, nil, nil); err != nil {
		return err
	}
	return l.sim.until(ctx, func(ctx context.Context) bool { return l.pay.reset(ctx) == nil })
}

func (l *lab) close() {
	if l.sim != nil {
		l.sim.stop()
	}
	if l.stack != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.stack.Stop(ctx); err != nil {
			say("stop the servers: %v", err)
		}
		if err := embed.Remove(filepath.Join(l.dir, "servers")); err != nil {
			say("remove the servers' data: %v", err)
		}
	}
	os.RemoveAll(l.dir)
}

// databases makes an empty database on every server and returns its DSNs and
// the function that drops it again.
func (l *lab) databases(ctx context.Context) (dsns []string, drop func(), err error) {
	l.runs++
	name := fmt.Sprintf("run%d", l.runs)
	for i := range l.stack.Shards() {
		if err := l.exec(ctx, i, "CREATE DATABASE "+name); err != nil {
			return nil, nil, err
		}
		dsns = append(dsns, l.stack.Postgres(i).DSN(name))
	}
	return dsns, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		for i := range l.stack.Shards() {
			if err := l.exec(ctx, i, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
				say("%v", err)
			}
		}
	}, nil
}

func (l *lab) exec(ctx context.Context, server int, sql string) error {
	c, err := pgx.Connect(ctx, l.stack.DSNs[server])
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// redis is the URL of a database that is empty and that only this run uses.
// The log on disk is for who loses work without it: for asynq it is the only
// place where a task is, Holdfast needs none.
func (l *lab) redis(ctx context.Context, fsync string) (string, error) {
	kept := [][]string{{"CONFIG", "SET", "appendonly", "no"}, {"FLUSHALL"}}
	if fsync != "no" {
		kept = append(kept, []string{"CONFIG", "SET", "appendfsync", fsync}, []string{"CONFIG", "SET", "appendonly", "yes"})
	}
	db := 1 + l.runs%(embed.RedisDatabases-1)
	for _, c := range kept {
		if _, err := l.stack.Redis.Command(ctx, db, c...); err != nil {
			return "", err
		}
	}
	return l.stack.Redis.URL(db), nil
}

func freePort() (int, error) {
	s, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return s.Addr().(*net.TCPAddr).Port, nil
}

// answers reports whether a GET of the URL is answered with 200.
func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
