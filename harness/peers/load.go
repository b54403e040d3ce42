package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// load keeps clients busy with creates: closed loop without a rate, else open
// loop, in which a create that the clients are too busy for is late and not
// left out.
type load struct {
	clients             int
	rate                float64
	warmup, duration    time.Duration
	senders, recipients int
	minWait, maxWait    time.Duration
	create              func(ctx context.Context, t transfer) error
	finished            func(ctx context.Context) int64 // set: clients wait while too much is overdue
}

// maxOverdue is how many transfers may be past their due time before the
// clients wait. Without this brake the creates of a queue that takes jobs
// faster than it does them would take the machine from its own worker. It is
// wide, because River looks at what is scheduled only every five seconds.
const maxOverdue = 10_000

// brake counts the due times that were promised, in steps, to know how many
// have come.
type brake struct {
	start time.Time
	due   []atomic.Int64
	on    atomic.Bool
}

const brakeStep = 25 * time.Millisecond

func (b *brake) promise(t time.Time) {
	b.due[min(max(int(t.Sub(b.start)/brakeStep), 0), len(b.due)-1)].Add(1)
}

// watch looks at every step how far the worker is behind.
func (b *brake) watch(ctx context.Context, finished func(context.Context) int64) {
	came, next := int64(0), 0
	for wait(ctx, brakeStep) {
		for ; next < len(b.due) && time.Since(b.start) > time.Duration(next+1)*brakeStep; next++ {
			came += b.due[next].Load()
		}
		b.on.Store(came-finished(ctx) > maxOverdue)
	}
}

// loadResult is what the clients saw.
type loadResult struct {
	measured, end time.Time // the window that counts
	perS          float64   // creates acknowledged in it
	acked, failed int64     // of the whole load
	firstError    error
}

func (l load) run(ctx context.Context) loadResult {
	start := time.Now()
	r := loadResult{measured: start.Add(l.warmup), end: start.Add(l.warmup + l.duration)}
	var next, acked, failed, counted atomic.Int64
	var once sync.Once
	var clients sync.WaitGroup
	b := &brake{start: start, due: make([]atomic.Int64, int((l.warmup+l.duration+l.maxWait)/brakeStep)+40)}
	if l.finished != nil {
		watching, stop := context.WithCancel(ctx)
		defer stop()
		go b.watch(watching, l.finished)
	}
	for i := range l.clients {
		rng := rand.New(rand.NewPCG(uint64(start.UnixNano()), uint64(i)))
		clients.Go(func() {
			for ctx.Err() == nil && l.pace(ctx, start, next.Add(1)-1) && time.Now().Before(r.end) {
				if b.on.Load() {
					wait(ctx, 5*time.Millisecond)
					continue
				}
				due := time.Now().Add(l.minWait + time.Duration(rng.Int64N(int64(l.maxWait-l.minWait)+1)))
				err := l.create(ctx, newTransfer(rng.IntN(l.senders), rng.IntN(l.recipients), due))
				now := time.Now()
				switch {
				case err != nil:
					failed.Add(1)
					once.Do(func() { r.firstError = err })
					wait(ctx, 20*time.Millisecond) // a server that is down is asked again, not stormed
				default:
					acked.Add(1)
					b.promise(due)
					if !now.Before(r.measured) && now.Before(r.end) {
						counted.Add(1)
					}
				}
			}
		})
	}
	clients.Wait()
	r.acked, r.failed = acked.Load(), failed.Load()
	r.perS = float64(counted.Load()) / l.duration.Seconds()
	return r
}

// pace waits until create n shall start and reports whether it still shall.
func (l load) pace(ctx context.Context, start time.Time, n int64) bool {
	if l.rate == 0 {
		return true
	}
	at := time.Duration(float64(n) / l.rate * float64(time.Second))
	if at >= l.warmup+l.duration {
		return false
	}
	return wait(ctx, time.Until(start.Add(at)))
}

// wait reports whether it was waited to the end.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
