package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/dtm-labs/client/dtmcli"
)

// branch is one endpoint that dtm calls: which accounts, what is done to them
// within dtm's barrier, whether the payment is made before, and whether the
// transfer is finished after.
type branch struct {
	db       *sql.DB
	sql      string
	account  func(transfer) int
	pays     bool
	finishes bool
}

const (
	freezeSQL   = `UPDATE senders SET balance = balance - $1, frozen = frozen + $1 WHERE id = $2 AND balance >= $1`
	spendSQL    = `UPDATE senders SET frozen = frozen - $1 WHERE id = $2 AND frozen >= $1`
	unfreezeSQL = `UPDATE senders SET balance = balance + $1, frozen = frozen - $1 WHERE id = $2 AND frozen >= $1`
	// The recipient reserves nothing; it must be there.
	admitSQL = `SELECT $1::bigint FROM recipients WHERE id = $2`
)

func startBranches(_ context.Context, w *worker) (func(), error) {
	senders, err := openSQL(w.cfg.DSNs[0])
	if err != nil {
		return nil, err
	}
	recipients, err := openSQL(w.cfg.DSNs[1])
	if err != nil {
		return nil, err
	}
	dtmcli.SetCurrentDBType(dtmcli.DBTypePostgres)
	pays := func(t transfer) int { return t.Sender }
	paid := func(t transfer) int { return t.Recipient }
	for path, b := range map[string]branch{
		"/sender/try":        {db: senders, sql: freezeSQL, account: pays},
		"/sender/confirm":    {db: senders, sql: spendSQL, account: pays},
		"/sender/cancel":     {db: senders, sql: unfreezeSQL, account: pays},
		"/recipient/try":     {db: recipients, sql: admitSQL, account: paid},
		"/recipient/confirm": {db: recipients, sql: creditSQL, account: paid, finishes: true},
		"/recipient/cancel":  {db: recipients, sql: admitSQL, account: paid},
		"/recipient/action":  {db: recipients, sql: creditSQL, account: paid, pays: true, finishes: true},
	} {
		w.mux.HandleFunc("POST "+path, func(rw http.ResponseWriter, r *http.Request) { answer(rw, w.branch(r, b)) })
	}
	w.mux.HandleFunc("GET /sender/query", func(rw http.ResponseWriter, r *http.Request) {
		barrier, err := dtmcli.BarrierFromQuery(r.URL.Query())
		if err == nil {
			err = barrier.QueryPrepared(senders)
		}
		answer(rw, err)
	})
	return func() { senders.Close(); recipients.Close() }, nil
}

// answer tells dtm the result by its status; it knows no other success than 200.
func answer(rw http.ResponseWriter, err error) {
	switch {
	case err == nil:
	case errors.Is(err, dtmcli.ErrFailure):
		http.Error(rw, dtmcli.ResultFailure, http.StatusConflict)
	default:
		http.Error(rw, err.Error(), http.StatusInternalServerError)
	}
}

func (w *worker) branch(r *http.Request, b branch) error {
	var t transfer
	if err := json.NewDecoder(r.Body).Decode(&t); err != nil {
		return err
	}
	barrier, err := dtmcli.BarrierFromQuery(r.URL.Query())
	if err != nil {
		return err
	}
	if b.pays {
		if err := w.pay.pay(r.Context(), t); err != nil {
			return err
		}
	}
	first := false // a repeated call does not finish the transfer again
	err = barrier.CallWithDB(b.db, func(tx *sql.Tx) error {
		first = true
		return change(tx, b.sql, amount, b.account(t))
	})
	if err == nil && first && b.finishes {
		w.finished(t)
	}
	return err
}
