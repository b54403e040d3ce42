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
			About: "Cancels aimed at the maturity of their holds, against the execution, until 10,000 were decided within 5 ms of it: both sides win there, no hold has two ends.", Strike: cancelRaces(10000)},
		{Name: "cancel-races", Theme: "races", Quick: true, Alone: true, Covers: "2, I6, I7", Load: calmLoad,
			About: "The same until 500 were decided within 5 ms of it.", Strike: cancelRaces(500)},
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
	racesPerSecond = 200 // with more the calls wait for each other, and come anywhere but at the maturity
	raceWindow     = 5 * time.Millisecond
	raceAim        = 2500 * time.Microsecond // what the way there adds to it is about as much again
	raceStep       = 100 * time.Microsecond
	raceReady      = 50 * time.Millisecond // before its aim a race asks how long the way is
)

// race is cancels against executions, and who won them.
type race struct {
	won, lost, wonNear, lostNear, other atomic.Int64
	way                                 atomic.Int64 // how long a cancel is thought to take to its shard
}

// cancelRaces sends cancels so that they arrive at the maturity, until `want`
// of them have been decided within raceWindow of it or four times as many were
// sent.
func cancelRaces(want int) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		var x race
		x.way.Store(int64(3 * time.Millisecond))
		var all sync.WaitGroup
		tick := time.NewTicker(time.Second / racesPerSecond)
		defer tick.Stop()
		sent := 0
		for ; sent < 4*want && x.near() < want; sent++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				all.Wait()
				return ctx.Err()
			}
			i := sent
			all.Go(func() { x.run(ctx, r, i) })
		}
		all.Wait()
		r.Struck(x.near())
		r.Note("of %d cancels %d won and %d were too late, %d and %d of them decided within %s of the maturity; %d ended otherwise",
			sent, x.won.Load(), x.lost.Load(), x.wonNear.Load(), x.lostNear.Load(), raceWindow, x.other.Load())
		if x.wonNear.Load() < int64(sent)/100 || x.lostNear.Load() < int64(sent)/100 {
			r.Fail("%d cancels won and %d lost near the maturity of %d: one side hardly ever wins there, so nothing was raced", x.wonNear.Load(), x.lostNear.Load(), sent)
		}
		if x.other.Load() > int64(sent)/10 {
			r.Fail("%d of %d ended otherwise", x.other.Load(), sent)
		}
		return nil
	}
}

func (x *race) near() int { return int(x.wonNear.Load() + x.lostNear.Load()) }

// run is one race. How long the way to the shard takes nobody knows, least of
// all on a busy machine: who loses makes the next ones leave a little earlier,
// who wins a little later, so that they stay where the race is.
func (x *race) run(ctx context.Context, r *Run, i int) {
	random := rand.New(rand.NewPCG(uint64(r.Seed), uint64(i)))
	hand := r.World.Hand(i)
	sender := r.World.Senders[i%len(r.World.Senders)]
	recipient := r.World.Recipients[random.IntN(len(r.World.Recipients))]
	op := hand.Create(ctx, r.World.Key("race-%d", i), sender, recipient, 1+random.Int64N(9), time.Now().Add(1500*time.Millisecond))
	if op.Outcome != workload.OK {
		x.other.Add(1)
		return
	}
	aim := op.UnlockAt.Add(time.Duration(random.Int64N(int64(2*raceAim))) - raceAim)
	if r.Wait(ctx, time.Until(aim.Add(-raceReady))) != nil {
		return
	}
	// Asked for only now: a correction that took effect a second late would swing.
	if r.Wait(ctx, time.Until(aim.Add(-time.Duration(x.way.Load())))) != nil {
		return
	}
	end := hand.Cancel(ctx, op)
	answered := time.Now()
	switch {
	case end.Outcome == workload.OK:
		x.won.Add(1)
		x.way.Add(-int64(raceStep))
		if op.UnlockAt.Sub(end.CancelledAt) <= raceWindow { // by the clock of the shard
			x.wonNear.Add(1)
		}
	case end.Outcome == workload.Refused && (end.Code == "hold_matured" || end.Code == "hold_already_executed" || end.Code == "hold_failed"):
		x.lost.Add(1)
		x.way.Add(int64(raceStep))
		if answered.Sub(op.UnlockAt) <= raceWindow { // decided between the maturity and this answer
			x.lostNear.Add(1)
		}
	default:
		x.other.Add(1)
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
