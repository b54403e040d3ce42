package branch

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-escrow/holdfast"
)

// halved refuses the call that carries the marked item and answers the others.
type halved struct{ marked holdfast.HoldID }

func (h halved) Send(_ context.Context, _ int, _ string, in, out any) error {
	items := in.([]CreditItem)
	for _, i := range items {
		if i.ID == h.marked {
			return fmt.Errorf("%w: refused", holdfast.ErrShardUnavailable)
		}
	}
	*out.(*[]CodeResult) = fill(items, CodeResult{Code: CodeOK})
	return nil
}

// Where one half of a call was answered and the other surely not done, the call
// as a whole may not be called undone.
func TestCoalesceCutInTwo(t *testing.T) {
	t.Parallel()
	items := make([]CreditItem, 5000)
	for i := range items {
		items[i].ID = holdfast.NewHoldID(int64(i+1), 0, uint64(i))
	}
	send := func(items []CreditItem) error {
		var out []CodeResult
		return (&Coalesce{T: halved{items[0].ID}}).Send(t.Context(), 0, OpCredit, items, &out)
	}
	if err := send(items); !errors.Is(err, holdfast.ErrOutcomeUnknown) {
		t.Errorf("half of a call: %v, want unknown", err)
	}
	if err := send(items[:1]); !errors.Is(err, holdfast.ErrShardUnavailable) {
		t.Errorf("a call that was refused whole: %v, want shard unavailable", err)
	}
}

func fill[I, O any](items []I, o O) []O {
	out := make([]O, len(items))
	for i := range out {
		out[i] = o
	}
	return out
}
