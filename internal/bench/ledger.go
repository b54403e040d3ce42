package bench

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// shardReader reads the shards of the system under load. Each question is a
// connection of its own: the servers may be killed in the middle of a run.
type shardReader struct {
	dsns    []string
	servers []string // DSNs of different servers, for figures that are per server
}

func newShardReader(dsns []string) (*shardReader, error) {
	s := &shardReader{dsns: dsns}
	seen := map[string]bool{}
	for i, dsn := range dsns {
		cfg, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, fmt.Errorf("DSN of shard %d is malformed", i)
		}
		if at := fmt.Sprintf("%s:%d", cfg.Host, cfg.Port); !seen[at] {
			seen[at] = true
			s.servers = append(s.servers, dsn)
		}
	}
	return s, nil
}

func ask(ctx context.Context, dsn string, f func(*pgx.Conn) error) error {
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	return f(c)
}

func (s *shardReader) each(ctx context.Context, dsns []string, f func(ctx context.Context, i int, c *pgx.Conn) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, dsn := range dsns {
		group.Go(func() error {
			return ask(ctx, dsn, func(c *pgx.Conn) error { return f(ctx, i, c) })
		})
	}
	return group.Wait()
}

const walSQL = `SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint`

// wal is the position in the log of all servers together, in bytes.
func (s *shardReader) wal(ctx context.Context) (int64, error) {
	var mu sync.Mutex
	var sum int64
	err := s.each(ctx, s.servers, func(ctx context.Context, _ int, c *pgx.Conn) error {
		var n int64
		err := c.QueryRow(ctx, walSQL).Scan(&n)
		mu.Lock()
		defer mu.Unlock()
		sum += n
		return err
	})
	return sum, err
}

// The bounds on id name the days of maturity, so that only their partitions
// are read.
const openSQL = `SELECT count(*) FROM holds
WHERE id >= $1 AND id < $2 AND created_at >= $3 AND status IN (1, 2)`

func (s *shardReader) open(ctx context.Context, from, to time.Time) (int64, error) {
	var mu sync.Mutex
	var sum int64
	err := s.each(ctx, s.dsns, func(ctx context.Context, _ int, c *pgx.Conn) error {
		var n int64
		err := c.QueryRow(ctx, openSQL, lowest(from), lowest(to.Add(time.Minute)), from).Scan(&n)
		mu.Lock()
		defer mu.Unlock()
		sum += n
		return err
	})
	return sum, err
}

// lowest is the id below every hold that matures at t or later, in text form.
func lowest(t time.Time) string { return holdfast.NewHoldID(t.UnixMilli(), 0, 0).String() }

const outcomeSQL = `SELECT (extract(epoch FROM executed_at - unlock_at) * 10000)::bigint AS lag, count(*),
       count(*) FILTER (WHERE executed_at BETWEEN $4 AND $5), min(executed_at), max(executed_at)
FROM holds
WHERE id >= $1 AND id < $2 AND created_at >= $3 AND status = 3
GROUP BY 1`

// outcome reads what became of the holds of the run: how many were executed,
// how late, how many per second while the rate was steady, and the log's bytes.
func (s *shardReader) outcome(ctx context.Context, b *run) error {
	if end, err := s.wal(ctx); err == nil && b.wal0 > 0 {
		b.report.WALBytes = end - b.wal0
	}
	from, to, steady := b.steadyWindow()
	lag := newHistogram()
	var mu sync.Mutex
	var executed, inWindow int64
	var first, last time.Time
	err := s.each(ctx, s.dsns, func(ctx context.Context, _ int, c *pgx.Conn) error {
		rows, err := c.Query(ctx, outcomeSQL, lowest(b.start), lowest(b.loadEnd.Add(b.cfg.DelayMax+time.Minute)), b.start, from, to)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var tenths, n, within int64
			var lo, hi time.Time
			if err := rows.Scan(&tenths, &n, &within, &lo, &hi); err != nil {
				return err
			}
			mu.Lock()
			lag.RecordValues(max(1, min(tenths*100, lag.HighestTrackableValue())), n)
			executed += n
			inWindow += within
			if first.IsZero() || lo.Before(first) {
				first = lo
			}
			if hi.After(last) {
				last = hi
			}
			mu.Unlock()
		}
		return rows.Err()
	})
	b.report.Executed = executed
	b.report.lag(lag)
	if seconds := to.Sub(from).Seconds(); steady && seconds > 0 {
		b.report.ExecutedPerS = float64(inWindow) / seconds
	} else if seconds := last.Sub(first).Seconds(); seconds > 0 {
		b.report.ExecutedPerS = float64(executed) / seconds
	}
	return err
}

const ownerSQL = `SELECT m.epoch, m.owner FROM shard_self s JOIN shard_map m ON m.epoch = s.epoch`

func (s *shardReader) shardMap(ctx context.Context) (*holdfast.ShardMap, error) {
	m := &holdfast.ShardMap{Shards: len(s.dsns)}
	err := ask(ctx, s.dsns[0], func(c *pgx.Conn) error {
		var owner []int16
		if err := c.QueryRow(ctx, ownerSQL).Scan(&m.Epoch, &owner); err != nil {
			return err
		}
		if len(owner) != holdfast.Buckets {
			return fmt.Errorf("the shard map has %d buckets, not %d", len(owner), holdfast.Buckets)
		}
		copy(m.Owner[:], owner)
		return nil
	})
	return m, err
}

// bulkFundSQL posts real deposits, set-based; only the owner of the schema may
// call it.
const bulkFundSQL = `SELECT holdfast_bulk_fund($1, $2::uuid[], $3, $4)`

// bulkBatch is how many accounts one statement funds.
const bulkBatch = 5000

func (s *shardReader) bulkFund(ctx context.Context, users func(yield func(holdfast.UserID)), amount int64) error {
	m, err := s.shardMap(ctx)
	if err != nil {
		return err
	}
	perShard := make([][]string, len(s.dsns))
	users(func(u holdfast.UserID) {
		n := m.OfUser(u)
		perShard[n] = append(perShard[n], u.String())
	})
	return s.each(ctx, s.dsns, func(ctx context.Context, i int, c *pgx.Conn) error {
		for all := perShard[i]; len(all) > 0; {
			n := min(bulkBatch, len(all))
			if _, err := c.Exec(ctx, bulkFundSQL, m.Epoch, all[:n], "RBX", amount); err != nil {
				return fmt.Errorf("fund accounts on shard %d: %s", i, strings.TrimSpace(err.Error()))
			}
			all = all[n:]
		}
		return nil
	})
}
