package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

func raceFaults() []Fault {
	return []Fault{
		{Name: "cancel-races-10000", Theme: "races", Heavy: true, Alone: true, Covers: "2, I6, I7", Load: calmLoad, Within: 20 * time.Second,
			About: "10,000 cancels aimed at the maturity of their holds, against the execution: hundreds come within 5 ms of it, both sides win there, no hold has two ends.", Strike: cancelRaces(10000)},
		{Name: "cancel-races", Theme: "races", Quick: true, Alone: true, Covers: "2, I6, I7", Load: calmLoad,
			About: "1,000 cancels aimed at the maturity of their holds, against the execution.", Strike: cancelRaces(1000)},
		{Name: "same-key-100", Theme: "races", Quick: true, Covers: "I9", Load: calmLoad,
			About: "The same create is sent a hundred times at once, over two coordinators and two participants that know nothing of each other and are slow to commit: one hold, one debit.", Strike: sameKey},
	}
}

// calmLoad leaves the stage to the race.
func calmLoad(c *workload.Config) {
	c.Rate, c.Clients, c.Fund = 20, 32, 100_000_000
	c.RequestTimeout, c.GiveUp = 8*time.Second, 20*time.Second
}

const (
	racesPerSecond = 400
	raceWindow     = 5 * time.Millisecond
	raceStep       = 100 * time.Microsecond
)

const nearSQL = `SELECT count(*) FROM holds WHERE id = ANY($1) AND cancelled_at >= unlock_at - make_interval(secs => $2)`

// cancelRaces sends each cancel so that it arrives at the maturity. How long the
// way there takes nobody knows, least of all on a busy machine: who loses makes
// the next ones leave a little earlier, who wins a little later, so that they
// stay where the race is.
func cancelRaces(n int) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		var cancelled, matured, other, late, way atomic.Int64
		var mu sync.Mutex
		var won [][16]byte
		way.Store(int64(3 * time.Millisecond))
		var all sync.WaitGroup
		tick := time.NewTicker(time.Second / racesPerSecond)
		defer tick.Stop()
		for i := range n {
			select {
			case <-tick.C:
			case <-ctx.Done():
				all.Wait()
				return ctx.Err()
			}
			random := rand.New(rand.NewPCG(uint64(r.Seed), uint64(i)))
			all.Go(func() {
				hand := r.World.Hand(i)
				sender := r.World.Senders[i%len(r.World.Senders)]
				recipient := r.World.Recipients[random.IntN(len(r.World.Recipients))]
				op := hand.Create(ctx, r.World.Key("race-%d", i), sender, recipient, 1+random.Int64N(9), time.Now().Add(1500*time.Millisecond))
				if op.Outcome != workload.OK {
					other.Add(1)
					return
				}
				aim := time.Duration(random.Int64N(int64(2*raceWindow))) - raceWindow - time.Duration(way.Load())
				if r.Wait(ctx, time.Until(op.UnlockAt.Add(aim))) != nil {
					return
				}
				sent := time.Now()
				switch end := hand.Cancel(ctx, op); {
				case end.Outcome == workload.OK:
					cancelled.Add(1)
					way.Add(-int64(raceStep))
					mu.Lock()
					won = append(won, op.Hold)
					mu.Unlock()
				case end.Outcome == workload.Refused && (end.Code == "hold_matured" || end.Code == "hold_already_executed" || end.Code == "hold_failed"):
					matured.Add(1)
					way.Add(int64(raceStep))
					if sent.Sub(op.UnlockAt) <= raceWindow {
						late.Add(1)
					}
				default:
					other.Add(1)
				}
			})
		}
		all.Wait()
		c, m := cancelled.Load(), matured.Load()
		r.Struck(int(c + m))
		near, err := r.sum(ctx, nearSQL, won, raceWindow.Seconds())
		if err != nil {
			return err
		}
		r.Note("%d were cancelled, %d of them in the last %s before maturity; %d were too late, %d of them sent before or up to %s after it; %d unknown",
			c, near, raceWindow, m, late.Load(), raceWindow, other.Load())
		if near < int64(n)/100 || late.Load() < int64(n)/100 {
			r.Fail("%d cancels won and %d lost near the maturity of %d: one side hardly ever wins there, so nothing was raced", near, late.Load(), n)
		}
		if other.Load() > int64(n)/10 {
			r.Fail("%d of %d ended otherwise", other.Load(), n)
		}
		return nil
	}
}

// sameKey keeps the two ways apart: each coordinator reaches one participant
// only, and a Try takes its time between its rows and its commit, so that one
// key is in two transactions at once.
func sameKey(ctx context.Context, r *Run) error {
	const copies = 100
	if err := r.armed(ctx, "try_uncommitted:delay=50ms:1+", r.Cluster.Processes(cluster.Participant)...); err != nil {
		return err
	}
	for i := range 2 {
		r.Cluster.Link(fmt.Sprintf("coordinator%d", i), fmt.Sprintf("participant%d", 1-i)).Refuse()
	}
	for round := range 5 {
		key := r.World.Key("same-%d", round)
		sender, recipient := r.World.Senders[round], r.World.Recipients[round]
		at := time.Now().Add(2 * time.Second)
		ops := make([]workload.Op, copies)
		start := make(chan struct{})
		var all sync.WaitGroup
		for i := range copies {
			all.Go(func() {
				hand := r.World.Hand(round*copies + i)
				<-start
				ops[i] = hand.Create(ctx, key, sender, recipient, 7, at)
			})
		}
		close(start)
		all.Wait()
		ids := map[string]int{}
		for _, op := range ops {
			if op.Outcome == workload.OK {
				ids[op.Hold.String()]++
				r.Struck(1)
			} else if op.Code != "idempotency_in_flight" { // which says: come back, the first one is still at it
				ids[fmt.Sprintf("%s %d %s", op.Outcome, op.HTTP, op.Code)]++
			}
		}
		if len(ids) != 1 {
			r.Fail("one create sent %d times at once was answered with %v", copies, ids)
		}
	}
	return nil
}
