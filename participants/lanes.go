package participants

import (
	"context"
	"sync"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/lane"
)

// doer runs items of one step, in batches, on one shard.
type doer[I, O any] interface {
	Do(ctx context.Context, items []I) ([]O, error)
}

// shardLanes are the lanes of one shard: one set per step, so that a slow kind
// never delays another. No batch holds two items of one hold, or of one key.
type shardLanes struct {
	*ledger
	check    *lane.Lanes[branch.CheckItem, struct{}, branch.CheckResult]
	get      *lane.Lanes[branch.IDItem, struct{}, branch.HoldResult]
	try      *lane.Lanes[branch.TryItem, senderKey, branch.TryResult]
	claim    *lane.Lanes[branch.ClaimItem, holdfast.HoldID, branch.ClaimResult]
	settle   *lane.Lanes[branch.SettleItem, holdfast.HoldID, branch.HoldResult]
	refuse   *lane.Lanes[branch.RefuseItem, holdfast.HoldID, branch.HoldResult]
	credit   *lane.Lanes[branch.CreditItem, holdfast.HoldID, branch.CodeResult]
	executed *lane.Lanes[branch.IDItem, holdfast.HoldID, branch.HoldResult]
	deferral *lane.Lanes[branch.DeferItem, holdfast.HoldID, branch.CodeResult]
	refund   *lane.Lanes[branch.IDItem, holdfast.HoldID, branch.HoldResult]
	cancel   *lane.Lanes[branch.CancelItem, holdfast.HoldID, branch.HoldResult]
	deposit  *lane.Lanes[branch.CashItem, senderKey, branch.CashResult]
	withdraw *lane.Lanes[branch.CashItem, senderKey, branch.CashResult]
}

// senderKey is the scope of an idempotency key.
type senderKey struct {
	user holdfast.UserID
	key  string
}

func newLanes[I any, K comparable, O any](cfg Config, key func(*I) K, flush func([]I) []O) *lane.Lanes[I, K, O] {
	return lane.New(lane.Config[I, K, O]{Lanes: cfg.Lanes, MaxBatch: cfg.MaxBatch, MaxQueue: cfg.MaxQueue, Pace: cfg.Pace, Key: key, Flush: flush})
}

func newShardLanes(l *ledger, cfg Config) *shardLanes {
	byID := func(i *branch.IDItem) holdfast.HoldID { return i.ID }
	reads := cfg
	reads.Pace = 0
	byKey := func(i *branch.CashItem) senderKey { return senderKey{i.User, i.Key} }
	return &shardLanes{
		ledger:   l,
		check:    newLanes[branch.CheckItem, struct{}](reads, nil, l.checkBatch),
		get:      newLanes[branch.IDItem, struct{}](reads, nil, l.getBatch),
		try:      newLanes(cfg, func(i *branch.TryItem) senderKey { return senderKey{i.Sender, i.Key} }, l.tryBatch),
		claim:    newLanes(cfg, func(i *branch.ClaimItem) holdfast.HoldID { return i.ID }, l.claimBatch),
		settle:   newLanes(cfg, func(i *branch.SettleItem) holdfast.HoldID { return i.ID }, l.settleBatch),
		refuse:   newLanes(cfg, func(i *branch.RefuseItem) holdfast.HoldID { return i.ID }, l.refuseBatch),
		credit:   newLanes(cfg, func(i *branch.CreditItem) holdfast.HoldID { return i.ID }, l.creditBatch),
		executed: newLanes(cfg, byID, l.executedBatch),
		deferral: newLanes(cfg, func(i *branch.DeferItem) holdfast.HoldID { return i.ID }, l.deferBatch),
		refund:   newLanes(cfg, byID, l.refundBatch),
		cancel:   newLanes(cfg, func(i *branch.CancelItem) holdfast.HoldID { return i.ID }, l.cancelBatch),
		deposit:  newLanes(cfg, byKey, l.cashBatch),
		withdraw: newLanes(cfg, byKey, l.cashBatch),
	}
}

func (s *shardLanes) close(ctx context.Context) {
	var all sync.WaitGroup
	for _, c := range []interface{ Close(context.Context) }{s.check, s.get, s.try, s.claim, s.settle, s.refuse,
		s.credit, s.executed, s.deferral, s.refund, s.cancel, s.deposit, s.withdraw} {
		all.Go(func() { c.Close(ctx) })
	}
	all.Wait()
}

// cashDoer parts deposits from withdrawals: a batch is of one kind.
type cashDoer struct{ s *shardLanes }

// Do sends each item to the lanes of its kind and puts the answers in order.
func (d cashDoer) Do(ctx context.Context, items []branch.CashItem) ([]branch.CashResult, error) {
	var in [2][]branch.CashItem
	var at [2][]int
	for i, item := range items {
		kind := 0
		if item.Amount < 0 {
			kind = 1
		}
		in[kind] = append(in[kind], item)
		at[kind] = append(at[kind], i)
	}
	out := make([]branch.CashResult, len(items))
	for kind, lanes := range []doer[branch.CashItem, branch.CashResult]{d.s.deposit, d.s.withdraw} {
		if len(in[kind]) == 0 {
			continue
		}
		res, err := lanes.Do(ctx, in[kind])
		for j, i := range at[kind] {
			if err != nil {
				out[i].Code = branch.CodeOf(err)
				continue
			}
			out[i] = res[j]
		}
	}
	return out, nil
}
