package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
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

// firstOpenSQL names the first hold that has not ended. The bounds on id name
// the days of maturity, so that only their partitions are read.
const firstOpenSQL = `SELECT id::text FROM holds
WHERE id >= $1 AND id < $2 AND created_at >= $3 AND status IN (1, 2) ORDER BY id LIMIT 1`

const openSQL = `SELECT count(*) FROM holds
WHERE id >= $1 AND id < $2 AND created_at >= $3 AND status IN (1, 2)`

// lowest is the id below every hold that matures at t or later, in text form.
func lowest(t time.Time) string { return holdfast.NewHoldID(t.UnixMilli(), 0, 0).String() }

// openHolds watches the holds of a run that mature in a span end. What lies
// below a shard's first open hold has ended for good, so each look starts where
// the last one stopped and all of them together cost one pass.
type openHolds struct {
	s      *shardReader
	since  time.Time // of creation
	to     string
	bounds []string // by shard
	ended  []bool
}

func (s *shardReader) watchOpen(since, from, to time.Time) *openHolds {
	o := &openHolds{s: s, since: since, to: lowest(to.Add(time.Second)), bounds: make([]string, len(s.dsns)), ended: make([]bool, len(s.dsns))}
	for i := range o.bounds {
		o.bounds[i] = lowest(from)
	}
	return o
}

// look returns how many shards still have an open hold.
func (o *openHolds) look(ctx context.Context) (shards int, err error) {
	err = o.s.each(ctx, o.s.dsns, func(ctx context.Context, i int, c *pgx.Conn) error {
		if o.ended[i] {
			return nil
		}
		err := c.QueryRow(ctx, firstOpenSQL, o.bounds[i], o.to, o.since).Scan(&o.bounds[i])
		if errors.Is(err, pgx.ErrNoRows) {
			o.ended[i] = true
			return nil
		}
		return err
	})
	for _, ended := range o.ended {
		if !ended {
			shards++
		}
	}
	return shards, err
}

// count is how many there are; it reads all that is left.
func (o *openHolds) count(ctx context.Context) (int64, error) {
	var mu sync.Mutex
	var sum int64
	err := o.s.each(ctx, o.s.dsns, func(ctx context.Context, i int, c *pgx.Conn) error {
		var n int64
		err := c.QueryRow(ctx, openSQL, o.bounds[i], o.to, o.since).Scan(&n)
		mu.Lock()
		defer mu.Unlock()
		sum += n
		return err
	})
	return sum, err
}

// outcomeSQL groups the executed holds by the second of their execution and by
// the logarithm of their lag in steps of half a per cent.
const outcomeSQL = `SELECT floor(extract(epoch FROM executed_at))::bigint,
       floor(ln(greatest(extract(epoch FROM executed_at - unlock_at), 0.0001)) * 200)::bigint,
       count(*), count(*) FILTER (WHERE executed_at BETWEEN $4 AND $5), count(*) FILTER (WHERE unlock_at BETWEEN $4 AND $5),
       count(*) FILTER (WHERE executed_at < unlock_at), min(executed_at), max(executed_at)
FROM holds
WHERE id >= $1 AND id < $2 AND created_at >= $3 AND status = 3
GROUP BY 1, 2`

// outcome reads what became of the holds of the run: how many were executed,
// how late, and how many per second. Where the run has a steady part, the lag is
// that of the holds that matured in it, however late they were: those of the
// warm-up and of the quiet end would make it look better.
func (b *run) outcome(ctx context.Context) error {
	if b.lastDue.IsZero() {
		return nil
	}
	lag, lags := newHistogram(), series{}
	var mu sync.Mutex
	var executed, inWindow int64
	var first, last time.Time
	err := b.shards.each(ctx, b.DSNs, func(ctx context.Context, _ int, c *pgx.Conn) error {
		rows, err := c.Query(ctx, outcomeSQL, lowest(b.start), lowest(b.lastDue.Add(time.Minute)), b.start, b.steadyFrom, b.steadyTo)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var unix, step, n, within, due, early int64
			var lo, hi time.Time
			if err := rows.Scan(&unix, &step, &n, &within, &due, &early, &lo, &hi); err != nil {
				return err
			}
			late := time.Duration(math.Exp((float64(step)+0.5)/200) * float64(time.Second))
			mu.Lock()
			if b.steadyFrom.IsZero() {
				due = n
			}
			lag.recordN(late, due)
			b.report.Early += early
			one := lags.at(unix)
			one.N += n
			one.Latency.recordN(late, n)
			executed += n
			inWindow += within
			first, last = earlier(first, lo), later(last, hi)
			mu.Unlock()
		}
		return rows.Err()
	})
	b.report.executions(executed, lag, lags, first, last)
	if b.finish != nil && executed > 0 {
		b.finish(first, last)
	}
	if steady := b.steadyTo.Sub(b.steadyFrom).Seconds(); steady > 0 {
		b.report.ExecutedPerS = float64(inWindow) / steady
	}
	return err
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// owners is the map of the shards, read once.
func (b *Bench) owners(ctx context.Context) (*holdfast.ShardMap, error) {
	if b.shardMap == nil {
		m, err := b.shards.shardMap(ctx)
		if err != nil {
			return nil, fmt.Errorf("read the shard map: %w", err)
		}
		b.shardMap = m
	}
	return b.shardMap, nil
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

func (s *shardReader) bulkFund(ctx context.Context, m *holdfast.ShardMap, users func(yield func(holdfast.UserID)), amount int64) error {
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
