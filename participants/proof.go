package participants

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// proofSettings give the proof room to sort and hash a whole ledger and all the
// time that its caller's context grants.
const proofSettings = `
SET LOCAL work_mem = '256MB'; SET LOCAL statement_timeout = 0; SET LOCAL jit = off`

// proofSinceSQL is the day from which entries are replayed: everything before
// it is in the checkpoints.
const proofSinceSQL = `
SELECT coalesce(max(before_day)::timestamp AT TIME ZONE 'UTC', '-infinity'), clock_timestamp() FROM checkpoints`

// prove checks everything that one shard can check by itself, under one
// snapshot. Every step of a hold is one transaction per shard, so within a
// snapshot the books must be whole to the last coin: there is no "in between"
// that a check would have to forgive.
func prove(ctx context.Context, db *pgxpool.Pool, shard int) (p branch.ShardProof, err error) {
	err = pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		p, err = proveIn(ctx, tx, shard)
		return err
	})
	if err != nil {
		return branch.ShardProof{}, fmt.Errorf("prove shard %d: %w", shard, err)
	}
	return p, nil
}

// proveIn proves what a transaction sees.
func proveIn(ctx context.Context, tx pgx.Tx, shard int) (branch.ShardProof, error) {
	p := branch.ShardProof{Shard: shard, Offenders: []branch.Offender{}}
	if _, err := tx.Exec(ctx, proofSettings); err != nil {
		return p, err
	}
	var since anyTime
	if err := tx.QueryRow(ctx, proofSinceSQL).Scan(&since, &p.At); err != nil {
		return p, fmt.Errorf("read checkpoints: %w", err)
	}
	p.At = p.At.UTC()
	if err := proofSums(ctx, tx, since, &p); err != nil {
		return p, fmt.Errorf("sum up: %w", err)
	}
	for _, check := range proofChecks {
		found, err := runCheck(ctx, tx, check.sql, since)
		if err != nil {
			return p, fmt.Errorf("%s: %w", check.name, err)
		}
		for i := range found {
			found[i].Shard = shard
		}
		p.Offenders = append(p.Offenders, found...)
	}
	p.OK = len(p.Offenders) == 0
	return p, nil
}

// runCheck runs one of proofChecks. Offenders are counted in the database and
// only the first of each kind comes over, however many there are.
func runCheck(ctx context.Context, tx pgx.Tx, sql string, since anyTime) ([]branch.Offender, error) {
	rows, err := tx.Query(ctx, sql, since)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (o branch.Offender, err error) {
		return o, row.Scan(&o.Kind, &o.Count, &o.First)
	})
}

const proofSumsSQL = `
SELECT a.n, a.available::text, a.held::text, e.n, e.debits::text, e.credits::text, e.issued::text,
       h.n, h.escrow::text, h.transit::text, h.transit_n
FROM (SELECT count(*) AS n, coalesce(sum(available), 0) AS available, coalesce(sum(held), 0) AS held FROM accounts) a,
     (SELECT count(*) AS n, coalesce(-sum(amount) FILTER (WHERE amount < 0), 0) AS debits,
             coalesce(sum(amount) FILTER (WHERE amount > 0), 0) AS credits,
             coalesce(-sum(amount) FILTER (WHERE book = 4), 0) AS issued
      FROM entries WHERE posted_at >= $1) e,
     (SELECT count(*) AS n,
             coalesce(sum(amount) FILTER (WHERE status = 1 OR (status = 2 AND verdict IS NULL)
                                          OR (status = 4 AND refunded_at IS NULL)), 0) AS escrow,
             coalesce(sum(amount) FILTER (WHERE status = 2 AND verdict = 1), 0) AS transit,
             count(*) FILTER (WHERE status = 2 AND verdict = 1) AS transit_n
      FROM holds) h`

func proofSums(ctx context.Context, tx pgx.Tx, since anyTime, p *branch.ShardProof) error {
	// Sums of bigint do not fit bigint; they come as text.
	var text [7]string
	err := tx.QueryRow(ctx, proofSumsSQL, since).Scan(&p.Accounts, &text[0], &text[1], &p.Entries, &text[2], &text[3], &text[4],
		&p.Holds, &text[5], &text[6], &p.TransitN)
	if err != nil {
		return err
	}
	for i, sum := range []**big.Int{&p.Available, &p.Held, &p.Debits, &p.Credits, &p.Issued, &p.EscrowHolds, &p.Transit} {
		n, ok := new(big.Int).SetString(text[i], 10)
		if !ok {
			return fmt.Errorf("%q is not a sum", text[i])
		}
		*sum = n
	}
	return nil
}

const transitPage = 20_000

// transit answers the two sides of what crosses shards for a stretch of
// maturity. Each side is read in one statement; they need no common snapshot.
func transit(ctx context.Context, db *pgxpool.Pool, r branch.TransitRequest) (branch.TransitAnswer, error) {
	low, high := lowestID(r.Range.From), lowestID(r.Range.To)
	// A credit is never posted before its hold matures. The day of grace is for
	// clocks of two shards that disagree.
	posted := time.UnixMilli(r.Range.From).Add(-24 * time.Hour)
	var answer branch.TransitAnswer
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, proofSettings); err != nil {
			return err
		}
		var err error
		if r.StepMS > 0 {
			answer.Cells, err = transitCells(ctx, tx, low, high, posted, r.StepMS)
			return err
		}
		answer, err = transitList(ctx, tx, low, high, posted, r)
		return err
	})
	if err != nil {
		return branch.TransitAnswer{}, fmt.Errorf("read transit: %w", err)
	}
	return answer, nil
}

// lowestID is the lowest id that matures at ms.
func lowestID(ms int64) [16]byte {
	id := holdfast.NewHoldID(min(max(ms, 0), 1<<48-1), 0, 0)
	id[6], id[8] = 0, 0
	return id
}

// The hash is nested, so that no two fields can be exchanged between holds
// without changing the sum. PostgreSQL's extended hashes are the same on every
// server of one architecture.
const (
	idMS        = `('x' || left(translate(id::text, '-', ''), 12))::bit(48)::bigint`
	transitHash = `uuid_hash_extended(id, hashint8extended(amount, uuid_hash_extended(recipient, hashtextextended(currency COLLATE "C", 7))))`
	// transitSides brings holds and credits into one shape. Only the leg on the
	// recipient's book counts: that is the coin that arrived.
	verdictSide = `
SELECT id, recipient, amount, currency, status = 3 AS executed
FROM holds WHERE verdict = 1 AND id >= $1 AND id < $2`
	creditSide = `
SELECT ref AS id, user_id AS recipient, amount, currency, false AS executed
FROM entries WHERE movement = 3 AND book = 1 AND ref >= $1 AND ref < $2 AND posted_at >= $3`
)

// mod62 keeps a sum in the 62 bits that digests are added up in.
func mod62(sum string) string {
	return `(((coalesce(` + sum + `, 0) % 4611686018427387904) + 4611686018427387904) % 4611686018427387904)::bigint`
}

func cellsSQL(side string) string {
	const ended = ` FILTER (WHERE executed)`
	return `SELECT start, count(*), ` + mod62(`sum(amount)`) + `, ` + mod62(`sum(hash)`) + `,
		count(*)` + ended + `, ` + mod62(`sum(amount)`+ended) + `, ` + mod62(`sum(hash)`+ended) + `
		FROM (SELECT ` + idMS + ` / $4 * $4 AS start, amount, executed, ` + transitHash + ` AS hash FROM (` + side + `) s) t
		WHERE $3::timestamptz IS NOT NULL GROUP BY start ORDER BY start`
}

func transitCells(ctx context.Context, tx pgx.Tx, low, high [16]byte, posted time.Time, stepMS int64) ([]branch.TransitCell, error) {
	cells := map[int64]*branch.TransitCell{}
	var start int64
	var all, executed branch.TransitSum
	read := func(side string, put func(*branch.TransitCell)) error {
		rows, err := tx.Query(ctx, cellsSQL(side), low, high, posted, stepMS)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&start, &all.N, &all.Amount, &all.Hash, &executed.N, &executed.Amount, &executed.Hash},
			func() error {
				if cells[start] == nil {
					cells[start] = &branch.TransitCell{From: start}
				}
				put(cells[start])
				return nil
			})
		return err
	}
	if err := read(verdictSide, func(c *branch.TransitCell) { c.Paid, c.Executed = all, executed }); err != nil {
		return nil, err
	}
	if err := read(creditSide, func(c *branch.TransitCell) { c.Credited = all }); err != nil {
		return nil, err
	}
	list := make([]branch.TransitCell, 0, len(cells))
	for _, c := range cells {
		list = append(list, *c)
	}
	return list, nil
}

func listSQL(side string) string {
	return `SELECT id, ` + transitHash + `, amount, executed FROM (` + side + `) s
		WHERE $3::timestamptz IS NOT NULL AND id > $4 ORDER BY id LIMIT $5`
}

func transitList(ctx context.Context, tx pgx.Tx, low, high [16]byte, posted time.Time, r branch.TransitRequest) (answer branch.TransitAnswer, err error) {
	limit := r.Limit
	if limit < 1 || limit > transitPage {
		limit = transitPage
	}
	read := func(side string) ([]branch.TransitItem, error) {
		rows, err := tx.Query(ctx, listSQL(side), low, high, posted, [16]byte(r.After), limit)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t branch.TransitItem, err error) {
			return t, row.Scan((*[16]byte)(&t.ID), &t.Hash, &t.Amount, &t.Executed)
		})
	}
	if answer.Paid, err = read(verdictSide); err != nil {
		return answer, err
	}
	if answer.Credits, err = read(creditSide); err != nil {
		return answer, err
	}
	return cutPage(answer, limit), nil
}
