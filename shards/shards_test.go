package shards

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-escrow/holdfast"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	good := migrated(t, 2)

	t.Run("wrong wiring is refused", func(t *testing.T) {
		t.Parallel()
		foreign := migrated(t, 2)
		for name, c := range map[string]struct {
			dsns []string
			kind error
			word string
		}{
			"swapped":         {[]string{good[1], good[0]}, ErrMiswired, "leads to shard"},
			"too few":         {good[:1], ErrMiswired, "2 shards"},
			"another cluster": {[]string{good[0], foreign[1]}, ErrMiswired, "cluster"},
			"not migrated":    {[]string{good[0], databases(t, 1)[0]}, ErrNotMigrated, "DSN 1"},
			"wrong password":  {[]string{good[0], strings.Replace(good[1], "@", "x@", 1)}, nil, "password authentication"},
			"no database":     {[]string{good[0], good[1][:strings.LastIndex(good[1], "/")] + "/none?sslmode=disable"}, nil, "does not exist"},
		} {
			_, err := Open(testContext(t), Config{DSNs: c.dsns})
			if err == nil {
				t.Errorf("%s: opened", name)
				continue
			}
			wantError(t, err, c.kind, c.word)
		}
	})

	t.Run("a connection made later is checked too", func(t *testing.T) {
		t.Parallel()
		dsns := migrated(t, 2)
		set := open(t, dsns...)
		exec(t, connect(t, dsns[1]), `UPDATE shard_self SET shard = 0`)
		_, err := set.Money(1).Acquire(testContext(t)) // the first money connection of this set
		wantError(t, err, ErrMiswired, "DSN 1", "shard 0")
		if err := set.Money(0).Ping(testContext(t)); err != nil {
			t.Errorf("the good shard: %v", err)
		}
	})

	t.Run("a dead shard does not stop the others", func(t *testing.T) {
		t.Parallel()
		set := open(t, good[0], deadDSN)
		if *set.Map() != *holdfast.EvenShardMap(2) {
			t.Error("the map was not read from the living shard")
		}
		if err := set.Ping(testContext(t), 0); err != nil {
			t.Error(err)
		}
		wantError(t, set.Ping(testContext(t), 1), holdfast.ErrShardUnavailable, "shard 1")
		wantError(t, set.KeepPartitions(testContext(t)), nil, "shard 1")
		_, err := Open(testContext(t), Config{DSNs: []string{deadDSN}})
		wantError(t, err, holdfast.ErrShardUnavailable, "shard map")
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error shows the password: %q", err)
		}
		all, err := Open(testContext(t), Config{DSNs: []string{deadDSN}, Map: holdfast.EvenShardMap(1)})
		if err != nil {
			t.Fatalf("all shards down and the map known: %v", err)
		}
		all.Close()
	})

	t.Run("settings of the pools", func(t *testing.T) {
		t.Parallel()
		dsns := migrated(t, 1)
		conn := connect(t, dsns[0])
		for _, s := range []string{"statement_timeout = '1s'", "timezone = 'Asia/Kolkata'", "jit = on", "synchronous_commit = off"} {
			exec(t, conn, "ALTER DATABASE "+conn.Config().Database+" SET "+s)
		}
		set := open(t, dsns...)
		for name, want := range map[string]string{
			"application_name": "holdfast-money", "TimeZone": "UTC", "jit": "off", "enable_seqscan": "off",
			"enable_hashjoin": "off", "enable_mergejoin": "off", "plan_cache_mode": "force_generic_plan",
			"synchronous_commit": "on", "statement_timeout": "0", "lock_timeout": "0",
			"idle_in_transaction_session_timeout": "30s", "role": AppRole,
		} {
			if got := read[string](t, set.Money(0), `SELECT current_setting($1)`, name); got != want {
				t.Errorf("money pool: %s is %q, want %q", name, got, want)
			}
		}
		if got := read[string](t, set.Reads(0), `SELECT current_setting('enable_seqscan')`); got != "on" {
			t.Errorf("reads pool: enable_seqscan is %s", got)
		}
		for name, c := range map[string]struct{ got, want int32 }{
			"money": {set.Money(0).Config().MaxConns, 6}, "reads": {set.Reads(0).Config().MaxConns, 4}, "owner": {set.Owner(0).Config().MaxConns, 2},
		} {
			if c.got != c.want {
				t.Errorf("%s pool has %d connections, want %d", name, c.got, c.want)
			}
		}
	})

	t.Run("clock and metrics", func(t *testing.T) {
		t.Parallel()
		registry := prometheus.NewRegistry()
		for range 2 { // a second set in one process, after the first is closed
			set, err := Open(testContext(t), Config{DSNs: good, Metrics: registry})
			if err != nil {
				t.Fatal(err)
			}
			offset, err := set.ClockOffset(testContext(t), 1)
			if err != nil || offset.Abs() > 500*time.Millisecond {
				t.Errorf("the clock of a server on this machine is off by %s, %v", offset, err)
			}
			if err := set.KeepPartitions(testContext(t)); err != nil {
				t.Error(err)
			}
			families, err := registry.Gather()
			if err != nil || len(families) != 3 {
				t.Errorf("%d families of metrics, %v", len(families), err)
			}
			set.Close()
		}
	})
}

// The server, too, notices a peer that is gone or frozen.
func TestSessionsOfTheDeadEnd(t *testing.T) {
	t.Parallel()
	set := open(t, migrated(t, 1)...)
	for name, want := range map[string]string{"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5",
		"tcp_keepalives_count": "3", "tcp_user_timeout": "25000"} {
		for use, pool := range map[string]*pgxpool.Pool{"money": set.Money(0), "reads": set.Reads(0), "owner": set.Owner(0)} {
			if got := read[string](t, pool, `SELECT setting FROM pg_settings WHERE name = $1`, name); got != want {
				t.Errorf("%s pool: %s is %q, want %q", use, name, got, want)
			}
		}
	}
	if got := read[string](t, set.Owner(0), `SELECT current_setting('idle_session_timeout')`); got != "10min" {
		t.Errorf("owner pool: idle_session_timeout is %s", got)
	}
}

func TestRunMaintenance(t *testing.T) {
	t.Parallel()
	dsns := migrated(t, 1)
	set, conn := open(t, dsns...), connect(t, dsns[0])
	today := DayAt(read[time.Time](t, conn, `SELECT clock_timestamp()`))
	exec(t, conn, "DROP TABLE barrier_"+(today+7).String())
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan struct{})
	go func() { defer close(done); set.RunMaintenance(ctx) }()
	for ahead := 0; ahead != daysAhead; {
		var err error
		if ahead, err = set.PartitionsAhead(testContext(t), 0); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
}

// A commit that stops waiting for its standby comes back as success.
func TestTakeCommitWarning(t *testing.T) {
	t.Parallel()
	dsn := databasesOn(t, 1, 1)[0]
	if err := Migrate(testContext(t), []string{dsn}, nil, nil); err != nil {
		t.Fatal(err)
	}
	set := open(t, dsn)
	money, err := set.Money(0).Acquire(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer money.Release()
	const insert = `INSERT INTO audit (at, actor, action, reason) VALUES (now(), 'a', 'b', 'c')`
	if _, err := money.Exec(testContext(t), insert); err != nil || TakeCommitWarning(money.Conn()) {
		t.Fatalf("an ordinary commit: warned or %v", err)
	}

	admin := connect(t, stack.DSNs[1])
	exec(t, admin, `SET synchronous_commit = local`)
	standby := func(name string) {
		exec(t, admin, `ALTER SYSTEM SET synchronous_standby_names = '`+name+`'`)
		exec(t, admin, `SELECT pg_reload_conf()`)
		for read[string](t, admin, `SHOW synchronous_standby_names`) != name {
		}
	}
	standby("nobody")
	defer standby("")
	// The waiting of a commit shows in pg_stat_activity; a backend that has not
	// read the new setting yet commits at once, so it commits until one waits.
	failed := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := money.Exec(testContext(t), insert); err != nil {
				failed <- err
				return
			}
		}
	}()
	pid := money.Conn().PgConn().PID()
	for !read[bool](t, admin, `SELECT coalesce((SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1), false)`, pid) {
	}
	close(stop)
	exec(t, admin, `SELECT pg_cancel_backend($1::int)`, pid)
	if err := <-failed; err != nil {
		t.Fatalf("the server has changed: a cancelled commit is an error now: %v", err)
	}
	if !TakeCommitWarning(money.Conn()) {
		t.Error("the warning was not seen")
	}
	if TakeCommitWarning(money.Conn()) {
		t.Error("the warning was given twice")
	}
}

// Whoever holds a lock of a table makes creation give up and try again, never
// makes traffic wait behind it for long.
func TestPartitionsWaitPolitely(t *testing.T) {
	t.Parallel()
	dsns := migrated(t, 1)
	conn, set := connect(t, dsns[0]), open(t, dsns...)
	today := DayAt(read[time.Time](t, conn, `SELECT clock_timestamp()`))
	exec(t, conn, "DROP TABLE holds_"+(today+90).String())
	tx, err := conn.Begin(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(testContext(t), `LOCK TABLE holds IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	owner, err := set.Owner(0).Acquire(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Release()
	_, err = createSome(testContext(t), owner.Conn())
	wantState(t, err, "55P03")
	if err == nil || !lockBusy(err) {
		t.Errorf("error %v is not one to try again after", err)
	}
	if err := tx.Rollback(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if n, err := createSome(testContext(t), owner.Conn()); n != 1 || err != nil {
		t.Errorf("with the lock free %d were made, %v", n, err)
	}
	if _, err := pgx.CollectRows(must(t, conn, "SELECT id FROM holds_"+(today+90).String()), pgx.RowTo[[16]byte]); err != nil {
		t.Error(err)
	}
}

func must(t *testing.T, conn *pgx.Conn, sql string) pgx.Rows {
	t.Helper()
	rows, err := conn.Query(testContext(t), sql)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}
