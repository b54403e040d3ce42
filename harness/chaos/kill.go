package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
)

// every role that holds no data of its own, and the simulator.
var roles = []cluster.Role{cluster.Coordinator, cluster.Participant, cluster.Scheduler, cluster.PaymentSim}

func killFaults() []Fault {
	var out []Fault
	for _, role := range roles {
		out = append(out, Fault{Name: "kill-" + string(role), Theme: "kill", Quick: true, Covers: "1, I4, I11",
			About:  fmt.Sprintf("kill -9 of a %s at random moments under load, then a start on the same data.", role),
			Strike: killRole(role)})
	}
	return append(out,
		Fault{Name: "kill-all-of-a-role", Theme: "kill", Quick: true, Covers: "1, I4, I12",
			About: "Every replica of one role dies at once; the roles come in turn.", Strike: killEachRole},
		Fault{Name: "kill-everything", Theme: "kill", Heavy: true, Covers: "1, I4, I11, I12", Within: recoverShard,
			About:  "kill -9 of every process, every PostgreSQL and Redis at once, ten times a run: five seeds make fifty.",
			Strike: killEverything},
		Fault{Name: "pause-coordinator", Theme: "kill", Quick: true, Covers: "5, I7", About: "SIGSTOP of a coordinator for longer than its leases: what it had claimed is driven by others, and it wakes up to do no harm.",
			Strike: pauseRole(cluster.Coordinator, 5*time.Second)},
		Fault{Name: "pause-participant", Theme: "kill", Quick: true, Covers: "5, I4", About: "SIGSTOP of a participant in the middle of its batches.",
			Strike: pauseRole(cluster.Participant, 4*time.Second)},
		Fault{Name: "pause-scheduler", Theme: "kill", Quick: true, Covers: "5, I12", About: "SIGSTOP of a scheduler for longer than its triggers' lease; the other one and the overdue dispatch take over.",
			Strike: pauseRole(cluster.Scheduler, 5*time.Second)},
		Fault{Name: "pause-payment-sim", Theme: "kill", Quick: true, Covers: "2, I7", About: "SIGSTOP of the payment API: calls hang and time out, and all of them may still be carried out later.",
			Strike: pauseRole(cluster.PaymentSim, 4*time.Second)},
	)
}

// some waits for a random time between two bounds.
func (r *Run) some(ctx context.Context, least, most time.Duration) error {
	return r.Wait(ctx, least+time.Duration(r.Rand.Int64N(int64(most-least))))
}

// one picks a replica of a role.
func (r *Run) one(role cluster.Role) *cluster.Process {
	all := r.Cluster.Processes(role)
	return all[r.Rand.IntN(len(all))]
}

// killed ends processes at once and starts them again after a while.
func (r *Run) killed(ctx context.Context, down time.Duration, who ...*cluster.Process) error {
	for _, p := range who {
		if err := p.Kill(); err != nil {
			return err
		}
		r.Struck(1)
	}
	if err := r.Wait(ctx, down); err != nil {
		return err
	}
	for _, p := range who {
		if err := p.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

func killRole(role cluster.Role) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		for range 3 {
			if err := r.some(ctx, 100*time.Millisecond, 700*time.Millisecond); err != nil {
				return err
			}
			if err := r.killed(ctx, time.Duration(r.Rand.Int64N(int64(500*time.Millisecond))), r.one(role)); err != nil {
				return err
			}
		}
		return nil
	}
}

func killEachRole(ctx context.Context, r *Run) error {
	for _, i := range r.Rand.Perm(len(roles)) {
		if err := r.some(ctx, 200*time.Millisecond, 600*time.Millisecond); err != nil {
			return err
		}
		if err := r.killed(ctx, 300*time.Millisecond, r.Cluster.Processes(roles[i])...); err != nil {
			return err
		}
	}
	return nil
}

// killEverything is the machine that loses its power, except for what the
// operating system has in its cache.
func killEverything(ctx context.Context, r *Run) error {
	for range 10 {
		if err := r.some(ctx, 300*time.Millisecond, 1500*time.Millisecond); err != nil {
			return err
		}
		var all sync.WaitGroup
		for _, p := range r.Cluster.Processes() {
			all.Go(func() { _ = p.Kill() })
		}
		for i := range r.Cluster.Shards() {
			all.Go(func() { _ = r.Cluster.Shard(i).Kill() })
		}
		all.Go(func() { _ = r.Cluster.Redis.Kill() })
		all.Wait()
		for _, p := range r.Cluster.Processes() {
			if p.Alive() {
				return fmt.Errorf("%s outlives its kill", p.Name)
			}
		}
		r.Struck(1)
		if err := r.Cluster.Mend(ctx); err != nil {
			return err
		}
		if err := r.calm(ctx); err != nil {
			return err
		}
	}
	return nil
}

func pauseRole(role cluster.Role, d time.Duration) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		p := r.one(role)
		if err := p.Pause(); err != nil {
			return err
		}
		r.Struck(1)
		if err := r.Wait(ctx, d); err != nil {
			return err
		}
		if err := p.Resume(); err != nil {
			return err
		}
		return r.Wait(ctx, time.Second)
	}
}
