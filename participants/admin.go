package participants

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
)

const (
	adminSlice    = 5_000  // holds looked at by one statement
	adminExamined = 50_000 // holds looked at for one page
)

// adminHolds pages through the holds of one shard: the latest maturity first,
// or, with Overdue, those whose maturity has passed and that have not ended, the
// longest waiting first. The position is an id. A page may be short and have a
// Next.
func adminHolds(ctx context.Context, db *pgxpool.Pool, r branch.AdminListRequest) (branch.ListAnswer, error) {
	w := adminWalk{limit: pageSize(r.Limit), holds: []holdfast.Hold{}}
	if r.Status != holdfast.StatusUnknown {
		w.status = []int16{int16(r.Status)}
	}
	if r.Before != "" {
		id, err := holdfast.ParseHoldID(r.Before)
		if err != nil {
			return branch.ListAnswer{}, fmt.Errorf("position: %w", err)
		}
		w.at, w.started = id, true
	}
	days, err := leaves(ctx, db, "holds")
	if err != nil {
		return branch.ListAnswer{}, err
	}
	if r.Overdue {
		if err := w.overdue(ctx, db); err != nil {
			return branch.ListAnswer{}, err
		}
		slices.Reverse(days)
	}
	if !w.more {
		if err := w.run(ctx, db, days); err != nil {
			return branch.ListAnswer{}, err
		}
	}
	answer := branch.ListAnswer{Holds: w.holds}
	if w.more {
		answer.Next = w.at.String()
	}
	return answer, nil
}

// adminWalk goes through the holds in the order of their ids, in slices whose
// size does not depend on how many of them match.
type adminWalk struct {
	status   []int16 // that are wanted; none: all
	limit    int
	at       holdfast.HoldID // the last id that was dealt with
	started  bool
	up       bool            // ascending
	end      holdfast.HoldID // ascending: not beyond
	holds    []holdfast.Hold
	examined int
	more     bool
}

const watermarkSQL = `SELECT id, clock_timestamp() FROM watermark`

// overdue turns the walk round: first what is open below the watermark, then
// from the watermark itself up to now.
func (w *adminWalk) overdue(ctx context.Context, db reader) error {
	var low holdfast.HoldID
	var now time.Time
	if err := db.QueryRow(ctx, watermarkSQL).Scan((*[16]byte)(&low), &now); err != nil {
		return fmt.Errorf("read watermark: %w", err)
	}
	w.up, w.end, w.started = true, holdfast.NewHoldID(now.UnixMilli(), holdfast.Buckets-1, 1<<62-1), true
	if len(w.status) == 0 {
		w.status = []int16{int16(holdfast.Pending), int16(holdfast.Executing)}
	}
	for bytes.Compare(w.at[:], low[:]) < 0 {
		if all, err := w.passed(ctx, db, low); err != nil || w.more {
			return err
		} else if all {
			w.at = low.Prior()
			return nil
		}
	}
	return nil
}

const passedSQL = `SELECT hold_id FROM attempts WHERE hold_id > $1 AND hold_id < $2 ORDER BY hold_id LIMIT $3`

// passed deals with the next of the holds that the watermark has passed though
// they are open: each of them has a row in attempts. all: none is left there.
func (w *adminWalk) passed(ctx context.Context, db reader, low holdfast.HoldID) (all bool, err error) {
	rows, err := db.Query(ctx, passedSQL, [16]byte(w.at), [16]byte(low), adminSlice)
	if err != nil {
		return false, fmt.Errorf("read attempts: %w", err)
	}
	ids, err := pgx.CollectRows(rows, scanHoldID)
	if err != nil {
		return false, fmt.Errorf("read attempts: %w", err)
	}
	found, err := holdsByID(ctx, db, ids)
	if err != nil {
		return false, err
	}
	for _, id := range ids {
		if h, ok := found[id]; ok && w.take(h) {
			return false, nil
		}
		w.at = id
	}
	w.examined += len(ids)
	w.more = w.examined >= adminExamined
	return len(ids) < adminSlice, nil
}

func (w *adminWalk) run(ctx context.Context, db reader, days []shards.Day) error {
	for _, day := range days {
		from, to := day.Bounds()
		if w.started && (w.up && bytes.Compare(to[:], w.at[:]) <= 0 || !w.up && bytes.Compare(from[:], w.at[:]) >= 0) {
			continue
		}
		if w.up && bytes.Compare(from[:], w.end[:]) > 0 {
			return nil
		}
		if !w.started { // descending from the very end
			w.at, w.started = to, true
		}
		for {
			all, err := w.slice(ctx, db, day)
			if err != nil || w.more {
				return err
			}
			if all {
				break
			}
		}
	}
	return nil
}

// slice deals with the next adminSlice holds of a day. all: none is left there.
func (w *adminWalk) slice(ctx context.Context, db reader, day shards.Day) (all bool, err error) {
	table, beyond, order := "holds_"+day.String(), "id < $1 AND id <= $2", "DESC"
	end := holdfast.HoldID{}
	for i := range end {
		end[i] = 0xff
	}
	if w.up {
		beyond, order, end = "id > $1 AND id <= $2", "ASC", w.end
	}
	rows, err := db.Query(ctx, `SELECT `+holdColumns+` FROM (
			SELECT `+holdColumns+`, row_number() OVER (ORDER BY id `+order+`) AS nth
			FROM `+table+` WHERE `+beyond+` ORDER BY id `+order+` LIMIT $3) x
		WHERE $4::smallint[] IS NULL OR status = ANY ($4) OR nth = $3 ORDER BY id `+order, [16]byte(w.at), [16]byte(end), adminSlice, w.status)
	var some []holdfast.Hold
	if err == nil {
		some, err = scanHolds(rows)
	}
	if isUndefinedTable(err) { // retention took the day meanwhile
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read holds of %s: %w", day, err)
	}
	return w.keep(some), nil
}

// keep takes what matches from a slice. Its last row comes whether it matches
// or not when the slice was full, so that the walk knows how far it got.
func (w *adminWalk) keep(some []holdfast.Hold) (all bool) {
	for _, h := range some {
		if w.take(h) {
			return false
		}
	}
	w.examined += adminSlice
	if len(some) == 0 {
		return true
	}
	w.at = some[len(some)-1].ID
	w.more = w.examined >= adminExamined
	return false
}

func scanHoldID(row pgx.CollectableRow) (id holdfast.HoldID, err error) {
	err = row.Scan((*[16]byte)(&id))
	return id, err
}

// take keeps a hold if it is wanted. full: the page ends with it.
func (w *adminWalk) take(h holdfast.Hold) (full bool) {
	if len(w.status) > 0 && !slices.Contains(w.status, int16(h.Status)) {
		return false
	}
	w.holds = append(w.holds, h)
	if len(w.holds) < w.limit {
		return false
	}
	w.at, w.more = h.ID, true
	return true
}

// deadPosition is where a page of dead letters ended.
type deadPosition struct {
	At   time.Time       `json:"at"`
	Hold holdfast.HoldID `json:"hold"`
	Code string          `json:"code"`
}

const deadLetterColumns = `hold_id, code, detail, created_at, closed_at, closed_by, resolution, note`

const deadLettersSQL = `
SELECT ` + deadLetterColumns + ` FROM dead_letters
WHERE (created_at, hold_id) <= ($1, $2) AND (created_at, hold_id, code) < ($1, $2, $3)
  AND ($4 = '' OR code = $4)`

func scanDeadLetter(row pgx.CollectableRow) (branch.DeadLetter, error) {
	var d branch.DeadLetter
	var closedAt *time.Time
	var by, resolution, note *string
	err := row.Scan((*[16]byte)(&d.HoldID), &d.Code, &d.Detail, &d.CreatedAt, &closedAt, &by, &resolution, &note)
	d.CreatedAt, d.ClosedAt = d.CreatedAt.UTC(), utcOf(closedAt)
	d.ClosedBy, d.Resolution, d.Note = value(by), value(resolution), value(note)
	return d, err
}

// deadLetters pages through the dead letters of one shard, newest first, each
// with its hold.
func deadLetters(ctx context.Context, db *pgxpool.Pool, r branch.AdminListRequest) (branch.DeadLetterAnswer, error) {
	at := deadPosition{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	if r.Before != "" {
		if err := json.Unmarshal([]byte(r.Before), &at); err != nil {
			return branch.DeadLetterAnswer{}, fmt.Errorf("%w: this position was not given out by a list", holdfast.ErrInvalid)
		}
	}
	sql, limit := deadLettersSQL, pageSize(r.Limit)
	if r.Open {
		sql += ` AND closed_at IS NULL`
	}
	sql += ` ORDER BY created_at DESC, hold_id DESC, code DESC LIMIT $5`
	rows, err := db.Query(ctx, sql, at.At, [16]byte(at.Hold), at.Code, r.Code, limit+1)
	if err != nil {
		return branch.DeadLetterAnswer{}, fmt.Errorf("read dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, scanDeadLetter)
	if err != nil {
		return branch.DeadLetterAnswer{}, fmt.Errorf("read dead letters: %w", err)
	}
	answer := branch.DeadLetterAnswer{DeadLetters: letters}
	if len(letters) > limit {
		answer.DeadLetters = letters[:limit]
		last := letters[limit-1]
		text, _ := json.Marshal(deadPosition{At: last.CreatedAt, Hold: last.HoldID, Code: last.Code})
		answer.Next = string(text)
	}
	return answer, withHolds(ctx, db, answer.DeadLetters)
}

// withHolds adds the hold of each dead letter.
func withHolds(ctx context.Context, db reader, letters []branch.DeadLetter) error {
	ids := make([]holdfast.HoldID, len(letters))
	for i, d := range letters {
		ids[i] = d.HoldID
	}
	holds, err := holdsByID(ctx, db, ids)
	for i := range letters {
		letters[i].Hold = holds[letters[i].HoldID]
	}
	return err
}

const unrefundedSQL = `SELECT hold_id FROM dead_letters WHERE unrefunded ORDER BY created_at LIMIT $1`

// unrefunded lists FAILED holds whose coins are still in escrow, oldest first.
func unrefunded(ctx context.Context, db *pgxpool.Pool, limit int) ([]holdfast.HoldID, error) {
	rows, err := db.Query(ctx, unrefundedSQL, min(max(limit, 1), 10_000))
	if err != nil {
		return nil, fmt.Errorf("read refund queue: %w", err)
	}
	ids, err := pgx.CollectRows(rows, scanHoldID)
	if err != nil {
		return nil, fmt.Errorf("read refund queue: %w", err)
	}
	return ids, nil
}

const auditColumns = `id, at, actor, action, hold_id, user_id, reason`

const auditPageSQL = `SELECT ` + auditColumns + ` FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2`

// auditScan reads rows of auditColumns; last is the id of the row read last.
func auditScan(shard int, last *int64) pgx.RowToFunc[branch.AuditRow] {
	return func(row pgx.CollectableRow) (branch.AuditRow, error) {
		a := branch.AuditRow{Shard: shard}
		var hold, user *[16]byte
		err := row.Scan(last, &a.At, &a.Actor, &a.Action, &hold, &user, &a.Reason)
		a.At, a.HoldID, a.User = a.At.UTC(), holdfast.HoldID(value(hold)), holdfast.UserID(value(user))
		return a, err
	}
}

// audit pages through the acts of operators on one shard, newest first.
func audit(ctx context.Context, db *pgxpool.Pool, shard int, r branch.AdminListRequest) (branch.AuditAnswer, error) {
	before, limit := int64(1)<<62, pageSize(r.Limit)
	if r.Before != "" {
		n, err := strconv.ParseInt(strings.TrimSpace(r.Before), 10, 64)
		if err != nil {
			return branch.AuditAnswer{}, fmt.Errorf("%w: this position was not given out by a list", holdfast.ErrInvalid)
		}
		before = n
	}
	var last int64
	rows, err := db.Query(ctx, auditPageSQL, before, limit)
	if err != nil {
		return branch.AuditAnswer{}, fmt.Errorf("read audit: %w", err)
	}
	list, err := pgx.CollectRows(rows, auditScan(shard, &last))
	if err != nil {
		return branch.AuditAnswer{}, fmt.Errorf("read audit: %w", err)
	}
	answer := branch.AuditAnswer{Rows: list}
	if len(list) == limit {
		answer.Next = strconv.FormatInt(last, 10)
	}
	return answer, nil
}

// lockHold reads a hold under its row lock; ok is false when it does not exist.
func lockHold(ctx context.Context, tx pgx.Tx, id holdfast.HoldID) (h holdfast.Hold, ok bool, err error) {
	var exists bool
	table := "holds_" + shards.DayOf(id)
	if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&exists); err != nil || !exists {
		return h, false, err
	}
	h, err = scanHold(tx.QueryRow(ctx, `SELECT `+holdColumns+` FROM `+table+` WHERE id = $1 FOR NO KEY UPDATE`, [16]byte(id)))
	if errors.Is(err, pgx.ErrNoRows) {
		return h, false, nil
	}
	return h, err == nil, err
}
