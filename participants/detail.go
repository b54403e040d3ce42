package participants

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
)

// postingSlack is how long after its barrier row a movement may be posted: the
// batch waits for the locks of the accounts in between.
const postingSlack = 10 * time.Minute

const (
	attemptsSQL = `
SELECT next_at, n, active_ms, last_error FROM attempts WHERE hold_id = $1`
	deadOfSQL  = `SELECT ` + deadLetterColumns + ` FROM dead_letters WHERE hold_id = $1 ORDER BY created_at, code`
	auditOfSQL = `SELECT ` + auditColumns + ` FROM audit WHERE hold_id = $1 ORDER BY id LIMIT 1000`
)

// detail answers everything this shard knows of a hold.
func detail(ctx context.Context, db *pgxpool.Pool, shard int, r branch.DetailRequest) (branch.DetailAnswer, error) {
	d := branch.DetailAnswer{Code: branch.CodeOK, Entries: []holdfast.Entry{}, Barrier: []branch.BarrierRow{},
		DeadLetters: []branch.DeadLetter{}, Audit: []branch.AuditRow{}}
	if !r.Recipient.IsZero() {
		return d, readMovements(ctx, db, &d, r.ID, r.Recipient)
	}
	found, err := holdsByID(ctx, db, []holdfast.HoldID{r.ID})
	if err != nil {
		return d, err
	}
	var ok bool
	if d.Hold, ok = found[r.ID]; !ok {
		d.Code = branch.CodeNotFound
		return d, nil
	}
	if err := readMovements(ctx, db, &d, r.ID, d.Hold.Sender, d.Hold.Recipient); err != nil {
		return d, err
	}
	return d, readTroubles(ctx, db, &d, shard)
}

// readTroubles adds the attempts, dead letters and acts of operators.
func readTroubles(ctx context.Context, db reader, d *branch.DetailAnswer, shard int) error {
	id := [16]byte(d.Hold.ID)
	var next time.Time
	err := db.QueryRow(ctx, attemptsSQL, id).Scan(&next, &d.Attempts, &d.ActiveMS, &d.LastError)
	switch {
	case err == nil:
		d.NextAttempt = next.UTC()
	case !errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("read attempts of hold %s: %w", d.Hold.ID, err)
	case d.Hold.Status == holdfast.Executing:
		var at *time.Time // the running first attempt is over then
		err := db.QueryRow(ctx, `SELECT next_attempt_at FROM holds_`+shards.DayOf(d.Hold.ID)+` WHERE id = $1`, id).Scan(&at)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("read hold %s: %w", d.Hold.ID, err)
		}
		d.NextAttempt = utcOf(at)
	}
	rows, err := db.Query(ctx, deadOfSQL, id)
	if err == nil {
		d.DeadLetters, err = pgx.CollectRows(rows, scanDeadLetter)
	}
	if err != nil {
		return fmt.Errorf("read dead letters of hold %s: %w", d.Hold.ID, err)
	}
	var last int64
	rows, err = db.Query(ctx, auditOfSQL, id)
	if err == nil {
		d.Audit, err = pgx.CollectRows(rows, auditScan(shard, &last))
	}
	if err != nil {
		return fmt.Errorf("read audit of hold %s: %w", d.Hold.ID, err)
	}
	return nil
}

var (
	branchNames = [...]string{"", "01", "02"}
	opNames     = [...]string{"", "try", "confirm", "cancel"}
)

// readMovements adds the barrier rows of a hold and the entries that were
// posted behind each. Entries have no index on the hold: the barrier row says
// when, the account's index who.
func readMovements(ctx context.Context, db reader, d *branch.DetailAnswer, id holdfast.HoldID, users ...holdfast.UserID) error {
	if !id.Valid() {
		return nil
	}
	rows, err := db.Query(ctx, `SELECT branch, op, created_at FROM barrier_`+shards.DayOf(id)+`
		WHERE gid = $1 ORDER BY created_at, branch, op`, [16]byte(id))
	if err == nil {
		d.Barrier, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (b branch.BarrierRow, err error) {
			var br, op int16
			err = row.Scan(&br, &op, &b.CreatedAt)
			b.Branch, b.Op, b.CreatedAt = branchNames[br], opNames[op], b.CreatedAt.UTC()
			return b, err
		})
	}
	if isUndefinedTable(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read barrier of hold %s: %w", id, err)
	}
	days, err := entryDays(ctx, db)
	if err != nil {
		return err
	}
	var who [][16]byte
	for _, u := range users {
		who = append(who, u)
	}
	for day, from := range postingDays(d.Barrier, days) {
		rows, err := db.Query(ctx, `SELECT `+entryColumns+` FROM entries_`+day.String()+`
			WHERE user_id = ANY ($1) AND book <= 2 AND ref = $2 AND posted_at >= $3`, who, [16]byte(id), from)
		var some []holdfast.Entry
		if err == nil {
			some, err = pgx.CollectRows(rows, scanEntry)
		}
		if err != nil && !isUndefinedTable(err) {
			return fmt.Errorf("read entries of hold %s: %w", id, err)
		}
		d.Entries = append(d.Entries, some...)
	}
	slices.SortFunc(d.Entries, func(a, b holdfast.Entry) int {
		if c := a.PostedAt.Compare(b.PostedAt); c != 0 {
			return c
		}
		if c := int(a.Movement) - int(b.Movement); c != 0 {
			return c
		}
		if c := bytes.Compare(a.User[:], b.User[:]); c != 0 {
			return c
		}
		return int(a.Seq - b.Seq)
	})
	return nil
}

// postingDays are the days on which movements behind the barrier rows can be,
// each with the earliest time.
func postingDays(barrier []branch.BarrierRow, existing []shards.Day) map[shards.Day]time.Time {
	days := map[shards.Day]time.Time{}
	for _, b := range barrier {
		for _, at := range []time.Time{b.CreatedAt, b.CreatedAt.Add(postingSlack)} {
			day := shards.DayAt(at)
			if first, known := days[day]; slices.Contains(existing, day) && (!known || b.CreatedAt.Before(first)) {
				days[day] = b.CreatedAt
			}
		}
	}
	return days
}
