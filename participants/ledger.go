package participants

import (
	"context"
	"log/slog"
	"sort"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ledger runs the money functions of one shard. Every method that ends in
// Batch is one call of one function, which is one transaction.
type ledger struct {
	shard      int
	epoch      int64
	pool       *pgxpool.Pool // for the functions that move money
	reads      *pgxpool.Pool
	shardMap   *holdfast.ShardMap
	log        *slog.Logger
	metrics    *metrics
	impossible func(string)
}

// foldColumns are the fields of the composite column hold that the functions
// return, in the order of holdRow.
var foldColumns = holdColumnsOf("(f.hold)")

// sorted returns the order of the ids, ascending: the functions want them so.
// The lanes have already made sure that none is there twice.
func sorted[I any](items []I, id func(*I) holdfast.HoldID) (order []int, days []string, ids [][16]byte) {
	order = make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(a, b int) bool {
		x, y := id(&items[order[a]]), id(&items[order[b]])
		return string(x[:]) < string(y[:])
	})
	days, ids = make([]string, len(items)), make([][16]byte, len(items))
	for i, at := range order {
		h := id(&items[at])
		ids[i] = h
		if i > 0 && holdfast.HoldID(ids[i-1]).UnlockAtMS()/86_400_000 == h.UnlockAtMS()/86_400_000 {
			days[i] = days[i-1]
			continue
		}
		days[i] = shards.DayOf(h)
	}
	return order, days, ids
}

// byOrder collects a column of the items in the sorted order.
func byOrder[I, T any](items []I, order []int, field func(*I) T) []T {
	out := make([]T, len(order))
	for i, at := range order {
		out[i] = field(&items[at])
	}
	return out
}

// holdRows runs a function that returns (id, code, hold) and puts the answers
// at the places of their items; what it does not return does not exist.
func holdRows(ctx context.Context, conn *pgx.Conn, order []int, ids [][16]byte, sql string, args ...any) ([]branch.HoldResult, error) {
	out := make([]branch.HoldResult, len(order))
	for i := range out {
		out[i].Code = branch.CodeNotFound
	}
	rows, err := query(ctx, conn, sql, args...)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	var code string
	var h holdRow
	at := newPlaces(order, ids)
	err = eachRow(rows, append([]any{&id, &code}, h.dest()...), func() error {
		hold, _ := h.hold() // none for a null cancel
		out[at.of(id)] = branch.HoldResult{Code: branch.Code(code), Hold: hold}
		return nil
	})
	return out, err
}

// places finds the item of an id; answers come in ascending order, so that the
// next one is nearly always right behind the last.
type places struct {
	order []int
	ids   [][16]byte
	next  int
}

func newPlaces(order []int, ids [][16]byte) *places { return &places{order: order, ids: ids} }

func (p *places) of(id [16]byte) int {
	for range p.ids {
		if p.next >= len(p.ids) {
			p.next = 0
		}
		if p.ids[p.next] == id {
			p.next++
			return p.order[p.next-1]
		}
		p.next++
	}
	panic("participants: the database answered for an id that was not asked")
}

func (l *ledger) count(op string, code branch.Code) {
	l.metrics.branches.WithLabelValues(op, string(code)).Inc()
}

func countHolds(l *ledger, op string, out []branch.HoldResult) []branch.HoldResult {
	for i := range out {
		l.count(op, out[i].Code)
	}
	return out
}

func holdFailed(c branch.Code, _ error) branch.HoldResult { return branch.HoldResult{Code: c} }
func codeFailed(c branch.Code, _ error) branch.CodeResult { return branch.CodeResult{Code: c} }

const checkSQL = `SELECT user_id, currency, status FROM accounts WHERE user_id = ANY ($1)`

func (l *ledger) checkBatch(items []branch.CheckItem) []branch.CheckResult {
	type account struct {
		user     [16]byte
		currency string
	}
	return runBatch(l, branch.OpCheck, items, func(ctx context.Context, conn *pgx.Conn, items []branch.CheckItem) ([]branch.CheckResult, error) {
		users := make([][16]byte, len(items))
		for i := range items {
			users[i] = items[i].User
		}
		rows, err := query(ctx, conn, checkSQL, users)
		if err != nil {
			return nil, err
		}
		found := make(map[account]int16, len(items))
		var a account
		var status int16
		if err = eachRow(rows, []any{&a.user, &a.currency, &status}, func() error { found[a] = status; return nil }); err != nil {
			return nil, err
		}
		out := make([]branch.CheckResult, len(items))
		for i := range items {
			status, known := found[account{items[i].User, items[i].Currency}]
			out[i] = branch.CheckResult{Code: branch.CodeOK, Status: holdfast.AccountStatus(status)}
			if !known {
				out[i].Code = branch.CodeUnknownRecipient
			} else if out[i].Status != holdfast.AccountOpen {
				out[i].Code = branch.CodeRecipientNotPayable
			}
		}
		return out, nil
	}, func(c branch.Code, _ error) branch.CheckResult {
		// A read that failed has done nothing.
		return branch.CheckResult{Code: branch.CodeShardUnavailable}
	})
}

func (l *ledger) getBatch(items []branch.IDItem) []branch.HoldResult {
	return runBatch(l, branch.OpGet, items, func(ctx context.Context, _ *pgx.Conn, items []branch.IDItem) ([]branch.HoldResult, error) {
		ids := make([]holdfast.HoldID, len(items))
		for i := range items {
			ids[i] = items[i].ID
		}
		ctx, cancel := context.WithTimeout(ctx, acquireTimeout)
		defer cancel()
		found, err := holdsByID(ctx, l.reads, ids)
		if err != nil {
			return nil, err
		}
		out := make([]branch.HoldResult, len(items))
		for i, id := range ids {
			h, ok := found[id]
			out[i] = branch.HoldResult{Code: branch.CodeOK, Hold: h}
			if !ok {
				out[i].Code = branch.CodeNotFound
			}
		}
		return out, nil
	}, func(branch.Code, error) branch.HoldResult {
		return branch.HoldResult{Code: branch.CodeShardUnavailable}
	})
}
