package scheduler

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// queryTimeout bounds one read.
const queryTimeout = 10 * time.Second

// store is one shard's database as the scheduler uses it: it reads holds and
// attempts, and writes nothing but the watermark. Day partitions are read by
// name, so that a query plans and locks one table and not a hundred.
type store struct {
	pool *pgxpool.Pool
	q    querier // the pool, or one transaction on it
	// lockIdle is for how long a session that has the dispatcher's lock may be
	// silent before the server ends it.
	lockIdle time.Duration
}

// querier is what a pool and a transaction can both do.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func newStore(pool *pgxpool.Pool, lockIdle time.Duration) *store {
	return &store{pool: pool, q: pool, lockIdle: lockIdle}
}

// idAt is the lower bound of the ids that mature at or after a Unix ms.
func idAt(ms int64) (id holdfast.HoldID) {
	binary.BigEndian.PutUint64(id[:8], uint64(max(ms, 0))<<16)
	return id
}

func before(a, b holdfast.HoldID) bool { return bytes.Compare(a[:], b[:]) < 0 }

func ids(raw [][16]byte) []holdfast.HoldID {
	out := make([]holdfast.HoldID, len(raw))
	for i, r := range raw {
		out[i] = r
	}
	return out
}

const clockSQL = `SELECT clock_timestamp()`

func (s *store) clock(ctx context.Context) (t time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if err := s.q.QueryRow(ctx, clockSQL).Scan(&t); err != nil {
		return t, fmt.Errorf("read the shard's clock: %w", err)
	}
	return t, nil
}

// moment is where a shard stands, in one snapshot: every transaction that had an
// id then has one below xmax, every transaction below xmin has ended.
type moment struct {
	watermark, floor holdfast.HoldID
	nowMS            int64
	xmin, xmax       uint64
}

const momentSQL = `
SELECT w.id, w.floor, now(), pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, pg_is_in_recovery()
FROM watermark w, pg_current_snapshot() s`

func (s *store) moment(ctx context.Context) (moment, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var m moment
	var now time.Time
	var xmin, xmax int64
	var standby bool
	err := s.q.QueryRow(ctx, momentSQL).Scan((*[16]byte)(&m.watermark), (*[16]byte)(&m.floor), &now, &xmin, &xmax, &standby)
	if err != nil {
		return m, fmt.Errorf("read the watermark: %w", err)
	}
	if standby {
		// A standby may not know yet what is running on its primary.
		return m, errors.New("read the watermark: the server is a standby, the scheduler needs the primary")
	}
	m.nowMS, m.xmin, m.xmax = now.UnixMilli(), uint64(xmin), uint64(xmax)
	return m, nil
}

const leavesSQL = `
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'holds'::regclass AND NOT i.inhdetachpending
  AND c.relname ~ '^holds_[0-9]{8}$' AND c.relname BETWEEN $1 AND $2
ORDER BY c.relname`

// leaves names the day partitions that can have ids from one to before
// another, in order. A day without a partition has no holds.
func (s *store) leaves(ctx context.Context, from, to holdfast.HoldID) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	const day = "holds_20060102"
	rows, err := s.q.Query(ctx, leavesSQL, from.UnlockAt().Format(day), to.UnlockAt().Format(day))
	if err != nil {
		return nil, fmt.Errorf("list the partitions of holds: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list the partitions of holds: %w", err)
	}
	return names, nil
}

// page reads up to limit ids after one and before another from one partition,
// in order. where is one of the constants below.
func (s *store) page(ctx context.Context, leaf, where string, after, end holdfast.HoldID, limit int) ([]holdfast.HoldID, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	query := `SELECT h.id FROM ` + pgx.Identifier{leaf}.Sanitize() + ` h
WHERE h.id > $1 AND h.id < $2 AND ` + where + ` ORDER BY h.id LIMIT $3`
	rows, err := s.q.Query(ctx, query, [16]byte(after), [16]byte(end), limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", leaf, err)
	}
	raw, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", leaf, err)
	}
	return ids(raw), nil
}

// What page can look for. A hold with a row in attempts is driven by that row.
const (
	isPending   = `h.status = 1`
	noAttempts  = ` AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.hold_id = h.id)`
	isOpen      = `h.status IN (1, 2)` + noAttempts
	isDue       = `(h.status = 1 OR h.status = 2 AND ` + isOver + `)` + noAttempts
	isAbandoned = `h.status = 2 AND ` + isOver + noAttempts
	// No attempt and no pause is longer than the hour of a quarantine. What is
	// set for later was written while the shard's clock was ahead; the claim
	// gives it one lease from now.
	tooFar = `interval '62 minutes'`
	isOver = `(h.next_attempt_at < clock_timestamp() OR h.next_attempt_at > clock_timestamp() + ` + tooFar + `)`
)

// first finds the first id from one to before another that where holds for;
// end itself when there is none.
func (s *store) first(ctx context.Context, where string, from, end holdfast.HoldID) (holdfast.HoldID, error) {
	leaves, err := s.leaves(ctx, from, end)
	if err != nil {
		return end, err
	}
	for _, leaf := range leaves {
		// No hold has the bound's own id: its version bits are not those of a
		// hold id, or it was itself the answer of this function.
		found, err := s.page(ctx, leaf, where, from.Prior(), end, 1)
		if err != nil {
			return end, err
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return end, nil
}

// count counts the PENDING holds from one id to before another.
func (s *store) count(ctx context.Context, from, end holdfast.HoldID) (n int64, err error) {
	leaves, err := s.leaves(ctx, from, end)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	for _, leaf := range leaves {
		var some int64
		query := `SELECT count(*) FROM ` + pgx.Identifier{leaf}.Sanitize() + ` WHERE id >= $1 AND id < $2 AND status = 1`
		if err := s.q.QueryRow(ctx, query, [16]byte(from), [16]byte(end)).Scan(&some); err != nil {
			return 0, fmt.Errorf("count %s: %w", leaf, err)
		}
		n += some
	}
	return n, nil
}

// straggler is a row of attempts that is due.
type straggler struct {
	NextAt time.Time
	ID     [16]byte
}

// Two ranges of one index: what is due, and what is set for a time that no
// attempt is ever set for. now(), unlike clock_timestamp(), can bound a scan.
const stragglersSQL = `
(SELECT next_at, hold_id FROM attempts
 WHERE next_at <= now() AND (next_at, hold_id) > ($1::timestamptz, $2::uuid) ORDER BY next_at, hold_id LIMIT $3)
UNION ALL
(SELECT next_at, hold_id FROM attempts
 WHERE next_at > now() + ` + tooFar + ` AND (next_at, hold_id) > ($1, $2) ORDER BY next_at, hold_id LIMIT $3)
ORDER BY next_at, hold_id LIMIT $3`

func (s *store) stragglers(ctx context.Context, after straggler, limit int) ([]straggler, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	rows, err := s.q.Query(ctx, stragglersSQL, after.NextAt, after.ID, limit)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[straggler])
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	return out, nil
}

const raiseFloorSQL = `UPDATE watermark SET floor = $1 WHERE floor < $1`

// raiseFloor says that no Try may make a hold below floor any more.
func (s *store) raiseFloor(ctx context.Context, floor holdfast.HoldID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()
	if _, err := s.pool.Exec(ctx, raiseFloorSQL, [16]byte(floor)); err != nil {
		return fmt.Errorf("raise the floor of the watermark: %w", err)
	}
	return nil
}

const moveWatermarkSQL = `UPDATE watermark SET id = $1 WHERE id < $1`

// moveWatermark moves the watermark to the first open hold before end, or to
// end. It is one read-write transaction, so that what it reads is the primary's.
func (s *store) moveWatermark(ctx context.Context, from, end holdfast.HoldID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()
	move := func(tx pgx.Tx) error {
		to, err := (&store{q: tx}).first(ctx, isOpen, from, end)
		if err != nil || !before(from, to) {
			return err
		}
		_, err = tx.Exec(ctx, moveWatermarkSQL, [16]byte(to))
		return err
	}
	if err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadWrite}, move); err != nil {
		return fmt.Errorf("move the watermark: %w", err)
	}
	return nil
}

const oldestWaitingSQL = `SELECT hold_id FROM attempts ORDER BY hold_id LIMIT 50`

// oldestWaiting finds the oldest PENDING hold among the first rows of attempts;
// an id beyond all time when there is none. Behind 50 older holds that hang
// after their claim a waiting one is not seen, which the gauge can bear.
func (s *store) oldestWaiting(ctx context.Context) (holdfast.HoldID, error) {
	none := idAt(1<<47 - 1)
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	rows, err := s.q.Query(ctx, oldestWaitingSQL)
	if err != nil {
		return none, fmt.Errorf("read attempts: %w", err)
	}
	raw, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return none, fmt.Errorf("read attempts: %w", err)
	}
	if len(raw) == 0 {
		return none, nil
	}
	listed := ids(raw)
	leaves, err := s.leaves(ctx, listed[0], listed[len(listed)-1])
	if err != nil {
		return none, err
	}
	for _, leaf := range leaves {
		query := `SELECT id FROM ` + pgx.Identifier{leaf}.Sanitize() + ` WHERE id = ANY($1) AND status = 1 ORDER BY id LIMIT 1`
		var id [16]byte
		err := s.q.QueryRow(ctx, query, raw).Scan(&id)
		if err == nil {
			return id, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return none, fmt.Errorf("read %s: %w", leaf, err)
		}
	}
	return none, nil
}
