package chaos

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

func postgresFaults() []Fault {
	return []Fault{
		{Name: "postgres-immediate-restart", Theme: "postgres", Quick: true, Covers: "6, I4", Within: recoverShard,
			About: "pg_ctl stop -m immediate of each shard in turn under load, and recovery from its log.", Strike: immediateRestarts},
		{Name: "postgres-kill", Theme: "postgres", Quick: true, Covers: "6, I4", Within: recoverShard,
			About: "kill -9 of a postmaster and all its backends.", Strike: killPostgres},
		{Name: "postgres-restart", Theme: "postgres", Quick: true, Covers: "6, I4", Within: recoverShard,
			About: "A polite restart (fast shutdown) of a shard: every connection is told to go.", Strike: restartPostgres},
		{Name: "shard-down-30s", Theme: "postgres", Heavy: true, Alone: true, Covers: "2, 3, I12", Within: recoverShard, Load: manyClients,
			About: "One shard is stopped for 30 s; the p99 of holds that live on the others stays within twice what it was.", Strike: shardDown(30 * time.Second)},
		{Name: "shard-down", Theme: "postgres", Quick: true, Alone: true, Covers: "2, 3, I12", Within: recoverShard, Load: manyClients,
			About: "One shard is stopped for five seconds.", Strike: shardDown(5 * time.Second)},
		{Name: "shard-paused", Theme: "postgres", Quick: true, Covers: "3, I12", Within: recoverShard,
			About: "SIGSTOP of a shard: connections stay open and nobody answers.", Strike: pauseShard},
		{Name: "disk-full", Theme: "postgres", Heavy: true, Covers: "I4, I12", Within: recoverShard, Can: canMount,
			About: "The disk of a shard fills up under load until PostgreSQL gives up, and is emptied again.", Strike: diskFull},
		{Name: "commit-answer-cut", Theme: "postgres", Quick: true, Covers: "2, I4, I9",
			About: "Connections to shards break right after a statement was sent: it commits, and nobody hears of it.", Strike: cutCommit(cluster.Up, true)},
		{Name: "commit-request-cut", Theme: "postgres", Quick: true, Covers: "2, I4, I9",
			About: "Connections to shards break right before a chunk arrives, a statement mostly.", Strike: cutCommit(cluster.Up, false)},
		{Name: "commit-answer-lost", Theme: "postgres", Quick: true, Covers: "2, I4, I9",
			About: "Connections to shards break when the answer of a commit comes.", Strike: cutCommit(cluster.Down, false)},
		{Name: "serialization-storm", Theme: "postgres", Quick: true, Covers: "3",
			About: "A trigger lets a third of the statements that move money fail with 40001.", Strike: errorStorm(afterUpdate, "40001", 0.33)},
		{Name: "out-of-memory-storm", Theme: "postgres", Quick: true, Covers: "3, I14",
			About: "A trigger lets a fifth of the statements that move money fail with 53200, out of memory.", Strike: errorStorm(afterUpdate, "53200", 0.2)},
		{Name: "gone-in-commit", Theme: "postgres", Quick: true, Covers: "2, 3, I7",
			About: "Transactions that touch holds end with 57P01 in their commit, when their rows are on the way already.", Strike: errorStorm(inCommit, "57P01", 0.15)},
		{Name: "deadlock-storm", Theme: "postgres", Quick: true, Covers: "3", Load: patient,
			About: "Strangers lock accounts in the wrong order, so that the product's batches are the victims of deadlocks.", Strike: deadlocks},
		{Name: "pool-exhaustion", Theme: "postgres", Quick: true, Covers: "3, I12",
			About: "All connections of a server are taken away and held by strangers for three seconds.", Strike: exhaustPool},
		{Name: "backends-terminated", Theme: "postgres", Quick: true, Covers: "3, I4",
			About: "pg_terminate_backend of every connection of the product, again and again.", Strike: terminate},
		{Name: "accounts-locked", Theme: "postgres", Quick: true, Covers: "3, I12",
			About: "A migration of somebody's holds an exclusive lock on a shard's accounts for three seconds.", Strike: lockTable},
	}
}

// patient clients give up late, so that fewer operations end as unknown.
func patient(c *workload.Config) { c.RequestTimeout, c.GiveUp = 5*time.Second, 12*time.Second }

// manyClients, of which those that wait for a shard that is away leave enough
// others for the rest.
func manyClients(c *workload.Config) {
	c.Clients, c.RequestTimeout, c.GiveUp = 192, 3*time.Second, 3*time.Second
}

func (r *Run) anyShard() int { return r.Rand.IntN(r.Cluster.Shards()) }

func immediateRestarts(ctx context.Context, r *Run) error {
	for _, i := range r.Rand.Perm(r.Cluster.Shards()) {
		p := r.Cluster.Shard(i)
		if err := p.StopImmediate(ctx); err != nil {
			return err
		}
		r.Struck(1)
		if err := p.StartAgain(ctx); err != nil {
			return err
		}
		if err := r.some(ctx, 300*time.Millisecond, 900*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func killPostgres(ctx context.Context, r *Run) error {
	p := r.Cluster.Shard(r.anyShard())
	if err := p.Kill(); err != nil {
		return err
	}
	r.Struck(1)
	if err := r.Wait(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	return p.StartAgain(ctx)
}

func restartPostgres(ctx context.Context, r *Run) error {
	for range 2 {
		if err := r.Cluster.Shard(r.anyShard()).Restart(ctx); err != nil {
			return err
		}
		r.Struck(1)
		if err := r.Wait(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// p99Floor: below it a difference is the machine's and not the product's.
const p99Floor = 100 * time.Millisecond

// shardDown stops a shard and compares the latency of holds that have nothing
// to do with it.
func shardDown(d time.Duration) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		down := r.anyShard()
		elsewhere := func(o workload.Op) bool {
			return (o.Kind == workload.KindCreate || o.Kind == workload.KindGet || o.Kind == workload.KindCancel) &&
				!o.Sender.IsZero() && !o.Recipient.IsZero() && r.World.Map.OfUser(o.Sender) != down && r.World.Map.OfUser(o.Recipient) != down
		}
		if err := r.Wait(ctx, 3*time.Second); err != nil {
			return err
		}
		began := time.Now()
		calm, _ := r.p99(r.World.History.Start, began.Add(-time.Second), elsewhere) // what came later may not be answered yet
		if err := r.Cluster.Shard(down).Stop(ctx); err != nil {
			return err
		}
		r.Struck(1)
		if err := r.Wait(ctx, d); err != nil {
			return err
		}
		// Those of the last moments may not be answered yet.
		storm, n := r.p99(began, time.Now().Add(-2*time.Second), elsewhere)
		r.Note("p99 of the other shards: %s before, %s of %d operations while shard %d was down", calm.Round(time.Millisecond), storm.Round(time.Millisecond), n, down)
		if least := int(d / (100 * time.Millisecond)); n < least {
			r.Fail("only %d operations on the other shards while one was down, at least %d are needed for a p99", n, least)
		}
		if storm > max(2*calm, p99Floor) {
			r.Fail("p99 of the other shards is %s while shard %d is down, more than twice the %s before", storm.Round(time.Millisecond), down, calm.Round(time.Millisecond))
		}
		return r.Cluster.Shard(down).StartAgain(ctx)
	}
}

func pauseShard(ctx context.Context, r *Run) error {
	p := r.Cluster.Shard(r.anyShard())
	if err := p.Pause(); err != nil {
		return err
	}
	r.Struck(1)
	err := r.Wait(ctx, 4*time.Second)
	return errors.Join(err, p.Resume())
}

// cutCommit breaks connections at a chunk on the way to or from a shard. The
// statements of a batch are their own transactions, so that one chunk carries
// the work and its commit.
func cutCommit(d cluster.Direction, after bool) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		links := r.Cluster.Links("participant", "shard")
		for range 3 {
			err := r.on(ctx, links, time.Second, func(l *cluster.Link) error { l.CutAt(d, "", after, 4); return nil })
			if err != nil {
				return err
			}
		}
		return nil
	}
}

const deadlocksSQL = `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`

// deadlocks: each stranger takes two busy accounts in descending order, slowly.
// It waits longer than the product, which is therefore the one to lose.
func deadlocks(ctx context.Context, r *Run) error {
	before, err := r.sum(ctx, deadlocksSQL)
	if err != nil {
		return err
	}
	until, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	ended := make(chan error, r.Cluster.Shards())
	for i := range r.Cluster.Shards() {
		users := r.usersOf(i)
		go func() { ended <- r.lockBackwards(until, i, users) }()
	}
	for range r.Cluster.Shards() {
		if err := <-ended; err != nil && ctx.Err() != nil {
			return err
		}
	}
	// The server tells its statistics with a delay.
	_ = r.Until(ctx, 5*time.Second, "a deadlock", func() bool {
		after, err := r.sum(ctx, deadlocksSQL)
		return err == nil && after > before
	})
	after, err := r.sum(ctx, deadlocksSQL)
	r.Struck(int(after - before))
	return err
}

// usersOf are the world's senders on a shard, the busiest first.
func (r *Run) usersOf(shard int) (out []holdfast.UserID) {
	for _, u := range r.World.Senders {
		if r.World.Map.OfUser(u) == shard {
			out = append(out, u)
		}
	}
	return out
}

func (r *Run) lockBackwards(ctx context.Context, shard int, users []holdfast.UserID) error {
	conn, err := r.connect(ctx, shard)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `SET deadlock_timeout = '1min'`); err != nil {
		return err
	}
	const lockSQL = `SELECT 1 FROM accounts WHERE user_id = $1 FOR UPDATE`
	for ctx.Err() == nil {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			busy := users[:min(4, len(users))]
			high, low := busy[0], busy[0]
			for _, u := range busy {
				if string(u[:]) > string(high[:]) {
					high = u
				}
				if string(u[:]) < string(low[:]) {
					low = u
				}
			}
			if _, err := tx.Exec(ctx, lockSQL, [16]byte(high)); err != nil {
				return err
			}
			if err := r.Wait(ctx, 150*time.Millisecond); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, lockSQL, [16]byte(low))
			return err
		})
		if err != nil && ctx.Err() == nil {
			continue // it was the victim itself
		}
	}
	return nil
}

const (
	terminateSQL = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE pid <> pg_backend_pid() AND datname = current_database() AND application_name <> 'holdfast-checker'`
	strangersMost = 500
)

// exhaustPool ends the product's connections and takes every place.
func exhaustPool(ctx context.Context, r *Run) error {
	shard := r.anyShard()
	var held []*pgx.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close(context.WithoutCancel(ctx))
		}
	}()
	first, err := r.connect(ctx, shard)
	if err != nil {
		return err
	}
	held = append(held, first)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		// A superuser has a few places of its own, which makes it the last to go.
		for len(held) < strangersMost {
			c, err := r.connect(ctx, shard)
			if err != nil {
				break
			}
			held = append(held, c)
		}
		var n int
		err := first.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND usename IS NOT NULL AND application_name LIKE 'holdfast%'
			AND application_name <> 'holdfast-checker'`).Scan(&n)
		if err != nil {
			return err
		}
		r.Struck(n)
		if err := r.Wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	r.Note("%d connections were held", len(held))
	return nil
}

func terminate(ctx context.Context, r *Run) error {
	for range 8 {
		for i := range r.Cluster.Shards() {
			var n int
			if err := r.row(ctx, i, terminateSQL, &n); err != nil {
				return err
			}
			r.Struck(n)
		}
		if err := r.some(ctx, 200*time.Millisecond, 600*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func lockTable(ctx context.Context, r *Run) error {
	conn, err := r.connect(ctx, r.anyShard())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		r.Struck(1)
		return r.Wait(ctx, 3*time.Second)
	})
}
