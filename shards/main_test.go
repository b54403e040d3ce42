package shards

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/embed"
)

// stack is two private servers: the second is for tests that change settings
// of a whole server.
var stack *embed.Stack

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(realMain(m))
}

func realMain(m *testing.M) int {
	if testing.Short() {
		return m.Run() // what needs the servers skips itself
	}
	dir, err := os.MkdirTemp("", "holdfast-shards-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	stack, err = embed.Start(ctx, embed.Config{Dir: dir, Shards: 3, FastTests: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start servers:", err)
		return 1
	}
	code := m.Run()
	stopCtx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if err := stack.Stop(stopCtx); err != nil {
		fmt.Fprintln(os.Stderr, "stop servers:", err)
		return 1
	}
	return code
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// databases makes n empty databases on the first server.
func databases(t *testing.T, n int) []string {
	t.Helper()
	return databasesOn(t, 0, n)
}

func databasesOn(t *testing.T, server, n int) []string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL servers")
	}
	admin := connect(t, stack.DSNs[server])
	dsns := make([]string, n)
	for i := range dsns {
		name := fmt.Sprintf("t_%016x", rand.Uint64())
		if _, err := admin.Exec(testContext(t), "CREATE DATABASE "+name+" TEMPLATE template0"); err != nil {
			t.Fatalf("create database: %v", err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			conn, err := pgx.Connect(ctx, stack.DSNs[server])
			if err != nil {
				t.Errorf("drop database: %v", err)
				return
			}
			defer conn.Close(ctx)
			if _, err := conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
				t.Errorf("drop database: %v", err)
			}
		})
		dsns[i] = stack.Postgres(server).DSN(name)
	}
	return dsns
}

// migrated makes a cluster of n shards.
func migrated(t *testing.T, n int) []string {
	t.Helper()
	dsns := databases(t, n)
	if err := Migrate(testContext(t), dsns, nil, nil); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	return dsns
}

// connect opens a connection as the owner.
func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(testContext(t), dsn)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func open(t *testing.T, dsns ...string) *Set {
	t.Helper()
	set, err := Open(testContext(t), Config{DSNs: dsns})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(set.Close)
	return set
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(testContext(t), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func read[T any](t *testing.T, q queryer, sql string, args ...any) (v T) {
	t.Helper()
	if err := q.QueryRow(testContext(t), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// wantError checks the kind and that the text names what it should.
func wantError(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("error %q is not %q", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func wantState(t *testing.T, err error, state string) {
	t.Helper()
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != state {
		t.Errorf("error is %v, want SQLSTATE %s", err, state)
	}
}

// with adds files to the embedded ones; an empty body removes one.
func with(t *testing.T, files map[string]string) fs.FS {
	t.Helper()
	all := fstest.MapFS{}
	names, err := fs.Glob(embedded, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		body, err := fs.ReadFile(embedded, name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = &fstest.MapFile{Data: body}
	}
	for name, body := range files {
		all["migrations/"+name] = &fstest.MapFile{Data: []byte(body)}
		if body == "" {
			delete(all, "migrations/"+name)
		}
	}
	return all
}

var silent = slog.New(slog.DiscardHandler)

func user(i int) (u holdfast.UserID) {
	u[0], u[14], u[15] = 1, byte(i>>8), byte(i)
	return u
}
