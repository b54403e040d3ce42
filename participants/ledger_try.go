package participants

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	mathrand "math/rand/v2"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// tails draws the random last half of hold ids. Seeded from the system's
// randomness, because an id that can be guessed would be an oracle.
type tails struct{ source *mathrand.ChaCha8 }

func newTails() *tails {
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails since Go 1.24
	return &tails{source: mathrand.NewChaCha8(seed)}
}

// next is 16 hex digits: the RFC 9562 variant and 62 random bits.
func (t *tails) next() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], t.source.Uint64()&(1<<62-1)|1<<63)
	return hex.EncodeToString(b[:])
}

const trySQL = `SELECT idx, code, hold_id, refusal, available, unlock_at, created_at
	FROM holdfast_try($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`

// tryBatch reserves the coins of holds of this shard: branch 01, op try.
func (l *ledger) tryBatch(items []branch.TryItem) []branch.TryResult {
	out := runBatch(l, branch.OpTry, items, uncommitted(pointTryUncommitted, l.try), func(c branch.Code, _ error) branch.TryResult { return branch.TryResult{Code: c} })
	l.fillReplays(out)
	for i := range out {
		l.count(branch.OpTry, out[i].Code)
		if out[i].Code == branch.CodeSuspended {
			l.metrics.suspendedTry.Inc()
		}
	}
	return out
}

// try is one batch, in arrival order.
func (l *ledger) try(ctx context.Context, conn *pgx.Conn, items []branch.TryItem) ([]branch.TryResult, error) {
	n := len(items)
	sender, recipient := make([][16]byte, n), make([][16]byte, n)
	currency, key, tail := make([]string, n), make([]string, n), make([]string, n)
	hash := make([][]byte, n)
	amount, unlock, delay := make([]int64, n), make([]int64, n), make([]int64, n)
	reference := make([]pgtype.Text, n)
	bucket := make([]int16, n)
	skip := make([]bool, n)
	given := make([]pgtype.UUID, n)
	random := newTails()
	for i := range items {
		t := &items[i]
		sender[i], recipient[i], currency[i], key[i] = t.Sender, t.Recipient, t.Currency, t.Key
		hash[i], amount[i], unlock[i], delay[i] = t.RequestHash[:], t.Amount, t.UnlockAtMS, t.DelayMS
		reference[i] = pgtype.Text{String: t.Reference, Valid: t.Reference != ""}
		bucket[i], skip[i] = int16(t.Sender.Bucket()), t.Refusal != ""
		given[i] = pgtype.UUID{Bytes: t.ID, Valid: !t.ID.IsZero()}
		tail[i] = random.next()
	}
	rows, err := query(ctx, conn, trySQL, l.epoch, sender, recipient, currency, amount, key, hash, unlock, delay,
		reference, bucket, tail, skip, given)
	if err != nil {
		return nil, err
	}
	var idx int
	var code string
	var id pgtype.UUID
	var refusal pgtype.Text
	var available pgtype.Int8
	var unlockAt, createdAt time.Time
	out := make([]branch.TryResult, n)
	err = eachRow(rows, []any{&idx, &code, &id, &refusal, &available, &unlockAt, &createdAt}, func() error {
		t, r := &items[idx-1], &out[idx-1]
		r.Code, r.Refusal, r.Available = branch.Code(code), branch.Code(refusal.String), available.Int64
		switch r.Code {
		case branch.CodeOK:
			r.Hold = holdfast.Hold{ID: id.Bytes, Status: holdfast.Pending, Sender: t.Sender, Recipient: t.Recipient,
				Amount: t.Amount, Currency: t.Currency, Reference: t.Reference, UnlockAt: unlockAt.UTC(), CreatedAt: createdAt.UTC()}
		case branch.CodeReplay:
			r.Hold.ID = id.Bytes // filled in after the batch, unless it was a refusal
		case "skip":
			r.Code = t.Refusal
		}
		return nil
	})
	return out, err
}

// fillReplays reads the holds behind replays as they are now.
func (l *ledger) fillReplays(out []branch.TryResult) {
	var ids []holdfast.HoldID
	for i := range out {
		if out[i].Code == branch.CodeReplay && out[i].Refusal == "" {
			ids = append(ids, out[i].Hold.ID)
		}
	}
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), acquireTimeout)
	defer cancel()
	found, err := holdsByID(ctx, l.reads, ids)
	if err != nil {
		l.log.Warn("replayed holds cannot be read", "error", err)
	}
	for i := range out {
		if out[i].Code != branch.CodeReplay || out[i].Refusal != "" {
			continue
		}
		h, ok := found[out[i].Hold.ID]
		out[i].Hold = h
		if !ok {
			// The key is known, the hold cannot be read now: the client asks again.
			out[i].Code = branch.CodeShardUnavailable
		}
	}
}

const cashSQL = `SELECT idx, code, ref, refusal, at, available, held, status, opened_at FROM holdfast_cash($1, $2, $3, $4, $5, $6, $7)`

// cashBatch deposits or withdraws; a batch is of one kind.
func (l *ledger) cashBatch(items []branch.CashItem) []branch.CashResult {
	out := runBatch(l, branch.OpCash, items, l.cash, func(c branch.Code, _ error) branch.CashResult { return branch.CashResult{Code: c} })
	for i := range out {
		l.count(branch.OpCash, out[i].Code)
	}
	return out
}

func (l *ledger) cash(ctx context.Context, conn *pgx.Conn, items []branch.CashItem) ([]branch.CashResult, error) {
	n := len(items)
	user, ref := make([][16]byte, n), make([][16]byte, n)
	currency, key, hash, amount := make([]string, n), make([]string, n), make([][]byte, n), make([]int64, n)
	now := time.Now().UnixMilli()
	for i := range items {
		c := &items[i]
		user[i], currency[i], key[i], hash[i], amount[i] = c.User, c.Currency, c.Key, c.RequestHash[:], c.Amount
		ref[i] = holdfast.NewHoldID(now, c.User.Bucket(), mathrand.Uint64())
	}
	rows, err := query(ctx, conn, cashSQL, l.epoch, user, currency, amount, key, hash, ref)
	if err != nil {
		return nil, err
	}
	var idx int
	var code string
	var id [16]byte
	var refusal pgtype.Text
	var at time.Time
	var available, held pgtype.Int8
	var status pgtype.Int2
	var opened *time.Time
	out := make([]branch.CashResult, n)
	err = eachRow(rows, []any{&idx, &code, &id, &refusal, &at, &available, &held, &status, &opened}, func() error {
		c := &items[idx-1]
		out[idx-1] = branch.CashResult{Code: branch.Code(code), Ref: id, At: at.UTC(), Refusal: branch.Code(refusal.String),
			Account: holdfast.Account{User: c.User, Currency: c.Currency, Status: holdfast.AccountStatus(status.Int16),
				Available: available.Int64, Held: held.Int64, OpenedAt: utcOf(opened)}}
		return nil
	})
	return out, err
}
