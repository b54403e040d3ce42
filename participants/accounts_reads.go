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

// writeTimeout bounds the small transactions of accounts and operators, from
// begin to the last statement before the commit, and a rollback.
const writeTimeout = 10 * time.Second

const beginSQL = `SELECT holdfast_begin($1)`

// write runs one transaction of an account or an operator on a connection of
// the money pool, whose commits are as durable as those of money. It begins as
// every money transaction does, so a process with a stale map is refused, and it
// does not end early because the caller hung up. The COMMIT has no deadline: one
// that is cut off may be durable all the same.
func write(ctx context.Context, money *pgxpool.Pool, epoch int64, do func(context.Context, pgx.Tx, time.Time) error) error {
	ctx = context.WithoutCancel(ctx)
	acquiring, cancel := context.WithTimeout(ctx, acquireTimeout)
	conn, err := money.Acquire(acquiring)
	cancel()
	if err != nil {
		return fmt.Errorf("%w: %v", holdfast.ErrShardUnavailable, err)
	}
	defer conn.Release()
	tx, err := prepare(ctx, conn, epoch, do)
	if err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		if !errors.Is(err, pgx.ErrTxCommitRollback) && fateOf(err) == fateUnknown {
			return fmt.Errorf("%w: commit: %w", holdfast.ErrOutcomeUnknown, err)
		}
		return err
	}
	if shards.TakeCommitWarning(conn.Conn()) {
		return fmt.Errorf("%w: the commit's wait for its standby was cancelled", holdfast.ErrOutcomeUnknown)
	}
	return nil
}

// prepare runs everything before the commit. After an error there is no
// transaction left.
func prepare(ctx context.Context, conn *pgxpool.Conn, epoch int64, do func(context.Context, pgx.Tx, time.Time) error) (pgx.Tx, error) {
	until, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	tx, err := conn.Begin(until)
	if err != nil {
		return nil, err
	}
	ready := false
	defer func() {
		if ready {
			return
		}
		ending, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		_ = tx.Rollback(ending) // where it fails the connection is closed, which does the same
	}()
	var now time.Time
	if err := tx.QueryRow(until, beginSQL, epoch).Scan(&now); err != nil {
		return nil, err
	}
	if err := do(until, tx, now); err != nil {
		return nil, err
	}
	ready = true
	return tx, nil
}

const auditSQL = `INSERT INTO audit (at, hold_id, user_id, actor, action, reason) VALUES ($1, $2, $3, $4, $5, $6)`

const accountColumns = `user_id, currency, status, available, held, opened_at`

const (
	accountSQL     = `SELECT ` + accountColumns + ` FROM accounts WHERE user_id = $1 AND currency = $2`
	accountLockSQL = accountSQL + ` FOR NO KEY UPDATE`
)

func scanAccount(row pgx.Row) (a holdfast.Account, err error) {
	err = row.Scan((*[16]byte)(&a.User), &a.Currency, (*int16)(&a.Status), &a.Available, &a.Held, &a.OpenedAt)
	a.OpenedAt = a.OpenedAt.UTC()
	return a, err
}

// readAccount reads one account.
func readAccount(ctx context.Context, db *pgxpool.Pool, r branch.AccountRequest) (branch.AccountAnswer, error) {
	a, err := scanAccount(db.QueryRow(ctx, accountSQL, [16]byte(r.User), r.Currency))
	if errors.Is(err, pgx.ErrNoRows) {
		return branch.AccountAnswer{Code: branch.CodeUnknownAccount}, nil
	}
	if err != nil {
		return branch.AccountAnswer{}, fmt.Errorf("read account %s: %w", r.User, err)
	}
	return branch.AccountAnswer{Code: branch.CodeOK, Account: a}, nil
}

const openSQL = `
INSERT INTO accounts (user_id, currency, opened_at) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING`

// openAccount opens an account or finds it. The caller has checked that the
// user's bucket belongs to this shard and that the currency exists.
func openAccount(ctx context.Context, db *pgxpool.Pool, epoch int64, r branch.AccountRequest) (branch.AccountAnswer, error) {
	answer := branch.AccountAnswer{Code: branch.CodeOK}
	err := write(ctx, db, epoch, func(ctx context.Context, tx pgx.Tx, now time.Time) error {
		tag, err := tx.Exec(ctx, openSQL, [16]byte(r.User), r.Currency, now)
		if err != nil {
			return err
		}
		answer.Created = tag.RowsAffected() == 1
		answer.Account, err = scanAccount(tx.QueryRow(ctx, accountSQL, [16]byte(r.User), r.Currency))
		return err
	})
	if err != nil {
		return branch.AccountAnswer{}, fmt.Errorf("open account %s: %w", r.User, err)
	}
	return answer, nil
}

const setStatusSQL = `UPDATE accounts SET status = $3 WHERE user_id = $1 AND currency = $2`

// setStatus opens, bans or closes an account and writes the act to the audit.
// Closing needs an empty account, and it is for ever, unless a hold that was
// being paid at that moment has brought coins since: they must find a way out.
func setStatus(ctx context.Context, db *pgxpool.Pool, epoch int64, r branch.AccountRequest) (branch.AccountAnswer, error) {
	if r.Status < holdfast.AccountOpen || r.Status > holdfast.AccountClosed {
		return branch.AccountAnswer{}, fmt.Errorf("%w: account status %d", holdfast.ErrInvalid, r.Status)
	}
	var answer branch.AccountAnswer
	err := write(ctx, db, epoch, func(ctx context.Context, tx pgx.Tx, now time.Time) error {
		a, err := scanAccount(tx.QueryRow(ctx, accountLockSQL, [16]byte(r.User), r.Currency))
		if errors.Is(err, pgx.ErrNoRows) {
			answer.Code = branch.CodeUnknownAccount
			return nil
		}
		if err != nil {
			return err
		}
		answer = branch.AccountAnswer{Code: statusMove(a, r.Status), Account: a}
		if answer.Code != branch.CodeOK || a.Status == r.Status {
			return nil
		}
		answer.Account.Status = r.Status
		if _, err := tx.Exec(ctx, setStatusSQL, [16]byte(r.User), r.Currency, int16(r.Status)); err != nil {
			return err
		}
		action := "account_" + r.Status.String()
		_, err = tx.Exec(ctx, auditSQL, now, nil, [16]byte(r.User), r.Actor, action, r.Currency+": "+r.Reason)
		return err
	})
	if err != nil {
		return branch.AccountAnswer{}, fmt.Errorf("set status of account %s: %w", r.User, err)
	}
	return answer, nil
}

// statusMove says whether an account may take a status.
func statusMove(a holdfast.Account, to holdfast.AccountStatus) branch.Code {
	switch {
	case a.Status == to:
		return branch.CodeOK
	case a.Status == holdfast.AccountClosed && a.Available == 0 && a.Held == 0:
		return branch.CodeAccountClosed
	case to == holdfast.AccountClosed && (a.Available != 0 || a.Held != 0):
		return branch.CodeAccountNotEmpty
	}
	return branch.CodeOK
}

// statement pages through the entries of one account, newest first.
func statement(ctx context.Context, db *pgxpool.Pool, r branch.AccountRequest) (branch.StatementAnswer, error) {
	days, err := entryDays(ctx, db)
	if err != nil {
		return branch.StatementAnswer{}, err
	}
	w, err := newEntryWalk(ctx, db, r.User, r.Currency, r.Before, days)
	if errors.Is(err, pgx.ErrNoRows) {
		return branch.StatementAnswer{Code: branch.CodeUnknownAccount}, nil
	}
	if err != nil {
		return branch.StatementAnswer{}, err
	}
	answer := branch.StatementAnswer{Code: branch.CodeOK, Entries: []holdfast.Entry{}}
	if answer.Entries, err = w.stretch(ctx, db, pageSize(r.Limit)); err != nil {
		return branch.StatementAnswer{}, err
	}
	if answer.Entries == nil {
		answer.Entries = []holdfast.Entry{}
	}
	if !w.done() {
		answer.Next = w.next
	}
	return answer, nil
}
