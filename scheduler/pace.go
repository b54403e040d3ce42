package scheduler

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// drainFloor is the slowest drain per second and shard when no rate is set.
const drainFloor = 500

// meter knows the best number of claims per second that a shard has had lately.
type meter struct {
	mu    sync.Mutex
	began time.Time
	n     int
	best  float64
}

func (m *meter) add(n int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	took := now.Sub(m.began)
	if took >= time.Second {
		// The best is forgotten by half in about ten minutes of work, so that a
		// machine that became slower is not drained at its old speed for ever.
		m.best = max(m.best*0.999, float64(m.n)/took.Seconds())
		m.began, m.n = now, 0
	}
	m.n += n
}

func (m *meter) capacity() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.best
}

// drainRate is how many holds of a backlog one shard may be driven per second.
func (s *Scheduler) drainRate(st *shardState) float64 {
	if s.cfg.DrainRate > 0 {
		return s.cfg.DrainRate / float64(len(s.shards))
	}
	return max(drainFloor, st.meter.capacity()/2)
}

// pacer lets n things pass per n/rate seconds.
type pacer struct{ free time.Time }

func (p *pacer) wait(ctx context.Context, n int, rate float64) bool {
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	until := p.free.Sub(now)
	p.free = p.free.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	return sleep(ctx, until)
}

// Bounds of retries.
const (
	maxPostponed  = 100_000 // ids; beyond it an id is driven in every pass
	postponeFirst = 500 * time.Millisecond
	postponeMost  = 30 * time.Second
	postponeShort = time.Second // an answer that says less is no reason to wait ever longer
)

// retries remembers which holds came back undone, so that a pass skips them
// while others can still be helped. It may forget at any time.
type retries struct {
	mu  sync.Mutex
	ids map[holdfast.HoldID]retry
}

type retry struct {
	at   time.Time
	wait time.Duration
}

// ready drops the ids whose time has not come.
func (r *retries) ready(ids []holdfast.HoldID, now time.Time) []holdfast.HoldID {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]holdfast.HoldID, 0, len(ids))
	for _, id := range ids {
		if !now.Before(r.ids[id].at) {
			out = append(out, id)
		}
	}
	return out
}

// note postpones an id, for as long as the answer says or twice as long as the
// last time. Only an answer after which the row no longer looks overdue
// forgets it: all others are found again by the next pass, busy and broken ones
// too.
func (r *retries) note(id holdfast.HoldID, answer branch.DriveResult, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch answer.Code {
	case branch.CodeClaimed, branch.CodeRedrive, branch.CodeToCredit, branch.CodeToWatch, branch.CodeEnded, branch.CodeRefused, branch.CodeToRefund:
		delete(r.ids, id)
		return
	}
	was, known := r.ids[id]
	if !known && len(r.ids) >= maxPostponed {
		r.prune(now)
		if len(r.ids) >= maxPostponed {
			return
		}
	}
	wait, told := was.wait, min(time.Duration(answer.InMS)*time.Millisecond, postponeMost)
	at := told
	switch {
	case answer.Code == branch.CodeBusy && told > 0, answer.Code == branch.CodeNotDue && told > 0:
		// The shard knows when.
	case told > 0 && told < postponeShort:
		// The coordinator had no room for a moment.
	default:
		wait = min(max(postponeFirst, 2*was.wait), postponeMost)
		at = max(wait, told)
	}
	if r.ids == nil {
		r.ids = make(map[holdfast.HoldID]retry)
	}
	r.ids[id] = retry{at: now.Add(at), wait: wait}
}

// prune forgets what has been due for a while and was not noted again: it has
// ended in another way. Call with r.mu held.
func (r *retries) prune(now time.Time) {
	for id, v := range r.ids {
		if now.Sub(v.at) > postponeMost {
			delete(r.ids, id)
		}
	}
}

func (r *retries) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.ids)
}
