package coordinator

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
)

const (
	probeTimeout = time.Second
	probeKept    = 500 * time.Millisecond // so that probes cannot load the shards
)

// readiness remembers the last look at the shards.
type readiness struct {
	mu   sync.Mutex
	at   time.Time
	last readyDoc
}

type readyDoc struct {
	Status string            `json:"status"` // ready, degraded, down, draining
	Shards map[string]string `json:"shards"`
	Checks map[string]string `json:"checks,omitempty"`
}

func (c *Coordinator) livez(w http.ResponseWriter, _ *call) error {
	problem.JSON(w, http.StatusOK, map[string]string{"status": "alive"})
	return nil
}

// readyz says whether requests should be sent here. One shard that answers is
// enough: the holds of the others are refused one by one, and taking the whole
// process out would only make their outage everybody's.
func (c *Coordinator) readyz(w http.ResponseWriter, q *call) error {
	doc := c.readyNow(q.Context())
	if c.leaving.Load() {
		doc.Status = "draining"
	}
	status := http.StatusOK
	if doc.Status == "down" || doc.Status == "draining" {
		status = http.StatusServiceUnavailable
	}
	problem.JSON(w, status, doc)
	return nil
}

func (c *Coordinator) readyNow(ctx context.Context) readyDoc {
	r := &c.edge.ready
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.at.IsZero() && time.Since(r.at) < probeKept {
		return r.last
	}
	// A prober that hangs up must not leave a wrong answer for the next one.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	r.last, r.at = c.lookAround(ctx), time.Now()
	return r.last
}

func (c *Coordinator) lookAround(ctx context.Context) readyDoc {
	const up, down = "up", "down"
	answers, away := askShards(ctx, c.allShards(), func(ctx context.Context, shard int) (bool, error) {
		// The cheapest step on the path that money takes: a user nobody is.
		code := c.shards.Check(ctx, shard, []branch.CheckItem{{User: holdfast.UserID{}, Currency: "RBX"}})[0].Code
		if code == branch.CodeOverloaded {
			return true, nil // busy is not away
		}
		return true, code.Err()
	})
	doc := readyDoc{Status: "ready", Shards: map[string]string{}}
	for shard := range answers {
		doc.Shards[strconv.Itoa(shard)] = up
	}
	for _, shard := range away {
		doc.Shards[strconv.Itoa(shard)] = down
		doc.Status = "degraded"
	}
	if c.cfg.Ready != nil {
		doc.Checks = c.cfg.Ready(ctx)
		for _, v := range doc.Checks {
			if v != up && v != "ok" {
				doc.Status = "degraded"
			}
		}
	}
	if len(answers) == 0 {
		doc.Status = down
	}
	return doc
}
