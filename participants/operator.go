package participants

import (
	"context"
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
	// next_attempt_at stands for a running attempt, or for a pause after one. It
	// is a pause when the attempts row says so: a first drive has none, a later
	// one has marked it. The clock is read after the lock.
	drivenSQL = `
SELECT coalesce(h.next_attempt_at > clock_timestamp(), false)
   AND coalesce((SELECT t.driving FROM attempts t WHERE t.hold_id = h.id), true)
FROM holds_%s h WHERE h.id = $1`
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
		if busy, err := driven(ctx, tx, r.ID); err != nil || busy {
			return branch.CodeBusy, err
		}
		if _, err := tx.Exec(ctx, `UPDATE holds_`+shards.DayOf(r.ID)+` SET next_attempt_at = least(next_attempt_at, clock_timestamp())
			WHERE id = $1`, [16]byte(r.ID)); err != nil {
			return "", err
		}
		if _, err := tx.Exec(ctx, hurrySQL, [16]byte(r.ID)); err != nil {
			return "", err
		}
		_, err := tx.Exec(ctx, retriedSQL, [16]byte(r.ID), r.Reason)
		return branch.CodeOK, err
	})
}

// driven reports whether an attempt is running, which may have a payment open.
func driven(ctx context.Context, tx pgx.Tx, id holdfast.HoldID) (is bool, err error) {
	err = tx.QueryRow(ctx, fmt.Sprintf(drivenSQL, shards.DayOf(id)), [16]byte(id)).Scan(&is)
	return is, err
}

// closeSQL leaves a late_success open while something else is: who closes a
// refusal has not seen the payment that turned up since.
const closeSQL = `
UPDATE dead_letters SET closed_at = $2, closed_by = $3, note = $4, resolution = coalesce(resolution, 'closed')
WHERE hold_id = $1 AND closed_at IS NULL AND ($5 OR code NOT IN ('outcome_unknown', 'impossible_state'))
  AND (code <> 'late_success' OR $6 AND NOT EXISTS (
       SELECT FROM dead_letters o WHERE o.hold_id = $1 AND o.closed_at IS NULL AND o.code <> 'late_success'))`

const unknownOpenSQL = `
SELECT EXISTS (SELECT FROM dead_letters WHERE hold_id = $1 AND closed_at IS NULL AND code IN ('outcome_unknown', 'impossible_state'))`

// closeDeadLetters closes what is open about a hold. It moves no money: a
// refund that is still to do is still done. An outcome_unknown or an
// impossible_state without a verdict is not closed, nor is a late_success before
// it is the only one; by a refund (the outcome says so) never.
func closeDeadLetters(ctx context.Context, db *pgxpool.Pool, epoch int64, r branch.OperatorRequest) (branch.CodeResult, error) {
	return operate(ctx, db, epoch, "close", r, func(ctx context.Context, tx pgx.Tx, now time.Time, h holdfast.Hold) (branch.Code, error) {
		undecided := h.Status == holdfast.Executing && h.Verdict == holdfast.NoVerdict
		tag, err := tx.Exec(ctx, closeSQL, [16]byte(r.ID), now, r.Actor, r.Reason, !undecided, r.Outcome != branch.ByRefund)
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

// These keep drivers away between a person's word and the verdict.
const (
	holdOffSQL = `
UPDATE holds_%s SET next_attempt_at = greatest(next_attempt_at, clock_timestamp() + interval '1 minute')
WHERE id = $1 RETURNING (extract(epoch FROM next_attempt_at) * 1000000)::bigint`
	// A driver that did not come back is no driver any more: the pause is ours.
	holdOffAttemptsSQL = `
UPDATE attempts SET next_at = greatest(next_at, clock_timestamp() + interval '1 minute'), driving = false,
    unsure_at = CASE WHEN driving THEN clock_timestamp() ELSE unsure_at END
WHERE hold_id = $1`
)

const (
	resolvable    = ` WHERE hold_id = $1 AND code IN ('outcome_unknown', 'impossible_state') AND (closed_at IS NULL OR resolution = $2)`
	resolvableSQL = `SELECT EXISTS (SELECT FROM dead_letters` + resolvable + `)`
	resolveSQL    = `UPDATE dead_letters SET resolution = $2, closed_at = $3, closed_by = $4, note = $5` + resolvable
)

// resolve records what a person has found out about a hold that was given up, or
// put aside. The verdict itself follows by Settle or Refuse; when the caller dies
// before it, the same resolve can be repeated, another outcome cannot. While an
// attempt runs nobody can know that nothing was paid: not_paid is then busy, and
// once it is said no attempt begins before the verdict has had a minute to come,
// and a verdict that comes later than the next attempt is refused.
func resolve(ctx context.Context, db *pgxpool.Pool, epoch int64, r branch.OperatorRequest) (branch.CodeResult, error) {
	if r.Outcome != "paid" && r.Outcome != "not_paid" {
		return branch.CodeResult{}, fmt.Errorf("%w: outcome %q is neither paid nor not_paid", holdfast.ErrInvalid, r.Outcome)
	}
	var lease int64
	answer, err := operate(ctx, db, epoch, "resolve_"+r.Outcome, r, func(ctx context.Context, tx pgx.Tx, now time.Time, h holdfast.Hold) (branch.Code, error) {
		if h.Status != holdfast.Executing || h.Verdict != holdfast.NoVerdict {
			return branch.CodeNotResolvable, nil
		}
		var is bool
		if err := tx.QueryRow(ctx, resolvableSQL, [16]byte(r.ID), r.Outcome).Scan(&is); err != nil || !is {
			return branch.CodeNotResolvable, err
		}
		if r.Outcome == "not_paid" {
			if busy, err := driven(ctx, tx, r.ID); err != nil || busy {
				return branch.CodeBusy, err
			}
			if err := tx.QueryRow(ctx, fmt.Sprintf(holdOffSQL, shards.DayOf(r.ID)), [16]byte(r.ID)).Scan(&lease); err != nil {
				return "", err
			}
			if _, err := tx.Exec(ctx, holdOffAttemptsSQL, [16]byte(r.ID)); err != nil {
				return "", err
			}
		}
		_, err := tx.Exec(ctx, resolveSQL, [16]byte(r.ID), r.Outcome, now, r.Actor, r.Reason)
		return branch.CodeOK, err
	})
	if answer.Code == branch.CodeOK {
		answer.Lease = lease
	}
	return answer, err
}
