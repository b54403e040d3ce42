package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Bounds of one conversation with Redis.
const (
	redisTimeout = time.Second // dial, read and write
	addChunk     = 500         // members per ZADD of a pipeline
	// addTimeout is for one pipeline of adds, which may be long.
	addTimeout = 5 * time.Second
)

// claimScript moves due triggers to the in-flight set with the end of their
// lease as score, after it has put back those whose lease is over. Time is
// Redis's own, so that schedulers with other clocks agree on what is due.
// Answers: now, when the next thing happens (-1 = nothing waits), ids.
var claimScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local max = tonumber(ARGV[1])
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, max)
if #over > 0 then
  local back = {}
  for i, id in ipairs(over) do back[2*i-1] = now; back[2*i] = id end
  redis.call('ZREM', KEYS[2], unpack(over))
  redis.call('ZADD', KEYS[1], unpack(back))
end
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, max)
if #due > 0 then
  local lease, taken = now + tonumber(ARGV[2]), {}
  for i, id in ipairs(due) do taken[2*i-1] = lease; taken[2*i] = id end
  redis.call('ZREM', KEYS[1], unpack(due))
  redis.call('ZADD', KEYS[2], unpack(taken))
end
local next = -1
for _, key in ipairs(KEYS) do
  local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if head[2] and (next < 0 or tonumber(head[2]) < next) then next = tonumber(head[2]) end
end
return {now, next, due}`)

// backScript ends leases early: trigger ARGV[i] is due again in ARGV[i+1] ms.
// Answers the earliest new score.
var backScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local first = -1
for i = 1, #ARGV, 2 do
  local at = now + tonumber(ARGV[i+1])
  redis.call('ZREM', KEYS[2], ARGV[i])
  redis.call('ZADD', KEYS[1], at, ARGV[i])
  if first < 0 or at < first then first = at end
end
return first`)

// renewScript keeps the sweep lock if it is still ours.
var renewScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`)

// sweptScript records a finished sweep and gives the lock up. It does nothing
// when the lock is no longer ours or the epoch changed under a partial sweep:
// then Redis forgot something meanwhile, and what we added may be among it.
// ARGV: token, epoch seen before, epoch to write, swept up to (ms).
var sweptScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == ARGV[3] and redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('SET', KEYS[3], ARGV[4])
redis.call('DEL', KEYS[1])
return 1`)

// unlockScript gives the sweep lock up without a result.
var unlockScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)

// errNoRedis is the state of a scheduler that was given no Redis.
var errNoRedis = errors.New("no Redis is configured")

// zset is Redis as the scheduler uses it; the only place that knows go-redis.
type zset struct {
	rdb *redis.Client // nil without Redis
}

func key(kind string, shard int) string { return kind + ":{" + strconv.Itoa(shard) + "}" }

func triggerKeys(shard int) []string {
	return []string{key("pending_triggers", shard), key("inflight_triggers", shard)}
}

// quiet sends what go-redis wants to say to the log: the state changes that a
// person must know are logged by the scheduler itself.
type quiet struct{ log *slog.Logger }

func (q quiet) Printf(ctx context.Context, format string, v ...any) {
	q.log.DebugContext(ctx, "redis client", "message", fmt.Sprintf(format, v...))
}

func newZset(url string, conns int, log *slog.Logger) (*zset, error) {
	if url == "" {
		return &zset{}, nil
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("read the Redis URL: %w", err)
	}
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = redisTimeout, redisTimeout, redisTimeout
	opts.PoolTimeout = redisTimeout
	opts.PoolSize = conns
	opts.MaxRetries = 1
	opts.DialerRetries = 1
	opts.ContextTimeoutEnabled = true
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	redis.SetLogger(quiet{log})
	return &zset{rdb: redis.NewClient(opts)}, nil
}

func (z *zset) close() error {
	if z.rdb == nil {
		return nil
	}
	if err := z.rdb.Close(); err != nil {
		return fmt.Errorf("close the Redis client: %w", err)
	}
	return nil
}

// claimed is one answer of claimScript, times in Redis's ms.
type claimed struct {
	nowMS  int64
	nextMS int64 // -1 = nothing waits
	ids    []holdfast.HoldID
}

func (z *zset) claim(ctx context.Context, shard, most int, lease time.Duration) (claimed, error) {
	if z.rdb == nil {
		return claimed{}, errNoRedis
	}
	r, err := claimScript.Run(ctx, z.rdb, triggerKeys(shard), most, lease.Milliseconds()).Slice()
	if err != nil {
		return claimed{}, fmt.Errorf("claim triggers: %w", err)
	}
	if len(r) != 3 {
		return claimed{}, fmt.Errorf("claim triggers: %d values instead of 3", len(r))
	}
	now, _ := r[0].(int64)
	next, _ := r[1].(int64)
	members, _ := r[2].([]any)
	c := claimed{nowMS: now, nextMS: next, ids: make([]holdfast.HoldID, 0, len(members))}
	for _, m := range members {
		// A member that is no id was not written by us; it stays in flight,
		// comes back when its lease is over and is never driven.
		if s, ok := m.(string); ok && len(s) == len(holdfast.HoldID{}) {
			c.ids = append(c.ids, holdfast.HoldID([]byte(s)))
		}
	}
	if len(c.ids) > 0 {
		err = failpoint.Hit(pointZsetClaimed)
	}
	return c, err
}

// forget drops triggers that are in flight.
func (z *zset) forget(ctx context.Context, shard int, ids []holdfast.HoldID) error {
	if len(ids) == 0 {
		return nil
	}
	members := make([]any, len(ids))
	for i := range ids {
		members[i] = ids[i][:]
	}
	if err := z.rdb.ZRem(ctx, triggerKeys(shard)[1], members...).Err(); err != nil {
		return fmt.Errorf("forget triggers: %w", err)
	}
	return nil
}

// putBack makes triggers in flight pending again; ids[i] is due in inMS[i].
// Answers the earliest new score.
func (z *zset) putBack(ctx context.Context, shard int, ids []holdfast.HoldID, inMS []int64) (int64, error) {
	args := make([]any, 0, 2*len(ids))
	for i := range ids {
		args = append(args, ids[i][:], inMS[i])
	}
	first, err := backScript.Run(ctx, z.rdb, triggerKeys(shard), args...).Int64()
	if err != nil {
		return 0, fmt.Errorf("put triggers back: %w", err)
	}
	return first, nil
}

// add makes triggers pending, due at the maturity in their id. A trigger that
// is there already keeps its score: it may have been put back for good reason.
func (z *zset) add(ctx context.Context, shard int, ids []holdfast.HoldID) error {
	if z.rdb == nil {
		return errNoRedis
	}
	if err := failpoint.Hit(pointBeforeAdd); err != nil {
		return err
	}
	pipe := z.rdb.Pipeline()
	for len(ids) > 0 {
		n := min(addChunk, len(ids))
		members := make([]redis.Z, n)
		for i, id := range ids[:n] {
			members[i] = redis.Z{Score: float64(id.UnlockAtMS()), Member: id[:]}
		}
		pipe.ZAddNX(ctx, triggerKeys(shard)[0], members...)
		ids = ids[n:]
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("add triggers: %w", err)
	}
	return failpoint.Hit(pointAfterAdd)
}

// memory is what Redis remembers of one shard.
type memory struct {
	runID     string // of the Redis process
	nowMS     int64  // Redis's clock
	epoch     string
	sweptToMS int64
	pending   int64
	inflight  int64
}

// filledAtMS is when the fill that wrote the epoch was finished, by Redis's
// clock; 0 when there is no epoch or another Redis process wrote it: a
// restarted or promoted Redis may have lost whatever came after its last save.
func (m memory) filledAtMS() int64 {
	run, rest, _ := strings.Cut(m.epoch, ":")
	at, _, _ := strings.Cut(rest, ":")
	ms, err := strconv.ParseInt(at, 10, 64)
	if err != nil || run != m.runID {
		return 0
	}
	return ms
}

// look reads what Redis remembers of some shards in one round trip. It also
// writes, because a Redis that only answers reads is of no use here.
func (z *zset) look(ctx context.Context, shards ...int) ([]memory, error) {
	if z.rdb == nil {
		return nil, errNoRedis
	}
	type cmds struct {
		epoch, swept      *redis.StringCmd
		pending, inflight *redis.IntCmd
	}
	pipe := z.rdb.Pipeline()
	clock, info := pipe.Time(ctx), pipe.Info(ctx, "server")
	asked := make([]cmds, len(shards))
	for i, n := range shards {
		pipe.Set(ctx, key("scheduler_seen", n), 1, time.Minute)
		k := triggerKeys(n)
		asked[i] = cmds{pipe.Get(ctx, key("epoch", n)), pipe.Get(ctx, key("sweep", n)),
			pipe.ZCard(ctx, k[0]), pipe.ZCard(ctx, k[1])}
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("look at Redis: %w", err)
	}
	if err := clock.Err(); err != nil {
		return nil, fmt.Errorf("read Redis's clock: %w", err)
	}
	_, run, _ := strings.Cut(info.Val(), "run_id:")
	run, _, _ = strings.Cut(run, "\r\n")
	out := make([]memory, len(shards))
	for i, a := range asked {
		swept, _ := a.swept.Int64()
		out[i] = memory{runID: run, nowMS: clock.Val().UnixMilli(), epoch: a.epoch.Val(), sweptToMS: swept,
			pending: a.pending.Val(), inflight: a.inflight.Val()}
	}
	return out, nil
}

// countTriggers counts what waits in Redis with a score from one ms to before
// another.
func (z *zset) countTriggers(ctx context.Context, shard int, fromMS, toMS int64) (int64, error) {
	n, err := z.rdb.ZCount(ctx, triggerKeys(shard)[0], strconv.FormatInt(fromMS, 10), "("+strconv.FormatInt(toMS, 10)).Result()
	if err != nil {
		return 0, fmt.Errorf("count triggers: %w", err)
	}
	return n, nil
}

func (z *zset) lock(ctx context.Context, shard int, token string, ttl time.Duration) (bool, error) {
	ok, err := z.rdb.SetNX(ctx, key("sweep_lock", shard), token, ttl).Result()
	if err != nil {
		return false, fmt.Errorf("take the sweep lock: %w", err)
	}
	return ok, nil
}

func (z *zset) renew(ctx context.Context, shard int, token string, ttl time.Duration) (bool, error) {
	n, err := renewScript.Run(ctx, z.rdb, []string{key("sweep_lock", shard)}, token, ttl.Milliseconds()).Int()
	if err != nil {
		return false, fmt.Errorf("renew the sweep lock: %w", err)
	}
	return n == 1, nil
}

func (z *zset) unlock(ctx context.Context, shard int, token string) error {
	return unlockScript.Run(ctx, z.rdb, []string{key("sweep_lock", shard)}, token).Err()
}

// swept records that everything before toMS has been added; false = the lock
// or Redis's memory was lost meanwhile and nothing was recorded.
func (z *zset) swept(ctx context.Context, shard int, token, before, epoch string, toMS int64) (bool, error) {
	keys := []string{key("sweep_lock", shard), key("epoch", shard), key("sweep", shard)}
	n, err := sweptScript.Run(ctx, z.rdb, keys, token, before, epoch, toMS).Int()
	if err != nil {
		return false, fmt.Errorf("record the sweep: %w", err)
	}
	return n == 1, failpoint.Hit(pointSweepMoved)
}
