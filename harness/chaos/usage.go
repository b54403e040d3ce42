package chaos

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
)

// usage is what a process holds of the machine.
type usage struct {
	fds, goroutines int
	rss             int64
	starts          int
}

// What may stay above the base at rest: connections that are kept for a while,
// and a heap that the collector has not given back. A leak of one per operation
// of any run is far above it.
const (
	spareFDs        = 250
	spareGoroutines = 400
	spareRSS        = 256 << 20
	settleUsage     = 20 * time.Second
)

func (t *theater) usage() map[string]usage {
	out := map[string]usage{}
	for _, p := range t.cluster.Processes() {
		out[p.Name] = usageOf(p)
	}
	return out
}

func usageOf(p *cluster.Process) usage {
	fds, goroutines, rss := p.Usage()
	return usage{fds, goroutines, rss, p.Starts()}
}

// above says what of a process is above its base.
func (u usage) above(base usage) string {
	switch {
	case u.fds > base.fds+spareFDs:
		return fmt.Sprintf("%d file descriptors, %d before the first fault", u.fds, base.fds)
	case u.goroutines > base.goroutines+spareGoroutines:
		return fmt.Sprintf("%d goroutines, %d before the first fault", u.goroutines, base.goroutines)
	case u.rss > base.rss+spareRSS:
		return fmt.Sprintf("%d MB of memory, %d before the first fault", u.rss>>20, base.rss>>20)
	}
	return ""
}

// backToBase waits until every process holds about what it held at first.
func (t *theater) backToBase(ctx context.Context, r *Run) error {
	var bad []string
	err := r.Until(ctx, settleUsage, "resources back to base", func() bool {
		bad = nil
		for _, p := range t.cluster.Processes() {
			if what := usageOf(p).above(t.base[p.Name]); what != "" {
				bad = append(bad, p.Name+" has "+what)
			}
		}
		return len(bad) == 0
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(bad, "; "))
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
