package embed

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// The test binary starts itself again as a process that runs servers and can
// be killed; helperDir names the directory it takes.
const helperDir = "HOLDFAST_EMBED_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		if err := helper(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper starts the servers, prints "ready", and runs until its input ends.
func helper(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stack, err := Start(ctx, Config{Dir: dir, Shards: 1, FastTests: true})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return stack.Stop(ctx)
}

// runHelper returns when the helper's servers accept connections.
func runHelper(t *testing.T, program, dir string, cred *syscall.Credential) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if cred != nil {
		cmd.Dir = dir
	}
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		_ = cmd.Wait()
		t.Fatalf("the helper process did not start: %q %v: %s", line, err, stderr.String())
	}
	return cmd
}

func TestStart(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	var progress syncBuffer
	s := start(t, Config{Dir: dir, Shards: 2, Progress: &progress})

	for i, dsn := range s.DSNs {
		want := fmt.Sprintf("PostgreSQL shard %d ready on %s (", i, s.Postgres(i).Addr())
		if !strings.Contains(progress.String(), want) {
			t.Errorf("progress has no line %q:\n%s", want, progress.String())
		}
		for setting, want := range map[string]string{
			"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "data_checksums": "on",
			"server_encoding": "UTF8", "listen_addresses": "127.0.0.1", "jit": "off", "TimeZone": "UTC",
		} {
			if got := query(t, dsn, "SHOW "+setting); got != want {
				t.Errorf("shard %d: %s = %s, want %s", i, setting, got, want)
			}
		}
		if got := query(t, dsn, "SELECT datcollate || current_database() FROM pg_database WHERE datname = current_database()"); got != "Choldfast" {
			t.Errorf("shard %d: collation and database %s", i, got)
		}
	}
	wrong := strings.Replace(s.DSNs[0], s.env.state.Password, "guess", 1)
	if conn, err := pgx.Connect(t.Context(), wrong); err == nil {
		conn.Close(t.Context())
		t.Error("a wrong password was let in")
	}
	if used := s.CPUSeconds(); used["postgres"] <= 0 {
		t.Errorf("no processor time counted: %v", used)
	}
	info, err := os.Stat(filepath.Join(dir, stateFile))
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file with the passwords has mode %v", info.Mode().Perm())
	}
}

func TestStart_again_after_stop_keeps_data_and_addresses(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	exec1(t, s.DSNs[0], "CREATE TABLE kept (n int)")
	exec1(t, s.DSNs[0], "INSERT INTO kept VALUES (7)")
	old := s.DSNs[0]
	check(t, s.Stop(t.Context()))
	if s.Postgres(0).Pid() != 0 || s.Redis.Pid() != 0 {
		t.Fatal("a server runs after Stop")
	}
	check(t, s.Stop(t.Context())) // once more does no harm

	s = start(t, Config{Dir: dir, FastTests: true}) // no number: as many as there are
	if s.Shards() != 1 || s.DSNs[0] != old {
		t.Errorf("%d shards at %v after the second start, want 1 at %s", s.Shards(), s.DSNs, old)
	}
	if got := query(t, s.DSNs[0], "SELECT n FROM kept"); got != "7" {
		t.Errorf("kept %s, want 7", got)
	}
	check(t, s.Stop(t.Context()))
	_, err := Start(t.Context(), Config{Dir: dir, Shards: 3})
	wantLine(t, err, "holds 1 shards but 3 were asked for")
}

func TestStart_refuses_a_second_one(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	_, err := Start(t.Context(), Config{Dir: dir, Shards: 1})
	wantLine(t, err, fmt.Sprintf("is held by process %d", os.Getpid()))
	if !errors.Is(err, ErrInUse) {
		t.Errorf("%v is not ErrInUse", err)
	}
	if err := Remove(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove below running servers gave %v", err)
	}
}

func TestStart_after_kill_of_the_owner(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	owner := runHelper(t, os.Args[0], dir, nil)
	st, err := readState(dir)
	check(t, err)
	dsn := fmt.Sprintf("postgres://holdfast:%s@127.0.0.1:%d/holdfast?sslmode=disable", st.Password, st.Ports[0])
	exec1(t, dsn, "CREATE TABLE kept (n int)")
	exec1(t, dsn, "INSERT INTO kept VALUES (1)")
	raw, err := os.ReadFile(filepath.Join(st.Home, "shard0", "postmaster.pid"))
	check(t, err)
	postmaster := foreign(leadingNumber(string(raw)))
	check(t, owner.Process.Kill())
	if runtime.GOOS == "linux" {
		// The kernel tells the servers; nobody has to start anew for them to go.
		deadline := time.Now().Add(time.Minute)
		for postmaster.alive() {
			if time.Now().After(deadline) {
				t.Fatal("PostgreSQL outlives the process that started it")
			}
			<-time.After(pollEvery)
		}
	}

	s := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	if got := query(t, s.DSNs[0], "SELECT n FROM kept"); got != "1" {
		t.Errorf("kept %s, want 1", got)
	}
}

func TestStart_at_once_after_kill_of_the_owner(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	for range 3 {
		owner := runHelper(t, os.Args[0], dir, nil)
		check(t, owner.Process.Kill())
		_ = owner.Wait()
	}
	s := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	if got := query(t, s.DSNs[0], "SELECT 1"); got != "1" {
		t.Errorf("answer %s", got)
	}
}

func TestStart_with_a_server_left_running(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	exec1(t, s.DSNs[0], "CREATE TABLE kept (n int)")
	left, leftRedis := foreign(s.Postgres(0).Pid()), foreign(s.Redis.Pid())
	// As on a system without death signals: the lock is free, the servers run.
	s.Postgres(0).expectEnd()
	s.Redis.expectEnd()
	check(t, syscall.Flock(int(s.lock.file.Fd()), syscall.LOCK_UN))

	second := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	if left.alive() || leftRedis.alive() {
		t.Error("a server left over still runs")
	}
	if got := query(t, second.DSNs[0], "SELECT count(*) FROM kept"); got != "0" {
		t.Errorf("count %s", got)
	}
}

func TestStart_with_the_pid_of_somebody_else(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	pidFile := filepath.Join(s.Postgres(0).data, "postmaster.pid")
	raw, err := os.ReadFile(pidFile)
	check(t, err)
	check(t, s.Postgres(0).Kill())
	check(t, s.Stop(t.Context()))

	sleeper := exec.Command("sleep", "1000")
	if os.Geteuid() == 0 {
		u, err := lookupServerUser()
		check(t, err)
		sleeper.SysProcAttr = &syscall.SysProcAttr{Credential: u.credential()}
	}
	check(t, sleeper.Start())
	t.Cleanup(func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() })
	_, rest, _ := strings.Cut(string(raw), "\n")
	check(t, os.WriteFile(pidFile, []byte(strconv.Itoa(sleeper.Process.Pid)+"\n"+rest), 0o600))

	start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	if !foreign(sleeper.Process.Pid).alive() {
		t.Error("a process that has nothing to do with us was ended")
	}
}

func TestStart_after_an_interrupted_initdb(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	// Cancelled as soon as the first line about initdb is written.
	_, err := Start(ctx, Config{Dir: dir, Shards: 1, FastTests: true, Progress: writerFunc(func(b []byte) {
		if bytes.Contains(b, []byte("making its data directory")) {
			cancel()
		}
	})})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the cancelled start gave %v", err)
	}
	half := filepath.Join(dir, "pg", "shard0.init-0000")
	check(t, os.MkdirAll(half, 0o700)) // what a kill at that moment leaves
	check(t, os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600))

	s := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	if got := query(t, s.DSNs[0], "SELECT 1"); got != "1" {
		t.Errorf("answer %s", got)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "pg", "*.init-*"))
	if len(left) > 0 {
		t.Errorf("leftovers: %v", left)
	}
}

func TestStart_takes_another_port_when_its_own_is_gone(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	old := s.Postgres(0).Addr()
	check(t, s.Stop(t.Context()))
	squat(t, old)
	s = start(t, Config{Dir: dir, Shards: 1, FastTests: true})
	if s.Postgres(0).Addr() == old {
		t.Errorf("two servers on %s", old)
	}
	st, err := readState(dir)
	check(t, err)
	if want := s.Postgres(0).port; st.Ports[0] != want {
		t.Errorf("the state remembers port %d, want %d", st.Ports[0], want)
	}
}

// syncBuffer is written by servers that start at once.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
