package participants

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
)

// exactHolds is up to how many holds a status counts them one by one.
const exactHolds = 200_000

const statusSQL = `
SELECT s.epoch, current_setting('server_version'), clock_timestamp(),
       coalesce((SELECT max(version) FROM schema_migrations), 0),
       (SELECT count(*) FROM attempts), pg_database_size(current_database()), w.id
FROM shard_self s CROSS JOIN watermark w`

// status reads the state of one shard. It is cheap at any size.
func status(ctx context.Context, db *pgxpool.Pool, shard int) (branch.ShardStatus, error) {
	s := branch.ShardStatus{Shard: shard, Up: true, Holds: map[string]int64{}, OpenDeadLetters: map[string]int64{}}
	var clock time.Time
	var low [16]byte
	sent := time.Now()
	err := db.QueryRow(ctx, statusSQL).Scan(&s.MapEpoch, &s.Server, &clock, &s.SchemaVersion, &s.Attempts, &s.DatabaseBytes, &low)
	if err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	s.ClockOffsetMS = clock.Sub(sent.Add(time.Since(sent) / 2)).Milliseconds()
	days, err := leaves(ctx, db, "holds")
	if err != nil {
		return s, err
	}
	if len(days) > 0 {
		s.PartitionsAhead = int(days[0] - shards.DayAt(clock))
	}
	if err := openLetters(ctx, db, &s); err != nil {
		return s, err
	}
	if s.OldestOverdueS, err = oldestOverdue(ctx, db, days, low, clock); err != nil {
		return s, err
	}
	return s, countHoldsByStatus(ctx, db, &s)
}

const openLettersSQL = `SELECT code, count(*) FROM dead_letters WHERE closed_at IS NULL GROUP BY code`

func openLetters(ctx context.Context, db reader, s *branch.ShardStatus) error {
	rows, err := db.Query(ctx, openLettersSQL)
	if err != nil {
		return fmt.Errorf("count dead letters: %w", err)
	}
	var code string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&code, &n}, func() error { s.OpenDeadLetters[code] = n; return nil })
	if err != nil {
		return fmt.Errorf("count dead letters: %w", err)
	}
	return nil
}

// oldestOverdue is how late the oldest PENDING hold is, in seconds: of those
// that the watermark has passed, of which only the first adminExamined rows of
// attempts are looked at, or above it.
func oldestOverdue(ctx context.Context, db reader, days []shards.Day, low [16]byte, clock time.Time) (float64, error) {
	passed := adminWalk{status: []int16{int16(holdfast.Pending)}, limit: 1}
	if err := passed.overdue(ctx, db); err != nil {
		return 0, err
	}
	if len(passed.holds) > 0 {
		return clock.Sub(passed.holds[0].UnlockAt).Seconds(), nil
	}
	now := holdfast.NewHoldID(clock.UnixMilli(), 0, 0)
	first, last := shards.DayAt(holdfast.HoldID(low).UnlockAt()), shards.DayAt(clock)
	for i := len(days) - 1; i >= 0; i-- {
		if days[i] < first || days[i] > last {
			continue
		}
		var unlock time.Time
		err := db.QueryRow(ctx, `SELECT unlock_at FROM holds_`+days[i].String()+`
			WHERE id >= $1 AND id < $2 AND status = 1 ORDER BY id LIMIT 1`, low, [16]byte(now)).Scan(&unlock)
		switch {
		case errors.Is(err, pgx.ErrNoRows) || isUndefinedTable(err):
		case err != nil:
			return 0, fmt.Errorf("look for overdue holds: %w", err)
		default:
			return clock.Sub(unlock).Seconds(), nil
		}
	}
	return 0, nil
}

// estimateSQL reads what the server knows of each partition: about how many
// rows, and which part of them has which status. A partition that nobody has
// analyzed yet is judged by its size.
const estimateSQL = `
SELECT c.relname,
       CASE WHEN c.reltuples >= 0 THEN c.reltuples::float8 ELSE pg_relation_size(c.oid) / 200.0 END,
       coalesce(s.most_common_vals::text::smallint[], '{}'), coalesce(s.most_common_freqs, '{}')
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
LEFT JOIN pg_stats s ON s.schemaname = c.relnamespace::regnamespace::name AND s.tablename = c.relname
     AND s.attname = 'status' AND NOT s.inherited
WHERE i.inhparent = 'holds'::regclass`

// leafEstimate is one partition as the server's statistics see it.
type leafEstimate struct {
	name   string
	rows   float64
	status []int16
	parts  []float32
}

func countHoldsByStatus(ctx context.Context, db reader, s *branch.ShardStatus) error {
	rows, err := db.Query(ctx, estimateSQL)
	if err != nil {
		return fmt.Errorf("estimate holds: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l leafEstimate, err error) {
		return l, row.Scan(&l.name, &l.rows, &l.status, &l.parts)
	})
	if err != nil {
		return fmt.Errorf("estimate holds: %w", err)
	}
	var total float64
	var exact []string
	for _, l := range list {
		total += l.rows
	}
	counts := map[holdfast.Status]float64{}
	for _, l := range list {
		if total < exactHolds || len(l.status) == 0 {
			exact = append(exact, l.name)
			continue
		}
		s.HoldsEstimated = true
		for i, status := range l.status {
			counts[holdfast.Status(status)] += l.rows * float64(l.parts[i])
		}
	}
	if err := countExactly(ctx, db, exact, counts); err != nil {
		return err
	}
	for status := holdfast.Pending; status <= holdfast.Cancelled; status++ {
		s.Holds[status.String()] = int64(math.Round(counts[status]))
	}
	return nil
}

// countExactly counts partitions row by row.
func countExactly(ctx context.Context, db reader, tables []string, counts map[holdfast.Status]float64) error {
	if len(tables) == 0 {
		return nil
	}
	var sql strings.Builder
	for i, name := range tables {
		if i > 0 {
			sql.WriteString(" UNION ALL ")
		}
		sql.WriteString("SELECT status, count(*) FROM " + pgx.Identifier{name}.Sanitize() + " GROUP BY status")
	}
	rows, err := db.Query(ctx, sql.String(), pgx.QueryExecModeExec)
	if err != nil {
		return fmt.Errorf("count holds: %w", err)
	}
	var status int16
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&status, &n}, func() error {
		counts[holdfast.Status(status)] += float64(n)
		return nil
	})
	if err != nil {
		return fmt.Errorf("count holds: %w", err)
	}
	return nil
}
