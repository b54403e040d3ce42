// Package lane turns many small calls into few batches: what arrives while the
// last batch is in flight forms the next one. There is no timer; a lone item
// leaves at once. It knows nothing of what an item means.
package lane

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Config sets up lanes. Flush is called with 1 … MaxBatch items and must return
// as many results, item i's at i; it runs on a context of its own, never on a
// caller's, because a caller that leaves must not undo a commit.
type Config[I any, K comparable, O any] struct {
	Lanes    int // batches in flight at once; default 2
	MaxBatch int // items in a batch; default 500
	MaxQueue int // items waiting; beyond it Do answers holdfast.ErrOverloaded; default 8,192
	// Pace is the least time between the starts of two batches. An item that
	// comes after a pause leaves at once; under load it is what keeps batches
	// large, and a batch costs far more than an item. Zero: none.
	Pace  time.Duration
	Flush func(items []I) []O
	// Patience is how long a batch may be away before its lane takes the next
	// one all the same: a server that fell silent must not hold up the others'
	// items. At most MaxAway batches are left behind like that. Zero: for ever.
	Patience time.Duration
	// Key names what two items of one batch must not share; the second waits
	// for a later batch, in its order. Nil: nothing.
	Key func(*I) K
}

// MaxAway bounds how many batches may be away beyond their lane's patience.
const MaxAway = 16

// Lanes is a queue with a few batches in flight.
type Lanes[I any, K comparable, O any] struct {
	cfg     Config[I, K, O]
	mu      sync.Mutex
	queue   []entry[I, O]
	busy    int
	away    int       // batches beyond their patience
	next    time.Time // the earliest start of another batch
	closed  bool
	workers sync.WaitGroup
}

// entry is one item on its way: its answer goes to slot at of its caller.
type entry[I, O any] struct {
	item I
	call *call[O]
	at   int
}

// call is one Do: the answers fill up until none is left open.
type call[O any] struct {
	out  []O
	left atomic.Int32
	done chan struct{}
}

// New makes lanes. They need no Start.
func New[I any, K comparable, O any](cfg Config[I, K, O]) *Lanes[I, K, O] {
	if cfg.Lanes == 0 {
		cfg.Lanes = 2
	}
	if cfg.MaxBatch == 0 {
		cfg.MaxBatch = 500
	}
	if cfg.MaxQueue == 0 {
		cfg.MaxQueue = 8192
	}
	return &Lanes[I, K, O]{cfg: cfg}
}

// Do runs the items and waits for all their answers. It fails as a whole with
// holdfast.ErrOverloaded when the queue is full (nothing was done), with
// ErrShardUnavailable after Close (nothing was done), and with
// ErrOutcomeUnknown when ctx ends first: the items stay in the queue and are
// done all the same.
func (l *Lanes[I, K, O]) Do(ctx context.Context, items []I) ([]O, error) {
	c := &call[O]{out: make([]O, len(items)), done: make(chan struct{})}
	c.left.Store(int32(len(items)))
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: shutting down", holdfast.ErrShardUnavailable)
	}
	if len(l.queue)+len(items) > l.cfg.MaxQueue {
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: %d items are waiting", holdfast.ErrOverloaded, l.cfg.MaxQueue)
	}
	for i := range items {
		l.queue = append(l.queue, entry[I, O]{item: items[i], call: c, at: i})
	}
	l.startLane()
	l.mu.Unlock()
	select {
	case <-c.done:
		return c.out, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %v", holdfast.ErrOutcomeUnknown, ctx.Err())
	}
}

// Close refuses new items and waits until those in the queue are done or ctx
// ends.
func (l *Lanes[I, K, O]) Close(ctx context.Context) {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	done := make(chan struct{})
	go func() { l.workers.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// run is one lane: batch after batch until the queue is empty.
func (l *Lanes[I, K, O]) run() {
	defer l.workers.Done()
	var items []I
	for {
		batch, wait := l.take(time.Now())
		if wait > 0 {
			time.Sleep(wait)
			continue
		}
		if len(batch) == 0 {
			return
		}
		items = items[:0]
		for i := range batch {
			items = append(items, batch[i].item)
		}
		out, replaced := l.flush(items)
		if len(out) != len(batch) {
			panic(fmt.Sprintf("lane: flush answered %d of %d items", len(out), len(batch)))
		}
		for i := range batch {
			c := batch[i].call
			c.out[batch[i].at] = out[i]
			if c.left.Add(-1) == 0 {
				close(c.done)
			}
		}
		if replaced {
			return
		}
		clear(items)
	}
}

// startLane puts a free lane to work; the caller holds mu.
func (l *Lanes[I, K, O]) startLane() {
	if l.busy < l.cfg.Lanes && len(l.queue) > 0 {
		l.busy++
		l.workers.Add(1)
		go l.run()
	}
}

// flush runs one batch. When that takes longer than the lane's patience,
// another goroutine has taken the lane over.
func (l *Lanes[I, K, O]) flush(items []I) (out []O, replaced bool) {
	if l.cfg.Patience == 0 {
		return l.cfg.Flush(items), false
	}
	back := false
	late := time.AfterFunc(l.cfg.Patience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if back || l.away >= MaxAway {
			return
		}
		replaced = true
		l.away++
		l.busy--
		l.startLane()
	})
	out = l.cfg.Flush(items)
	late.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	back = true
	if replaced {
		l.away--
	}
	return out, replaced
}

// take cuts the next batch from the head of the queue and leaves behind what
// shares a key with an earlier item, or says how long to wait for its turn. It
// ends the lane when nothing is left.
func (l *Lanes[I, K, O]) take(now time.Time) ([]entry[I, O], time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.queue), l.cfg.MaxBatch)
	if n == 0 {
		l.busy--
		l.queue = nil
		return nil, 0
	}
	if wait := l.next.Sub(now); wait > 0 && n < l.cfg.MaxBatch {
		return nil, wait
	}
	l.next = now.Add(l.cfg.Pace)
	batch := make([]entry[I, O], 0, n)
	if l.cfg.Key == nil {
		batch = append(batch, l.queue[:n]...)
		l.queue = append(l.queue[:0:0], l.queue[n:]...)
		return batch, 0
	}
	seen := make(map[K]struct{}, n)
	var rest []entry[I, O]
	for i := range l.queue {
		if len(batch) == l.cfg.MaxBatch {
			rest = append(rest, l.queue[i:]...)
			break
		}
		k := l.cfg.Key(&l.queue[i].item)
		if _, dup := seen[k]; dup {
			rest = append(rest, l.queue[i])
			continue
		}
		seen[k] = struct{}{}
		batch = append(batch, l.queue[i])
	}
	l.queue = rest
	return batch, 0
}
