package shards

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-escrow/holdfast"
)

const insertEntrySQL = `
INSERT INTO entries (posted_at, ref, user_id, amount, movement, book, currency)
VALUES ($1, $2, $3, 5, 6, 4, 'RBX')`

func TestPartitions(t *testing.T) {
	t.Parallel()

	t.Run("exist from yesterday to past the longest delay, cut in UTC", func(t *testing.T) {
		t.Parallel()
		dsns := databases(t, 1)
		// A server in another zone must not move a bound by a second.
		conn := connect(t, dsns[0])
		exec(t, conn, fmt.Sprintf(`ALTER DATABASE %s SET timezone = 'Pacific/Chatham'`, conn.Config().Database))
		if err := Migrate(testContext(t), dsns, nil, nil); err != nil {
			t.Fatal(err)
		}
		conn = connect(t, dsns[0]) // works in the odd zone
		if zone := read[string](t, conn, `SHOW timezone`); zone != "Pacific/Chatham" {
			t.Fatalf("the session's zone is %s", zone)
		}
		now := read[time.Time](t, conn, `SELECT clock_timestamp()`).UTC()
		first := now.Truncate(24*time.Hour).AddDate(0, 0, -1)
		for at := first; at.Before(now.Add(holdfast.MaxDelay + 24*time.Hour)); at = at.AddDate(0, 0, 1) {
			for _, at := range []time.Time{at, at.Add(24*time.Hour - time.Millisecond)} {
				id := holdfast.NewHoldID(at.UnixMilli(), 9, rand.Uint64())
				exec(t, conn, `INSERT INTO barrier (gid, created_at, branch, op, owner_bucket) VALUES ($1, now(), 1, 1, 9)`, id)
				if got, want := read[string](t, conn, `SELECT tableoid::regclass::text FROM barrier WHERE gid = $1`, id), "barrier_"+DayOf(id); got != want {
					t.Errorf("id of %s is in %s, want %s", at, got, want)
				}
				exec(t, conn, insertEntrySQL, at, id, user(1))
				if got, want := read[string](t, conn, `SELECT tableoid::regclass::text FROM entries WHERE ref = $1`, id), "entries_"+at.Format(dayLayout); got != want {
					t.Errorf("entry of %s is in %s, want %s", at, got, want)
				}
			}
		}
		if n := read[int](t, conn, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'holds'::regclass`); n != daysBack+1+daysAhead {
			t.Errorf("holds has %d partitions", n)
		}
		set := open(t, dsns...)
		if ahead, err := set.PartitionsAhead(testContext(t), 0); err != nil || ahead != daysAhead {
			t.Errorf("ahead %d days, %v", ahead, err)
		}
	})

	t.Run("what is missing or unguarded is mended", func(t *testing.T) {
		t.Parallel()
		dsns := migrated(t, 1)
		conn := connect(t, dsns[0])
		set := open(t, dsns...)
		today := DayAt(read[time.Time](t, conn, `SELECT clock_timestamp()`))
		day := func(table string, d int) string { return table + "_" + (today + Day(d)).String() }
		exec(t, conn, "DROP TABLE "+day("holds", 40))
		exec(t, conn, "ALTER TABLE "+day("entries", 3)+" DISABLE TRIGGER entries_keep_rows")
		exec(t, conn, "DROP TRIGGER entries_keep_table ON "+day("entries", 4))
		exec(t, conn, "GRANT DELETE ON "+day("holds", 5)+" TO "+AppRole)
		exec(t, conn, "REVOKE INSERT ON "+day("barrier", 6)+" FROM "+AppRole)
		if ahead, err := set.PartitionsAhead(testContext(t), 0); err != nil || ahead != 39 {
			t.Errorf("with the day 40 missing the set is ahead %d days, %v", ahead, err)
		}
		if work, _, err := partitionWork(testContext(t), conn); err != nil || len(work) != 5 {
			t.Errorf("%d things to do, %v; want 5", len(work), err)
		}
		var group errgroup.Group // two replicas at the same hour
		for range 2 {
			group.Go(func() error { return set.KeepPartitions(testContext(t)) })
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		if work, ahead, err := partitionWork(testContext(t), conn); err != nil || len(work) != 0 || ahead != daysAhead {
			t.Errorf("%d things left to do, ahead %d days, %v", len(work), ahead, err)
		}
	})

	t.Run("traffic and creation do not wait for one another", func(t *testing.T) {
		t.Parallel()
		dsns := migrated(t, 1)
		conn, conn2, set := connect(t, dsns[0]), connect(t, dsns[0]), open(t, dsns...)
		today := DayAt(read[time.Time](t, conn, `SELECT clock_timestamp()`))
		exec(t, conn, "DROP TABLE entries_"+(today+90).String())
		tx, err := conn.Begin(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if _, err := tx.Exec(testContext(t), insertEntrySQL, today.Start(), user(2), user(1)); err != nil {
			t.Fatal(err)
		}
		// The transaction above stays open and holds its locks on the parent.
		if err := set.KeepPartitions(testContext(t)); err != nil {
			t.Fatal(err)
		}
		exec(t, conn2, insertEntrySQL, (today + 90).Start(), user(3), user(1))
		if _, err := tx.Exec(testContext(t), insertEntrySQL, today.Start(), user(4), user(1)); err != nil {
			t.Errorf("the open transaction cannot go on: %v", err)
		}
		if err := tx.Commit(testContext(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestEntriesAreImmutable(t *testing.T) {
	t.Parallel()
	dsns := migrated(t, 1)
	conn := connect(t, dsns[0])

	// The catalog, not our own list, says which partitions there are.
	unguarded := read[int](t, conn, `
SELECT count(*) FROM pg_inherits i WHERE i.inhparent = 'entries'::regclass AND (
    NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = i.inhrelid AND t.tgenabled = 'A' AND t.tgparentid = 0
                AND t.tgfoid = 'holdfast_refuse_change'::regproc AND t.tgtype = 1 + 2 + 8 + 16) -- row, before, delete, update
    OR NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = i.inhrelid AND t.tgenabled = 'A' AND t.tgparentid = 0
                AND t.tgfoid = 'holdfast_refuse_change'::regproc AND t.tgtype = 2 + 32))        -- statement, before, truncate`)
	if unguarded != 0 {
		t.Errorf("%d partitions of entries lack a trigger", unguarded)
	}
	if n := read[int](t, conn, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'entries'::regclass`); n < 90 {
		t.Errorf("only %d partitions were looked at", n)
	}

	today := DayAt(read[time.Time](t, conn, `SELECT clock_timestamp()`))
	for _, d := range []Day{today - daysBack, today, today + daysAhead} {
		exec(t, conn, insertEntrySQL, d.Start(), user(2), user(1))
	}
	refused := func(tables ...string) {
		t.Helper()
		for _, table := range tables {
			for _, sql := range []string{
				"UPDATE " + table + " SET amount = 6", "DELETE FROM " + table, "TRUNCATE " + table,
				"UPDATE " + table + " SET posted_at = posted_at + interval '1 day'",
			} {
				_, err := conn.Exec(testContext(t), sql)
				wantState(t, err, "HF009")
			}
		}
	}
	leaf := "entries_" + today.String()
	refused("entries", leaf, "entries_"+(today+daysAhead).String())
	exec(t, conn, "SET session_replication_role = replica")
	refused("entries", leaf)
	exec(t, conn, "RESET session_replication_role")
	exec(t, conn, "ALTER TABLE entries DETACH PARTITION "+leaf)
	refused("entries", leaf)
	if n := read[int](t, conn, "SELECT count(*) FROM "+leaf); n != 1 {
		t.Errorf("the detached day has %d rows", n)
	}
}

func TestAppRole(t *testing.T) {
	t.Parallel()
	dsns := migrated(t, 1)
	set := open(t, dsns...)
	owner := connect(t, dsns[0])
	today := DayAt(read[time.Time](t, owner, `SELECT clock_timestamp()`)).String()

	if read[bool](t, owner, `SELECT rolsuper OR rolcanlogin OR rolcreaterole FROM pg_roles WHERE rolname = $1`, AppRole) {
		t.Error("the role may log in or is mighty")
	}
	for pool, who := range map[string]string{"money": read[string](t, set.Money(0), `SELECT current_user`), "reads": read[string](t, set.Reads(0), `SELECT current_user`)} {
		if who != AppRole {
			t.Errorf("the %s pool works as %s", pool, who)
		}
	}
	for _, sql := range []string{
		"CREATE TABLE mine (a int)",
		"UPDATE entries SET amount = 1", "DELETE FROM entries", "TRUNCATE entries",
		"UPDATE entries_" + today + " SET amount = 1", "DELETE FROM entries_" + today, "TRUNCATE entries_" + today,
		"ALTER TABLE entries_" + today + " DISABLE TRIGGER ALL",
		"DELETE FROM holds", "DELETE FROM holds_" + today, "DROP TABLE holds_" + today,
		"UPDATE barrier SET op = 1", "DELETE FROM barrier_" + today,
		"DELETE FROM accounts", "DELETE FROM dead_letters", "DELETE FROM audit", "UPDATE audit SET reason = ''",
		"INSERT INTO checkpoints SELECT * FROM checkpoints",
		"UPDATE shard_self SET epoch = 2", "DELETE FROM shard_map", "DELETE FROM schema_migrations", "DELETE FROM watermark",
		"SET session_replication_role = replica",
	} {
		if _, err := set.Money(0).Exec(testContext(t), sql); err == nil {
			t.Errorf("the application may: %s", sql)
		} else {
			wantState(t, err, "42501")
		}
	}
	for _, sql := range []string{ // what it needs, on the parents and on the leaves that it names itself
		"SELECT FROM accounts FOR NO KEY UPDATE",
		"SELECT FROM holds_" + today + " FOR NO KEY UPDATE", "UPDATE holds_" + today + " SET status = 2 WHERE false",
		"UPDATE holds SET status = 2 WHERE false", "DELETE FROM attempts", "DELETE FROM idempotency", "DELETE FROM idempotency_0",
		"UPDATE watermark SET id = id", "UPDATE dead_letters SET note = ''",
		"INSERT INTO barrier_" + today + " SELECT * FROM barrier_" + today + " WHERE false",
		"INSERT INTO audit (at, actor, action, reason) VALUES (now(), 'a', 'b', 'c')",
		"SELECT version FROM schema_migrations",
	} {
		if _, err := set.Money(0).Exec(testContext(t), sql); err != nil {
			t.Errorf("the application may not: %s: %v", sql, err)
		}
	}
}

// The functions of a schema that stands before pg_catalog in the search path
// set the clock of the sessions that have it.
func TestPurgeKeysWithAWrongClock(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]string{"ahead": "100 hours", "behind": "-2 minutes", "right": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := migrated(t, 1)[0]
			conn := connect(t, dsn)
			exec(t, conn, `CREATE SCHEMA skewed`)
			exec(t, conn, `GRANT USAGE ON SCHEMA skewed TO PUBLIC`)
			exec(t, conn, `CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
				$$ SELECT pg_catalog.clock_timestamp() + interval '`+off+`' $$`)
			for i, in := range []string{"-1 hour", "72 hours"} {
				exec(t, conn, `
INSERT INTO idempotency (sender, expires_at, key, request_hash, refusal)
VALUES ($1, now() + $2::interval, 'k', decode(repeat('00', 32), 'hex'), 'insufficient_funds')`, user(i), in)
			}
			set := open(t, dsn+"&search_path=skewed,public,pg_catalog")
			if err := set.purgeKeys(testContext(t), 0); err != nil {
				t.Fatal(err)
			}
			want := 2
			if name == "right" {
				want = 1
			}
			if n := read[int](t, conn, `SELECT count(*) FROM idempotency`); n != want {
				t.Errorf("%d keys are left, want %d", n, want)
			}
		})
	}
}

func TestPurgeKeys(t *testing.T) {
	t.Parallel()
	dsns := migrated(t, 1)
	set, conn := open(t, dsns...), connect(t, dsns[0])
	now := read[time.Time](t, conn, `SELECT clock_timestamp()`)
	const insertHold = `
INSERT INTO holds (id, sender, recipient, amount, unlock_at, created_at, status, cancelled_at, currency)
VALUES ($1, $2, $3, 1, now(), now(), $4::smallint, CASE WHEN $4::smallint = 5 THEN now() END, 'RBX')`
	const insertKey = `
INSERT INTO idempotency (sender, expires_at, hold_id, key, request_hash, refusal)
VALUES ($1, now() + $2::interval, $3, $4, decode(repeat('00', 32), 'hex'), CASE WHEN $3::uuid IS NULL THEN 'insufficient_funds' END)`
	hold := func(status holdfast.Status) any {
		id := holdfast.NewHoldID(now.UnixMilli(), 1, rand.Uint64())
		exec(t, conn, insertHold, id, user(1), user(2), status)
		return id
	}
	retired := holdfast.NewHoldID(now.AddDate(0, 0, -400).UnixMilli(), 1, 1)
	for key, c := range map[string]struct {
		in   string
		hold any
	}{
		"gone ended": {"-1 s", hold(holdfast.Cancelled)}, "gone refusal": {"-1 s", nil}, "gone retired": {"-1 s", retired},
		"kept pending": {"-1 s", hold(holdfast.Pending)}, "kept fresh": {"1 h", hold(holdfast.Cancelled)}, "kept refusal": {"1 h", nil},
	} {
		for i := range 8 { // spread over the hash partitions
			exec(t, conn, insertKey, user(i), c.in, c.hold, key)
		}
	}
	// More than one range of pages.
	exec(t, conn, `
INSERT INTO idempotency (sender, expires_at, key, request_hash, refusal)
SELECT $1, now() - interval '1 s', 'gone ' || n, decode(repeat('00', 32), 'hex'), 'insufficient_funds' FROM generate_series(1, 20000) n`, user(9))
	if err := set.purgeKeys(testContext(t), 0); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(testContext(t), `SELECT key, count(*) FROM idempotency GROUP BY key ORDER BY key`)
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]int{}
	var name string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error { left[name] = n; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"kept pending", "kept fresh", "kept refusal"} {
		if left[key] != 8 {
			t.Errorf("%d of 8 keys %q are left", left[key], key)
		}
		delete(left, key)
	}
	if len(left) != 0 {
		t.Errorf("%d kinds of keys should be gone", len(left))
	}
}
