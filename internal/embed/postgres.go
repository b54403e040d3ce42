package embed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	connectTimeout = 5 * time.Second
	// orphanTimeout is how long backends of a killed postmaster may take to
	// notice and leave; until then a new one refuses to start.
	orphanTimeout = 30 * time.Second
)

// dieFast makes PostgreSQL roll back what is open, write a checkpoint and end:
// the next start needs no recovery. It is the ordinary stop and also what the
// kernel sends when we are killed.
const dieFast = syscall.SIGINT

// Postgres is one PostgreSQL server. Its methods may be called from several
// goroutines; starts and stops follow one another.
type Postgres struct {
	server
	shard          int
	data           string
	walCompression string
	asked          *atomic.Bool // the running process was told to end
	extra          []string     // environment of the next starts, see SetEnv
}

func newPostgres(e *environment, i int) *Postgres {
	return &Postgres{
		server: server{env: e, name: fmt.Sprintf("PostgreSQL shard %d", i), log: e.logPath(shardName(i)), port: e.state.Ports[i]},
		shard:  i,
		data:   filepath.Join(e.home, shardName(i)),
	}
}

// DSN is the owner's connection string for a database of this server.
func (p *Postgres) DSN(database string) string {
	return fmt.Sprintf("postgres://holdfast:%s@%s/%s?sslmode=disable", p.env.state.Password, p.Addr(), database)
}

// first makes the server on the first start, clears up after a crash, and
// starts it; another port is taken if ours is gone.
func (p *Postgres) first(ctx context.Context) error {
	p.op.Lock()
	defer p.op.Unlock()
	begin := time.Now()
	if err := p.initialise(ctx); err != nil {
		return err
	}
	if err := p.stopStale(ctx); err != nil {
		return err
	}
	p.walCompression = "pglz"
	if p.accepts(ctx, "wal_compression=lz4") {
		p.walCompression = "lz4"
	}
	if err := p.onNewPort(func() error { return p.start(ctx) }); err != nil {
		return err
	}
	if err := p.createDatabase(ctx); err != nil {
		return err
	}
	p.env.say("%s ready on %s (%.1f s)", p.name, p.Addr(), time.Since(begin).Seconds())
	return nil
}

// initialise makes the data directory under another name and renames it when
// it is whole: one that was interrupted is thrown away and made again.
func (p *Postgres) initialise(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(p.data, "PG_VERSION")); err == nil {
		return nil
	}
	leftovers, _ := filepath.Glob(p.data + ".init-*")
	for _, dir := range leftovers {
		if err := os.RemoveAll(dir); err != nil {
			p.env.log.Warn("remove an interrupted initdb", "dir", dir, "error", err.Error())
		}
	}
	p.env.say("%s: making its data directory …", p.name)
	fresh := p.data + ".init-" + secret(4)
	password := fresh + ".pw"
	if err := p.writePassword(password); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	defer os.Remove(password)
	if err := p.runInitdb(ctx, fresh, password); err != nil {
		os.RemoveAll(fresh)
		return err
	}
	if err := errors.Join(os.Rename(fresh, p.data), syncDir(p.env.home)); err != nil {
		return fmt.Errorf("%s: keep the new data directory: %w", p.name, err)
	}
	return nil
}

func (p *Postgres) writePassword(path string) error {
	if err := os.WriteFile(path, []byte(p.env.state.Password+"\n"), 0o600); err != nil {
		return err
	}
	if u := p.env.user; u != nil {
		return os.Chown(path, int(u.uid), int(u.gid))
	}
	return nil
}

func (p *Postgres) runInitdb(ctx context.Context, dir, password string) error {
	args := []string{"-D", dir, "-U", "holdfast", "--pwfile", password,
		"-E", "UTF8", "--locale=C", "--auth=scram-sha-256", "--data-checksums", "--no-instructions"}
	if p.env.fast {
		args = append(args, "--no-sync")
	}
	cmd := exec.Command(p.env.programs.initdb, args...)
	cmd.Dir = p.env.home
	cmd.Env = cleanEnv()
	logPath := p.env.logPath(shardName(p.shard) + "-initdb")
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of initdb: %w", err)
	}
	defer logFile.Close()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	proc, err := p.env.spawner.start(cmd, p.env.user, syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("%s: start initdb: %w", p.name, err)
	}
	select {
	case <-proc.exited:
	case <-ctx.Done():
		// Its own children read from it and end with it.
		return errors.Join(fmt.Errorf("%s: initdb: %w", p.name, ctx.Err()), p.killAll(proc))
	}
	if proc.err != nil {
		return fmt.Errorf("%s: initdb: %w: %s (log: %s)", p.name, proc.err, lastLine(logPath, 0), logPath)
	}
	return nil
}

// accepts asks the server program whether it knows a value; it starts nothing.
func (p *Postgres) accepts(ctx context.Context, setting string) bool {
	name, _, _ := strings.Cut(setting, "=")
	cmd := exec.CommandContext(ctx, p.env.programs.postgres, "-D", p.data, "-C", name, "-c", setting)
	cmd.Dir = p.env.home
	cmd.Env = cleanEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.env.user.credential()}
	return cmd.Run() == nil
}

// start launches the postmaster on p.port and waits for it, through a recovery
// if there is one.
func (p *Postgres) start(ctx context.Context) error {
	deadline := time.Now().Add(orphanTimeout)
	for {
		cmd := exec.Command(p.env.programs.postgres, append([]string{"-D", p.data}, p.settings()...)...)
		cmd.Dir = p.env.home
		cmd.Env = append(cleanEnv(), p.extra...)
		err := p.launch(ctx, cmd, dieFast, p.ready)
		if err == nil {
			p.asked = new(atomic.Bool)
			p.watch(p.current(), p.asked)
			return nil
		}
		if p.Pid() != 0 {
			err = errors.Join(err, p.killAll(p.current()))
		}
		if !strings.Contains(err.Error(), "shared memory block") || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * pollEvery):
		}
	}
}

func (p *Postgres) ready(ctx context.Context) error {
	conn, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// A neighbour that was faster on the same port knows the same password.
	var data string
	if err := conn.QueryRow(ctx, `SHOW data_directory`).Scan(&data); err != nil {
		return err
	}
	if data != p.data {
		return fmt.Errorf("%w: %d, by the server of %s", errPortTaken, p.port, data)
	}
	return nil
}

func (p *Postgres) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return pgx.Connect(ctx, p.DSN("postgres"))
}

func (p *Postgres) createDatabase(ctx context.Context) error {
	conn, err := p.connect(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there bool
	err = conn.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_database WHERE datname = 'holdfast'`).Scan(&there)
	if err == nil && !there {
		_, err = conn.Exec(ctx, `CREATE DATABASE holdfast`)
	}
	if err != nil {
		return fmt.Errorf("%s: create its database: %w", p.name, err)
	}
	return nil
}

// Stop ends the server in order: open transactions are rolled back and a
// checkpoint is written. One that does not obey is killed. Stopping a server
// that does not run is no error.
func (p *Postgres) Stop(ctx context.Context) error {
	p.op.Lock()
	defer p.op.Unlock()
	proc := p.current()
	if proc == nil || !proc.running() {
		return nil
	}
	p.expectEnd()
	if err := thaw(proc); err != nil {
		return err
	}
	if err := p.stopSteps(ctx, proc, dieFast, syscall.SIGQUIT); err != nil {
		return err
	}
	return p.killAll(proc)
}

// Kill ends the postmaster and all its children with SIGKILL and returns when
// they are gone.
func (p *Postgres) Kill() error {
	p.op.Lock()
	defer p.op.Unlock()
	proc := p.current()
	if proc == nil {
		return nil
	}
	p.expectEnd()
	return p.killAll(proc)
}

func (p *Postgres) expectEnd() {
	if p.asked != nil {
		p.asked.Store(true)
	}
}

// StartAgain starts a stopped or killed server on the same data and the same
// address and waits until it accepts connections. It is no error if it runs.
func (p *Postgres) StartAgain(ctx context.Context) error {
	p.op.Lock()
	defer p.op.Unlock()
	if p.Pid() != 0 {
		return nil
	}
	return p.onSamePort(ctx, func() error { return p.start(ctx) })
}

// Restart is Stop and StartAgain.
func (p *Postgres) Restart(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return p.StartAgain(ctx)
}

// Pause freezes the server with all its children (SIGSTOP): connections stay
// open and nobody answers. Connections opened meanwhile wait, too.
func (p *Postgres) Pause() error { return p.freeze(syscall.SIGSTOP) }

// Resume undoes Pause.
func (p *Postgres) Resume() error { return p.freeze(syscall.SIGCONT) }

// cleanEnv is our environment without the variables that would change what
// PostgreSQL's programs do.
func cleanEnv() []string {
	env := []string{"LC_ALL=C"}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG") {
			env = append(env, kv)
		}
	}
	return env
}

// stopStale stops a postmaster of this data directory that outlived the
// process that started it. The directory's lock is ours, so nobody needs it.
func (p *Postgres) stopStale(ctx context.Context) error {
	path := filepath.Join(p.data, "postmaster.pid")
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil // a clean stop removes the file
	}
	first, rest, _ := strings.Cut(string(raw), "\n")
	pid, _ := strconv.Atoi(first)
	if pid <= 1 {
		return os.Remove(path) // a crash tore the file; PostgreSQL would refuse it
	}
	old := foreign(pid)
	if !old.alive() {
		return nil // PostgreSQL sees that itself
	}
	if !serves(pid, p.data) {
		// The number belongs to somebody else now. PostgreSQL takes a file with
		// its parent's number for stale, and still looks for orphaned backends.
		return os.WriteFile(path, fmt.Appendf(nil, "%d\n%s", os.Getpid(), rest), 0o600)
	}
	p.env.say("%s: stopping process %d, left over from a run that was killed …", p.name, pid)
	for _, sig := range []syscall.Signal{dieFast, syscall.SIGQUIT, syscall.SIGKILL} {
		old.signal(sig)
		deadline := time.Now().Add(stopTimeout)
		for old.alive() && time.Now().Before(deadline) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pollEvery):
			}
		}
		if !old.alive() {
			return nil
		}
	}
	return fmt.Errorf("%s: process %d of an earlier run does not stop", p.name, pid)
}
