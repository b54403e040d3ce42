// Package testkit gives tests real servers: one private PostgreSQL and one
// Redis per test process, started at first use, and fresh databases on them
// for each test. Product code never imports it.
package testkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/embed"
)

const (
	startTimeout = 2 * time.Minute
	stopTimeout  = time.Minute
	pollEvery    = 5 * time.Millisecond
	// staleAfter is when the directory of a test process that was killed is
	// removed by a later one.
	staleAfter = time.Hour
	dirPrefix  = "holdfast-test-"
)

// shared is the servers of this test process.
var shared struct {
	once  sync.Once
	dir   string
	stack *embed.Stack
	err   error
}

// Main runs the tests of a package and then stops and deletes what they
// started. Every package that uses testkit calls it:
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func stopShared() error {
	// From here on a start would leak; with the once spent there is none.
	shared.once.Do(func() {})
	if shared.stack == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return errors.Join(shared.stack.Stop(ctx), embed.Remove(shared.dir))
}

// servers starts the shared servers if need be. With -short the test is
// skipped; servers that cannot be started fail it.
func servers(t testing.TB) *embed.Stack {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL and Redis; -short is set")
	}
	shared.once.Do(func() {
		removeStale()
		shared.dir, shared.stack, shared.err = start(1, slog.New(slog.DiscardHandler))
	})
	if shared.err != nil {
		t.Fatalf("start the test servers: %v", shared.err)
	}
	if shared.stack == nil {
		t.Fatal("the test servers were stopped already")
	}
	return shared.stack
}

func start(shards int, log *slog.Logger) (string, *embed.Stack, error) {
	dir, err := makeDir()
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	stack, err := embed.Start(ctx, embed.Config{Dir: dir, Shards: shards, Log: log, FastTests: true})
	if err != nil {
		return "", nil, errors.Join(err, embed.Remove(dir))
	}
	return dir, stack, nil
}

// makeDir makes a directory that the servers' user can enter when the tests run
// as root, which t.TempDir's directories do not allow.
func makeDir() (string, error) {
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return "", fmt.Errorf("make a directory for the test servers: %w", err)
	}
	return dir, os.Chmod(dir, 0o711)
}

// removeStale deletes what killed test processes left. A directory in use
// refuses; the age protects one that is just being made.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > staleAfter {
			_ = embed.Remove(dir)
		}
	}
}

// Stack starts servers for this test alone, one PostgreSQL per shard and one
// Redis, for tests that kill or stop them. Their databases `holdfast` are
// empty. All are stopped and deleted when the test ends.
func Stack(t testing.TB, shards int) *embed.Stack {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL and Redis; -short is set")
	}
	dir, stack, err := start(shards, Logger(t))
	if err != nil {
		t.Fatalf("start servers for this test: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := errors.Join(stack.Stop(ctx), embed.Remove(dir)); err != nil {
			t.Errorf("stop the servers of this test: %v", err)
		}
	})
	return stack
}

// Eventually waits until check says ok and fails the test when it has not by
// the timeout, with what check said last.
func Eventually(t testing.TB, timeout time.Duration, check func() (ok bool, why string)) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		ok, why := check()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not so after %s: %s", timeout, why)
		}
		<-time.After(pollEvery)
	}
}

// Logger writes to the test's log, which is shown when the test fails. Lines
// after the end of the test are dropped.
func Logger(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = true
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct {
	t     testing.TB
	mu    sync.Mutex
	ended bool
}

func (w *testWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.t.Logf("%s", line[:max(0, len(line)-1)])
	}
	return len(line), nil
}
