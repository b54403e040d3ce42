package chaos

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/checker"
)

// spare is what may stay above the base at rest: connections that are kept for a
// while, and a heap that the collector has not given back. A leak of one per
// operation of any run is far above it.
var spare = checker.Usage{FDs: 300, Goroutines: 500, RSS: 256 << 20}

// settleUsage is how long resources may take to come back: a connection to the
// payment API is closed when it was idle for 30 s.
const settleUsage = 45 * time.Second

func (t *theater) usage() (out []checker.Usage) {
	for _, p := range t.cluster.Processes() {
		fds, goroutines, rss := p.Usage()
		out = append(out, checker.Usage{Process: p.Name, FDs: fds, Goroutines: goroutines, RSS: rss})
	}
	return out
}

// backToBase waits until every process holds about what it held at first.
func (t *theater) backToBase(ctx context.Context, r *Run) error {
	var leaks []checker.Violation
	err := r.Until(ctx, settleUsage, "resources back to base", func() bool {
		leaks = checker.Leaks(t.base, t.usage(), spare)
		return len(leaks) == 0
	})
	r.Violate(leaks...)
	if err != nil && len(leaks) == 0 {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// panics counts the processes that have died of a panic since the last look.
func (r *Run) panics() (n int) {
	for _, p := range r.Cluster.Processes() {
		n += p.Panics()
	}
	t := r.theater
	n, t.panicked = n-t.panicked, n
	return n
}
