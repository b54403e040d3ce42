package chaos

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/holdfast-escrow/holdfast"
)

func redisFaults() []Fault {
	return []Fault{
		{Name: "redis-flushall", Theme: "redis", Quick: true, Covers: "5, I12", About: "FLUSHALL, several times under load.", Strike: flush},
		{Name: "redis-killed-empty", Theme: "redis", Quick: true, Covers: "5, I12", About: "kill -9 of Redis, which comes back empty.", Strike: killRedis},
		{Name: "redis-killed-stale", Theme: "redis", Quick: true, Covers: "5, I8, I12", About: "kill -9 of Redis, which comes back with an old copy of its data: epoch, watermark, locks and all.", Strike: staleRedis},
		{Name: "redis-down", Theme: "redis", Quick: true, Covers: "5, I12", About: "Redis is down for ten seconds (ten minutes, scaled); holds are driven from PostgreSQL.", Strike: redisDown},
		{Name: "redis-paused", Theme: "redis", Quick: true, Covers: "5, I12", About: "SIGSTOP of Redis: connections are open and nobody answers.", Strike: pauseRedis},
		{Name: "redis-read-only", Theme: "redis", Quick: true, Covers: "5, I12", About: "Redis refuses every write, as one without memory does.", Strike: fullRedis},
		{Name: "triggers-duplicated", Theme: "redis", Quick: true, Covers: "2, I7", About: "Every trigger is put back right after it was taken: each hold is triggered again and again.", Strike: tamper(duplicates)},
		{Name: "triggers-reordered", Theme: "redis", Quick: true, Covers: "2, I8", About: "Triggers get random scores around their own.", Strike: tamper(reorder)},
		{Name: "triggers-early", Theme: "redis", Quick: true, Covers: "2, I8", About: "Every trigger is due at once; no hold may be claimed before its maturity.", Strike: tamper(early)},
		{Name: "triggers-forged", Theme: "redis", Quick: true, Covers: "2, I7, I8", About: "Triggers of holds that do not exist, of other shards' holds, and of no ids at all.", Strike: tamper(forge)},
		{Name: "triggers-stolen", Theme: "redis", Quick: true, Covers: "5, I12", About: "Triggers vanish from Redis without a trace.", Strike: tamper(steal)},
		{Name: "two-sweepers-one-lock", Theme: "redis", Quick: true, Covers: "5", About: "The sweep lock is taken from whoever has it, so that both schedulers sweep at once: the watermark is moved by one of them only.", Strike: tamper(shareLocks)},
	}
}

func flush(ctx context.Context, r *Run) error {
	for range 5 {
		if _, err := r.Cluster.Redis.Command(ctx, 0, "FLUSHALL"); err != nil {
			return err
		}
		r.Struck(1)
		if err := r.some(ctx, 300*time.Millisecond, 900*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func killRedis(ctx context.Context, r *Run) error {
	for range 2 {
		if err := r.Cluster.Redis.Kill(); err != nil {
			return err
		}
		r.Struck(1)
		if err := r.some(ctx, 200*time.Millisecond, time.Second); err != nil {
			return err
		}
		if err := r.Cluster.Redis.StartAgain(ctx); err != nil {
			return err
		}
		if err := r.Wait(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// staleRedis copies everything, lets the world go on, and brings the copy back
// into a new process, as a replica that was behind would.
func staleRedis(ctx context.Context, r *Run) error {
	rdb, err := r.redis()
	if err != nil {
		return err
	}
	defer rdb.Close()
	copied := map[string]string{}
	for keys := rdb.Scan(ctx, 0, "*", 1000).Iterator(); keys.Next(ctx); {
		if dump, err := rdb.Dump(ctx, keys.Val()).Result(); err == nil {
			copied[keys.Val()] = dump
		}
	}
	if err := r.Wait(ctx, 2500*time.Millisecond); err != nil {
		return err
	}
	if err := r.Cluster.Redis.Kill(); err != nil {
		return err
	}
	if err := r.Cluster.Redis.StartAgain(ctx); err != nil {
		return err
	}
	for key, dump := range copied {
		if err := rdb.RestoreReplace(ctx, key, 0, dump).Err(); err != nil {
			return fmt.Errorf("restore %s: %w", key, err)
		}
		r.Struck(1)
	}
	return r.Wait(ctx, 2*time.Second)
}

func redisDown(ctx context.Context, r *Run) error {
	if err := r.Cluster.Redis.Kill(); err != nil {
		return err
	}
	r.Struck(1)
	return r.Wait(ctx, 10*time.Second)
}

func pauseRedis(ctx context.Context, r *Run) error {
	if err := r.Cluster.Redis.Pause(); err != nil {
		return err
	}
	r.Struck(1)
	if err := r.Wait(ctx, 4*time.Second); err != nil {
		return err
	}
	return r.Cluster.Redis.Resume()
}

func fullRedis(ctx context.Context, r *Run) error {
	rdb, err := r.redis()
	if err != nil {
		return err
	}
	defer rdb.Close()
	if err := rdb.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		return err
	}
	r.Struck(1)
	err = r.Wait(ctx, 4*time.Second)
	if back := rdb.ConfigSet(context.WithoutCancel(ctx), "maxmemory", "0").Err(); err == nil {
		err = back
	}
	return err
}

// meddler does something to the triggers of one shard and says how many it hit.
type meddler func(ctx context.Context, r *Run, rdb *redis.Client, shard int) (int, error)

// tamper lets a meddler work for four seconds.
func tamper(m meddler) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		rdb, err := r.redis()
		if err != nil {
			return err
		}
		defer rdb.Close()
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
			for shard := range r.Cluster.Shards() {
				n, err := m(ctx, r, rdb, shard)
				if err != nil {
					return err
				}
				r.Struck(n)
			}
			if err := r.Wait(ctx, 20*time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	}
}

func pendingKey(shard int) string  { return "pending_triggers:{" + strconv.Itoa(shard) + "}" }
func inflightKey(shard int) string { return "inflight_triggers:{" + strconv.Itoa(shard) + "}" }

func duplicates(ctx context.Context, _ *Run, rdb *redis.Client, shard int) (int, error) {
	taken, err := rdb.ZRange(ctx, inflightKey(shard), 0, 99).Result()
	if err != nil {
		return 0, err
	}
	for _, id := range taken {
		if err := rdb.ZAdd(ctx, pendingKey(shard), redis.Z{Score: float64(time.Now().UnixMilli()), Member: id}).Err(); err != nil {
			return 0, err
		}
	}
	// Those that are long over, too: the last holds of the history.
	return len(taken), nil
}

func reorder(ctx context.Context, r *Run, rdb *redis.Client, shard int) (int, error) {
	all, err := rdb.ZRangeWithScores(ctx, pendingKey(shard), 0, 99).Result()
	if err != nil {
		return 0, err
	}
	for i := range all {
		all[i].Score += float64(r.Rand.IntN(3000) - 1500)
	}
	if len(all) == 0 {
		return 0, nil
	}
	return len(all), rdb.ZAddXX(ctx, pendingKey(shard), all...).Err()
}

func early(ctx context.Context, _ *Run, rdb *redis.Client, shard int) (int, error) {
	all, err := rdb.ZRangeWithScores(ctx, pendingKey(shard), 0, 199).Result()
	if err != nil || len(all) == 0 {
		return 0, err
	}
	for i := range all {
		all[i].Score = 1
	}
	return len(all), rdb.ZAddXX(ctx, pendingKey(shard), all...).Err()
}

func forge(ctx context.Context, r *Run, rdb *redis.Client, shard int) (int, error) {
	now := time.Now().UnixMilli()
	nobody := holdfast.NewHoldID(now, 0, r.Rand.Uint64())
	z := []redis.Z{
		{Score: 1, Member: "not an id"},
		{Score: float64(now), Member: string(nobody[:])},
		{Score: float64(now), Member: ""},
	}
	for id := range r.World.History.Lifetimes() {
		if id.UnlockAtMS() > now {
			z = append(z, redis.Z{Score: float64(now), Member: string(id[:])}) // of any shard, and not due
		}
		if len(z) > 20 {
			break
		}
	}
	return len(z), rdb.ZAdd(ctx, pendingKey(shard), z...).Err()
}

func steal(ctx context.Context, _ *Run, rdb *redis.Client, shard int) (int, error) {
	n, err := rdb.ZRemRangeByRank(ctx, pendingKey(shard), 0, 4).Result()
	return int(n), err
}

// shareLocks takes the lock away from whoever has it, so that the other one
// gets it too. A scheduler has no name: each sweep is known by a token of its
// own, so two of them cannot be taken for one.
func shareLocks(ctx context.Context, r *Run, rdb *redis.Client, shard int) (int, error) {
	key := "sweep_lock:{" + strconv.Itoa(shard) + "}"
	if err := rdb.Set(ctx, "sweep:{"+strconv.Itoa(shard)+"}", 0, 0).Err(); err != nil { // there is always something to sweep
		return 0, err
	}
	n, err := rdb.Del(ctx, key).Result()
	return int(n), err
}
