package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// How a part of the process is, in the words of /readyz.
const (
	isUp   = "up"
	isDown = "down"
)

// checks is what /readyz shows beside the shards. Without Redis holds are
// driven from PostgreSQL, later but surely: degraded, not dead.
func (p *process) checks(context.Context) map[string]string {
	var up bool
	switch {
	case p.sched != nil:
		up = p.sched.RedisUp()
	case p.filler != nil:
		up = p.filler.RedisUp()
	default:
		return nil
	}
	if up {
		return map[string]string{"redis": isUp}
	}
	return map[string]string{"redis": isDown}
}

// readyz is that of a process without a coordinator, in the same form as the
// coordinator's: one shard that answers is enough.
func (p *process) readyz(w http.ResponseWriter, r *http.Request) {
	doc := struct {
		Status string            `json:"status"`
		Shards map[string]string `json:"shards"`
		Checks map[string]string `json:"checks,omitempty"`
	}{"ready", p.pingShards(r.Context()), p.checks(r.Context())}
	down := 0
	for _, state := range doc.Shards {
		if state == isDown {
			down++
		}
	}
	if down > 0 || doc.Checks["redis"] == isDown {
		doc.Status = "degraded"
	}
	status := http.StatusOK
	if down > 0 && down == len(doc.Shards) {
		doc.Status, status = isDown, http.StatusServiceUnavailable
	}
	if p.leaving.Load() {
		doc.Status, status = "draining", http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(doc) // the client may be gone
}

func (p *process) pingShards(ctx context.Context) map[string]string {
	if p.shards == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answers := make([]chan error, p.shards.N())
	for i := range answers {
		answers[i] = make(chan error, 1)
		go func() { answers[i] <- p.shards.Ping(ctx, i) }()
	}
	out := map[string]string{}
	for i, answer := range answers {
		out[strconv.Itoa(i)] = isUp
		if <-answer != nil {
			out[strconv.Itoa(i)] = isDown
		}
	}
	return out
}
