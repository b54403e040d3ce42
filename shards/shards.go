// Package shards knows what a shard is: which database stands for which number,
// what must be in it, and how to reach it. It migrates schemas, keeps partitions
// ahead of time, guards the ledger's immutability and hands out connections that
// are surely wired to the right place. It knows nothing of holds moving or of
// HTTP: the SQL of money belongs to participants.
//
// A COMMIT must never run on a context that can be cancelled. pgx closes the
// connection of a cancelled context, and with a synchronous standby a cancelled
// COMMIT comes back as success with a warning. Callers run it on
// context.WithoutCancel with a deadline of their own and ask TakeCommitWarning.
package shards

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-escrow/holdfast"
)

// Sizes of the pools of one shard.
const (
	defaultMoneyConns = 6
	defaultReadConns  = 4
	ownerConns        = 2
)

// Config says which shards there are.
type Config struct {
	DSNs       []string              // in the order of the shards, from 0
	Map        *holdfast.ShardMap    // nil: read from the first shard that answers
	MoneyConns int                   // per shard; 0 means 6
	ReadConns  int                   // per shard; 0 means 4
	Log        *slog.Logger          // nil: silent
	Metrics    prometheus.Registerer // nil: none
}

// Set is every shard of a cluster. It is safe for concurrent use.
type Set struct {
	shards  *holdfast.ShardMap
	pools   []*shardPools
	cluster atomic.Pointer[[16]byte] // as the first connection saw it
	log     *slog.Logger
	metrics *metrics
}

type shardPools struct {
	money, reads, owner *pgxpool.Pool
	fsync               sync.Once // warns once
}

func (p *shardPools) all() map[string]*pgxpool.Pool {
	return map[string]*pgxpool.Pool{useMoney: p.money, useReads: p.reads, useOwner: p.owner}
}

// Open makes the pools and asks every shard who it is. A shard that is down is
// logged and may come later; one that is another shard, is not migrated or
// refuses the log-in stops the start. Without a Map one shard must answer.
func Open(ctx context.Context, cfg Config) (*Set, error) {
	if len(cfg.DSNs) == 0 {
		return nil, errors.New("no shard is configured")
	}
	s := &Set{shards: cfg.Map, log: cfg.Log, metrics: newMetrics()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Map != nil {
		if err := checkMap(cfg.Map, len(cfg.DSNs)); err != nil {
			return nil, err
		}
	}
	s.pools = make([]*shardPools, len(cfg.DSNs))
	for i := range s.pools {
		s.pools[i] = &shardPools{}
	}
	if err := s.open(ctx, cfg); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Set) open(ctx context.Context, cfg Config) (err error) {
	money, reads := cfg.MoneyConns, cfg.ReadConns
	if money <= 0 {
		money = defaultMoneyConns
	}
	if reads <= 0 {
		reads = defaultReadConns
	}
	for i, dsn := range cfg.DSNs {
		p := s.pools[i]
		if p.money, err = s.pool(ctx, i, dsn, useMoney, money); err != nil {
			return err
		}
		if p.reads, err = s.pool(ctx, i, dsn, useReads, reads); err != nil {
			return err
		}
		if p.owner, err = s.pool(ctx, i, dsn, useOwner, ownerConns); err != nil {
			return err
		}
	}
	if err := s.meet(ctx); err != nil {
		return err
	}
	return s.metrics.register(cfg.Metrics, s)
}

func (s *Set) pool(ctx context.Context, shard int, dsn, use string, conns int) (*pgxpool.Pool, error) {
	cfg, err := poolConfig(shard, dsn, use)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns, cfg.MinConns, cfg.MinIdleConns = int32(conns), 0, 0
	cfg.PingTimeout = connectTimeout
	if use == useOwner {
		cfg.MaxConnIdleTime = ownerIdle
		cfg.ConnConfig.RuntimeParams["idle_session_timeout"] = strconv.FormatInt(ownerSilence.Milliseconds(), 10)
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error { return s.admit(ctx, conn, shard, use) }
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("DSN %d: %w", shard, err)
	}
	return pool, nil
}

// meet asks all shards at once for their maps and compares them.
func (s *Set) meet(ctx context.Context) error {
	maps := make([]*holdfast.ShardMap, s.N())
	errs := make([]error, s.N())
	var group sync.WaitGroup
	for i := range s.pools {
		group.Go(func() { maps[i], errs[i] = readMap(ctx, s.pools[i].reads) })
	}
	group.Wait()
	for i, err := range errs {
		if err != nil && refusedForGood(err) {
			return err
		}
		if err != nil {
			s.log.Warn("shard does not answer, going on without it", "shard", i, "error", err)
			continue
		}
		if s.shards == nil {
			s.shards = maps[i]
		}
		if err := sameMap(i, maps[i], s.shards); err != nil {
			return err
		}
	}
	if s.shards == nil {
		return fmt.Errorf("%w: no shard answers, and without one the shard map is not known: %w", holdfast.ErrShardUnavailable, errors.Join(errs...))
	}
	return nil
}

// N is the number of shards.
func (s *Set) N() int { return len(s.pools) }

// Map says which shard owns which bucket.
func (s *Set) Map() *holdfast.ShardMap { return s.shards }

// Money is the pool for batches that move money, as the application's role.
// An error of Acquire means that surely nothing was done.
func (s *Set) Money(shard int) *pgxpool.Pool { return s.pools[shard].money }

// Reads is the pool for everything that only looks, as the application's role.
func (s *Set) Reads(shard int) *pgxpool.Pool { return s.pools[shard].reads }

// Owner is the small pool of the role that owns the tables: partitions and
// checkpoints, nothing else.
func (s *Set) Owner(shard int) *pgxpool.Pool { return s.pools[shard].owner }

// Ping asks whether the shard answers and is the right one.
func (s *Set) Ping(ctx context.Context, shard int) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := s.Reads(shard).Ping(ctx); err != nil {
		return fmt.Errorf("%w: ping shard %d: %w", holdfast.ErrShardUnavailable, shard, err)
	}
	return nil
}

// clockSamples is how often ClockOffset asks; the quickest answer counts.
const clockSamples = 3

// ClockOffset is the shard's clock minus this process's, positive when the
// shard is ahead. It is wrong by at most half a round trip.
func (s *Set) ClockOffset(ctx context.Context, shard int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := s.Reads(shard).Acquire(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: clock of shard %d: %w", holdfast.ErrShardUnavailable, shard, err)
	}
	defer conn.Release()
	var offset, best time.Duration
	for i := range clockSamples {
		var theirs time.Time
		sent := time.Now()
		if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
			return 0, fmt.Errorf("clock of shard %d: %w", shard, err)
		}
		if trip := time.Since(sent); i == 0 || trip < best {
			best, offset = trip, theirs.Sub(sent.Add(trip/2))
		}
	}
	return offset, nil
}

// Close waits until every connection has been given back.
func (s *Set) Close() {
	for _, p := range s.pools {
		for _, pool := range p.all() {
			if pool != nil {
				pool.Close()
			}
		}
	}
	s.metrics.unregister()
}
