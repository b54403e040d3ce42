package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// downShard is the shard that stands still.
const downShard = 0

func presetShardDown(c *Config) {
	or(&c.Rate, 500)
	or(&c.Clients, 256)
	if c.DelayMax == 0 {
		c.DelayMin, c.DelayMax = time.Second, 5*time.Second
	}
	// Senders and recipients are chosen by shard: there must be some on each.
	c.Senders, c.Recipients = max(c.Senders, 1000), max(c.Recipients, 1000)
}

// playShardDown freezes one PostgreSQL server for a while: its connections stay
// open and nobody answers, which is the hardest way to be away. What is
// measured are lifecycles between users of the other shards; a quarter as many
// between users of the frozen shard go on beside them.
func playShardDown(ctx context.Context, b *run) error {
	if len(b.DSNs) < 2 {
		return errors.New("scenario shard-down needs two shards or more")
	}
	m, err := b.owners(ctx)
	if err != nil {
		return err
	}
	server, err := serverOf(ctx, b.DSNs[downShard])
	if err != nil {
		return err
	}
	others := b.newPhase(stepCreate)
	others.Owner, others.AvoidShard, others.Start = m.Owner[:], downShard, time.Now()
	others.Duration = 2*b.cfg.Duration + b.cfg.Outage
	theirs := others
	theirs.AvoidShard, theirs.OnlyShard, theirs.Aside = -1, downShard, true
	theirs.Rate, theirs.Clients = others.Rate/4, max(b.cfg.Processes, others.Clients/4)
	b.Note("%s", b.describe(others))

	done := make(chan error, 1)
	go func() {
		_, err := b.load(ctx, theirs)
		done <- err
	}()
	froze := make(chan [2]time.Time, 1)
	freezing, stopFreezing := context.WithCancel(ctx)
	go func() { froze <- b.outage(freezing, server, others.Start.Add(b.cfg.Warmup+b.cfg.Duration)) }()
	made, err := b.main(ctx, others)
	stopFreezing()
	at := <-froze
	err = errors.Join(err, <-done)
	if err != nil {
		return err
	}
	b.due(time.Now().Add(b.cfg.DelayMax))
	b.report.figure("others_create_p99_before_ms", made.Series.between(others.Start.Add(b.cfg.Warmup), at[0]).ms(99))
	b.report.figure("others_create_p99_during_ms", made.Series.between(at[0], at[1]).ms(99))
	b.report.figure("others_create_p99_after_ms", made.Series.between(at[1], b.loadEnd).ms(99))
	b.report.figure("recovery_s", b.recovered.Sub(at[1]).Seconds())
	return nil
}

// outage freezes the server for the configured time and then waits until no
// hold is overdue from it. It returns when it was frozen and when thawed.
func (b *run) outage(ctx context.Context, server int, from time.Time) (at [2]time.Time) {
	pause(ctx, from)
	b.Note("shard %d stands still for %s", downShard, b.cfg.Outage)
	at[0] = time.Now()
	if err := freeze(server); err != nil {
		b.Note("%v", err)
	}
	pause(ctx, from.Add(b.cfg.Outage))
	thaw(server)
	at[1] = time.Now()
	b.Note("shard %d goes on", downShard)
	// Looked for on a context of its own: the load may be over before.
	b.allEnded(context.WithoutCancel(ctx), b.start, at[1])
	b.recovered = time.Now()
	return at
}

// serverOf is the process id of the server behind a DSN on this machine: the
// parent of the backend that answers us.
func serverOf(ctx context.Context, dsn string) (pid int, err error) {
	var backend int
	err = ask(ctx, dsn, func(c *pgx.Conn) error {
		if err := c.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
			return err
		}
		line, err := os.ReadFile("/proc/" + strconv.Itoa(backend) + "/stat")
		if err != nil {
			return fmt.Errorf("find the server's process: %w", err)
		}
		p, ok := readStat(line)
		if !ok || role(p.name) != "postgres" || p.parent <= 1 {
			return errors.New("the server's process is not on this machine")
		}
		pid = p.parent
		return nil
	})
	return pid, err
}

// freeze stops a server with all its children. The parent goes first: one that
// stands still makes no further child.
func freeze(server int) error {
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze the server: %w", err)
	}
	for _, p := range processes() {
		if p.parent == server {
			syscall.Kill(p.pid, syscall.SIGSTOP)
		}
	}
	return nil
}

func thaw(server int) {
	for _, p := range processes() {
		if p.parent == server {
			syscall.Kill(p.pid, syscall.SIGCONT)
		}
	}
	syscall.Kill(server, syscall.SIGCONT)
}
