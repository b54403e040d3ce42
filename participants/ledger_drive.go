package participants

import (
	"context"
	"fmt"
	"maps"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

var claimSQL = `SELECT f.id, f.code, f.in_ms, f.attempts, f.active_ms, f.since_unsure_ms, f.since_claim_ms, ` + foldColumns + `
	FROM holdfast_claim($1, $2, $3, $4, $5) f`

// claimFreshSQL is the way of nearly all claims: PENDING and due, in one plain
// statement that needs no planning. unlock_at is compared before the row lock is
// waited for, which can only make a claim too late, never early; whatever
// changed the row meanwhile makes the conditions be checked again.
const claimFreshSQL = `UPDATE holds_%[1]s SET status = 2, claimed_at = clock_timestamp(),
		next_attempt_at = clock_timestamp() + $3 * interval '1 millisecond'
	WHERE id = ANY ($2) AND status = 1 AND unlock_at <= clock_timestamp() AND (SELECT epoch FROM shard_self) = $1
	RETURNING %[2]s`

// claimBatch takes due holds. The whole batch gets the longest lease asked for.
func (l *ledger) claimBatch(items []branch.ClaimItem) []branch.ClaimResult {
	lease := int64(0)
	for i := range items {
		lease = max(lease, items[i].LeaseMS)
	}
	out := runBatch(l, branch.OpClaim, items, func(ctx context.Context, conn *pgx.Conn, items []branch.ClaimItem) ([]branch.ClaimResult, error) {
		fresh := make([]branch.ClaimItem, 0, len(items))
		for i := range items {
			if items[i].Refusal == "" {
				fresh = append(fresh, items[i])
			}
		}
		_, days, ids := sorted(fresh, claimID)
		claimed, broken := fast(ctx, l, conn, claimFreshSQL, days, ids, func(int, int) []any { return []any{lease} },
			func(h holdfast.Hold, lease int64) branch.ClaimResult {
				return branch.ClaimResult{Code: branch.CodeClaimed, Hold: h, SinceUnsureMS: -1, Lease: lease}
			})
		return theRest(l, items, claimID, claimed, broken, branch.ClaimResult{Code: branch.CodeOutcomeUnknown}, func(rest []branch.ClaimItem) ([]branch.ClaimResult, error) {
			return l.claim(ctx, conn, rest, lease)
		})
	}, func(c branch.Code, _ error) branch.ClaimResult { return branch.ClaimResult{Code: c} })
	for i := range out {
		l.count(branch.OpClaim, out[i].Code)
	}
	return out
}

func claimID(i *branch.ClaimItem) holdfast.HoldID { return i.ID }

// fast runs a compare-and-set over ids in ascending order, one prepared
// statement per day, and returns the answers for the holds that it changed. $1 is the epoch, $2
// the ids, then what args returns for those ids. What it did not change is left
// to the step's function, which says why; they are transactions of their own,
// because each item stands for itself.
func fast[O any](ctx context.Context, l *ledger, conn *pgx.Conn, sql string, days []string, ids [][16]byte,
	args func(from, to int) []any, ok func(h holdfast.Hold, lease int64) O) (map[holdfast.HoldID]O, error) {
	done := make(map[holdfast.HoldID]O, len(ids))
	for from := 0; from < len(ids); {
		to := from + 1
		for to < len(ids) && days[to] == days[from] {
			to++
		}
		rows, err := query(ctx, conn, fmt.Sprintf(sql, days[from], holdColumns), append([]any{l.epoch, ids[from:to]}, args(from, to)...)...)
		told := make(map[holdfast.HoldID]O, to-from)
		if err == nil {
			var h holdRow
			err = eachRow(rows, h.dest(), func() error {
				hold, _ := h.hold()
				told[hold.ID] = ok(hold, h.lease())
				return nil
			})
		}
		switch {
		case err == nil:
			// The rows come before the commit: only its end without an error makes
			// them true.
			maps.Copy(done, told)
		case !isDayWithoutHolds(err):
			return done, err
		}
		from = to
	}
	return done, nil
}

// theRest completes the answers of a batch: what fast has done, and for the
// others what the step's function says. When fast, or the function, broke off
// after something was done, the whole batch is not repeated: what is done is
// done, and of the rest nothing is known.
func theRest[I, O any](l *ledger, items []I, id func(*I) holdfast.HoldID, done map[holdfast.HoldID]O, broken error,
	unknown O, slow func([]I) ([]O, error)) ([]O, error) {
	if broken != nil && len(done) == 0 {
		return nil, broken
	}
	out := make([]O, len(items))
	var rest []I
	var at []int
	for i := range items {
		if o, changed := done[id(&items[i])]; changed {
			out[i] = o
			continue
		}
		rest, at = append(rest, items[i]), append(at, i)
	}
	if len(rest) == 0 {
		return out, nil
	}
	var said []O
	err := broken
	if err == nil {
		said, err = slow(rest)
	}
	if err != nil && len(done) == 0 {
		return nil, err
	}
	if err != nil {
		l.log.Warn("the rest of a batch has no answer", "items", len(rest), "error", err)
		said = fill(rest, unknown)
	}
	for j := range said {
		out[at[j]] = said[j]
	}
	return out, nil
}

func (l *ledger) claim(ctx context.Context, conn *pgx.Conn, items []branch.ClaimItem, lease int64) ([]branch.ClaimResult, error) {
	order, days, ids := sorted(items, claimID)
	out := make([]branch.ClaimResult, len(items))
	for i := range out {
		out[i].Code = branch.CodeNotFound
	}
	rows, err := query(ctx, conn, claimSQL, l.epoch, days, ids,
		byOrder(items, order, func(i *branch.ClaimItem) string { return i.Refusal }), lease)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	var code string
	var r branch.ClaimResult
	var h holdRow
	at := newPlaces(order, ids)
	err = eachRow(rows, append([]any{&id, &code, &r.InMS, &r.Attempts, &r.ActiveMS, &r.SinceUnsureMS, &r.SinceClaimMS},
		h.dest()...), func() error {
		r.Hold, _ = h.hold()
		r.Code, r.Lease = branch.Code(code), 0
		switch r.Code {
		case branch.CodeClaimed, branch.CodeRedrive, branch.CodeToCredit:
			r.Lease = h.lease()
		}
		out[at.of(id)] = r
		return nil
	})
	return out, err
}

// settleFreshSQL gives holds the verdict paid and moves their coins, in one
// statement: the compare-and-set on the holds, which is the row lock too, and
// what follows from it. $4 names the recipient where it lives on this shard: it
// must be the stored one, and the hold is at its end at once.
const settleFreshSQL = `WITH settled AS (
		UPDATE holds_%[1]s h SET verdict = 1, decided_at = clock_timestamp(), payment_id = t.pay,
			status = CASE WHEN t.near IS NULL THEN 2 ELSE 3 END,
			executed_at = CASE WHEN t.near IS NOT NULL THEN clock_timestamp() END
		FROM unnest($2::uuid[], $3::text[], $4::uuid[], $5::smallint[], $6::smallint[]) t(i, pay, near, bucket, near_bucket)
		WHERE h.id = t.i AND h.status = 2 AND h.verdict IS NULL AND (t.near IS NULL OR t.near = h.recipient)
			AND (SELECT epoch FROM shard_self) = $1
		RETURNING %[2]s, near IS NOT NULL AS near, bucket, near_bucket
	), moved AS MATERIALIZED (
		SELECT holdfast_settled(array_agg(id), array_agg(sender), array_agg(recipient), array_agg(currency), array_agg(amount),
			array_agg(near), array_agg(bucket), array_agg(near_bucket)) FROM settled
	)
	SELECT %[2]s FROM settled, moved`

var notSettledSQL = `SELECT f.id, f.code, ` + foldColumns + ` FROM holdfast_not_settled($1, $2, $3, $4, $5) f`

func settleID(i *branch.SettleItem) holdfast.HoldID { return i.ID }

// settleColumns are the arrays of settleFreshSQL, in the order of the ids.
type settleColumns struct {
	payment            []string
	near               []pgtype.UUID
	bucket, nearBucket []int16
}

func (l *ledger) settleColumns(items []branch.SettleItem, order []int) settleColumns {
	return settleColumns{
		payment: byOrder(items, order, func(i *branch.SettleItem) string { return i.PaymentID }),
		near: byOrder(items, order, func(i *branch.SettleItem) pgtype.UUID {
			local := !i.Recipient.IsZero() && l.shardMap.OfUser(i.Recipient) == l.shard
			return pgtype.UUID{Bytes: i.Recipient, Valid: local}
		}),
		bucket:     byOrder(items, order, func(i *branch.SettleItem) int16 { return int16(i.ID.Bucket()) }),
		nearBucket: byOrder(items, order, func(i *branch.SettleItem) int16 { return int16(i.Recipient.Bucket()) }),
	}
}

// settleBatch commits verdicts paid: branch 01, op confirm; for recipients of
// this shard also branch 02 and the end.
func (l *ledger) settleBatch(items []branch.SettleItem) []branch.HoldResult {
	return countHolds(l, branch.OpSettle, runBatch(l, branch.OpSettle, items, func(ctx context.Context, conn *pgx.Conn, items []branch.SettleItem) ([]branch.HoldResult, error) {
		order, days, ids := sorted(items, settleID)
		c := l.settleColumns(items, order)
		settled, broken := fast(ctx, l, conn, settleFreshSQL, days, ids, func(from, to int) []any {
			return []any{c.payment[from:to], c.near[from:to], c.bucket[from:to], c.nearBucket[from:to]}
		}, holdOK)
		return theRest(l, items, settleID, settled, broken, branch.HoldResult{Code: branch.CodeOutcomeUnknown},
			func(rest []branch.SettleItem) ([]branch.HoldResult, error) {
				order, days, ids := sorted(rest, settleID)
				c := l.settleColumns(rest, order)
				return holdRows(ctx, conn, order, ids, notSettledSQL, l.epoch, days, ids, c.payment, c.near)
			})
	}, holdFailed))
}

func holdOK(h holdfast.Hold, _ int64) branch.HoldResult {
	return branch.HoldResult{Code: branch.CodeOK, Hold: h}
}

var refuseSQL = `SELECT f.id, f.code, ` + foldColumns + ` FROM holdfast_refuse($1, $2, $3, $4, $5, $6, $7) f`

// refuseBatch commits verdicts refused.
func (l *ledger) refuseBatch(items []branch.RefuseItem) []branch.HoldResult {
	return countHolds(l, branch.OpRefuse, runBatch(l, branch.OpRefuse, items, func(ctx context.Context, conn *pgx.Conn, items []branch.RefuseItem) ([]branch.HoldResult, error) {
		order, days, ids := sorted(items, func(i *branch.RefuseItem) holdfast.HoldID { return i.ID })
		return holdRows(ctx, conn, order, ids, refuseSQL, l.epoch, days, ids,
			byOrder(items, order, func(i *branch.RefuseItem) string { return i.Reason }),
			byOrder(items, order, func(i *branch.RefuseItem) string { return i.Detail }),
			byOrder(items, order, func(i *branch.RefuseItem) bool { return i.Watch }),
			byOrder(items, order, func(i *branch.RefuseItem) int64 { return i.Lease }))
	}, holdFailed))
}

var executedSQL = `SELECT f.id, f.code, ` + foldColumns + ` FROM holdfast_executed($1, $2, $3) f`

// executedFreshSQL ends holds that were paid, with their rows in attempts.
const executedFreshSQL = `WITH ended AS (
		UPDATE holds_%[1]s SET status = 3, executed_at = clock_timestamp()
		WHERE id = ANY ($2) AND status = 2 AND verdict = 1 AND (SELECT epoch FROM shard_self) = $1
		RETURNING %[2]s
	), gone AS MATERIALIZED (SELECT holdfast_drop_attempts(array_agg(id)) FROM ended)
	SELECT %[2]s FROM ended, gone`

func itemID(i *branch.IDItem) holdfast.HoldID { return i.ID }

// executedBatch ends holds whose recipient has been credited.
func (l *ledger) executedBatch(items []branch.IDItem) []branch.HoldResult {
	return countHolds(l, branch.OpExecuted, runBatch(l, branch.OpExecuted, items, func(ctx context.Context, conn *pgx.Conn, items []branch.IDItem) ([]branch.HoldResult, error) {
		_, days, ids := sorted(items, itemID)
		ended, broken := fast(ctx, l, conn, executedFreshSQL, days, ids, func(int, int) []any { return nil }, holdOK)
		return theRest(l, items, itemID, ended, broken, branch.HoldResult{Code: branch.CodeOutcomeUnknown},
			func(rest []branch.IDItem) ([]branch.HoldResult, error) {
				order, days, ids := sorted(rest, itemID)
				return holdRows(ctx, conn, order, ids, executedSQL, l.epoch, days, ids)
			})
	}, holdFailed))
}

var refundSQL = `SELECT f.id, f.code, ` + foldColumns + ` FROM holdfast_refund($1, $2, $3, $4) f`

// refundBatch gives the coins of FAILED holds back: branch 01, op cancel.
func (l *ledger) refundBatch(items []branch.IDItem) []branch.HoldResult {
	return countHolds(l, branch.OpRefund, runBatch(l, branch.OpRefund, items, func(ctx context.Context, conn *pgx.Conn, items []branch.IDItem) ([]branch.HoldResult, error) {
		order, days, ids := sorted(items, itemID)
		return holdRows(ctx, conn, order, ids, refundSQL, l.epoch, days, ids,
			byOrder(items, order, func(i *branch.IDItem) int16 { return int16(i.ID.Bucket()) }))
	}, holdFailed))
}

var cancelSQL = `SELECT f.id, f.code, ` + foldColumns + ` FROM holdfast_cancel($1, $2, $3, $4, $5, $6, $7, $8) f`

// cancelBatch gives the coins of PENDING holds back: branch 01, op cancel.
func (l *ledger) cancelBatch(items []branch.CancelItem) []branch.HoldResult {
	out := runBatch(l, branch.OpCancel, items, func(ctx context.Context, conn *pgx.Conn, items []branch.CancelItem) ([]branch.HoldResult, error) {
		order, days, ids := sorted(items, func(i *branch.CancelItem) holdfast.HoldID { return i.ID })
		return holdRows(ctx, conn, order, ids, cancelSQL, l.epoch, days, ids,
			byOrder(items, order, func(i *branch.CancelItem) pgtype.UUID { return pgtype.UUID{Bytes: i.Actor, Valid: !i.Actor.IsZero()} }),
			byOrder(items, order, func(i *branch.CancelItem) string { return i.Operator }),
			byOrder(items, order, func(i *branch.CancelItem) string { return i.Reason }),
			byOrder(items, order, func(i *branch.CancelItem) bool { return i.NullOK }),
			byOrder(items, order, func(i *branch.CancelItem) int16 { return int16(i.ID.Bucket()) }))
	}, holdFailed)
	for i := range out {
		switch {
		case out[i].Code == branch.CodeNullCancel:
			l.metrics.nullCancel.Inc()
		case out[i].Code == branch.CodeNotFound && items[i].NullOK:
			out[i].Code = branch.CodeAlready // its barrier rows stand; there is no hold
		case out[i].Code == branch.CodeNotFound || out[i].Code == branch.CodeForbidden:
			out[i].Hold = holdfast.Hold{} // a stranger learns nothing
		}
	}
	return countHolds(l, branch.OpCancel, out)
}

const creditSQL = `SELECT id, code FROM holdfast_credit($1, $2, $3, $4, $5, $6)`

// creditBatch pays recipients of this shard: branch 02, op confirm.
func (l *ledger) creditBatch(items []branch.CreditItem) []branch.CodeResult {
	return l.codes(branch.OpCredit, runBatch(l, branch.OpCredit, items, func(ctx context.Context, conn *pgx.Conn, items []branch.CreditItem) ([]branch.CodeResult, error) {
		order, _, ids := sorted(items, func(i *branch.CreditItem) holdfast.HoldID { return i.ID })
		return codeRows(ctx, conn, order, ids, creditSQL, l.epoch, ids,
			byOrder(items, order, func(i *branch.CreditItem) [16]byte { return i.Recipient }),
			byOrder(items, order, func(i *branch.CreditItem) string { return i.Currency }),
			byOrder(items, order, func(i *branch.CreditItem) int64 { return i.Amount }),
			byOrder(items, order, func(i *branch.CreditItem) int16 { return int16(i.Recipient.Bucket()) }))
	}, codeFailed))
}

const deferSQL = `SELECT id, code FROM holdfast_defer($1, $2, $3, $4, $5, $6, $7, $8, $9)`

// deferBatch ends drives that have no verdict.
func (l *ledger) deferBatch(items []branch.DeferItem) []branch.CodeResult {
	return l.codes(branch.OpDefer, runBatch(l, branch.OpDefer, items, func(ctx context.Context, conn *pgx.Conn, items []branch.DeferItem) ([]branch.CodeResult, error) {
		order, days, ids := sorted(items, func(i *branch.DeferItem) holdfast.HoldID { return i.ID })
		return codeRows(ctx, conn, order, ids, deferSQL, l.epoch, days, ids,
			byOrder(items, order, func(i *branch.DeferItem) int64 { return i.DelayMS }),
			byOrder(items, order, func(i *branch.DeferItem) int64 { return i.ActiveMS }),
			byOrder(items, order, func(i *branch.DeferItem) string { return i.Error }),
			byOrder(items, order, func(i *branch.DeferItem) string { return i.Dead }),
			byOrder(items, order, func(i *branch.DeferItem) bool { return i.Unsure }),
			byOrder(items, order, func(i *branch.DeferItem) int64 { return i.Lease }))
	}, codeFailed))
}

func (l *ledger) codes(op string, out []branch.CodeResult) []branch.CodeResult {
	for i := range out {
		l.count(op, out[i].Code)
	}
	return out
}

func codeRows(ctx context.Context, conn *pgx.Conn, order []int, ids [][16]byte, sql string, args ...any) ([]branch.CodeResult, error) {
	out := make([]branch.CodeResult, len(order))
	for i := range out {
		out[i].Code = branch.CodeNotFound
	}
	rows, err := query(ctx, conn, sql, args...)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	var code string
	at := newPlaces(order, ids)
	err = eachRow(rows, []any{&id, &code}, func() error {
		out[at.of(id)].Code = branch.Code(code)
		return nil
	})
	return out, err
}
