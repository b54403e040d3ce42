package participants

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/shards"
)

const entryColumns = `posted_at, ref, user_id, amount, seq, balance_after, movement, book, currency`

func scanEntry(row pgx.CollectableRow) (holdfast.Entry, error) {
	var e holdfast.Entry
	var seq, after *int64
	err := row.Scan(&e.PostedAt, (*[16]byte)(&e.Ref), (*[16]byte)(&e.User), &e.Amount, &seq, &after,
		(*int16)(&e.Movement), (*int16)(&e.Book), &e.Currency)
	e.PostedAt, e.Seq, e.BalanceAfter = e.PostedAt.UTC(), value(seq), value(after)
	return e, err
}

// entryWalk reads the entries of one account backwards. The numbers of an
// account's entries have no gaps, so a stretch of numbers is a bounded piece of
// work whatever else the account has, and known to be whole by its count. It is
// found by going through the days from the newest to the oldest, each through
// the partition's own index; as a rule the numbers grow with the days, but a
// shard's clock may have been ahead over midnight.
type entryWalk struct {
	user     holdfast.UserID
	currency string
	next     int64        // the entries still to read have a lower number; 1 = none
	days     []shards.Day // newest first; those that have no lower number are left out
}

const accountTopSQL = `SELECT seq FROM accounts WHERE user_id = $1 AND currency = $2`

// newEntryWalk begins below before, or with the newest entry when before is 0.
// pgx.ErrNoRows: there is no such account.
func newEntryWalk(ctx context.Context, db reader, user holdfast.UserID, currency string, before int64, days []shards.Day) (*entryWalk, error) {
	var top int64
	if err := db.QueryRow(ctx, accountTopSQL, [16]byte(user), currency).Scan(&top); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, pgx.ErrNoRows
		}
		return nil, fmt.Errorf("read account %s: %w", user, err)
	}
	w := &entryWalk{user: user, currency: currency, next: top + 1, days: days}
	if before > 0 && before < w.next {
		w.next = before
	}
	return w, nil
}

func (w *entryWalk) done() bool { return w.next <= 1 || len(w.days) == 0 }

// belowSQL reads a day's entries below a number, newest first.
const belowSQL = `SELECT ` + entryColumns + ` FROM entries_%s
	WHERE user_id = $1 AND book <= 2 AND seq < $2 AND currency = $3 ORDER BY seq DESC LIMIT $4`

// stretch reads the next n numbers, newest first. Fewer come back only at the
// end of what the shard still keeps.
func (w *entryWalk) stretch(ctx context.Context, db reader, n int) ([]holdfast.Entry, error) {
	low := max(w.next-int64(n), 1)
	want := int(w.next - low)
	var all []holdfast.Entry
	var lower []shards.Day // of those read, the days that may have entries below the stretch
	days := w.days
	for ; len(days) > 0 && len(all) < want; days = days[1:] {
		// Whatever a day has of the stretch is among its first so many.
		rows, err := db.Query(ctx, fmt.Sprintf(belowSQL, days[0]), [16]byte(w.user), w.next, w.currency, want)
		var some []holdfast.Entry
		if err == nil {
			some, err = pgx.CollectRows(rows, scanEntry)
		}
		if err != nil && !isUndefinedTable(err) { // retention took the day meanwhile
			return nil, fmt.Errorf("read entries of %s: %w", w.user, err)
		}
		within := slices.IndexFunc(some, func(e holdfast.Entry) bool { return e.Seq < low })
		if within >= 0 || len(some) == want {
			lower = append(lower, days[0])
		}
		if within >= 0 {
			some = some[:within]
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b holdfast.Entry) int { return cmp.Compare(b.Seq, a.Seq) })
	w.days = append(lower, days...)
	if w.next = low; len(all) < want {
		w.days = nil
	}
	return all, nil
}

// entryDays are the days that can have entries: partitions made ahead are empty.
// A day of slack covers a process whose clock is behind the shard's.
func entryDays(ctx context.Context, db reader) ([]shards.Day, error) {
	days, err := leaves(ctx, db, "entries")
	last := shards.DayAt(time.Now()) + 1
	for len(days) > 0 && days[0] > last {
		days = days[1:]
	}
	return days, err
}
