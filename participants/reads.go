package participants

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

const (
	maxPage      = 200
	walkStretch  = 256  // entries read at a time
	walkExamined = 2048 // entries looked at for one page of a list
)

// pageSize keeps a page within 1 … maxPage.
func pageSize(n int) int {
	if n < 1 || n > maxPage {
		return maxPage
	}
	return n
}

// list pages through a sender's holds, newest first. There is no index on
// holds(sender), it would cost every create; the sender's own entries lead to
// the holds. A page may be short, even empty, and still have a Next: the work
// for one page is bounded, whatever the filter leaves over.
func list(ctx context.Context, db *pgxpool.Pool, r branch.ListRequest) (branch.ListAnswer, error) {
	if r.Key != "" {
		return listByKey(ctx, db, r)
	}
	streams, err := openStreams(ctx, db, r.Sender, r.Before)
	if err != nil {
		return branch.ListAnswer{}, err
	}
	answer := branch.ListAnswer{Holds: []holdfast.Hold{}}
	limit := pageSize(r.Limit)
	for !streams.done() && streams.examined < walkExamined {
		ids, err := streams.take(ctx, db, limit-len(answer.Holds))
		if err != nil {
			return branch.ListAnswer{}, err
		}
		holds, err := holdsByID(ctx, db, ids)
		if err != nil {
			return branch.ListAnswer{}, err
		}
		for _, id := range ids {
			if h, ok := holds[id]; ok && (r.Status == holdfast.StatusUnknown || h.Status == r.Status) {
				answer.Holds = append(answer.Holds, h)
			}
		}
		if len(answer.Holds) >= limit {
			break
		}
	}
	answer.Next = streams.position()
	return answer, nil
}

const keySQL = `SELECT hold_id FROM idempotency WHERE sender = $1 AND key = $2 AND hold_id IS NOT NULL`

// listByKey answers what became of a create: its hold, or nothing for a key
// that is unknown or whose create was refused.
func listByKey(ctx context.Context, db *pgxpool.Pool, r branch.ListRequest) (branch.ListAnswer, error) {
	answer := branch.ListAnswer{Holds: []holdfast.Hold{}}
	var id [16]byte
	err := db.QueryRow(ctx, keySQL, [16]byte(r.Sender), r.Key).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return answer, nil
	}
	if err != nil {
		return answer, fmt.Errorf("read key of %s: %w", r.Sender, err)
	}
	holds, err := holdsByID(ctx, db, []holdfast.HoldID{id})
	if h, ok := holds[id]; ok && (r.Status == holdfast.StatusUnknown || h.Status == r.Status) {
		answer.Holds = append(answer.Holds, h)
	}
	return answer, err
}

// streams merges the reserves of a user's accounts, one stream per currency
// because the entries are numbered per account, into one order of time.
type streams struct {
	all      []*stream
	examined int
}

type stream struct {
	walk   *entryWalk
	buffer []holdfast.Entry // reserves read and not yet taken, newest first
	taken  int64            // go on below this number; 0 = the walk's own
}

const currenciesSQL = `SELECT currency FROM accounts WHERE user_id = $1 ORDER BY currency`

// openStreams begins at a position, "" = the newest hold. A position that was
// not made by position is holdfast.ErrInvalid.
func openStreams(ctx context.Context, db reader, user holdfast.UserID, position string) (*streams, error) {
	cursors, err := parsePosition(position)
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, currenciesSQL, [16]byte(user))
	if err != nil {
		return nil, fmt.Errorf("read accounts of %s: %w", user, err)
	}
	currencies, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read accounts of %s: %w", user, err)
	}
	days, err := entryDays(ctx, db)
	if err != nil {
		return nil, err
	}
	s := &streams{}
	for _, currency := range currencies {
		before := cursors[currency]
		if position != "" && before == 0 {
			continue // this one had come to its end, or was opened after the first page
		}
		w, err := newEntryWalk(ctx, db, user, currency, before, days)
		if err != nil {
			return nil, err
		}
		s.all = append(s.all, &stream{walk: w, taken: w.next})
	}
	return s, nil
}

func (s *stream) done() bool { return len(s.buffer) == 0 && s.walk.done() }

func (s *streams) done() bool {
	for _, one := range s.all {
		if !one.done() {
			return false
		}
	}
	return true
}

// take returns the ids of up to n holds. It stops when a stream would have to
// be read further than a page may, since what is newest is then not known.
func (s *streams) take(ctx context.Context, db reader, n int) ([]holdfast.HoldID, error) {
	var ids []holdfast.HoldID
	for len(ids) < n {
		var newest *stream
		for _, one := range s.all {
			for len(one.buffer) == 0 && !one.walk.done() {
				if s.examined >= walkExamined {
					return ids, nil
				}
				if err := s.fill(ctx, db, one); err != nil {
					return nil, err
				}
			}
			if len(one.buffer) > 0 && (newest == nil || later(one.buffer[0], newest.buffer[0])) {
				newest = one
			}
		}
		if newest == nil {
			return ids, nil
		}
		e := newest.buffer[0]
		newest.buffer, newest.taken = newest.buffer[1:], e.Seq
		ids = append(ids, e.Ref)
	}
	return ids, nil
}

// fill reads one stretch of entries and keeps the reserves among them. The leg
// on the held book stands for the hold.
func (s *streams) fill(ctx context.Context, db reader, one *stream) error {
	entries, err := one.walk.stretch(ctx, db, walkStretch)
	if err != nil {
		return err
	}
	s.examined += max(len(entries), 1)
	for _, e := range entries {
		if e.Movement == holdfast.MoveReserve && e.Book == holdfast.BookHeld {
			one.buffer = append(one.buffer, e)
		}
	}
	if len(one.buffer) == 0 {
		one.taken = one.walk.next
	}
	return nil
}

func later(a, b holdfast.Entry) bool {
	if !a.PostedAt.Equal(b.PostedAt) {
		return a.PostedAt.After(b.PostedAt)
	}
	return bytes.Compare(a.Ref[:], b.Ref[:]) > 0
}

// position is where the next page begins: per currency the number below which
// to go on. Empty at the end.
func (s *streams) position() string {
	if s.done() {
		return ""
	}
	cursors := map[string]int64{}
	for _, one := range s.all {
		if !one.done() {
			cursors[one.walk.currency] = one.taken
		}
	}
	text, _ := json.Marshal(cursors) // a map of strings and numbers has a form
	return base64.RawURLEncoding.EncodeToString(text)
}

func parsePosition(position string) (cursors map[string]int64, err error) {
	if position == "" {
		return nil, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(position)
	if err == nil {
		err = json.Unmarshal(text, &cursors)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: this position was not given out by a list", holdfast.ErrInvalid)
	}
	return cursors, nil
}
