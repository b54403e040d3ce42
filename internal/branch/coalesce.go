package branch

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/lane"
)

// Coalesce makes few large calls out of many small ones, for a transport whose
// calls are dear: calls of one step and shard that arrive while others are on
// their way travel together. The participant's own lanes make the transactions;
// this only saves requests.
type Coalesce struct {
	T     Transport
	lanes sync.Map // laneKey → doer of the step's types
}

type laneKey struct {
	shard int
	op    string
}

// sent is the answer to one item, or why its call failed.
type sent[O any] struct {
	out O
	err error
}

// Send coalesces the steps of a hold's life and passes everything else on.
func (c *Coalesce) Send(ctx context.Context, shard int, op string, in, out any) error {
	switch items := in.(type) {
	case []TryItem:
		return coalesce(ctx, c, shard, op, items, out.(*[]TryResult))
	case []CheckItem:
		return coalesce(ctx, c, shard, op, items, out.(*[]CheckResult))
	case []SettleItem:
		return coalesce(ctx, c, shard, op, items, out.(*[]HoldResult))
	case []CreditItem:
		return coalesce(ctx, c, shard, op, items, out.(*[]CodeResult))
	case []CancelItem:
		return coalesce(ctx, c, shard, op, items, out.(*[]HoldResult))
	case []DeferItem:
		return coalesce(ctx, c, shard, op, items, out.(*[]CodeResult))
	case []IDItem:
		if answer, ok := out.(*[]HoldResult); ok {
			return coalesce(ctx, c, shard, op, items, answer)
		}
	}
	return c.T.Send(ctx, shard, op, in, out)
}

func coalesce[I, O any](ctx context.Context, c *Coalesce, shard int, op string, items []I, out *[]O) error {
	key := laneKey{shard, op}
	l, ok := c.lanes.Load(key)
	if !ok {
		l, _ = c.lanes.LoadOrStore(key, lane.New(lane.Config[I, struct{}, sent[O]]{Lanes: 4, Patience: silence, Flush: func(items []I) []sent[O] {
			var answers []O
			// The callers may be gone; the transport has a deadline of its own.
			err := c.T.Send(context.Background(), shard, op, items, &answers)
			if err == nil && len(answers) != len(items) {
				err = fmt.Errorf("%d answers to %d items", len(answers), len(items))
			}
			res := make([]sent[O], len(items))
			for i := range res {
				res[i].err = err
				if err == nil {
					res[i].out = answers[i]
				}
			}
			return res
		}}))
	}
	res, err := l.(*lane.Lanes[I, struct{}, sent[O]]).Do(ctx, items)
	if err != nil {
		return err
	}
	*out = make([]O, len(res))
	var failed error
	done := 0
	for i := range res {
		if res[i].err == nil {
			(*out)[i] = res[i].out
			done++
			continue
		}
		if failed == nil || CodeOf(res[i].err) == CodeOutcomeUnknown {
			failed = res[i].err
		}
	}
	if failed != nil && done > 0 {
		// The call was cut in two and one part went through: for the whole of
		// it nobody can say that nothing was done.
		return fmt.Errorf("%w: part of the call was answered: %v", holdfast.ErrOutcomeUnknown, failed)
	}
	return failed
}
