package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Driver is the coordinator as the scheduler sees it.
type Driver interface {
	// Drive asks for due holds of one shard to be executed and answers as soon
	// as their claims are decided; result i belongs to ids[i]. Payments go on
	// behind the answer.
	Drive(ctx context.Context, shard int, ids []holdfast.HoldID) []branch.DriveResult
	// Open reports whether the payment breaker lets calls through: it is closed
	// or half-open.
	Open(ctx context.Context) bool
}

// Shards is what the scheduler needs of a *shards.Set. The role behind Reads
// must be allowed to SELECT holds, attempts, dead_letters and watermark and to
// UPDATE watermark.
type Shards interface {
	N() int
	Reads(shard int) *pgxpool.Pool
}

// Config is what a scheduler needs. Fields left zero take the default named.
type Config struct {
	Shards   Shards
	RedisURL string // redis://, rediss:// or unix://; empty = run without Redis
	Driver   Driver
	Log      *slog.Logger
	Metrics  prometheus.Registerer

	Horizon       time.Duration // 5 min: how much of the future Redis holds
	SweepEvery    time.Duration // 1 min: how much the horizon moves at a time
	CheckEvery    time.Duration // 1 s between looks at Redis's memory and at the clocks
	DispatchEvery time.Duration // 500 ms between looks for overdue holds
	Lease         time.Duration // 10 s: how long a popped trigger may stay unanswered
	OverdueAfter  time.Duration // 2 s: from then on a hold is PostgreSQL's to drive
	ClaimMax      int           // 500 ids per batch, at most 2,000
	Workers       int           // 4 batches in flight per shard and source
	FloorMS       int           // 5 ms: the shortest sleep between two claims

	// DrainRate is how many holds per second, all shards together, a backlog
	// that an outage left is driven at; 0 = half of the capacity seen, at least
	// 500 per second and shard.
	DrainRate float64

	Now func() time.Time
}

func (c *Config) check() error {
	if c.Shards == nil || c.Driver == nil {
		return errors.New("scheduler: Shards and Driver must be set")
	}
	return c.complete()
}

// complete sets what was left zero and checks the rest.
func (c *Config) complete() error {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Horizon, 5*time.Minute)
	set(&c.SweepEvery, time.Minute)
	set(&c.CheckEvery, time.Second)
	set(&c.DispatchEvery, 500*time.Millisecond)
	set(&c.Lease, 10*time.Second)
	set(&c.OverdueAfter, 2*time.Second)
	if c.ClaimMax == 0 {
		c.ClaimMax = 500
	}
	if c.Workers == 0 {
		c.Workers = 4
	}
	if c.FloorMS == 0 {
		c.FloorMS = 5
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	for name, d := range map[string]time.Duration{"Horizon": c.Horizon, "SweepEvery": c.SweepEvery,
		"CheckEvery": c.CheckEvery, "DispatchEvery": c.DispatchEvery, "Lease": c.Lease, "OverdueAfter": c.OverdueAfter} {
		if d < time.Millisecond {
			return fmt.Errorf("scheduler: %s must be at least 1 ms, is %s", name, d)
		}
	}
	// A Lua call takes one stack slot per id and score; Redis allows about 8,000.
	if c.ClaimMax < 1 || c.ClaimMax > 2000 {
		return fmt.Errorf("scheduler: ClaimMax must be 1 to 2000, is %d", c.ClaimMax)
	}
	if c.Workers < 1 || c.FloorMS < 1 || c.DrainRate < 0 {
		return errors.New("scheduler: Workers and FloorMS must be at least 1, DrainRate not negative")
	}
	return nil
}

// reach is how far ahead a new hold is worth a trigger at once. A sweep reads
// up to horizon + one sweep ahead; a hold that commits right after that read is
// missed by it, so creates must cover that range, and a second sweep and a
// margin for clocks that differ and commits that take their time.
func (c *Config) reach() time.Duration { return c.Horizon + 2*c.SweepEvery + 10*time.Second }
