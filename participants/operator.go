package participants

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
)

// operate runs one act of a person on one hold under the hold's row lock. The
// audit row is written in the same transaction, and only when the act was done.
func operate(ctx context.Context, db *pgxpool.Pool, epoch int64, action string, r branch.OperatorRequest,
	do func(context.Context, pgx.Tx, time.Time, holdfast.Hold) (branch.Code, error)) (branch.CodeResult, error) {
	answer := branch.CodeResult{Code: branch.CodeNotFound}
	err := write(ctx, db, epoch, func(ctx context.Context, tx pgx.Tx, now time.Time) error {
		h, ok, err := lockHold(ctx, tx, r.ID)
		if err != nil || !ok {
			return err
		}
		if answer.Code, err = do(ctx, tx, now, h); err != nil || answer.Code != branch.CodeOK {
			return err
		}
		_, err = tx.Exec(ctx, auditSQL, now, [16]byte(r.ID), nil, r.Actor, action, r.Reason)
		return err
	})
	if err != nil {
		return branch.CodeResult{}, fmt.Errorf("%s of hold %s: %w", action, r.ID, err)
	}
	return answer, nil
}

const (
	attemptSQL = `SELECT driving FROM attempts WHERE hold_id = $1`
	hurrySQL   = `UPDATE attempts SET next_at = clock_timestamp() WHERE hold_id = $1`
	retriedSQL = `
UPDATE dead_letters SET resolution = 'retried', note = $2
WHERE hold_id = $1 AND code = 'outcome_unknown' AND closed_at IS NULL`
)

// retry makes the next attempt of an EXECUTING hold due now. It cuts a pause
// short, never an attempt: while a drive may still be sending, a second one
// must not begin, and the answer is busy. The dead letter stays open until the
// outcome is known.
func retry(ctx context.Context, db *pgxpool.Pool, epoch int64, r branch.OperatorRequest) (branch.CodeResult, error) {
	return operate(ctx, db, epoch, "retry", r, func(ctx context.Context, tx pgx.Tx, _ time.Time, h holdfast.Hold) (branch.Code, error) {
		if h.Status != holdfast.Executing {
			return branch.CodeNotRetryable, nil
		}
		// next_attempt_at stands for a running attempt, or for a pause after
		// one. It is a pause when the attempts row says so: a first drive has
		// none, a later one has marked it.
		var running *bool
		err := tx.QueryRow(ctx, attemptSQL, [16]byte(r.ID)).Scan(&running)
		pausing := err == nil && !value(running)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return "", err
		}
		// Read after the lock; of a drive that never came back it is in the past.
		condition := ` AND next_attempt_at <= clock_timestamp()`
		if pausing {
			condition = ``
		}
		tag, err := tx.Exec(ctx, `UPDATE holds_`+shards.DayOf(r.ID)+` SET next_attempt_at = least(next_attempt_at, clock_timestamp())
			WHERE id = $1`+condition, [16]byte(r.ID))
		if err != nil {
			return "", err
		}
		if tag.RowsAffected() == 0 {
			return branch.CodeBusy, nil
		}
		if _, err := tx.Exec(ctx, hurrySQL, [16]byte(r.ID)); err != nil {
			return "", err
		}
		_, err = tx.Exec(ctx, retriedSQL, [16]byte(r.ID), r.Reason)
		return branch.CodeOK, err
	})
}

const closeSQL = `
UPDATE dead_letters SET closed_at = $2, closed_by = $3, note = $4, resolution = coalesce(resolution, 'closed')
WHERE hold_id = $1 AND closed_at IS NULL AND ($5 OR code <> 'outcome_unknown')`

const unknownOpenSQL = `
SELECT EXISTS (SELECT FROM dead_letters WHERE hold_id = $1 AND closed_at IS NULL AND code = 'outcome_unknown')`

// closeDeadLetters closes what is open about a hold. It moves no money: a
// refund that is still to do is still done. An outcome_unknown without a verdict
// is not closed.
func closeDeadLetters(ctx context.Context, db *pgxpool.Pool, epoch int64, r branch.OperatorRequest) (branch.CodeResult, error) {
	return operate(ctx, db, epoch, "close", r, func(ctx context.Context, tx pgx.Tx, now time.Time, h holdfast.Hold) (branch.Code, error) {
		undecided := h.Status == holdfast.Executing && h.Verdict == holdfast.NoVerdict
		tag, err := tx.Exec(ctx, closeSQL, [16]byte(r.ID), now, r.Actor, r.Reason, !undecided)
		if err != nil || tag.RowsAffected() > 0 {
			return branch.CodeOK, err
		}
		var open bool
		if err := tx.QueryRow(ctx, unknownOpenSQL, [16]byte(r.ID)).Scan(&open); err != nil {
			return "", err
		}
		if open {
			return branch.CodeStillExecuting, nil
		}
		return branch.CodeNoDeadLetter, nil
	})
}

const resolveSQL = `
UPDATE dead_letters SET closed_at = $2, closed_by = $3, note = $4, resolution = $5
WHERE hold_id = $1 AND code = 'outcome_unknown' AND (closed_at IS NULL OR resolution = $5)`

// resolve records what a person has found out about a hold that was given up.
// The verdict itself follows by Settle or Refuse; when the caller dies before
// it, the same resolve can be repeated, another outcome cannot.
func resolve(ctx context.Context, db *pgxpool.Pool, epoch int64, r branch.OperatorRequest) (branch.CodeResult, error) {
	if r.Outcome != "paid" && r.Outcome != "not_paid" {
		return branch.CodeResult{}, fmt.Errorf("%w: outcome %q is neither paid nor not_paid", holdfast.ErrInvalid, r.Outcome)
	}
	return operate(ctx, db, epoch, "resolve_"+r.Outcome, r, func(ctx context.Context, tx pgx.Tx, now time.Time, h holdfast.Hold) (branch.Code, error) {
		if h.Status != holdfast.Executing || h.Verdict != holdfast.NoVerdict {
			return branch.CodeNotResolvable, nil
		}
		tag, err := tx.Exec(ctx, resolveSQL, [16]byte(r.ID), now, r.Actor, r.Reason, r.Outcome)
		if err == nil && tag.RowsAffected() == 0 {
			return branch.CodeNotResolvable, nil
		}
		return branch.CodeOK, err
	})
}
