package chaos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

// pointPlace is a crash point and the roles that pass it.
type pointPlace struct {
	name  string
	roles []cluster.Role
	about string
}

var (
	participant = []cluster.Role{cluster.Participant}
	coordinator = []cluster.Role{cluster.Coordinator}
	scheduler   = []cluster.Role{cluster.Scheduler}
	fillers     = []cluster.Role{cluster.Coordinator, cluster.Scheduler}
)

// points is every crash point that processes pass under load; those of a
// migration and of a new partition have scenarios of their own.
var points = []pointPlace{
	{"try_uncommitted", participant, "after the idempotency row, before the commit of a Try"},
	{"try_committed", participant, "after the commit of a Try, before its answer"},
	{"zadd_before", fillers, "before triggers are added to Redis"},
	{"zadd_after", fillers, "after triggers were added to Redis"},
	{"zset_claimed", scheduler, "after due triggers were taken from Redis"},
	{"sweep_moved", scheduler, "after the sweep's watermark was moved"},
	{"claim_committed", participant, "after the commit of a claim, before its answer"},
	{"claim_answered", coordinator, "after the answer to a claim, before the payment"},
	{"payment_sent", coordinator, "after a payment was sent, before its answer"},
	{"payment_answered", coordinator, "after a payment was answered, before the verdict"},
	{"verdict_paid_committed", participant, "after the commit of a verdict paid, before its answer"},
	{"verdict_paid_answered", coordinator, "after the verdict paid, before the credit"},
	{"recipient_credited", participant, "after the recipient was credited, before EXECUTED"},
	{"executed_committed", participant, "after the commit of EXECUTED, before its answer"},
	{"verdict_refused_committed", participant, "after the commit of a verdict refused, before the refund"},
	{"refund_committed", participant, "after the commit of a refund, before its answer"},
	{"cancel_committed", participant, "after the commit of a cancel, before its answer"},
}

func pointFaults() []Fault {
	var out []Fault
	for _, p := range points {
		out = append(out, Fault{Name: "die-at-" + strings.ReplaceAll(p.name, "_", "-"), Theme: "points", Quick: true, Covers: "6",
			About: fmt.Sprintf("The %s dies %s.", names(p.roles), p.about), Load: manyEnds, Strike: dieAt(p)})
	}
	for _, a := range []struct{ name, action, about string }{
		{"error", "error:3+", "Every connection breaks from the third passing on"},
		{"delay", "delay=600ms:1+", "Everybody is slow"},
		{"hang", "hang:2", "Somebody stands still for ever"},
	} {
		for _, role := range []cluster.Role{cluster.Coordinator, cluster.Participant, cluster.Scheduler} {
			out = append(out, Fault{Name: fmt.Sprintf("%s-points-%s", role, a.name), Theme: "points", Quick: true, Covers: "6",
				About: fmt.Sprintf("%s at a random crash point of a %s.", a.about, role), Load: manyEnds, Strike: act(role, a.action)})
		}
	}
	return append(out,
		Fault{Name: "die-at-partition-created", Theme: "points", Quick: true, Covers: "3, 6",
			About:  "The participant dies between two new partitions; the next maintenance makes the rest.",
			Strike: dieAtPartition, After: partitionsWhole},
		Fault{Name: "die-in-migration", Theme: "points", Quick: true, Covers: "3, 6",
			About: "A migration dies half-way, inside a step and between two; migrating again ends where an undisturbed one does.", Strike: dieInMigration})
}

func names(roles []cluster.Role) string {
	var out []string
	for _, r := range roles {
		out = append(out, string(r))
	}
	return strings.Join(out, " or ")
}

// manyEnds makes every way to end common: refusals and cancels too.
func manyEnds(c *workload.Config) {
	c.RefusableShare, c.CancelEarly, c.MaxDelay = 0.3, 0.3, 2*time.Second
}

// strikes is how often a point has struck in all processes so far.
func (r *Run) strikesAt(point string) (n int) {
	for _, p := range r.Cluster.Processes() {
		n += p.Strikes(point)
	}
	return n
}

// armed kills processes and starts them with a plan of crash points.
func (r *Run) armed(ctx context.Context, plan string, who ...*cluster.Process) error {
	for _, p := range who {
		if err := p.Kill(); err != nil {
			return err
		}
		if err := p.Start(ctx, failpoint.Variable+"="+plan); err != nil && p.ExitCode() != failpoint.ExitCode {
			return err // one that died at its point while it started has struck
		}
	}
	return nil
}

// dieAt lets one replica die at a passing of the point, starts it again, and
// then lets all replicas of a role die there.
func dieAt(point pointPlace) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		role := point.roles[r.Rand.IntN(len(point.roles))]
		all := r.Cluster.Processes(role)
		for _, who := range [][]*cluster.Process{{all[r.Rand.IntN(len(all))]}, all} {
			before := r.strikesAt(point.name)
			if err := r.armed(ctx, fmt.Sprintf("%s:exit:%d", point.name, 1+r.Rand.IntN(4)), who...); err != nil {
				return err
			}
			_ = r.Until(ctx, 15*time.Second, "the strikes", func() bool { return r.strikesAt(point.name)-before >= len(who) })
			r.Struck(r.strikesAt(point.name) - before)
			// Longer than what a restart itself would make good: triggers that
			// were lost with the dead must be found by somebody.
			if role == cluster.Scheduler {
				if err := r.Wait(ctx, 3*time.Second); err != nil {
					return err
				}
			}
			for _, p := range who {
				if !p.Alive() && p.ExitCode() != failpoint.ExitCode {
					return fmt.Errorf("%s ended with exit code %d and not at its point", p.Name, p.ExitCode())
				}
				if err := p.Kill(); err != nil { // the one that was never struck
					return err
				}
				if err := p.Start(ctx); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// act arms three points of a role with an action, on one replica.
func act(role cluster.Role, action string) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		var mine []string
		for _, p := range points {
			for _, of := range p.roles {
				if of == role {
					mine = append(mine, p.name)
				}
			}
		}
		var plan, chosen []string
		for _, i := range r.Rand.Perm(len(mine))[:min(3, len(mine))] {
			chosen = append(chosen, mine[i])
			plan = append(plan, mine[i]+":"+action)
		}
		strikes := func() (n int) {
			for _, p := range chosen {
				n += r.strikesAt(p)
			}
			return n
		}
		before := strikes()
		r.Note("plan %s", strings.Join(plan, ","))
		if err := r.armed(ctx, strings.Join(plan, ","), r.one(role)); err != nil {
			return err
		}
		// The first seconds the calls stay where they went when it was restarted,
		// and longer if the faults before this one have made them wary of it.
		err := r.Wait(ctx, 7*time.Second)
		if err == nil {
			_ = r.Until(ctx, 20*time.Second, "a strike", func() bool { return strikes() > before })
		}
		r.Struck(strikes() - before)
		return err
	}
}

// dropDays removes the partitions of far days, which are empty, so that there is
// something to make again.
const dropDaysSQL = `DO $$ DECLARE t text; BEGIN
	FOR t IN SELECT relid::text FROM pg_partition_tree('holds') WHERE isleaf ORDER BY 1 DESC LIMIT 3 LOOP
		EXECUTE 'DROP TABLE ' || t;
	END LOOP; END $$`

func dieAtPartition(ctx context.Context, r *Run) error {
	const point = "partition_created"
	shard := r.Rand.IntN(r.Cluster.Shards())
	if err := r.exec(ctx, shard, dropDaysSQL); err != nil {
		return err
	}
	before := r.strikesAt(point)
	p := r.one(cluster.Participant)
	if err := r.armed(ctx, point+":exit", p); err != nil {
		return err
	}
	if err := r.Until(ctx, 10*time.Second, "a death between two partitions", func() bool { return !p.Alive() }); err != nil {
		return err
	}
	r.Struck(r.strikesAt(point) - before)
	return p.Start(ctx)
}

// partitionsWhole waits until maintenance has made what is missing.
func partitionsWhole(ctx context.Context, r *Run) error {
	const leavesSQL = `SELECT count(*) FROM pg_partition_tree('holds') WHERE isleaf`
	counts := make([]int64, r.Cluster.Shards())
	return r.Until(ctx, 30*time.Second, "partitions of all days on every shard", func() bool {
		for i := range counts {
			if err := r.row(ctx, i, leavesSQL, &counts[i]); err != nil {
				return false
			}
		}
		for _, n := range counts {
			if n != counts[0] || n < 90 {
				return false
			}
		}
		return true
	})
}

// dieInMigration makes two databases beside the shard's own: one is migrated in
// one go, the other with a death at each kind of point; their schemas must be
// the same.
func dieInMigration(ctx context.Context, r *Run) error {
	names := [2]string{fmt.Sprintf("whole_%d", time.Now().UnixNano()), fmt.Sprintf("torn_%d", time.Now().UnixNano())}
	var dsns [2]string
	for i, name := range names {
		if err := r.exec(ctx, 0, "CREATE DATABASE "+name); err != nil {
			return err
		}
		defer func() { _ = r.exec(context.WithoutCancel(ctx), 0, "DROP DATABASE "+name+" WITH (FORCE)") }()
		dsns[i] = strings.Replace(r.Cluster.DSN(0), "/holdfast?", "/"+name+"?", 1)
	}
	if err := r.migrate(ctx, dsns[0], ""); err != nil {
		return err
	}
	for _, plan := range []string{"migration_uncommitted:exit:2", "migration_committed:exit:2", "migration_uncommitted:exit:1", "partition_created:exit:5"} {
		err := r.migrate(ctx, dsns[1], plan)
		if code := exitCode(err); code != failpoint.ExitCode {
			return fmt.Errorf("with %s the migration ended with exit code %d: %w", plan, code, err)
		}
		r.Struck(1)
	}
	if err := r.migrate(ctx, dsns[1], ""); err != nil {
		return fmt.Errorf("migrate what was torn: %w", err)
	}
	var schema [2]string
	for i, dsn := range dsns {
		var err error
		if schema[i], err = schemaOf(ctx, dsn); err != nil {
			return err
		}
	}
	if schema[0] != schema[1] {
		return fmt.Errorf("a torn migration ends with another schema: %d bytes against %d", len(schema[1]), len(schema[0]))
	}
	return nil
}

// migrate runs the binary's migration with a plan; its output is the error's.
func (r *Run) migrate(ctx context.Context, dsn, plan string) error {
	cmd := exec.CommandContext(ctx, r.Runner.Binary, "migrate", "up")
	cmd.Dir = os.TempDir()
	cmd.Env = []string{"HOLDFAST_SHARDS=" + dsn, "HOLDFAST_DATA=" + filepath.Join(r.Cluster.Dir(), "none")}
	if plan != "" {
		cmd.Env = append(cmd.Env, failpoint.Variable+"="+plan)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("migrate: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
