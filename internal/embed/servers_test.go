package embed

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestPostgres_kill_and_start_again(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Dir: tempDir(t), Shards: 1, FastTests: true})
	p := s.Postgres(0)
	exec1(t, s.DSNs[0], "CREATE TABLE kept (n int)")
	pid := p.Pid()
	children := childrenOf(pid)
	if len(children) == 0 {
		t.Fatal("a postmaster without children cannot show that they are killed")
	}
	check(t, p.Kill())
	if foreign(pid).alive() || p.Pid() != 0 {
		t.Error("the postmaster outlived its kill")
	}
	for _, c := range children {
		if c.alive() {
			t.Errorf("child %d outlived the kill", c.pid)
		}
	}
	check(t, p.Kill()) // a dead one can be killed
	check(t, p.StartAgain(t.Context()))
	if got := query(t, s.DSNs[0], "SELECT count(*) FROM kept"); got != "0" {
		t.Errorf("count %s", got)
	}
	running := p.Pid()
	check(t, p.StartAgain(t.Context()))
	if p.Pid() != running {
		t.Error("StartAgain replaced a running server")
	}
	check(t, p.Restart(t.Context()))
	if p.Pid() == running || p.Pid() == 0 {
		t.Errorf("pid %d before and %d after Restart", running, p.Pid())
	}
}

func TestPostgres_pause(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Dir: tempDir(t), Shards: 1, FastTests: true})
	conn, err := pgx.Connect(t.Context(), s.DSNs[0])
	check(t, err)
	defer conn.Close(context.Background())
	check(t, s.Postgres(0).Pause())
	answered := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "SELECT 1")
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("a paused server answered (error %v)", err)
	case <-time.After(200 * time.Millisecond): // long against an answer, not a wait for one
	}
	check(t, s.Postgres(0).Resume())
	check(t, <-answered)
	// A paused server can be stopped: otherwise the clean-up would hang.
	check(t, s.Postgres(0).Pause())
	check(t, s.Postgres(0).Stop(t.Context()))
	if err := s.Postgres(0).Pause(); err == nil {
		t.Error("a stopped server was paused")
	}
}

func TestRedis(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Dir: tempDir(t), Shards: 1, FastTests: true})
	r := s.Redis
	command := func(want string, args ...string) {
		t.Helper()
		got, err := r.Command(t.Context(), RedisDatabases-1, args...)
		if err != nil || got != want {
			t.Errorf("%v = %q, %v; want %q", args, got, err, want)
		}
	}
	command("OK", "SET", "k", "v")
	command("1", "EXISTS", "k")
	addr := r.Addr()
	check(t, r.Kill())
	if _, err := r.Command(t.Context(), 0, "PING"); err == nil {
		t.Error("a killed Redis answered")
	}
	check(t, r.StartAgain(t.Context()))
	if r.Addr() != addr {
		t.Errorf("came back on %s, was on %s", r.Addr(), addr)
	}
	command("0", "EXISTS", "k")
	if _, err := r.Command(t.Context(), 0, "NONSENSE"); err == nil || !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("an unknown command gave %v", err)
	}
}

func TestPostgres_that_dies_by_itself_is_reported(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	s := start(t, Config{Dir: tempDir(t), Shards: 1, FastTests: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	conn, err := pgx.Connect(t.Context(), s.DSNs[0])
	check(t, err)
	defer conn.Close(context.Background())
	busy := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "SELECT pg_sleep(1000)")
		busy <- err
	}()
	p := s.Postgres(0)
	proc := p.current()
	// The postmaster alone: its children are left with the shared memory.
	check(t, syscall.Kill(p.Pid(), syscall.SIGKILL))
	<-proc.exited
	check(t, p.StartAgain(t.Context()))
	if err := <-busy; err == nil {
		t.Error("a statement outlived its server")
	}
	if got := query(t, s.DSNs[0], "SELECT 1"); got != "1" {
		t.Errorf("answer %s", got)
	}
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(log.String(), "embedded server ended by itself") {
		if time.Now().After(deadline) {
			t.Fatalf("the death was not reported: %s", log.String())
		}
		<-time.After(pollEvery)
	}
}

func TestPostgres_start_again_waits_for_its_port(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Dir: tempDir(t), Shards: 1, FastTests: true})
	p := s.Postgres(0)
	check(t, p.Kill())
	addr := p.Addr()
	squatter := squat(t, addr)
	started := make(chan error, 1)
	go func() { started <- p.StartAgain(t.Context()) }()
	deadline := time.Now().Add(time.Minute)
	for tried := false; !tried; <-time.After(pollEvery) {
		raw, err := os.ReadFile(p.log)
		check(t, err)
		tried = saysPortTaken(string(raw))
		if time.Now().After(deadline) {
			t.Fatalf("PostgreSQL did not try its port: %s", raw)
		}
	}
	check(t, squatter.Close())
	check(t, <-started)
	if p.Addr() != addr || query(t, s.DSNs[0], "SELECT 1") != "1" {
		t.Errorf("came back on %s, was on %s", p.Addr(), addr)
	}
}

func TestPostgres_hard_ways(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Dir: tempDir(t), Shards: 1, FastTests: true})
	p := s.Postgres(0)
	exec1(t, s.DSNs[0], "CREATE TABLE kept (n int)")
	conn, err := pgx.Connect(t.Context(), s.DSNs[0])
	check(t, err)
	defer conn.Close(context.Background())
	check(t, p.Pause()) // a paused one can be stopped, too
	check(t, p.StopImmediate(t.Context()))
	check(t, p.StopImmediate(t.Context())) // as can a stopped one
	if p.Pid() != 0 || conn.Ping(t.Context()) == nil {
		t.Error("the server outlived an immediate stop")
	}
	p.SetEnv("TZ=Asia/Tokyo", "PGTZ=Asia/Tokyo")
	if got := p.Env(); len(got) != 2 {
		t.Errorf("variables %q", got)
	}
	check(t, p.StartAgain(t.Context()))
	if got := query(t, s.DSNs[0], "SELECT count(*) FROM kept"); got != "0" {
		t.Errorf("count %s after the recovery", got)
	}
	raw, err := os.ReadFile(p.Log())
	check(t, err)
	if !strings.Contains(string(raw), "received immediate shutdown request") {
		t.Errorf("the server was not asked to stop at once:\n%s", raw)
	}
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Pid()))
	if runtime.GOOS == "linux" && !strings.Contains(string(environ), "TZ=Asia/Tokyo\x00") {
		t.Error("the server was not given its variables")
	}
	info, err := os.Stat(p.DataDir())
	check(t, err)
	uid, _ := p.Owner()
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != uid {
		t.Errorf("the data does not belong to %d", uid)
	}
}
