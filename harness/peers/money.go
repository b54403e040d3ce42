package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// transfer is the job that every system does: a sender pays one coin now, at
// Due a payment API is called, and the recipient has the coin.
type transfer struct {
	ID        string `json:"id"`
	Sender    int    `json:"sender"`
	Recipient int    `json:"recipient"`
	DueUS     int64  `json:"due_us"` // Unix microseconds
}

const amount = 1

// senderFunds is so much that no run can empty an account.
const senderFunds = 1_000_000_000

func (t transfer) due() time.Time { return time.UnixMicro(t.DueUS) }

// newTransfer draws an id whose order is that of the due times, as Holdfast's
// are: random keys would cost the peers index pages.
func newTransfer(sender, recipient int, due time.Time) transfer {
	var b [8]byte
	rand.Read(b[:])
	random := uint64(0)
	for _, c := range b {
		random = random<<8 | uint64(c)
	}
	return transfer{ID: holdfast.NewHoldID(due.UnixMilli(), 0, random).String(),
		Sender: sender, Recipient: recipient, DueUS: due.UnixMicro()}
}

// user is the UUID under which the payment API knows an account.
func user(kind byte, n int) string {
	return fmt.Sprintf("%02x000000-0000-4000-8000-%012x", kind, n+1)
}

// The peers get the leanest ledger that keeps the money whole: one row per
// account, changed in place, with room on the page to do so without touching
// the index. frozen is what a TCC has reserved.
const accountsSQL = `
CREATE TABLE senders (
	id integer PRIMARY KEY,
	balance bigint NOT NULL CHECK (balance >= 0),
	frozen bigint NOT NULL DEFAULT 0 CHECK (frozen >= 0)
) WITH (fillfactor = 50);
CREATE TABLE recipients (LIKE senders INCLUDING ALL) WITH (fillfactor = 50);`

func createAccounts(ctx context.Context, db *pgxpool.Pool, senders, recipients int) error {
	if _, err := db.Exec(ctx, accountsSQL); err != nil {
		return fmt.Errorf("create the accounts: %w", err)
	}
	for table, n := range map[string]int{"senders": senders, "recipients": recipients} {
		funds := int64(0)
		if table == "senders" {
			funds = senderFunds
		}
		sql := "INSERT INTO " + table + " (id, balance) SELECT i, $2 FROM generate_series(0, $1::int - 1) i"
		if _, err := db.Exec(ctx, sql, n, funds); err != nil {
			return fmt.Errorf("fund the %s: %w", table, err)
		}
	}
	_, err := db.Exec(ctx, "VACUUM ANALYZE")
	return err
}

// moneySQL is what all accounts of a database hold, what is frozen included. It
// is an expression, so that it can be read in one snapshot with what is owed.
const moneySQL = `(SELECT coalesce(sum(balance + frozen), 0)::bigint FROM senders)
	+ (SELECT coalesce(sum(balance + frozen), 0)::bigint FROM recipients)`

func money(ctx context.Context, db *pgxpool.Pool) (sum int64, err error) {
	return sum, db.QueryRow(ctx, "SELECT "+moneySQL).Scan(&sum)
}

// maxPool keeps the client's and the worker's connections below the
// max_connections of the servers, which is 100.
const maxPool = 46

func openPool(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = maxPool
	return pgxpool.NewWithConfig(ctx, cfg)
}

// one fails unless exactly one row was changed: a debit of an account that has
// too little is no success.
func one(rows int64, err error, what string) error {
	if err == nil && rows != 1 {
		err = fmt.Errorf("%d rows changed", rows)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

const (
	debitSQL  = `UPDATE senders SET balance = balance - $1 WHERE id = $2 AND balance >= $1`
	creditSQL = `UPDATE recipients SET balance = balance + $1 WHERE id = $2`
)

func debit(ctx context.Context, tx pgx.Tx, t transfer) error {
	tag, err := tx.Exec(ctx, debitSQL, amount, t.Sender)
	return one(tag.RowsAffected(), err, "debit")
}

func credit(ctx context.Context, tx pgx.Tx, t transfer) error {
	tag, err := tx.Exec(ctx, creditSQL, amount, t.Recipient)
	return one(tag.RowsAffected(), err, "credit")
}
