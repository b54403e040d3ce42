package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/bench"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/spf13/cobra"
)

// benchFlags are the flags of bench before they are checked.
type benchFlags struct {
	cfg                      bench.Config
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
latencies, execution lag, CPU and log bytes per hold. With --rate the loop is
open: requests start when the schedule says so and latency counts from there.
With --rate 0 every client sends as fast as it is answered. A pgbench run on the
same server (64 clients, one small UPDATE and INSERT) is the yardstick that makes
figures of different machines comparable. Exit 4: the ledger is not whole, or a
hold did not end.

Scenarios: lifecycle (create, wait for the payment), create (holds far ahead),
batch (batchCreate), cancel (create, then cancel all), cliff (all mature at once).`,
		Example: `  holdfast bench --embedded --duration 30s
  holdfast bench --rate 3000 --duration 1m --delay 1s..10s --cancel-ratio 0.2
  holdfast bench --embedded --scenario create --rate 0 --clients 256 --senders 1000000 -o json`,
	}
	f := c.Flags()
	f.StringVar(&b.cfg.Scenario, "scenario", "lifecycle", strings.Join(bench.Scenarios, ", "))
	f.Float64Var(&b.cfg.Rate, "rate", 0, "holds per second; 0: as fast as it goes")
	f.StringVar(&b.duration, "duration", "30s", "length of the measured window")
	f.StringVar(&b.warmup, "warmup", "3s", "load before it that is not counted")
	f.IntVar(&b.cfg.Clients, "clients", 256, "connections, one request at a time each (batch: 16)")
	f.IntVar(&b.cfg.Senders, "senders", 2000, "accounts that pay")
	f.IntVar(&b.cfg.Recipients, "recipients", 2000, "accounts that are paid")
	f.Float64Var(&b.cfg.Zipf, "zipf", 0, "skew of senders and recipients, above 1; 0: uniform")
	f.StringVar(&b.delay, "delay", "", "time until maturity, 1s..10s or one value (default: by scenario)")
	f.Float64Var(&b.cfg.CancelRatio, "cancel-ratio", 0, "share of holds that is cancelled right after it was created")
	f.IntVar(&b.cfg.Batch, "batch", 100, "holds per request of the batch scenario")
	f.StringVar(&b.settle, "settle", "2m", "how long after the last maturity every hold must have ended")
	f.StringVar(&b.yardstick, "yardstick", "10s", "length of the pgbench run; 0s: none")
	f.BoolVar(&b.embedded, "embedded", false, "start a fresh stack for the run and remove it after")
	f.StringVar(&b.dir, "dir", "", "directory of the --embedded stack (default: a temporary one)")
	f.StringVar(&b.shards, "shards", "", "DSNs of the shards under load, for lag, log bytes and many accounts (default: those of a running up)")
	f.StringVar(&b.acked, "acked", "", "write every acknowledged hold id to this file")
	f.StringVar(&b.report, "report", "", "write an HTML report to this file")
	a.addConnection(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := b.parse(cmd); err != nil {
			return err
		}
		return a.bench(cmd.Context(), cmd, &b)
	}
	return c
}

func (b *benchFlags) parse(cmd *cobra.Command) error {
	for _, d := range []struct {
		flag, text string
		into       *time.Duration
	}{{"duration", b.duration, &b.cfg.Duration}, {"warmup", b.warmup, &b.cfg.Warmup},
		{"settle", b.settle, &b.cfg.Settle}, {"yardstick", b.yardstick, &b.cfg.Yardstick}} {
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
	if b.cfg.Scenario == "batch" && !cmd.Flags().Changed("clients") {
		b.cfg.Clients = 16 // each has a hundred holds on the way
	}
	if err := b.cfg.Check(); err != nil {
		return usagef(cmd, "%w", err)
	}
	if b.dir != "" && !b.embedded {
		return usagef(cmd, "--dir is for --embedded")
	}
	return nil
}

func (a *app) bench(ctx context.Context, cmd *cobra.Command, b *benchFlags) (err error) {
	b.cfg.PgBench = bench.FindPgBench()
	b.cfg.Note = func(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }
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
	report, err := bench.Run(ctx, b.cfg)
	if err != nil {
		return err
	}
	if a.output == "json" {
		err = a.showJSON(report)
	} else {
		report.Table(a.stdout)
	}
	if err == nil && b.report != "" {
		err = report.WriteHTML(b.report)
	}
	if err != nil {
		return err
	}
	if !report.OK() {
		return fmt.Errorf("%w: ledger ok: %t, every hold ended: %t", errCheckFailed, report.LedgerOK, report.Settled)
	}
	return nil
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
	b.cfg.API, b.cfg.Admin, b.cfg.Token, b.cfg.DSNs = api.API, api.Admin, api.Token, cfg.Shards
	if run, ok := readRunFile(cfg.Data); ok && (a.conn.api == "" || strings.HasSuffix(api.API, run.API)) {
		b.cfg.PID = run.PID
		if len(b.cfg.DSNs) == 0 {
			b.cfg.DSNs = run.Shards
		}
	}
	return nil
}
