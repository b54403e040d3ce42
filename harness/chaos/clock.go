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
			About: "The clock of one coordinator is five minutes off: the participants refuse what it signs, and its clients go to the other one.", Strike: clockOff(cluster.Coordinator, 5*time.Minute)},
		Fault{Name: "coordinator-clock-45s", Theme: "clock", Quick: true, Covers: "2, I8",
			About: "The clock of one coordinator is 45 s off, which is accepted: what it creates and drives is decided by the shards' clocks.", Strike: clockOff(cluster.Coordinator, 45*time.Second)},
		Fault{Name: "participant-clock-off", Theme: "clock", Quick: true, Covers: "2, I8",
			About: "The clock of one participant is five minutes off: it refuses what the others sign, and they do without it.", Strike: clockOff(cluster.Participant, 5*time.Minute)},
		Fault{Name: "participant-clock-45s", Theme: "clock", Quick: true, Covers: "2, I8",
			About: "The clock of one participant is 45 s off, which is accepted: it does not decide what time it is.", Strike: clockOff(cluster.Participant, 45*time.Second)},
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
		shard := r.anyShard()
		if err := r.Cluster.ShardClock(ctx, shard, off); err != nil {
			if errors.Is(err, cluster.ErrNoFakeTime) {
				return fmt.Errorf("%w although it was there a moment ago", err)
			}
			return err
		}
		r.Struck(1)
		return r.standsStill(ctx, 5*time.Second, shard)
	}
}

const claimedSQL = `SELECT count(*) FROM holds WHERE id >= $1 AND claimed_at IS NOT NULL`

// standsStill lets d go by; after the time that schedulers may take to notice,
// nothing may be claimed on these shards.
func (r *Run) standsStill(ctx context.Context, d time.Duration, shards ...int) error {
	const notice = 2500 * time.Millisecond
	if err := r.Wait(ctx, notice); err != nil {
		return err
	}
	claimed := func() (sum int64, err error) {
		for _, s := range shards {
			var n int64
			if err := r.row(ctx, s, claimedSQL, &n, r.since()); err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	}
	before, err := claimed()
	if err != nil {
		return err
	}
	if err := r.Wait(ctx, d-notice); err != nil {
		return err
	}
	after, err := claimed()
	if after > before {
		r.Fail("%d holds were claimed although the clocks disagree", after-before)
	}
	return err
}

func behindAndEarly(ctx context.Context, r *Run) error {
	for i := range r.Cluster.Shards() {
		if err := r.Cluster.ShardClock(ctx, i, -1500*time.Millisecond); err != nil {
			return err
		}
	}
	return tamper(early)(ctx, r)
}

// workOf a role: what a process of it has done, by a counter of its own.
var workOf = map[cluster.Role]string{cluster.Coordinator: "holdfast_hold_transitions_total", cluster.Participant: "holdfast_branch_total"}

// clockOff counts what the process with the wrong clock did, or, when its clock
// is so wrong that the others want nothing of it, that it did nothing.
func clockOff(role cluster.Role, off time.Duration) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		off, refused := off, off > time.Minute
		if r.Rand.IntN(2) == 0 {
			off = -off
		}
		p := r.one(role)
		if err := r.restartWith(ctx, p, clockVariable+"="+off.String()); err != nil {
			return err
		}
		if err := r.Wait(ctx, 4*time.Second); err != nil {
			return err
		}
		did, err := p.Metric(workOf[role], "")
		if err != nil {
			return err
		}
		r.Note("%s did %.0f things with a clock %s off", p.Name, did, off)
		if refused && did > 0 {
			r.Fail("%s did %.0f things although its clock is %s off", p.Name, did, off)
		} else if refused {
			r.Struck(1)
		}
		if !refused {
			r.Struck(int(did))
		}
		return nil
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
		if err := r.standsStill(ctx, 5*time.Second, allShards(r)...); err != nil {
			return err
		}
		return r.sawClocks()
	}
}

func allShards(r *Run) (all []int) {
	for i := range r.Cluster.Shards() {
		all = append(all, i)
	}
	return all
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
