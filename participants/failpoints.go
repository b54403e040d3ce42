package participants

import (
	"context"

	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
	"github.com/jackc/pgx/v5"
)

// The crash points of a participant, in the order of a hold's life. What is said
// of each is what is durable there and who goes on: the crash table of the
// design. All but the first come after the commit of a batch in which at least
// one item was done, and before its answer leaves.
const (
	// Nothing yet: the idempotency row, the barrier row, the hold and its
	// entries are written and will be rolled back. The client retries with its
	// key.
	pointTryUncommitted failpoint.Point = "try_uncommitted"
	// The hold is PENDING and its key is known: the client's retry gets the same
	// hold; the sweeper finds it.
	pointTryCommitted failpoint.Point = "try_committed"
	// The hold is EXECUTING with next_attempt_at, nothing was sent: the next
	// driver looks up, then posts.
	pointClaimCommitted failpoint.Point = "claim_committed"
	// The verdict paid stands and the coins are in transit (or, where the
	// recipient lives on the same shard, credited): the credit is repeated until
	// its barrier row exists.
	pointPaidCommitted failpoint.Point = "verdict_paid_committed"
	// The recipient has the coins and barrier row 02, the hold is still
	// EXECUTING: the credit repeated is a no-op, EXECUTED is set.
	pointCredited failpoint.Point = "recipient_credited"
	// The hold is EXECUTED: trigger and attempt row are dropped.
	pointExecutedCommitted failpoint.Point = "executed_committed"
	// The hold is FAILED and refunded_at is null: the refund worker goes on.
	pointRefusedCommitted failpoint.Point = "verdict_refused_committed"
	// The coins are back with the sender: the refund repeated is a no-op.
	pointRefundCommitted failpoint.Point = "refund_committed"
	// The hold is CANCELLED: DELETE again is answered 200.
	pointCancelCommitted failpoint.Point = "cancel_committed"
)

// answers is the point between the commit of a step and its answer.
var answers = map[string]failpoint.Point{
	branch.OpTry: pointTryCommitted, branch.OpClaim: pointClaimCommitted, branch.OpSettle: pointPaidCommitted,
	branch.OpCredit: pointCredited, branch.OpExecuted: pointExecutedCommitted, branch.OpRefuse: pointRefusedCommitted,
	branch.OpRefund: pointRefundCommitted, branch.OpCancel: pointCancelCommitted,
}

// FailPoints lists the crash points of this package.
func FailPoints() []failpoint.Point {
	return []failpoint.Point{pointTryUncommitted, pointTryCommitted, pointClaimCommitted, pointPaidCommitted, pointCredited,
		pointExecutedCommitted, pointRefusedCommitted, pointRefundCommitted, pointCancelCommitted}
}

// committed passes the point after the commit of a batch. Its error is a
// connection that broke in COMMIT: the outcome of the batch is unknown.
func committed[O any](op string, out []O) error {
	if !failpoint.Enabled || !didSomething(out) {
		return nil
	}
	return failpoint.Hit(answers[op])
}

// didSomething tells a batch that changed a row from one that only looked.
func didSomething[O any](out []O) bool {
	for i := range out {
		var code branch.Code
		switch r := any(&out[i]).(type) {
		case *branch.TryResult:
			code = r.Code
		case *branch.ClaimResult:
			code = r.Code
		case *branch.HoldResult:
			code = r.Code
		case *branch.CodeResult:
			code = r.Code
		}
		if code == branch.CodeOK || code == branch.CodeClaimed || code == branch.CodeRedrive {
			return true
		}
	}
	return false
}

// uncommitted makes room for a point between a batch's statement and its commit,
// which are one without it: only where the point is armed, the statement runs in
// a transaction of several round trips. Its error is a connection that broke
// before the commit, so that the server rolls back and the caller knows nothing.
func uncommitted[I, O any](p failpoint.Point, do func(context.Context, *pgx.Conn, []I) ([]O, error)) func(context.Context, *pgx.Conn, []I) ([]O, error) {
	if !failpoint.Enabled || !failpoint.Armed(p) {
		return do
	}
	return func(ctx context.Context, conn *pgx.Conn, items []I) (out []O, err error) {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return nil, err
		}
		if out, err = do(ctx, conn, items); err != nil {
			_ = tx.Rollback(ctx) // the connection is given up if this fails
			return nil, err
		}
		if didSomething(out) {
			err = failpoint.Hit(p)
		}
		if err != nil {
			_ = conn.Close(ctx)
			return nil, err
		}
		return out, tx.Commit(ctx)
	}
}
