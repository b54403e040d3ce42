package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

func rollingFaults() []Fault {
	return []Fault{
		{Name: "rolling-restart", Theme: "rolling", Heavy: true, Covers: "1", Load: patient,
			About: "Every process is restarted gracefully, one after the other, under load: no request fails for clients that retry once.", Strike: rollingRestart},
		{Name: "old-and-new", Theme: "rolling", Heavy: true, Cluster: "rolling", Covers: "1, 3", Load: patient, Can: canBuild,
			About: "A binary with one more migration joins those without it, migrates the shards under load, and takes over one process at a time.", Strike: oldAndNew},
	}
}

// onceRetrying is a client of its own that reads, and once more when that
// failed, and counts those that failed twice. Of the load's creates, cancels,
// reads and cash, impatient tells the same.
type onceRetrying struct {
	mu             sync.Mutex
	sent, again, n int
	failed         []string
}

func (o *onceRetrying) work(ctx context.Context, r *Run) {
	for i := 0; ctx.Err() == nil; i++ {
		r.retryOnce(ctx, o, i)
		if r.Wait(ctx, 10*time.Millisecond) != nil {
			return
		}
	}
}

// retryOnce reads an account of the world: at most two requests, at two
// coordinators, as a client behind a load balancer does.
func (r *Run) retryOnce(ctx context.Context, o *onceRetrying, i int) {
	var first, second error
	user := r.World.Senders[i%len(r.World.Senders)].String()
	for try := range 2 {
		one, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		_, err := r.API((i+try)%2).Account(one, user)
		cancel()
		o.mu.Lock()
		o.sent++
		o.mu.Unlock()
		if err == nil {
			return
		}
		first, second = second, err
		if try == 0 {
			o.mu.Lock()
			o.again++
			o.mu.Unlock()
			if r.Wait(ctx, 20*time.Millisecond) != nil {
				return
			}
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
	if len(o.failed) < 5 {
		o.failed = append(o.failed, fmt.Sprintf("%v; then %v", first, second))
	}
}

// watched runs f while clients retry once, and judges them.
func (r *Run) watched(ctx context.Context, f func() error) error {
	o := &onceRetrying{}
	working, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() { o.work(working, r) })
	}
	before, began := r.unanswered(), time.Now()
	err := f()
	stop()
	clients.Wait()
	r.Note("%d requests, %d were sent once more, %d failed twice", o.sent, o.again, o.n)
	if o.n > 0 {
		r.Fail("%d requests failed for clients that retry once, for example %s", o.n, strings.Join(o.failed, " | "))
	}
	if n, of, example := r.impatient(began); n > 0 {
		r.Fail("%d of %d operations of the load failed for clients that retry once, for example %s", n, of, example)
	} else {
		r.Note("of %d operations of the load none failed twice", of)
	}
	if n := r.unanswered() - before; n > 0 {
		r.Fail("%d creates and cancels of the load were never answered", n)
	}
	return err
}

// impatient counts the operations that failed more than once. To be told that
// another request with the same key is still at it is no failure.
func (r *Run) impatient(from time.Time) (n, of int, example string) {
	h := r.World.History
	low := int64(from.Sub(h.Start))
	for _, o := range h.Ops() {
		if o.Call < low || o.Client < 0 {
			continue
		}
		if of++; o.Failed > 1 {
			n++
			example = fmt.Sprintf("%s at %s: %s%d %s%s", o.Kind, h.Start.Add(time.Duration(o.Call)).UTC().Format("15:04:05.000"),
				o.Before, o.HTTP, o.Code, o.Error)
		}
	}
	return n, of, example
}

// unanswered is the number of operations whose client was told nothing definite
// in the end. One whose last attempt was refused is unknown only because an
// earlier attempt may have done it.
func (r *Run) unanswered() (n int) {
	for _, o := range r.World.History.Ops() {
		if o.Outcome == workload.Unknown && !o.Open() && (o.HTTP == 0 || o.HTTP >= 500) {
			n++
		}
	}
	return n
}

func rollingRestart(ctx context.Context, r *Run) error {
	return r.watched(ctx, func() error {
		for _, p := range r.Cluster.Processes(cluster.Participant, cluster.Coordinator, cluster.Scheduler, cluster.PaymentSim) {
			if err := r.roll(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// betweenRolls is longer than clients are told to wait before they ask again:
// one that met a restart does not meet the next.
const betweenRolls = 1500 * time.Millisecond

// roll restarts one process and waits until it does its share again.
func (r *Run) roll(ctx context.Context, p *cluster.Process) error {
	if err := p.Restart(ctx); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.Ready(ready); err != nil {
		return err
	}
	r.Struck(1)
	return r.Wait(ctx, betweenRolls)
}

// canBuild: another binary needs the Go tool and this program's source.
func canBuild() string {
	if _, err := exec.LookPath("go"); err != nil {
		return "no go on the PATH: a binary with one more migration cannot be built"
	}
	if _, err := os.Stat(filepath.Join("shards", "migrations")); err != nil {
		return "not in the source folder: a binary with one more migration cannot be built"
	}
	return ""
}

// nextMigration is what a next release might bring: a column that is there for
// all old rows at once, an index, and a table of its own.
const nextMigration = `-- A migration of a release that does not exist, for the harness.
ALTER TABLE holds ADD COLUMN memo text;
ALTER TABLE accounts ADD COLUMN nickname text NOT NULL DEFAULT '';
CREATE TABLE chaos_next (id bigint PRIMARY KEY, note text);
CREATE INDEX chaos_accounts_opened ON accounts (opened_at);
`

// buildNext builds this source with one more migration laid over it.
func (r *Run) buildNext(ctx context.Context) (string, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return "", err
	}
	dir := r.theater.dir
	const name = "9000_next.sql"
	overlay := fmt.Sprintf(`{"Replace":{%q:%q}}`, filepath.Join(root, "shards", "migrations", name), filepath.Join(dir, name))
	next := filepath.Join(dir, "holdfast-next")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, name), []byte(nextMigration), 0o644),
		os.WriteFile(filepath.Join(dir, "overlay.json"), []byte(overlay), 0o644)); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-tags", "failpoints", "-overlay", filepath.Join(dir, "overlay.json"), "-o", next, "./cmd/holdfast")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build a binary with one more migration: %w: %s", err, out)
	}
	return next, nil
}

// oldAndNew: the old processes run on, before, while and after the new binary
// migrates; then half of each role is new, then all.
func oldAndNew(ctx context.Context, r *Run) error {
	next, err := r.buildNext(ctx)
	if err != nil {
		return err
	}
	return r.watched(ctx, func() error {
		if err := r.Cluster.Migrate(ctx, next, r.Cluster.DSNs()); err != nil {
			return err
		}
		r.Struck(1)
		if err := r.Wait(ctx, time.Second); err != nil {
			return err
		}
		// An old process that starts on the new schema.
		if err := r.roll(ctx, r.Cluster.Process(cluster.Participant, 0)); err != nil {
			return err
		}
		if err := errors.Join(os.Remove(r.theater.binary), os.Symlink(next, r.theater.binary)); err != nil {
			return err
		}
		for i := range 2 {
			for _, p := range r.Cluster.Processes(cluster.Participant, cluster.Coordinator, cluster.Scheduler) {
				if p.Index != i {
					continue
				}
				if err := r.roll(ctx, p); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// exitCode is that of a program that ran, -1 for other errors.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// schemaSQL tells everything that migrations make: columns, constraints,
// indexes, triggers and functions.
const schemaSQL = `SELECT coalesce(string_agg(line, E'\n' ORDER BY line), '') FROM (
	SELECT format('column %s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default) AS line FROM information_schema.columns WHERE table_schema = 'public'
	UNION ALL SELECT format('constraint %s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
	UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
	UNION ALL SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
	UNION ALL SELECT 'function ' || pg_get_functiondef(p.oid) FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
) s`

func schemaOf(ctx context.Context, dsn string) (text string, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, schemaSQL).Scan(&text)
	return text, err
}
