package shards

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-escrow/holdfast"
)

// deadDSN leads to a port nobody listens on.
const deadDSN = "postgres://someone:s3cret-word@127.0.0.1:1/nowhere?sslmode=disable"

func TestMigrate(t *testing.T) {
	t.Parallel()

	t.Run("a second run changes nothing", func(t *testing.T) {
		t.Parallel()
		dsns := migrated(t, 2)
		conn := connect(t, dsns[0])
		before := read[string](t, conn, `SELECT string_agg(version || checksum || applied_at, ',' ORDER BY version) FROM schema_migrations`)
		if err := Migrate(testContext(t), dsns, nil, nil); err != nil {
			t.Fatal(err)
		}
		after := read[string](t, conn, `SELECT string_agg(version || checksum || applied_at, ',' ORDER BY version) FROM schema_migrations`)
		if before != after {
			t.Errorf("schema_migrations went from %s to %s", before, after)
		}
	})

	t.Run("a changed file is refused", func(t *testing.T) {
		t.Parallel()
		dsns := databases(t, 1)
		files := map[string]string{"9001_extra.sql": "CREATE TABLE extra (a int)"}
		if err := migrate(testContext(t), with(t, files), dsns, nil, silent); err != nil {
			t.Fatal(err)
		}
		files["9001_extra.sql"] = "CREATE TABLE extra (a bigint)"
		err := migrate(testContext(t), with(t, files), dsns, nil, silent)
		wantError(t, err, nil, "9001_extra.sql", "shard 0", "changed")
	})

	t.Run("a newer binary's migrations are fine", func(t *testing.T) {
		t.Parallel()
		dsns := databases(t, 1)
		newer := with(t, map[string]string{"9001_extra.sql": "CREATE TABLE extra (a int)"})
		if err := migrate(testContext(t), newer, dsns, nil, silent); err != nil {
			t.Fatal(err)
		}
		if err := Migrate(testContext(t), dsns, nil, nil); err != nil {
			t.Errorf("the previous binary refuses: %v", err)
		}
		rows, err := Status(testContext(t), dsns)
		if err != nil {
			t.Fatal(err)
		}
		if last := rows[len(rows)-1]; last.Version != 9001 || last.State != MigrationUnknown {
			t.Errorf("last row of the status is %+v", last)
		}
	})

	t.Run("a hole is never filled", func(t *testing.T) {
		t.Parallel()
		dsns := databases(t, 1)
		files := map[string]string{"9002_second.sql": "SELECT 1"}
		if err := migrate(testContext(t), with(t, files), dsns, nil, silent); err != nil {
			t.Fatal(err)
		}
		files["9001_first.sql"] = "SELECT 1"
		wantError(t, migrate(testContext(t), with(t, files), dsns, nil, silent), nil, "9001_first.sql", "shard 0", "forward")
	})

	t.Run("a failure half-way leaves nothing of its file", func(t *testing.T) {
		t.Parallel()
		dsns := databases(t, 2)
		files := map[string]string{"9001_half.sql": "CREATE TABLE half (a int); SELECT 1/0;"}
		err := migrate(testContext(t), with(t, files), dsns, nil, silent)
		wantError(t, err, nil, "9001_half.sql", "division by zero")
		conn := connect(t, dsns[0])
		if read[bool](t, conn, `SELECT to_regclass('half') IS NOT NULL`) {
			t.Error("the table of the failed file is there")
		}
		if n := read[int](t, conn, `SELECT count(*) FROM schema_migrations WHERE version = 9001`); n != 0 {
			t.Error("the failed file counts as applied")
		}
		files["9001_half.sql"] = "CREATE TABLE half (a int)"
		if err := migrate(testContext(t), with(t, files), dsns, nil, silent); err != nil {
			t.Fatalf("the mended file: %v", err)
		}
		open(t, dsns...)
	})

	t.Run("a deadlock with the load is tried again", testMigrateDeadlock)

	t.Run("many at once make one cluster", func(t *testing.T) {
		t.Parallel()
		dsns := databases(t, 3)
		var group errgroup.Group
		for range 4 {
			group.Go(func() error { return Migrate(testContext(t), dsns, nil, nil) })
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		clusters := map[[16]byte]bool{}
		for _, dsn := range dsns {
			clusters[read[[16]byte](t, connect(t, dsn), `SELECT cluster_id FROM shard_self`)] = true
		}
		if len(clusters) != 1 {
			t.Errorf("the shards know %d clusters", len(clusters))
		}
		open(t, dsns...)
	})

	t.Run("files are checked", func(t *testing.T) {
		t.Parallel()
		_, err := readMigrations(fstest.MapFS{"migrations/0001_a.sql": {}, "migrations/1_b.sql": {}})
		wantError(t, err, nil, "0001_a.sql", "1_b.sql")
		_, err = readMigrations(fstest.MapFS{"migrations/first.sql": {}})
		wantError(t, err, nil, "first.sql")
	})
}

func testMigrateDeadlock(t *testing.T) {
	t.Parallel()
	dsns := databases(t, 1)
	files := map[string]string{"9001_two.sql": "CREATE TABLE one (a int); CREATE TABLE two (a int);"}
	if err := migrate(testContext(t), with(t, files), dsns, nil, silent); err != nil {
		t.Fatal(err)
	}
	load, look := connect(t, dsns[0]), connect(t, dsns[0])
	exec(t, load, `BEGIN; SET LOCAL deadlock_timeout = '1min'; LOCK TABLE two`)
	var group errgroup.Group
	group.Go(func() error {
		files := map[string]string{"9001_two.sql": files["9001_two.sql"], "9002_both.sql": "ALTER TABLE one ADD b int; ALTER TABLE two ADD b int;"}
		return migrate(testContext(t), with(t, files), dsns, nil, silent)
	})
	ctx := testContext(t)
	for !read[bool](t, look, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'two'::regclass AND NOT granted)`) {
		if <-time.After(time.Millisecond); ctx.Err() != nil {
			t.Fatal("the migration does not wait for the load's lock")
		}
	}
	exec(t, load, `LOCK TABLE one`) // the migration has it, and is the victim
	exec(t, load, `COMMIT`)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if !read[bool](t, look, `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'two'::regclass AND attname = 'b')`) {
		t.Error("the migration counts as applied, and its column is not there")
	}
}

func TestMigrateWiring(t *testing.T) {
	t.Parallel()

	// Each of these finds two good shards and must leave them good.
	for name, c := range map[string]struct {
		dsns  func(t *testing.T, good []string) []string
		words []string
	}{
		"swapped":            {func(_ *testing.T, g []string) []string { return []string{g[1], g[0]} }, []string{"DSN 0", "shard 1"}},
		"one too few":        {func(_ *testing.T, g []string) []string { return g[:1] }, []string{"DSN 0", "2 shards", "1 DSNs"}},
		"one too many":       {func(t *testing.T, g []string) []string { return append(g, databases(t, 1)...) }, []string{"DSN 0", "2 shards", "3 DSNs"}},
		"twice the same":     {func(_ *testing.T, g []string) []string { return []string{g[0], g[0]} }, []string{"DSN 0 and DSN 1", "same database"}},
		"of another cluster": {func(t *testing.T, g []string) []string { return []string{g[0], migrated(t, 2)[1]} }, []string{"DSN 1", "cluster"}},
		"emptied": {func(t *testing.T, g []string) []string {
			exec(t, connect(t, g[0]), `INSERT INTO accounts (user_id, opened_at, currency) VALUES ($1, now(), 'RBX')`, user(1))
			return []string{g[0], databases(t, 1)[0]}
		}, []string{"DSN 1", "empty", "DSN 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := migrated(t, 2)
			dsns := c.dsns(t, good[:2:2])
			err := Migrate(testContext(t), dsns, nil, nil)
			wantError(t, err, ErrMiswired, c.words...)
			if strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("the error has more than one line: %q", err)
			}
			if err := Migrate(testContext(t), good, nil, nil); err != nil {
				t.Errorf("the right DSNs after the wrong ones: %v", err)
			}
		})
	}

	t.Run("one empty database given twice is left empty", func(t *testing.T) {
		t.Parallel()
		dsn := databases(t, 1)[0]
		wantError(t, Migrate(testContext(t), []string{dsn, dsn}, nil, nil), ErrMiswired, "DSN 0 and DSN 1")
		if read[bool](t, connect(t, dsn), `SELECT to_regclass('shard_self') IS NOT NULL`) {
			t.Error("something was written")
		}
	})

	t.Run("the map is stored and verified", func(t *testing.T) {
		t.Parallel()
		dsns := databases(t, 2)
		m := holdfast.EvenShardMap(2)
		m.Epoch, m.Owner[7] = 5, 1
		if err := Migrate(testContext(t), dsns, m, nil); err != nil {
			t.Fatal(err)
		}
		if got := open(t, dsns...).Map(); *got != *m {
			t.Errorf("the stored map has epoch %d, bucket 7 on shard %d", got.Epoch, got.Owner[7])
		}
		wantError(t, Migrate(testContext(t), dsns, holdfast.EvenShardMap(2), nil), ErrMiswired, "DSN 0", "epoch 5", "epoch 1")
		other := *m
		other.Owner[8] = 1
		wantError(t, Migrate(testContext(t), dsns, &other, nil), ErrMiswired, "DSN 0", "another shard map")
		_, err := Open(testContext(t), Config{DSNs: dsns, Map: &other})
		wantError(t, err, ErrMiswired, "another shard map")
		other.Owner[8] = 2
		wantError(t, Migrate(testContext(t), dsns, &other, nil), ErrMiswired, "bucket 8")
	})

	t.Run("a dead shard stops an unborn cluster only", func(t *testing.T) {
		t.Parallel()
		fresh := databases(t, 1)
		err := Migrate(testContext(t), []string{fresh[0], deadDSN}, nil, nil)
		wantError(t, err, holdfast.ErrShardUnavailable, "DSN 1")
		if read[bool](t, connect(t, fresh[0]), `SELECT to_regclass('shard_self') IS NOT NULL`) {
			t.Error("half a cluster was born")
		}
		good := migrated(t, 2)
		extra := with(t, map[string]string{"9001_extra.sql": "CREATE TABLE extra (a int)"})
		err = migrate(testContext(t), extra, []string{deadDSN, good[1]}, nil, silent)
		wantError(t, err, holdfast.ErrShardUnavailable, "DSN 0")
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error shows the password: %q", err)
		}
		if !read[bool](t, connect(t, good[1]), `SELECT to_regclass('extra') IS NOT NULL`) {
			t.Error("the living shard was not migrated")
		}
	})

	t.Run("a malformed DSN is named and not shown", func(t *testing.T) {
		t.Parallel()
		for _, dsn := range []string{"postgres://u:s3cret@host:notaport/db", "", "s3cret words"} {
			err := Migrate(testContext(t), []string{dsn}, nil, nil)
			wantError(t, err, nil, "DSN 0")
			if errors.Is(err, holdfast.ErrShardUnavailable) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error for %q is %q", dsn, err)
			}
		}
	})
}

func TestStatus(t *testing.T) {
	t.Parallel()
	dsns := append(migrated(t, 1), databases(t, 1)[0], deadDSN)
	rows, err := Status(testContext(t), dsns)
	if err != nil {
		t.Fatal(err)
	}
	list, err := readMigrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{MigrationApplied, MigrationPending, ShardDown}
	for _, r := range rows {
		if r.State != want[r.Shard] || (r.State == MigrationApplied) == r.AppliedAt.IsZero() {
			t.Errorf("row %+v, want state %s", r, want[r.Shard])
		}
	}
	if len(rows) != 2*len(list)+1 {
		t.Errorf("%d rows for %d files, two shards and a dead one", len(rows), len(list))
	}
	exec(t, connect(t, dsns[0]), `UPDATE schema_migrations SET checksum = 'x' WHERE version = 1`)
	rows, err = Status(testContext(t), dsns[:1])
	if err != nil || rows[0].State != MigrationChanged {
		t.Errorf("a changed file is shown as %+v, %v", rows, err)
	}
}
