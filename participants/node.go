// Package participants moves money on its shards, at most once per (gid,
// branch, op). It owns the ledger's SQL, the barrier, the batching lanes and the
// branch endpoints. It decides nothing about a hold's fate: it is told a step,
// does it once or says why not. It must not know the payment API, Redis or the
// public API.
package participants

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a participant needs.
type Config struct {
	Shards   *shards.Set
	Log      *slog.Logger
	Metrics  prometheus.Registerer
	Lanes    int           // batches in flight per step and shard; default 1: a second makes both smaller
	MaxBatch int           // items in a batch; default 500
	MaxQueue int           // items waiting per step and shard; default 8,192
	Pace     time.Duration // least time between the starts of two batches of a step that moves money; default 4 ms
	// OnImpossible is called with the numbers of a state that no path leads to.
	// Tests make it panic; nil only logs and quarantines.
	OnImpossible func(string)
	// Now is the time that signed requests must bear; default time.Now. Money
	// moves by the shard's clock alone.
	Now func() time.Time
}

// defaultPace keeps batches large under load: a batch costs about a
// millisecond of the server's time whatever is in it, an item a tenth of that
// or less. An item that comes after a pause does not wait.
const defaultPace = 4 * time.Millisecond

// Node is a participant: it answers branch requests for all its shards. It is
// a branch.Transport, so that a coordinator in the same process calls it
// without going through HTTP.
type Node struct {
	cfg     Config
	epoch   int64
	log     *slog.Logger
	metrics *metrics
	ops     map[string]op
	shards  []*shardLanes
}

// New makes a participant for every shard of the set.
func New(cfg Config) (*Node, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Lanes == 0 {
		cfg.Lanes = 1
	}
	if cfg.Pace == 0 {
		cfg.Pace = defaultPace
	}
	if cfg.Shards == nil || cfg.Shards.Map() == nil {
		return nil, fmt.Errorf("participants: no shards")
	}
	n := &Node{cfg: cfg, epoch: cfg.Shards.Map().Epoch, log: cfg.Log, metrics: newMetrics(cfg.Metrics, cfg.Shards)}
	for i := range cfg.Shards.N() {
		l := &ledger{shard: i, epoch: n.epoch, pool: cfg.Shards.Money(i), reads: cfg.Shards.Reads(i), shardMap: cfg.Shards.Map(),
			log: cfg.Log.With("shard", i), metrics: n.metrics, impossible: cfg.OnImpossible}
		n.shards = append(n.shards, newShardLanes(l, cfg))
	}
	n.ops = n.table()
	return n, nil
}

// Send implements branch.Transport within one process: in and out are the Go
// values themselves.
func (n *Node) Send(ctx context.Context, shard int, name string, in, out any) error {
	if shard < 0 || shard >= len(n.shards) {
		return fmt.Errorf("%w: there is no shard %d", holdfast.ErrShardUnavailable, shard)
	}
	o, known := n.ops[name]
	if !known {
		return fmt.Errorf("%w: there is no step %q", holdfast.ErrInvalid, name)
	}
	return o.local(ctx, shard, in, out)
}

// Close waits for the batches in flight, no longer than ctx.
func (n *Node) Close(ctx context.Context) {
	var all sync.WaitGroup
	for _, s := range n.shards {
		all.Go(func() { s.close(ctx) })
	}
	all.Wait()
}

// table is every step of the branch protocol. Steps that move money go through
// the lanes of their shard, the rest is one call each.
func (n *Node) table() map[string]op {
	l := func(shard int) *shardLanes { return n.shards[shard] }
	r := func(shard int) *ledger { return n.shards[shard].ledger }
	return map[string]op{
		branch.OpCheck:    batched(n, func(s int) doer[branch.CheckItem, branch.CheckResult] { return l(s).check }),
		branch.OpTry:      batched(n, func(s int) doer[branch.TryItem, branch.TryResult] { return l(s).try }),
		branch.OpGet:      batched(n, func(s int) doer[branch.IDItem, branch.HoldResult] { return l(s).get }),
		branch.OpClaim:    batched(n, func(s int) doer[branch.ClaimItem, branch.ClaimResult] { return l(s).claim }),
		branch.OpSettle:   batched(n, func(s int) doer[branch.SettleItem, branch.HoldResult] { return l(s).settle }),
		branch.OpRefuse:   batched(n, func(s int) doer[branch.RefuseItem, branch.HoldResult] { return l(s).refuse }),
		branch.OpCredit:   batched(n, func(s int) doer[branch.CreditItem, branch.CodeResult] { return l(s).credit }),
		branch.OpExecuted: batched(n, func(s int) doer[branch.IDItem, branch.HoldResult] { return l(s).executed }),
		branch.OpDefer:    batched(n, func(s int) doer[branch.DeferItem, branch.CodeResult] { return l(s).deferral }),
		branch.OpRefund:   batched(n, func(s int) doer[branch.IDItem, branch.HoldResult] { return l(s).refund }),
		branch.OpCancel:   batched(n, func(s int) doer[branch.CancelItem, branch.HoldResult] { return l(s).cancel }),
		branch.OpCash:     batched(n, func(s int) doer[branch.CashItem, branch.CashResult] { return cashDoer{l(s)} }),

		branch.OpList: reading(n, list), branch.OpAccount: reading(n, readAccount), branch.OpStatement: reading(n, statement),
		branch.OpAdminHolds: reading(n, adminHolds), branch.OpDeadLetters: reading(n, deadLetters),
		branch.OpUnrefunded: reading(n, unrefunded), branch.OpTransit: reading(n, transit),
		branch.OpOpen: writing(n, openAccount), branch.OpSetStatus: writing(n, setStatus),
		branch.OpRetry: writing(n, retry), branch.OpClose: writing(n, closeDeadLetters), branch.OpResolve: writing(n, resolve),
		branch.OpDetail: single(n, func(ctx context.Context, s int, q branch.DetailRequest) (branch.DetailAnswer, error) {
			return detail(ctx, r(s).reads, s, q)
		}),
		branch.OpAudit: single(n, func(ctx context.Context, s int, q branch.AdminListRequest) (branch.AuditAnswer, error) {
			return audit(ctx, r(s).reads, s, q)
		}),
		branch.OpStatus: single(n, func(ctx context.Context, s int, _ struct{}) (branch.ShardStatus, error) {
			return status(ctx, r(s).reads, s)
		}),
		branch.OpProve: single(n, func(ctx context.Context, s int, _ struct{}) (branch.ShardProof, error) {
			return prove(ctx, r(s).reads, s)
		}),
	}
}

// reading makes the op of a read on one shard.
func reading[I, O any](n *Node, do func(context.Context, *pgxpool.Pool, I) (O, error)) op {
	return single(n, func(ctx context.Context, s int, in I) (O, error) { return do(ctx, n.shards[s].reads, in) })
}

// writing makes the op of a transaction that no batch carries; it checks the
// epoch of the shard map like the batches do.
func writing[I, O any](n *Node, do func(context.Context, *pgxpool.Pool, int64, I) (O, error)) op {
	return single(n, func(ctx context.Context, s int, in I) (O, error) { return do(ctx, n.shards[s].pool, n.epoch, in) })
}
