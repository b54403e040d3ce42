package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

// What a Strike has in hand besides the cluster.

// Payments sets the faults of the payment API. The refusable are always refused.
func (r *Run) Payments(ctx context.Context, f paysim.Faults) error {
	f.Banned = append(slices.Clone(f.Banned), r.World.Refusable...)
	if f.Seed == 0 {
		f.Seed = uint64(r.Seed)
	}
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return r.sim(ctx, http.MethodPut, "/sim/faults", "", body, nil)
}

// PayStats is what the simulator has counted since it started.
func (r *Run) PayStats(ctx context.Context) (s paysim.Stats, err error) {
	err = r.sim(ctx, http.MethodGet, "/sim/stats", "", nil, &s)
	return s, err
}

// struckBySim is how often the simulator struck with one of some modes.
func struckBySim(s paysim.Stats, modes ...string) (n int) {
	for _, m := range modes {
		n += s.Struck[m]
	}
	return n
}

func (r *Run) sim(ctx context.Context, method, path, key string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, r.Cluster.PaymentAdmin()+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the payment simulator: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s of the payment simulator: %d %s %w", method, path, resp.StatusCode, bytes.TrimSpace(text), err)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// API is a client of one coordinator, past no link on the admin side.
func (r *Run) API(i int) *apiclient.Client {
	return &apiclient.Client{API: r.Cluster.APIs()[i], Admin: r.Cluster.Admins()[i], Token: r.Cluster.Token()}
}

// connect is the owner's way to a shard, past every link.
func (r *Run) connect(ctx context.Context, shard int) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.Cluster.DSN(shard))
	if err != nil {
		return nil, fmt.Errorf("connect to shard %d: %w", shard, err)
	}
	return conn, nil
}

// exec runs a statement as the owner of a shard.
func (r *Run) exec(ctx context.Context, shard int, sql string, args ...any) error {
	conn, err := r.connect(ctx, shard)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err = conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("on shard %d: %w", shard, err)
	}
	return nil
}

// row reads one value of a shard.
func (r *Run) row(ctx context.Context, shard int, sql string, into any, args ...any) error {
	conn, err := r.connect(ctx, shard)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err = conn.QueryRow(ctx, sql, args...).Scan(into); err != nil {
		return fmt.Errorf("on shard %d: %w", shard, err)
	}
	return nil
}

// sum adds a number up over all shards.
func (r *Run) sum(ctx context.Context, sql string, args ...any) (total int64, err error) {
	for i := range r.Cluster.Shards() {
		var n int64
		if err := r.row(ctx, i, sql, &n, args...); err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// since is the first hold id that can be of this run.
func (r *Run) since() [16]byte {
	return holdfast.NewHoldID(r.World.History.Start.UnixMilli(), 0, 0)
}

const lagSQL = `SELECT coalesce(max(extract(epoch FROM executed_at - unlock_at) * 1000), 0)::bigint FROM holds WHERE id >= $1 AND status = 3`

func (r *Run) worstLag(ctx context.Context) (worst int64) {
	for i := range r.Cluster.Shards() {
		var n int64
		if r.row(ctx, i, lagSQL, &n, r.since()) == nil {
			worst = max(worst, n)
		}
	}
	return worst
}

// redis is a client of Redis, past every link.
func (r *Run) redis() (*redis.Client, error) {
	opts, err := redis.ParseURL(r.Cluster.RedisURL())
	if err != nil {
		return nil, err
	}
	opts.DisableIdentity = true
	return redis.NewClient(opts), nil
}

// p99 of the operations that were called between two times and pass a filter.
func (r *Run) p99(from, to time.Time, keep func(workload.Op) bool) (time.Duration, int) {
	var took []int64
	h := r.World.History
	low, high := int64(from.Sub(h.Start)), int64(to.Sub(h.Start))
	for _, o := range h.Ops() {
		if o.Call < low || o.Call >= high || !keep(o) {
			continue
		}
		end := o.Return
		if end == workload.Never {
			end = math.MaxInt64
		}
		took = append(took, end-o.Call)
	}
	if len(took) == 0 {
		return 0, 0
	}
	slices.Sort(took)
	return time.Duration(took[min(len(took)-1, len(took)*99/100)]), len(took)
}
