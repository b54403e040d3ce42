// Package checker says whether Holdfast has kept its promises, the invariants I1
// to I15 of the design. It reads the shards with connections and SQL of its own,
// asks the payment simulator what was really paid, and holds both against what
// the clients were told. Everything is compared in Go, from plain rows: a
// mistake in the product's SQL cannot hide in the checker. It knows the tables
// and the outside contract, and nothing of the product's code but its nouns.
package checker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

// Target is what is checked. The connections go past the product and past every
// fault that is injected between its parts.
type Target struct {
	DSNs       []string // of the owner, in the order of the shards
	Map        *holdfast.ShardMap
	PaymentURL string // the simulator's; empty: effects are not checked
	// Prove runs the product's own ledger proof; nil: it is not compared.
	Prove func(context.Context) (ok bool, report string, err error)
}

// Config says how to check.
type Config struct {
	Target
	// History is what the clients saw, for the stories of violations that are
	// found under load; nil: the stories go without.
	History *workload.History
	// Timeout bounds the reading of one shard; 0: 20 s.
	Timeout time.Duration
	// Bound is how long after its maturity, or after the fault is over, a hold
	// may take to end (I8, I12); 0: it is measured and not judged.
	Bound time.Duration
	// Skew is how far the clocks of clients and shards may be apart; 0: 50 ms,
	// since a history counts on the monotonic clock and shards on the wall's.
	Skew time.Duration
	// Clocks is how far the clocks of the shards and of the payment API may be
	// apart, or have jumped, under a fault that has its hand on them; 0: not at
	// all. A claim is judged by its own shard's clock whatever happens.
	Clocks time.Duration
	// Pictures is where the pictures of histories that are not linearizable are
	// written; empty: nowhere.
	Pictures string
}

// Checker checks one cluster. Its methods may be called concurrently; cuts wait
// for one another.
type Checker struct {
	cfg    Config
	client *http.Client

	mu        sync.Mutex // held during a cut
	conns     []*pgx.Conn
	effects   *effects
	last      *world // per shard the last snapshot that was read
	stats     Stats
	faultOver time.Time
	told      map[string]bool
}

// Stats are figures over all cuts. A shard that a fault keeps away is not
// checked and not a violation: Missed counts it.
type Stats struct {
	Cuts    int           `json:"cuts"`
	Missed  int           `json:"missed"`  // shards, or the simulator, that could not be read
	Entries int           `json:"entries"` // in the last cut
	Holds   int           `json:"holds"`
	Took    time.Duration `json:"took"`  // the last cut
	Worst   time.Duration `json:"worst"` // the longest one
	LastErr string        `json:"last_err,omitempty"`
}

// New makes a checker. It connects at its first cut, and again after a fault.
func New(cfg Config) *Checker {
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Skew == 0 {
		cfg.Skew = 50*time.Millisecond + cfg.Clocks
	}
	return &Checker{cfg: cfg, client: &http.Client{}, conns: make([]*pgx.Conn, len(cfg.DSNs)), told: map[string]bool{},
		effects: &effects{byHold: map[holdfast.HoldID][]paysim.Outcome{}}}
}

// Close ends the connections.
func (c *Checker) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.conns {
		c.drop(n)
	}
	c.client.CloseIdleConnections()
}

func (c *Checker) drop(n int) {
	if c.conns[n] == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.conns[n].Close(ctx)
	c.conns[n] = nil
}

// FaultOver says when the last fault was over: from then on the Bound counts.
func (c *Checker) FaultOver(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faultOver = at
}

// Stats are the figures so far.
func (c *Checker) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Cut reads all shards, each under one snapshot, and checks what must hold at
// any moment: each shard by itself, against the snapshot before, and the shards
// against one another in two rounds, of which the cut before was the first.
func (c *Checker) Cut(ctx context.Context) []Violation {
	c.mu.Lock()
	defer c.mu.Unlock()
	found, _ := c.cut(ctx)
	return found
}

func (c *Checker) cut(ctx context.Context) ([]Violation, *world) {
	now := c.read(ctx)
	if ctx.Err() != nil { // whoever asked has left: what was read may be half
		return nil, now
	}
	f := &finder{clocks: c.cfg.Clocks}
	for _, s := range now.shards {
		if s != nil {
			f.books(c.cfg.Map, s)
			f.eachHold(c.cfg.Map, s)
		}
	}
	if c.last != nil {
		for n, s := range now.shards {
			if s != nil && c.last.shards[n] != nil {
				f.between(c.last.shards[n], s)
			}
		}
		f.across(c.cfg.Map, c.last, now)
	}
	f.payments(c.cfg.Map, c.last, now)
	c.keep(now)
	return f.list(now, c.opsOf()), now
}

// keep remembers what was read for the next cut; of a shard that was away the
// older snapshot stays, which is as good a first round.
func (c *Checker) keep(now *world) {
	old := c.last
	c.last = &world{shards: slices.Clone(now.shards), effects: now.effects, began: now.began}
	c.stats.Cuts++
	c.stats.Entries, c.stats.Holds = 0, 0
	for n, s := range now.shards {
		if s == nil && old != nil {
			c.last.shards[n] = old.shards[n]
		}
		if s != nil {
			c.stats.Entries += len(s.entries)
			c.stats.Holds += len(s.holds)
		}
	}
	c.stats.Missed += len(now.errs)
	if len(now.errs) > 0 {
		c.stats.LastErr = now.errs[0].Error()
	}
	c.stats.Took = time.Since(now.began)
	c.stats.Worst = max(c.stats.Worst, c.stats.Took)
}

// opsOf finds the operations on a hold, for stories; it looks through the
// history only when there is something to tell.
func (c *Checker) opsOf() func(holdfast.HoldID) []workload.Op {
	if c.cfg.History == nil {
		return nil
	}
	index := sync.OnceValue(func() map[holdfast.HoldID][]workload.Op { return byHold(c.cfg.History.Ops()) })
	return func(id holdfast.HoldID) []workload.Op { return index()[id] }
}

func byHold(ops []workload.Op) map[holdfast.HoldID][]workload.Op {
	m := map[holdfast.HoldID][]workload.Op{}
	for _, o := range ops {
		if !o.Hold.IsZero() {
			m[o.Hold] = append(m[o.Hold], o)
		}
	}
	return m
}

// read takes the snapshots, all shards at once, after the payment API was asked.
func (c *Checker) read(ctx context.Context) *world {
	w := &world{shards: make([]*shard, len(c.cfg.DSNs)), began: time.Now()}
	if c.cfg.PaymentURL != "" {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
		err := c.effects.read(ctx, c.client, c.cfg.PaymentURL)
		cancel()
		if err != nil {
			w.errs = append(w.errs, err)
		} else {
			w.effects = c.effects
		}
	}
	errs := make([]error, len(w.shards))
	var all sync.WaitGroup
	for n := range w.shards {
		all.Go(func() { w.shards[n], errs[n] = c.readOne(ctx, n) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			w.errs = append(w.errs, err)
		}
	}
	return w
}

func (c *Checker) readOne(ctx context.Context, n int) (*shard, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	if err := c.connect(ctx, n); err != nil {
		return nil, err
	}
	s, err := readShard(ctx, c.conns[n], n)
	if err != nil {
		c.drop(n)
		return nil, err
	}
	return s, nil
}

func (c *Checker) connect(ctx context.Context, n int) (err error) {
	if c.conns[n] != nil && !c.conns[n].IsClosed() {
		return nil
	}
	c.conns[n], err = dial(ctx, c.cfg.DSNs[n])
	if err != nil {
		return fmt.Errorf("connect to shard %d: %w", n, err)
	}
	return nil
}

func dial(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["application_name"] = "holdfast-checker"
	// A fault must end in a missed cut and not in one that was cut short by a
	// limit that the server has for the product.
	cfg.RuntimeParams["statement_timeout"] = "0"
	return pgx.ConnectConfig(ctx, cfg)
}

// Watch makes cuts, one every so often, until ctx ends, and hands over what each
// one finds for the first time.
func (c *Checker) Watch(ctx context.Context, every time.Duration, found func([]Violation)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		list := c.Cut(ctx)
		if ctx.Err() != nil {
			return
		}
		if list = c.fresh(list); len(list) > 0 {
			found(list)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// fresh drops what was told before: a broken hold stays broken in every cut.
func (c *Checker) fresh(list []Violation) (fresh []Violation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range list {
		name := v.Invariant + v.Check + v.Hold
		if v.Hold == "" {
			name += v.Detail
		}
		if !c.told[name] {
			c.told[name] = true
			fresh = append(fresh, v)
		}
	}
	return fresh
}

// Overdue counts the holds of all shards that have matured and not ended, or
// were refused and not refunded, and says how long ago the oldest of them
// matured (I12). It uses connections of its own and waits for no cut.
func (c *Checker) Overdue(ctx context.Context) (n int, oldest time.Duration, err error) {
	n, oldest, _, err = c.pending(ctx)
	return n, oldest, err
}

// WaitSettled waits until every hold has ended, also those that mature later,
// and every refund is done.
func (c *Checker) WaitSettled(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var overdue, open int
	var oldest time.Duration
	for {
		n, late, all, err := c.pending(ctx)
		if err == nil && all == 0 {
			return nil
		}
		if err == nil {
			overdue, oldest, open = n, late, all
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d holds have not ended, %d of them are overdue, the oldest by %s: %w", open, overdue, oldest, ctx.Err()), err)
		case <-tick.C:
		}
	}
}

func (c *Checker) pending(ctx context.Context) (overdue int, oldest time.Duration, open int, err error) {
	type one struct {
		overdue, open int
		oldest        float64
	}
	all, errs := make([]one, len(c.cfg.DSNs)), make([]error, len(c.cfg.DSNs))
	var group sync.WaitGroup
	for n, dsn := range c.cfg.DSNs {
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
			defer cancel()
			conn, err := dial(ctx, dsn)
			if err == nil {
				defer conn.Close(context.WithoutCancel(ctx))
				err = conn.QueryRow(ctx, overdueSQL).Scan(&all[n].overdue, &all[n].oldest, &all[n].open)
			}
			if err != nil {
				errs[n] = fmt.Errorf("count the overdue holds of shard %d: %w", n, err)
			}
		})
	}
	group.Wait()
	for _, s := range all {
		overdue, open = overdue+s.overdue, open+s.open
		oldest = max(oldest, time.Duration(s.oldest*float64(time.Second)))
	}
	return overdue, oldest, open, errors.Join(errs...)
}
