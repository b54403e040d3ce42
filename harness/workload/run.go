package workload

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Stats says how a run went, apart from its history.
type Stats struct {
	Intents int64         `json:"intents"`
	Skipped int64         `json:"skipped"` // intents whose client was still busy a second after their time
	Dropped int64         `json:"dropped"` // follow-ups that came after the end, or were too many
	Took    time.Duration `json:"took_ns"`
}

// Run works until ctx ends and every operation in flight was answered or given
// up, which takes GiveUp and one RequestTimeout at most. Each intent has its time whatever became of
// those before it; a client that is late for more than a second skips, so that
// the end of a long fault is no avalanche of the harness's own making. A world
// runs once: a second run would repeat the keys of the first.
func (w *World) Run(ctx context.Context) Stats {
	start := time.Now()
	for i := range w.cfg.Clients {
		w.work.Go(func() { w.client(ctx, start, i) })
	}
	w.work.Wait()
	return Stats{Intents: w.intents.Load(), Skipped: w.skipped.Load(), Dropped: w.dropped.Load(), Took: time.Since(start)}
}

func (w *World) client(ctx context.Context, start time.Time, i int) {
	l, g := newLane(&w.cfg, i), newGenerator(&w.cfg, i)
	for {
		in := g.next()
		if !pause(ctx, time.Until(start.Add(in.At))) {
			return
		}
		if time.Since(start)-in.At > maxLag {
			w.skipped.Add(1)
			continue
		}
		w.intents.Add(1)
		w.act(ctx, l, in)
	}
}

func (w *World) act(ctx context.Context, l *lane, in Intent) {
	key := fmt.Sprintf("%s-%d-%d", w.mark, in.Client, in.N)
	switch in.Kind {
	case KindCreate:
		w.actCreate(ctx, l, in.Items[0], key)
	case KindBatch:
		w.actBatch(ctx, l, in, key)
	case KindGet, KindList:
		if len(l.recent) == 0 {
			return
		}
		s := l.recent[len(l.recent)-1-in.Back%len(l.recent)]
		if in.Kind == KindGet {
			w.get(ctx, l, s)
		} else {
			w.list(ctx, l, s)
		}
	default:
		w.cash(ctx, l, in.Kind, key, w.Users[in.User], in.Amount)
		if in.Again {
			w.cash(ctx, l, in.Kind, key, w.Users[in.User], in.Amount)
		}
	}
}

func seenOf(op Op) seen {
	return seen{id: op.Hold, key: op.Key, sender: op.Sender, recipient: op.Recipient, amount: op.Amount}
}

// actCreate creates a hold, perhaps several times, and goes on with what its
// customer has in mind for it. A create that was not answered is looked for.
func (w *World) actCreate(ctx context.Context, l *lane, it Item, key string) {
	began, body := time.Now(), w.bodyOf(it, key)
	other := body
	other.Amount++
	var op Op
	switch it.Dup {
	case DupStorm, DupClash:
		op = w.together(ctx, l, it, body, other)
	default:
		op = w.create(ctx, l, body, it.KeyIn)
	}
	switch {
	case op.Outcome == Unknown:
		op = w.list(ctx, l, seenOf(op))
	case it.Dup == DupReplay:
		w.create(ctx, l, body, (it.KeyIn+1)%3)
	case it.Dup == DupConflict && op.Outcome == OK:
		w.create(ctx, l, other, it.KeyIn)
	}
	if op.Outcome == OK && !op.Hold.IsZero() {
		l.remember(seenOf(op))
		w.follow(ctx, it, op, began)
	}
}

// together sends creates with one key at once, over as many idle hands as the
// item asks for, and returns one that is ok, else one whose outcome is unknown.
func (w *World) together(ctx context.Context, l *lane, it Item, body, other holdBody) (best Op) {
	ops := make([]Op, it.Copies)
	var wg sync.WaitGroup
	for i := 1; i < it.Copies; i++ {
		select {
		case hand := <-w.hands:
			b := body
			if it.Dup == DupClash && i%2 == 1 {
				b = other
			}
			wg.Go(func() {
				ops[i] = w.create(ctx, hand, b, i%3)
				w.hands <- hand
			})
		default: // every hand is busy: the storm is smaller
		}
	}
	ops[0] = w.create(ctx, l, body, it.KeyIn)
	wg.Wait()
	best = ops[0]
	for _, op := range ops {
		if op.Outcome == OK || op.Outcome == Unknown && best.Outcome == Refused {
			best = op
		}
		if op.Outcome == OK {
			break
		}
	}
	return best
}

func (w *World) actBatch(ctx context.Context, l *lane, in Intent, key string) {
	began := time.Now()
	items := in.Items
	if in.Again {
		items = append(items[:len(items):len(items)], items[0])
	}
	bodies := make([]holdBody, len(items))
	for i, it := range items {
		bodies[i] = w.bodyOf(it, fmt.Sprintf("%s-%d", key, i))
	}
	if in.Again {
		bodies[len(bodies)-1] = bodies[0]
	}
	for i, op := range w.createBatch(ctx, l, bodies) {
		switch {
		case op.Outcome == OK:
			l.remember(seenOf(op))
			if i < len(in.Items) {
				w.follow(ctx, items[i], op, began)
			}
		case op.Outcome == Unknown:
			w.later(ctx, time.Now(), func(hand *lane) { w.list(ctx, hand, seenOf(op)) })
		}
	}
}

// follow plans what the customer does with a hold that exists. The hold's own
// maturity counts when the shard's clock is near ours; else the cancel comes
// when we thought it would mature.
func (w *World) follow(ctx context.Context, it Item, op Op, began time.Time) {
	s := seenOf(op)
	mature := op.UnlockAt
	if expected := began.Add(it.Delay); mature.Sub(expected).Abs() > 2*time.Second {
		mature = expected
	}
	var at time.Time
	switch it.Cancel {
	case CancelEarly:
		at = began.Add(it.CancelAt)
	case CancelNear, CancelLate:
		at = mature.Add(it.CancelAt)
	}
	if !at.IsZero() {
		w.later(ctx, at, func(hand *lane) { w.cancel(ctx, hand, s) })
		if it.Twice {
			w.later(ctx, at.Add(it.TwiceAfter), func(hand *lane) { w.cancel(ctx, hand, s) })
		}
	}
	if it.Get > 0 {
		w.later(ctx, began.Add(it.Get), func(hand *lane) { w.get(ctx, hand, s) })
	}
}

// later does something at its time, as soon as a hand is free. What is not due
// when the run ends is dropped.
func (w *World) later(ctx context.Context, at time.Time, f func(*lane)) {
	if w.planned.Add(1) > maxPlanned {
		w.planned.Add(-1)
		w.dropped.Add(1)
		return
	}
	w.work.Go(func() {
		defer w.planned.Add(-1)
		if !pause(ctx, time.Until(at)) {
			w.dropped.Add(1)
			return
		}
		select {
		case hand := <-w.hands:
			f(hand)
			w.hands <- hand
		case <-ctx.Done():
			w.dropped.Add(1)
		}
	})
}

// Lifetimes is every hold that an operation was told of, with the operation
// that told first.
func (h *History) Lifetimes() map[holdfast.HoldID]Op {
	out := map[holdfast.HoldID]Op{}
	for _, o := range h.Ops() {
		if _, isCash := cashOf(o); isCash || o.Hold.IsZero() {
			continue
		}
		if _, known := out[o.Hold]; !known {
			out[o.Hold] = o
		}
	}
	return out
}
