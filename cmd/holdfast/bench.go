package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/bench"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/spf13/cobra"
)

// benchFlags are the flags of bench before they are checked.
type benchFlags struct {
	cfg                      bench.Config
	target                   bench.Target
	suite                    string
	runs, shardsCount        int
	paymentLatency, outage   string
	duration, warmup, settle string
	delay, yardstick, dir    string
	acked, report, shards    string
	embedded                 bool
}

func (a *app) benchCommand() *cobra.Command {
	var b benchFlags
	c := &cobra.Command{
		Use: "bench", Short: "Put load on a running Holdfast, or on one of its own, and prove the ledger after", Args: exactly(),
		Long: `Creates, cancels and watches holds through the public API and reports rates,
latencies, execution lag, CPU, memory, log and disk bytes per hold. With --rate
the loop is open: requests start when the schedule says so and latency counts
from there. With --rate 0 every client sends as fast as it is answered. A
pgbench run on the same server (64 clients, one small UPDATE and INSERT) is the
yardstick that makes figures of different machines comparable. Each of --runs
has its own yardstick before and its own ledger proof after it. Exit 4: the
ledger is not whole, or a hold did not end.

Scenarios:
` + bench.Describe() + `
--suite quick or full plays a list of them on one stack and holds the medians
against the goals of the project; full takes about an hour.`,
		Example: `  holdfast bench --embedded --suite quick --runs 3
  holdfast bench --rate 3000 --duration 1m --delay 1s..10s --cancel-ratio 0.2
  holdfast bench --embedded --shards-count 2 --scenario create --clients 256 --senders 1000000 -o json
  holdfast bench --embedded --scenario pending --pending 10000000 --report pending.html`,
	}
	b.flags(c)
	a.addConnection(c)
	c.AddCommand(a.benchLoadCommand())
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := b.parse(cmd); err != nil {
			return err
		}
		return a.bench(cmd.Context(), cmd, &b)
	}
	return c
}

func (b *benchFlags) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&b.cfg.Scenario, "scenario", "lifecycle", strings.Join(bench.Scenarios(), ", "))
	f.StringVar(&b.suite, "suite", "", "play a list of scenarios instead: quick or full")
	f.IntVar(&b.runs, "runs", 1, "how often; the figures are the medians (a suite: rounds)")
	f.Float64Var(&b.cfg.Rate, "rate", 0, "holds per second; 0: as fast as it goes (cliff, drain: of the creates beside it)")
	f.StringVar(&b.duration, "duration", "30s", "length of the measured window")
	f.StringVar(&b.warmup, "warmup", "3s", "load before it that is not counted")
	f.IntVar(&b.cfg.Clients, "clients", 0, "connections, one request at a time each (default 256, batch: 16)")
	f.IntVar(&b.cfg.Processes, "processes", 1, "processes of the load generator that share the clients and the rate")
	f.IntVar(&b.cfg.Senders, "senders", 0, "accounts that pay (default 2,000, a suite: 100,000)")
	f.IntVar(&b.cfg.Recipients, "recipients", 0, "accounts that are paid (default 2,000, a suite: 100,000)")
	f.Float64Var(&b.cfg.Zipf, "zipf", 0, "skew of senders and recipients, above 1; 0: uniform")
	f.StringVar(&b.delay, "delay", "", "time until maturity, 1s..10s or one value (default: by scenario)")
	f.Float64Var(&b.cfg.CancelRatio, "cancel-ratio", 0, "share of holds that is cancelled right after it was created")
	f.IntVar(&b.cfg.Batch, "batch", 100, "holds per request of the batch scenario")
	f.Int64Var(&b.cfg.Holds, "holds", 0, "how many mature at once (default 200,000; pending: 20,000; drain in a suite: 1,000,000)")
	f.Int64Var(&b.cfg.Pending, "pending", 0, "how many the pending scenario makes (default 1,000,000)")
	f.StringVar(&b.outage, "outage", "30s", "how long the shard stands still in shard-down")
	f.StringVar(&b.paymentLatency, "payment-latency", "", "what the payment simulator waits before each answer (slow-payment: 50ms)")
	f.StringVar(&b.settle, "settle", "", "how long after the last maturity every hold must have ended (default 2m)")
	f.StringVar(&b.yardstick, "yardstick", "10s", "length of the pgbench run; 0s: none")
	f.BoolVar(&b.embedded, "embedded", false, "start a fresh stack for the run and remove it after")
	f.IntVar(&b.shardsCount, "shards-count", 0, "PostgreSQL servers of the --embedded stack (default 4)")
	f.StringVar(&b.dir, "dir", "", "directory of the --embedded stack (default: a temporary one)")
	f.StringVar(&b.shards, "shards", "", "DSNs of the shards under load, for lag, log bytes and many accounts (default: those of a running up)")
	f.StringVar(&b.acked, "acked", "", "write every acknowledged hold id to this file")
	f.StringVar(&b.report, "report", "", "write an HTML report to this file")
}

// benchLoadCommand is one process of the load generator; bench starts it.
func (a *app) benchLoadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load", Short: "Drive the phase that is described on stdin", Hidden: true, Args: exactly(),
		Example: `  holdfast bench load < phase.json`,
		RunE:    func(cmd *cobra.Command, _ []string) error { return bench.Child(cmd.Context(), a.stdin, a.stdout) },
	}
}

func (b *benchFlags) parse(cmd *cobra.Command) error {
	given := func(flag string) bool { return cmd.Flags().Changed(flag) }
	for _, d := range []struct {
		flag, text string
		into       *time.Duration
	}{{"duration", b.duration, &b.cfg.Duration}, {"warmup", b.warmup, &b.cfg.Warmup}, {"settle", b.settle, &b.cfg.Settle},
		{"yardstick", b.yardstick, &b.cfg.Yardstick}, {"outage", b.outage, &b.cfg.Outage},
		{"payment-latency", b.paymentLatency, &b.cfg.PaymentLatency}} {
		if d.text == "" || b.suite != "" && !given(d.flag) {
			continue // left to the scenario or the suite
		}
		var err error
		if *d.into, err = settings.ParseDuration(d.text); err != nil {
			return usagef(cmd, "--%s: %w", d.flag, err)
		}
	}
	if b.delay != "" {
		low, high, ranged := strings.Cut(b.delay, "..")
		if !ranged {
			high = low
		}
		var err1, err2 error
		b.cfg.DelayMin, err1 = settings.ParseDuration(low)
		b.cfg.DelayMax, err2 = settings.ParseDuration(high)
		if err := errors.Join(err1, err2); err != nil {
			return usagef(cmd, "--delay is %q, write it like 1s..10s", b.delay)
		}
	}
	checked := b.cfg
	if b.suite != "" {
		checked.Duration = max(checked.Duration, time.Second)
	}
	switch err := checked.Check(); {
	case err != nil:
		return usagef(cmd, "%w", err)
	case b.suite != "" && given("scenario"):
		return usagef(cmd, "--suite and --scenario exclude each other")
	case b.suite != "" && b.suite != "quick" && b.suite != "full":
		return usagef(cmd, "there is no suite %q: choose quick or full", b.suite)
	case b.suite != "" && (given("acked") || given("rate")):
		return usagef(cmd, "--acked and --rate are for one scenario, not for a suite")
	case b.runs < 1 || b.runs > 100:
		return usagef(cmd, "--runs must be between 1 and 100")
	case b.shardsCount < 0 || b.shardsCount > 64:
		return usagef(cmd, "--shards-count must be between 1 and 64")
	case (b.dir != "" || b.shardsCount != 0) && !b.embedded:
		return usagef(cmd, "--dir and --shards-count are for --embedded")
	}
	return nil
}

// benchResult is what a run, several runs or a suite measured.
type benchResult interface {
	Table(w io.Writer)
	WriteHTML(path string) error
	OK() bool
}

func (a *app) bench(ctx context.Context, cmd *cobra.Command, b *benchFlags) (err error) {
	b.target.PgBench = bench.FindPgBench()
	b.target.Note = func(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }
	b.target.Spawn = a.spawnLoad
	if b.embedded {
		stack, err := a.startChild(ctx, b)
		if err != nil {
			return err
		}
		defer stack.stop()
	} else if err := a.benchTarget(b); err != nil {
		return err
	}
	if b.acked != "" {
		f, err := os.Create(b.acked)
		if err != nil {
			return err
		}
		defer f.Close()
		b.cfg.Acked = f
	}
	t, err := bench.Open(b.target)
	if err != nil {
		return err
	}
	var result benchResult
	if b.suite != "" {
		result, err = t.Suite(ctx, b.suite, b.cfg, b.runs)
	} else {
		result, err = t.Runs(ctx, b.cfg, b.runs)
	}
	if err != nil {
		return err
	}
	return a.showBench(result, b.report)
}

func (a *app) showBench(result benchResult, page string) (err error) {
	if a.output == "json" {
		err = a.showJSON(result)
	} else {
		result.Table(a.stdout)
	}
	if err == nil && page != "" {
		err = result.WriteHTML(page)
	}
	if err == nil && !result.OK() {
		err = fmt.Errorf("%w: the ledger is not whole, or a hold did not end", errCheckFailed)
	}
	return err
}

// spawnLoad makes a process of the load generator.
func (a *app) spawnLoad() *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.Command(self, "bench", "load")
	cmd.Env = a.environ
	cmd.SysProcAttr = childAttributes()
	return cmd
}

// benchTarget finds the Holdfast under load, and its shards where they can be
// known.
func (a *app) benchTarget(b *benchFlags) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	flags := map[string]string{}
	if b.shards != "" {
		flags["HOLDFAST_SHARDS"] = b.shards
	}
	cfg, err := a.settings(flags)
	if err != nil {
		return err
	}
	t := &b.target
	t.API, t.Admin, t.Token, t.DSNs = api.API, api.Admin, api.Token, cfg.Shards
	if run, ok := readRunFile(cfg.Data); ok && (a.conn.api == "" || strings.HasSuffix(api.API, run.API)) {
		t.PID, t.RedisURL = run.PID, run.RedisURL
		if run.Sim != "" {
			t.Sim = apiclient.BaseURL(run.Sim)
		}
		if len(t.DSNs) == 0 {
			t.DSNs = run.Shards
		}
	}
	return nil
}
