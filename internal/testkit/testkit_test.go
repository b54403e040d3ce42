package testkit

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { Main(m) }

func count(t *testing.T, dsn, sql string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDatabases(t *testing.T) {
	t.Parallel()
	for range 2 { // made by migration, then by cloning
		dsns := Databases(t, 3)
		if len(dsns) != 3 {
			t.Fatalf("%d databases, want 3", len(dsns))
		}
		for i, dsn := range dsns {
			if got := count(t, dsn, "SELECT shard FROM shard_self WHERE shards = 3"); got != i {
				t.Errorf("database %d says it is shard %d", i, got)
			}
			if got := count(t, dsn, "SELECT count(*) FROM accounts"); got != 0 {
				t.Errorf("database %d is not empty", i)
			}
		}
	}
}

func TestDatabases_are_dropped_after_the_test(t *testing.T) {
	t.Parallel()
	var dsn string
	t.Run("inner", func(t *testing.T) {
		dsn = EmptyDatabases(t, 1)[0]
		if got := count(t, dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); got != 0 {
			t.Errorf("%d tables in an empty database", got)
		}
	})
	if conn, err := pgx.Connect(t.Context(), dsn); err == nil {
		conn.Close(t.Context())
		t.Error("the database outlives its test")
	}
}

func TestRedis_is_empty_and_apart(t *testing.T) {
	t.Parallel()
	a, b := Redis(t), Redis(t)
	if a == b {
		t.Errorf("two tests share %s", a)
	}
}

func TestStack(t *testing.T) {
	t.Parallel()
	s := Stack(t, 2)
	if err := s.Postgres(1).Kill(); err != nil {
		t.Fatal(err)
	}
	if got := count(t, s.DSNs[0], "SELECT 1"); got != 1 {
		t.Error("the other shard went, too")
	}
	if err := s.Postgres(1).StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := count(t, s.DSNs[1], "SELECT 1"); got != 1 {
		t.Error("the killed shard did not come back")
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	Eventually(t, time.Minute, func() (bool, string) { return calls.Add(1) == 3, "not three yet" })
	if calls.Load() != 3 {
		t.Errorf("%d calls, want 3", calls.Load())
	}
}

func TestLogger_drops_what_comes_too_late(t *testing.T) {
	t.Parallel()
	var write func()
	t.Run("inner", func(t *testing.T) {
		log := Logger(t)
		write = func() { log.Info("a line") }
		write()
	})
	write() // testing panics when a test that has ended is written to
}
