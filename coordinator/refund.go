package coordinator

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// refundBatch bounds how many refunds are done in one go.
const refundBatch = 500

// wantRefund tells the refund worker about a hold that has just failed. Should
// the worker be behind, the shard's own list has it.
func (c *Coordinator) wantRefund(id holdfast.HoldID) {
	select {
	case c.refundCh <- id:
	default:
	}
}

// refundLoop gives the money of FAILED holds back: at once for those that failed
// here, and on every tick for those that a dead process left behind.
func (c *Coordinator) refundLoop(ctx context.Context) {
	tick := time.NewTicker(c.cfg.RefundEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-c.refundCh:
			c.refundSome(ctx, id)
		case <-tick.C:
			c.refundLeftovers(ctx)
		}
	}
}

// refundSome refunds the hold and those that have queued up behind it.
func (c *Coordinator) refundSome(ctx context.Context, first holdfast.HoldID) {
	ids := []holdfast.HoldID{first}
	for len(ids) < refundBatch {
		select {
		case id := <-c.refundCh:
			ids = append(ids, id)
			continue
		default:
		}
		break
	}
	byShard := map[int][]branch.IDItem{}
	for _, id := range ids {
		s := c.cfg.Map.OfHold(id)
		byShard[s] = append(byShard[s], branch.IDItem{ID: id})
	}
	var all sync.WaitGroup
	for shard, items := range byShard {
		all.Go(func() {
			// What is not answered in time is still in the shard's own list.
			ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
			defer cancel()
			c.refund(ctx, shard, items)
		})
	}
	all.Wait()
}

// refundLeftovers asks every shard for refunds that are still to do.
func (c *Coordinator) refundLeftovers(ctx context.Context) {
	var all sync.WaitGroup
	for shard := range c.cfg.Map.Shards {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
			defer cancel()
			ids, err := c.shards.Unrefunded(ctx, shard, refundBatch)
			if err != nil || len(ids) == 0 {
				return // a shard that is away is asked again on the next tick
			}
			items := make([]branch.IDItem, len(ids))
			for i, id := range ids {
				items[i].ID = id
			}
			c.refund(ctx, shard, items)
		})
	}
	all.Wait()
}

func (c *Coordinator) refund(ctx context.Context, shard int, items []branch.IDItem) {
	for i, r := range c.shards.Refund(ctx, shard, items) {
		if r.Code == branch.CodeOK || r.Code == branch.CodeAlready || r.Code.Err() != nil {
			continue
		}
		c.log.Error("refund was not done", "hold_id", items[i].ID, "shard", shard, "code", r.Code)
	}
}
