package scheduler

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

// patience is how long something that must happen may take on a busy machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) { testkit.Main(m) }

// world is shards, a Redis and a coordinator that the tests can bend.
type world struct {
	t      *testing.T
	shards *shards.Set
	redis  string
	driver *fakeDriver
}

func newWorld(t *testing.T, n int) *world {
	t.Helper()
	w := &world{t: t}
	set, err := shards.Open(t.Context(), shards.Config{DSNs: testkit.Databases(t, n), Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	w.shards = set
	w.redis = testkit.Redis(t)
	w.driver = &fakeDriver{t: t, shards: w.shards, seen: map[holdfast.HoldID]int{}, claimed: map[holdfast.HoldID]int{}}
	w.driver.open.Store(true)
	return w
}

// start runs a scheduler with quick loops; change may turn other knobs.
func (w *world) start(change func(*Config)) *Scheduler {
	w.t.Helper()
	cfg := Config{Shards: w.shards, RedisURL: w.redis, Driver: w.driver, Log: testkit.Logger(w.t),
		CheckEvery: 50 * time.Millisecond, DispatchEvery: 50 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Start(w.t.Context())
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			w.t.Error(err)
		}
	})
	return s
}

const insertSQL = `
INSERT INTO holds (id, sender, recipient, amount, unlock_at, created_at, status, currency, cancelled_at)
VALUES ($1, gen_random_uuid(), gen_random_uuid(), 1, $2, now(), $3::smallint, 'RBX', CASE $3::smallint WHEN 5 THEN now() END)`

// dueAttemptSQL writes a row of attempts that is due in $2.
const dueAttemptSQL = `INSERT INTO attempts (hold_id, next_at, n, active_ms, last_error) VALUES ($1, now() + $2::interval, 1, 0, '')`

// newID is an id that matures in some time from now.
func newID(in time.Duration) holdfast.HoldID {
	return holdfast.NewHoldID(time.Now().Add(in).UnixMilli(), rand.IntN(holdfast.Buckets), rand.Uint64())
}

// hold writes one PENDING hold.
func (w *world) hold(shard int, in time.Duration) holdfast.HoldID {
	w.t.Helper()
	id := newID(in)
	w.exec(shard, insertSQL, [16]byte(id), id.UnlockAt(), int16(holdfast.Pending))
	return id
}

func (w *world) holds(shard, n int, in, apart time.Duration) (out []holdfast.HoldID) {
	w.t.Helper()
	for i := range n {
		out = append(out, w.hold(shard, in+time.Duration(i)*apart))
	}
	return out
}

func (w *world) exec(shard int, sql string, args ...any) {
	w.t.Helper()
	if _, err := w.shards.Owner(shard).Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) watermark(shard int) (id holdfast.HoldID) {
	w.t.Helper()
	if err := w.shards.Owner(shard).QueryRow(w.t.Context(), `SELECT id FROM watermark`).Scan((*[16]byte)(&id)); err != nil {
		w.t.Fatal(err)
	}
	return id
}

// pending counts the triggers of a shard.
func (w *world) pending(s *Scheduler, shard int) int64 {
	w.t.Helper()
	n, err := s.zset.rdb.ZCard(w.t.Context(), fmt.Sprintf("pending_triggers:{%d}", shard)).Result()
	if err != nil {
		return -1
	}
	return n
}

func (w *world) waitPending(s *Scheduler, shard int, want int64) {
	w.t.Helper()
	testkit.Eventually(w.t, patience, func() (bool, string) {
		n := w.pending(s, shard)
		return n == want, fmt.Sprintf("%d triggers pending, want %d; status %+v", n, want, s.Status(w.t.Context()))
	})
}

// waitClaimed waits until every id was claimed.
func (w *world) waitClaimed(s *Scheduler, ids []holdfast.HoldID) {
	w.t.Helper()
	testkit.Eventually(w.t, patience, func() (bool, string) {
		w.driver.mu.Lock()
		defer w.driver.mu.Unlock()
		for _, id := range ids {
			if w.driver.claimed[id] == 0 {
				return false, fmt.Sprintf("%s was seen %d times and not claimed; status %+v", id, w.driver.seen[id], s.Status(w.t.Context()))
			}
		}
		return true, ""
	})
}

// fakeDriver stands for the coordinator: it ends a due PENDING hold at once.
type fakeDriver struct {
	t      *testing.T
	shards *shards.Set
	open   atomic.Bool
	// bend answers instead of the shard when it says so.
	bend func(shard int, id holdfast.HoldID) (branch.DriveResult, bool)

	mu      sync.Mutex
	seen    map[holdfast.HoldID]int
	claimed map[holdfast.HoldID]int
	order   []holdfast.HoldID
	early   []holdfast.HoldID
}

func (d *fakeDriver) Open(context.Context) bool { return d.open.Load() }

const endSQL = `
UPDATE holds SET status = 3, verdict = 1, claimed_at = coalesce(claimed_at, now()), next_attempt_at = now(), executed_at = now()
WHERE id = ANY($1) AND status IN (1, 2) AND unlock_at <= clock_timestamp() RETURNING id`

func (d *fakeDriver) Drive(ctx context.Context, shard int, ids []holdfast.HoldID) []branch.DriveResult {
	out := make([]branch.DriveResult, len(ids))
	var ask [][16]byte
	d.mu.Lock()
	for i, id := range ids {
		d.seen[id]++
		if id.UnlockAtMS() > time.Now().UnixMilli() {
			d.early = append(d.early, id)
		}
		if d.bend != nil {
			if r, ok := d.bend(shard, id); ok {
				out[i] = r
				continue
			}
		}
		ask = append(ask, id)
	}
	d.mu.Unlock()
	rows, err := d.shards.Money(shard).Query(ctx, endSQL, ask)
	if err != nil {
		return nil
	}
	ended := map[holdfast.HoldID]bool{}
	for rows.Next() {
		var id [16]byte
		if err := rows.Scan(&id); err != nil {
			d.t.Error(err)
		}
		ended[id] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, id := range ids {
		switch {
		case out[i].Code != "":
		case ended[id]:
			out[i].Code = branch.CodeClaimed
			d.claimed[id]++
			d.order = append(d.order, id)
		default:
			out[i].Code = branch.CodeEnded
		}
	}
	return out
}

func (d *fakeDriver) timesSeen(id holdfast.HoldID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen[id]
}
