package participants

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/shards"
)

// holdColumns are the columns of a hold in the order that holdRow scans them.
const holdColumns = `id, sender, recipient, amount, currency, reference, unlock_at, created_at, status, verdict,
	payment_id, refusal_code, claimed_at, decided_at, executed_at, cancelled_at, refunded_at, next_attempt_at`

// holdColumnsOf are the same columns of an alias ("h") or of a composite
// ("(f.hold)").
func holdColumnsOf(alias string) string {
	return alias + "." + strings.Join(strings.FieldsFunc(holdColumns, func(r rune) bool {
		return r == ',' || r == ' ' || r == '\n' || r == '\t'
	}), ", "+alias+".")
}

// holdRow receives holdColumns. A row of NULLs (the outer side of a join) scans
// too and leaves found false.
type holdRow struct {
	id, sender, recipient      *[16]byte
	amount                     *int64
	currency, reference        *string
	unlockAt, createdAt        *time.Time
	status, verdict            *int16
	paymentID, refusal         *string
	claimed, decided, executed *time.Time
	cancelled, refunded        *time.Time
	next                       *time.Time // the end of the lease while it is being driven
}

func (r *holdRow) dest() []any {
	return []any{&r.id, &r.sender, &r.recipient, &r.amount, &r.currency, &r.reference, &r.unlockAt, &r.createdAt,
		&r.status, &r.verdict, &r.paymentID, &r.refusal, &r.claimed, &r.decided, &r.executed, &r.cancelled, &r.refunded, &r.next}
}

func (r *holdRow) hold() (h holdfast.Hold, found bool) {
	if r.id == nil {
		return h, false
	}
	return holdfast.Hold{
		ID: holdfast.HoldID(*r.id), Sender: holdfast.UserID(*r.sender), Recipient: holdfast.UserID(*r.recipient),
		Status: holdfast.Status(*r.status), Amount: *r.amount, Currency: *r.currency, Reference: value(r.reference),
		UnlockAt: utcOf(r.unlockAt), CreatedAt: utcOf(r.createdAt),
		Verdict: holdfast.Verdict(value(r.verdict)), PaymentID: value(r.paymentID), RefusalCode: value(r.refusal),
		ClaimedAt: utcOf(r.claimed), DecidedAt: utcOf(r.decided), ExecutedAt: utcOf(r.executed),
		CancelledAt: utcOf(r.cancelled), RefundedAt: utcOf(r.refunded),
	}, true
}

// lease names the drive that has the hold: branch.ClaimResult.Lease.
func (r *holdRow) lease() int64 {
	if r.next == nil {
		return 0
	}
	return r.next.UnixMicro()
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func utcOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// scanHold reads one row of holdColumns.
func scanHold(row pgx.Row) (holdfast.Hold, error) {
	var r holdRow
	if err := row.Scan(r.dest()...); err != nil {
		return holdfast.Hold{}, err
	}
	h, _ := r.hold()
	return h, nil
}

// scanHolds reads all rows of holdColumns and closes them.
func scanHolds(rows pgx.Rows) ([]holdfast.Hold, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (holdfast.Hold, error) { return scanHold(row) })
}

// reader is what a pool, a connection and a transaction have in common.
type reader interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

var (
	_ reader = (*pgxpool.Pool)(nil)
	_ reader = (*pgx.Conn)(nil)
	_ reader = (pgx.Tx)(nil)
)

const undefinedTable = "42P01"

func isUndefinedTable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == undefinedTable
}

// isDayWithoutHolds reports whether the partition that a statement names is not
// there. A table that a function called by it misses is another matter.
func isDayWithoutHolds(err error) bool {
	var pg *pgconn.PgError
	return isUndefinedTable(err) && errors.As(err, &pg) && pg.Where == ""
}

const leavesSQL = `
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass($1) AND c.relname ~ '_[0-9]{8}$'
ORDER BY c.relname DESC`

// leaves are the days that a partitioned table has, newest first.
func leaves(ctx context.Context, db reader, parent string) ([]shards.Day, error) {
	rows, err := db.Query(ctx, leavesSQL, parent)
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", parent, err)
	}
	days, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (shards.Day, error) {
		var name string
		if err := row.Scan(&name); err != nil {
			return 0, err
		}
		return shards.ParseDay(name[len(name)-8:])
	})
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", parent, err)
	}
	return days, nil
}

// holdsByID reads holds in one round trip, each from the partition of its day:
// a join over all partitions would lock every one of them. Ids are what users
// sent: one whose day has no partition is absent from the map, like one that no
// row has. db must not be inside a transaction that has to go on, because a
// day without a partition is found out by an error of the server.
func holdsByID(ctx context.Context, db reader, ids []holdfast.HoldID) (map[holdfast.HoldID]holdfast.Hold, error) {
	byDay := map[shards.Day][][16]byte{}
	for _, id := range ids {
		if id.Valid() {
			day := shards.DayAt(id.UnlockAt())
			byDay[day] = append(byDay[day], id)
		}
	}
	found, err := readDays(ctx, db, byDay)
	if !isUndefinedTable(err) {
		return found, err
	}
	// Some day is not there. Ask which ones are and read those.
	days, err := leaves(ctx, db, "holds")
	if err != nil {
		return nil, err
	}
	for day := range byDay {
		if !slices.Contains(days, day) {
			delete(byDay, day)
		}
	}
	return readDays(ctx, db, byDay)
}

// readDays sends one statement per day in one round trip.
func readDays(ctx context.Context, db reader, byDay map[shards.Day][][16]byte) (map[holdfast.HoldID]holdfast.Hold, error) {
	found := make(map[holdfast.HoldID]holdfast.Hold)
	if len(byDay) == 0 {
		return found, nil
	}
	var b pgx.Batch
	for day, ids := range byDay {
		b.Queue(`SELECT `+holdColumns+` FROM holds_`+day.String()+` WHERE id = ANY ($1)`, ids).
			Query(func(rows pgx.Rows) error {
				holds, err := scanHolds(rows)
				for _, h := range holds {
					found[h.ID] = h
				}
				return err
			})
	}
	if err := db.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("read holds: %w", err)
	}
	return found, nil
}
