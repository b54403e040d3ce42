package scheduler

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// runner owns loops that start once and are waited for.
type runner struct {
	mu     sync.Mutex
	cancel context.CancelFunc
	loops  sync.WaitGroup
}

// begin is the context of the loops.
func (r *runner) begin(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	r.cancel = cancel
	r.mu.Unlock()
	return ctx
}

// end stops the loops and waits for them, no longer than ctx.
func (r *runner) end(ctx context.Context, what string) error {
	r.mu.Lock()
	cancel := r.cancel
	r.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	done := make(chan struct{})
	go func() { r.loops.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop the %s: %w", what, ctx.Err())
	}
}

// sleep waits and reports whether there is a reason to go on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// poke wakes a loop that waits on a channel of one; a second poke is the same.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
