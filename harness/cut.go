package harness

import (
	"context"
	"errors"
	"sync"

	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// errCut is what a cut call answers: nothing is known of it.
var errCut = errors.New("the harness has cut this call")

// Cut stands between a coordinator and its participants. At a named step it
// behaves as if the coordinator had died there: that call is not sent, or sent
// and its answer lost, and every call after it fails.
type Cut struct {
	Op    string // the step to die at
	After bool   // its effect is done, only the answer is lost
	next  branch.Transport

	mu     sync.Mutex
	dead   bool
	struck chan struct{}
}

// NewCut makes a cut that strikes once at the step.
func NewCut(op string, after bool) *Cut {
	return &Cut{Op: op, After: after, struck: make(chan struct{})}
}

// Struck is closed when the cut has struck.
func (c *Cut) Struck() <-chan struct{} { return c.struck }

// Send passes calls on until the cut strikes.
func (c *Cut) Send(ctx context.Context, shard int, op string, in, out any) error {
	c.mu.Lock()
	dead, hit := c.dead, op == c.Op
	if hit && !dead {
		c.dead = true
	}
	c.mu.Unlock()
	switch {
	case dead:
		return errCut
	case !hit:
		return c.next.Send(ctx, shard, op, in, out)
	}
	if c.After {
		if err := c.next.Send(ctx, shard, op, in, out); err != nil {
			return err
		}
	}
	close(c.struck)
	return errCut
}
