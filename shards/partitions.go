package shards

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

const (
	// daysBack and daysAhead are the partitions that must exist around today:
	// the longest delay is 90 days, the rest is the time an operator has when
	// the creation of partitions fails.
	daysBack  = 1
	daysAhead = 97
	// partitionsPerTx bounds the locks of one creating transaction.
	partitionsPerTx = 16
	// partitionTries bounds how often a lock is tried for, two seconds each.
	partitionTries = 30
)

// parent is one table that is cut by days.
type parent struct {
	name    string
	options string // storage options of its partitions
	bounds  func(Day) (from, to string)
}

var parents = []parent{
	// Every hold is updated two or three times: room on its page keeps those
	// updates HOT, early vacuums give the room back.
	{"holds", "WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)", idBounds},
	{"barrier", "", idBounds},
	{"entries", "", timeBounds},
}

func idBounds(d Day) (string, string) {
	from, to := d.Bounds()
	return from.String(), to.String()
}

func timeBounds(d Day) (string, string) {
	return d.Start().Format(time.RFC3339), (d + 1).Start().Format(time.RFC3339)
}

// The triggers of a partition of entries. They are made on each partition and
// not on the parent: what the parent hands down is gone after a DETACH. ALWAYS
// keeps them awake under session_replication_role = replica.
const guardSQL = `
CREATE OR REPLACE TRIGGER entries_keep_rows BEFORE UPDATE OR DELETE ON %[1]s
    FOR EACH ROW EXECUTE FUNCTION holdfast_refuse_change();
CREATE OR REPLACE TRIGGER entries_keep_table BEFORE TRUNCATE ON %[1]s
    FOR EACH STATEMENT EXECUTE FUNCTION holdfast_refuse_change();
ALTER TABLE %[1]s ENABLE ALWAYS TRIGGER entries_keep_rows;
ALTER TABLE %[1]s ENABLE ALWAYS TRIGGER entries_keep_table;
`

// guard gives a partition its rights and triggers.
func (p parent) guard(table string) string {
	sql := grantSQL(table, rightsOf(p.name))
	if p.name == "entries" {
		sql += fmt.Sprintf(guardSQL, pgx.Identifier{table}.Sanitize())
	}
	return sql
}

// create makes the partition beside the parent, complete with guards, and
// attaches it last. ATTACH lets everybody go on reading and writing the parent;
// CREATE TABLE … PARTITION OF would lock them all out.
func (p parent) create(d Day) string {
	from, to := p.bounds(d)
	table := p.name + "_" + d.String()
	return fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING ALL) %s;\n", table, p.name, p.options) +
		p.guard(table) +
		fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s');\n", p.name, table, from, to)
}

// partitionsSQL lists the attached partitions, and whether each has exactly the
// rights and triggers that it must have.
const partitionsSQL = `
SELECT p.relname, c.relname,
       has_table_privilege($1, c.oid, 'SELECT') AND has_table_privilege($1, c.oid, 'INSERT')
       AND has_table_privilege($1, c.oid, 'UPDATE') = (p.relname = 'holds')
       AND NOT has_table_privilege($1, c.oid, 'DELETE') AND NOT has_table_privilege($1, c.oid, 'TRUNCATE')
       AND (p.relname <> 'entries' OR 2 = (
            SELECT count(*) FROM pg_trigger t
            WHERE t.tgrelid = c.oid AND t.tgenabled = 'A' AND t.tgname IN ('entries_keep_rows', 'entries_keep_table')))
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_class p ON p.oid = i.inhparent
WHERE i.inhparent IN ('holds'::regclass, 'barrier'::regclass, 'entries'::regclass)`

// partitionWork lists the statements that are still to run, soonest day first,
// and for how many days from today everything exists.
func partitionWork(ctx context.Context, tx querier) (work []string, ahead int, err error) {
	var now time.Time
	if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return nil, 0, err
	}
	rows, err := tx.Query(ctx, partitionsSQL, AppRole)
	if err != nil {
		return nil, 0, err
	}
	exists := map[string]bool{}
	var parentName, table string
	var guarded bool
	_, err = pgx.ForEachRow(rows, []any{&parentName, &table, &guarded}, func() error {
		exists[table] = true
		for _, p := range parents {
			if p.name == parentName && !guarded {
				work = append(work, p.guard(table))
			}
		}
		return nil
	})
	today := DayAt(now)
	ahead = daysAhead
	for d := today - daysBack; d <= today+daysAhead; d++ {
		for _, p := range parents {
			if !exists[p.name+"_"+d.String()] {
				work = append(work, p.create(d))
				ahead = min(ahead, max(0, int(d-today)-1))
			}
		}
	}
	return work, ahead, err
}

// querier is a connection or a transaction.
type querier interface {
	queryer
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ensurePartitions does what partitionWork lists, a few at a time, each few in a
// transaction that gives up its wait for a lock rather than make traffic queue
// behind it. It answers how many partitions were made or mended.
func ensurePartitions(ctx context.Context, conn *pgx.Conn, log *slog.Logger) (made int, err error) {
	for try := 0; ; {
		work, _, err := partitionWork(ctx, conn)
		if err != nil {
			return made, fmt.Errorf("list partitions: %w", err)
		}
		if len(work) == 0 {
			if made > 0 {
				log.Info("partitions made", "partitions", made)
			}
			return made, nil
		}
		n, err := createSome(ctx, conn)
		made += n
		switch {
		case err == nil:
			try = 0
		case !lockBusy(err) || try == partitionTries:
			return made, fmt.Errorf("create partitions: %w", err)
		default:
			try++
			log.Warn("partitions wait for a lock", "try", try, "error", err)
			if err := pause(ctx, 200*time.Millisecond); err != nil {
				return made, err
			}
		}
	}
}

// createSome looks again under the lock, because another process may have done
// the work meanwhile.
func createSome(ctx context.Context, conn *pgx.Conn) (n int, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, $2)`, lockClass, lockDays); err != nil {
			return err
		}
		work, _, err := partitionWork(ctx, tx)
		if err != nil {
			return err
		}
		n = min(len(work), partitionsPerTx)
		for _, sql := range work[:n] {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n = 0
	} else if n > 0 {
		err = failpoint.Hit(pointPartitionCreated)
	}
	return n, err
}

// lockBusy: the lock was not free in time or the wait was a deadlock.
func lockBusy(err error) bool { return hasCode(err, "55P03") || deadlocked(err) }

func deadlocked(err error) bool { return hasCode(err, "40P01") }

func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}
