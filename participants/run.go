package participants

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	acquireTimeout = 10 * time.Second // for a connection of the pool
	maxRetries     = 5                // of a batch that lost a deadlock or a serialization
)

// fate is what an error says about the batch that met it.
type fate int

const (
	fateUnknown     fate = iota // it may have been committed
	fateNothingDone             // surely rolled back or never begun; may work later
	fateRetry                   // rolled back by a conflict; works at once
	fateBroken                  // rolled back, and repeating will not mend it
)

// fateOf reads an error of the database. Only what PostgreSQL itself says about
// a statement that failed before its commit counts as "nothing done".
func fateOf(err error) fate {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		if pgconn.SafeToRetry(err) || errors.Is(err, holdfast.ErrShardUnavailable) {
			return fateNothingDone
		}
		return fateUnknown
	}
	var early *incomplete
	switch {
	case pg.SeverityUnlocalized == "PANIC":
		// The server's memory is not trusted any more, the disk is: what was
		// written before, also by others, comes back with the recovery.
		return fateUnknown
	case pg.Code == "57P01" && errors.As(err, &early):
		// The server ended the connection before the statement was complete;
		// the commit comes after that.
		return fateNothingDone
	case pg.Code == "40001" || pg.Code == "40P01" || pg.Code == "55P03":
		return fateRetry
	case pg.Code == "57P01" || pg.Code == "57P02" || pg.Code == "57P03" || pg.Code == "57P05" ||
		strings.HasPrefix(pg.Code, "08"):
		// The server is going away; whether it committed first cannot be told.
		return fateUnknown
	case pg.Code == "HF001" || pg.Code == "25006" || pg.Code == "57014" ||
		strings.HasPrefix(pg.Code, "53") || strings.HasPrefix(pg.Code, "58") || strings.HasPrefix(pg.Code, "42"):
		return fateNothingDone
	}
	return fateBroken
}

// incomplete is an error that came before the server said that the statement was
// complete. PostgreSQL says so before it commits, and in order, so that nothing
// can have been committed.
type incomplete struct{ error }

func (e *incomplete) Unwrap() error { return e.error }

// query sends a statement. An error here came before it was executed.
func query(ctx context.Context, conn *pgx.Conn, sql string, args ...any) (pgx.Rows, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, &incomplete{err}
	}
	return rows, nil
}

// eachRow is pgx.ForEachRow that tells incomplete statements apart.
func eachRow(rows pgx.Rows, into []any, row func() error) error {
	_, err := pgx.ForEachRow(rows, into, row)
	if err != nil && rows.CommandTag().String() == "" {
		return &incomplete{err}
	}
	return err
}

// runBatch runs one batch as one statement. It repeats what lost a conflict,
// splits a batch that no repetition can mend in halves down to the broken item,
// and gives every item a code whatever happens.
func runBatch[I, O any](l *ledger, op string, items []I, do func(context.Context, *pgx.Conn, []I) ([]O, error), failed func(branch.Code, error) O) []O {
	l.metrics.batchSize.WithLabelValues(op).Observe(float64(len(items)))
	for try := 1; ; try++ {
		out, err := once(l, func(ctx context.Context, conn *pgx.Conn) ([]O, error) { return do(ctx, conn, items) })
		if err == nil {
			err = committed(op, out)
		}
		if err == nil {
			return out
		}
		switch f := fateOf(err); {
		case f == fateRetry && try < maxRetries:
			l.log.Warn("batch lost a conflict", "op", op, "items", len(items), "attempt", try, "error", err)
			continue
		case f == fateUnknown:
			l.log.Error("outcome of a batch is unknown", "op", op, "items", len(items), "error", err)
			return fill(items, failed(branch.CodeOutcomeUnknown, err))
		case f == fateNothingDone || f == fateRetry:
			l.log.Warn("batch was not done", "op", op, "items", len(items), "error", err)
			return fill(items, failed(branch.CodeShardUnavailable, err))
		}
		if len(items) > 1 {
			half := len(items) / 2
			out = runBatch(l, op, items[:half:half], do, failed)
			return append(out, runBatch(l, op, items[half:], do, failed)...)
		}
		return fill(items, failed(l.brokenCode(op, err), err))
	}
}

func fill[I, O any](items []I, o O) []O {
	out := make([]O, len(items))
	for i := range out {
		out[i] = o
	}
	return out
}

// brokenCode names what is wrong with a single item.
func (l *ledger) brokenCode(op string, err error) branch.Code {
	var pg *pgconn.PgError
	errors.As(err, &pg)
	switch pg.Code {
	case "HF002":
		l.log.Error("impossible state", "op", op, "error", err)
		if l.impossible != nil {
			l.impossible(fmt.Sprintf("%s: %v", op, err))
		}
		return branch.CodeImpossible
	case "HF003":
		return branch.Code(pg.Message)
	case "HF004":
		return branch.CodeIssuanceCap
	}
	l.log.Error("an item cannot be done", "op", op, "error", err)
	return branch.CodeItemBroken
}

// once runs do on a connection of the money pool. The statement has no deadline
// and no caller can cancel it: it is its own transaction, and a COMMIT that is
// cancelled while it waits for a standby answers success with a warning. That
// warning is an unknown outcome too.
func once[O any](l *ledger, do func(context.Context, *pgx.Conn) ([]O, error)) ([]O, error) {
	ctx, cancel := context.WithTimeout(context.Background(), acquireTimeout)
	conn, err := l.pool.Acquire(ctx)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("%w: %v", holdfast.ErrShardUnavailable, err)
	}
	defer conn.Release()
	out, err := do(context.Background(), conn.Conn())
	if err == nil && shards.TakeCommitWarning(conn.Conn()) {
		return nil, fmt.Errorf("%w: the commit's wait for its standby was cancelled", holdfast.ErrOutcomeUnknown)
	}
	return out, err
}
