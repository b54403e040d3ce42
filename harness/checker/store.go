package checker

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
)

// All SQL of the checker. It reads plain rows and computes nothing: sums,
// comparisons and joins are done in Go, so that the checker shares no thought
// with the SQL of the product that it checks. A null number is read as 0 or −1,
// whichever no row can have.
const (
	clockSQL = `SELECT clock_timestamp(), (SELECT shard FROM shard_self), (SELECT id FROM watermark)`

	holdsSQL = `
SELECT id, sender, recipient, amount, currency, coalesce(reference, ''), unlock_at, created_at, claimed_at, next_attempt_at,
       decided_at, executed_at, cancelled_at, refunded_at, status, coalesce(verdict, 0), coalesce(payment_id, ''), coalesce(refusal_code, '')
FROM holds`

	entriesSQL = `
SELECT posted_at, ref, user_id, amount, coalesce(seq, 0), coalesce(balance_after, -1), movement, book, currency FROM entries`

	barrierSQL = `SELECT gid, branch, op, owner_bucket FROM barrier`

	accountsSQL = `SELECT user_id, currency, available, held, seq FROM accounts`

	keysSQL = `SELECT sender, key, hold_id, coalesce(refusal, '') FROM idempotency`

	cashSQL = `SELECT user_id, kind, key, ref, amount, currency, coalesce(refusal, '') FROM cash`

	attemptsSQL = `SELECT hold_id, next_at, n, last_error, unsure_at IS NOT NULL FROM attempts`

	lettersSQL = `SELECT hold_id, code, unrefunded, coalesce(resolution, ''), closed_at FROM dead_letters`

	releasesSQL = `SELECT hold_id FROM audit WHERE action = 'release' AND hold_id IS NOT NULL`

	// overdueSQL: matured and not ended, or refused and not refunded.
	overdueSQL = `
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(unlock_at)), 0)::float8,
       (SELECT count(*) FROM holds WHERE status <= 2 OR (status = 4 AND refunded_at IS NULL))
FROM holds
WHERE unlock_at <= clock_timestamp() AND (status <= 2 OR (status = 4 AND refunded_at IS NULL))`
)

// readShard reads everything of one shard under one snapshot.
func readShard(ctx context.Context, conn *pgx.Conn, n int) (*shard, error) {
	s := &shard{number: n, holds: map[holdfast.HoldID]*hold{}, barrier: map[holdfast.HoldID][]mark{}, accounts: map[account]balance{},
		keys: map[key]outcome{}, cash: map[cashKey]cash{}, attempts: map[holdfast.HoldID]attempt{},
		letters: map[holdfast.HoldID][]letter{}, released: map[holdfast.HoldID]bool{}}
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, clockSQL).Scan(&s.at, &s.self, (*[16]byte)(&s.watermark)); err != nil {
			return fmt.Errorf("read the clock: %w", err)
		}
		for _, read := range []func(context.Context, pgx.Tx) error{s.readHolds, s.readEntries, s.readAccounts, s.readKeys, s.readDrives} {
			if err := read(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read shard %d: %w", n, err)
	}
	s.index()
	return s, nil
}

// each runs a query and calls got after every row that was scanned into the places.
func each(ctx context.Context, tx pgx.Tx, what, sql string, places []any, got func()) error {
	rows, err := tx.Query(ctx, sql)
	if err == nil {
		_, err = pgx.ForEachRow(rows, places, func() error { got(); return nil })
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

func (s *shard) readHolds(ctx context.Context, tx pgx.Tx) error {
	var h hold
	var claimed, next, decided, executed, cancelled, refunded *time.Time
	places := []any{(*[16]byte)(&h.id), (*[16]byte)(&h.sender), (*[16]byte)(&h.recipient), &h.amount, &h.currency, &h.reference,
		&h.unlockAt, &h.createdAt, &claimed, &next, &decided, &executed, &cancelled, &refunded,
		(*int16)(&h.status), (*int16)(&h.verdict), &h.paymentID, &h.refusal}
	err := each(ctx, tx, "holds", holdsSQL, places, func() {
		one := h
		one.shard = s.number
		one.claimedAt, one.nextAttemptAt, one.decidedAt = zero(claimed), zero(next), zero(decided)
		one.executedAt, one.cancelledAt, one.refundedAt = zero(executed), zero(cancelled), zero(refunded)
		s.holds[one.id] = &one
	})
	if err != nil {
		return err
	}
	var m mark
	var id [16]byte
	return each(ctx, tx, "barrier", barrierSQL, []any{&id, &m.branch, &m.op, &m.bucket}, func() {
		s.barrier[id] = append(s.barrier[id], m)
	})
}

// zero reads "not yet" as the zero time.
func zero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func (s *shard) readEntries(ctx context.Context, tx pgx.Tx) error {
	var e entry
	var posted time.Time
	places := []any{&posted, (*[16]byte)(&e.ref), (*[16]byte)(&e.user), &e.amount, &e.seq, &e.after,
		(*int16)(&e.movement), (*int16)(&e.book), &e.currency}
	known := map[string]string{} // one string per currency and not per entry
	return each(ctx, tx, "entries", entriesSQL, places, func() {
		e.postedUS = posted.UnixMicro()
		if c, ok := known[e.currency]; ok {
			e.currency = c
		} else {
			known[e.currency] = e.currency
		}
		s.entries = append(s.entries, e)
	})
}

func (s *shard) readAccounts(ctx context.Context, tx pgx.Tx) error {
	var a account
	var b balance
	err := each(ctx, tx, "accounts", accountsSQL, []any{(*[16]byte)(&a.user), &a.currency, &b.available, &b.held, &b.seq}, func() {
		s.accounts[a] = b
	})
	if err != nil {
		return err
	}
	var k cashKey
	var c cash
	return each(ctx, tx, "deposits", cashSQL,
		[]any{(*[16]byte)(&k.user), (*int16)(&k.kind), &k.key, (*[16]byte)(&c.ref), &c.amount, &c.currency, &c.refusal},
		func() { s.cash[k] = c })
}

func (s *shard) readKeys(ctx context.Context, tx pgx.Tx) error {
	var k key
	var o outcome
	var id *[16]byte
	return each(ctx, tx, "idempotency keys", keysSQL, []any{(*[16]byte)(&k.sender), &k.key, &id, &o.refusal}, func() {
		o.hold = holdfast.HoldID{}
		if id != nil {
			o.hold = *id
		}
		s.keys[k] = o
	})
}

func (s *shard) readDrives(ctx context.Context, tx pgx.Tx) error {
	var id [16]byte
	var a attempt
	if err := each(ctx, tx, "attempts", attemptsSQL, []any{&id, &a.nextAt, &a.n, &a.lastError, &a.unsure}, func() { s.attempts[id] = a }); err != nil {
		return err
	}
	var l letter
	var closed *time.Time
	err := each(ctx, tx, "dead letters", lettersSQL, []any{&id, &l.code, &l.unrefunded, &l.resolution, &closed}, func() {
		l.closedAt = zero(closed)
		s.letters[id] = append(s.letters[id], l)
	})
	if err != nil {
		return err
	}
	return each(ctx, tx, "audit", releasesSQL, []any{&id}, func() { s.released[id] = true })
}
