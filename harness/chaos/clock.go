package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

func clockFaults() []Fault {
	var out []Fault
	for _, c := range []struct {
		name string
		off  time.Duration
	}{{"ahead", 2 * time.Hour}, {"behind", -2 * time.Hour}} {
		out = append(out, Fault{Name: "postgres-clock-2h-" + c.name, Theme: "clock", Cluster: "clock " + c.name, Covers: "2, 5, I8", Within: recoverShard, Can: canFake, Clocks: c.off.Abs() + time.Minute,
			About:  fmt.Sprintf("The clock of a shard is two hours %s (libfaketime): nothing there is driven until it is right again, and nothing matures early.", c.name),
			Strike: shardClock(c.off), Before: cancelFar})
	}
	for _, c := range []struct {
		name string
		off  time.Duration
	}{{"ahead", 5 * time.Minute}, {"behind", -5 * time.Minute}} {
		out = append(out, Fault{Name: "scheduler-clock-5m-" + c.name, Theme: "clock", Quick: true, Covers: "5, I8, I12",
			About:  fmt.Sprintf("The clock of every scheduler is five minutes %s: claims stop, and go on when it is right.", c.name),
			Strike: schedulerClock(c.off)})
	}
	return append(out,
		Fault{Name: "shard-behind-early-triggers", Theme: "clock", Cluster: "clock near", Covers: "2, I8", Can: canFake, Within: recoverShard, Clocks: 2 * time.Second,
			About:  "The clock of a shard is 1.5 s behind everybody's, which is allowed, and every trigger is early: its own clock decides, nothing is claimed before it says so.",
			Strike: behindAndEarly},
		Fault{Name: "coordinator-clock-off", Theme: "clock", Quick: true, Covers: "2, I8",
			About: "The clock of one coordinator is five minutes off: what it creates and drives is decided by the shards' clocks.", Strike: clockOff(cluster.Coordinator)},
		Fault{Name: "participant-clock-off", Theme: "clock", Quick: true, Covers: "2, I8",
			About: "The clock of one participant is five minutes off: it does not decide what time it is.", Strike: clockOff(cluster.Participant)},
		Fault{Name: "one-scheduler-clock-off", Theme: "clock", Quick: true, Covers: "5, I8, I12",
			About: "The clock of one scheduler is five minutes off: it drives nothing, the other one everything.", Strike: oneClock})
}

func canFake() string {
	if _, err := os.Stat(cluster.FakeTimeLib); err != nil {
		return cluster.ErrNoFakeTime.Error()
	}
	return ""
}

// disagreeing is how many shards the schedulers do not drive for their clocks.
const clocksMetric = "holdfast_scheduler_clock_disagreement_seconds"

func shardClock(off time.Duration) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		if err := r.Cluster.ShardClock(ctx, r.anyShard(), off); err != nil {
			if errors.Is(err, cluster.ErrNoFakeTime) {
				return fmt.Errorf("%w although it was there a moment ago", err)
			}
			return err
		}
		r.Struck(1)
		return r.Wait(ctx, 5*time.Second)
	}
}

func behindAndEarly(ctx context.Context, r *Run) error {
	for i := range r.Cluster.Shards() {
		if err := r.Cluster.ShardClock(ctx, i, -1500*time.Millisecond); err != nil {
			return err
		}
	}
	return tamper(early)(ctx, r)
}

func clockOff(role cluster.Role) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		off := 5 * time.Minute
		if r.Rand.IntN(2) == 0 {
			off = -off
		}
		if err := r.restartWith(ctx, r.one(role), clockVariable+"="+off.String()); err != nil {
			return err
		}
		r.Note("the clock is %s off", off)
		r.Struck(1)
		return r.Wait(ctx, 4*time.Second)
	}
}

// cancelFar gives holds back that a wrong clock has put hours ahead: they are
// not overdue, and nobody waits for them here.
func cancelFar(ctx context.Context, r *Run) error {
	hand, n := r.World.Hand(0), 0
	for id, op := range r.World.History.Lifetimes() {
		if time.Until(id.UnlockAt()) < time.Minute {
			continue
		}
		op.Hold = id
		if end := hand.Cancel(ctx, op); end.Outcome != workload.OK {
			return fmt.Errorf("cancel hold %s, which matures at %s: %d %s", id, id.UnlockAt(), end.HTTP, end.Code)
		}
		n++
	}
	r.Note("%d holds of the wrong clock were cancelled", n)
	return nil
}

// clockVariable is read by binaries with crash points only.
const clockVariable = "HOLDFAST_CLOCK_OFFSET"

func schedulerClock(off time.Duration) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		for _, p := range r.Cluster.Processes(cluster.Scheduler) {
			if err := r.restartWith(ctx, p, clockVariable+"="+off.String()); err != nil {
				return err
			}
		}
		if err := r.Wait(ctx, 5*time.Second); err != nil {
			return err
		}
		return r.sawClocks()
	}
}

func oneClock(ctx context.Context, r *Run) error {
	off := 5 * time.Minute
	if r.Rand.IntN(2) == 0 {
		off = -off
	}
	if err := r.restartWith(ctx, r.one(cluster.Scheduler), clockVariable+"="+off.String()); err != nil {
		return err
	}
	if err := r.Wait(ctx, 4*time.Second); err != nil {
		return err
	}
	return r.sawClocks()
}

func (r *Run) restartWith(ctx context.Context, p *cluster.Process, env ...string) error {
	if err := p.Kill(); err != nil {
		return err
	}
	return p.Start(ctx, env...)
}

// sawClocks counts the schedulers that noticed.
func (r *Run) sawClocks() error {
	for _, p := range r.Cluster.Processes(cluster.Scheduler) {
		if v, err := p.Metric(clocksMetric, ""); err == nil && v > 60 {
			r.Struck(1)
		}
	}
	return nil
}
