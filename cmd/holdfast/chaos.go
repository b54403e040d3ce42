//go:build failpoints

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-escrow/holdfast/harness/chaos"
	"github.com/holdfast-escrow/holdfast/internal/settings"
)

// chaosFlags are the flags of chaos run before they are checked.
type chaosFlags struct {
	seed         int64
	seeds, side  int
	all, keep    bool
	time         string
	report, json string
	dir, log     string
}

func (a *app) chaosCommand() *cobra.Command {
	return group("chaos", "Break a running Holdfast on purpose and prove that no coin is lost", a.chaosRunCommand(), a.chaosListCommand(), a.chaosBugsCommand())
}

func (a *app) chaosListCommand() *cobra.Command {
	var markdown bool
	c := &cobra.Command{Use: "list", Short: "List the faults", Args: exactly(), Example: "  holdfast chaos list"}
	c.Flags().BoolVar(&markdown, "markdown", false, "as the table of docs/reliability.md")
	c.RunE = func(*cobra.Command, []string) error {
		all := chaos.Faults()
		if a.output == "json" {
			type row struct {
				Name   string `json:"name"`
				Theme  string `json:"theme"`
				About  string `json:"about"`
				Covers string `json:"covers"`
				Heavy  bool   `json:"heavy"`
				Quick  bool   `json:"quick"`
			}
			var rows []row
			for _, f := range all {
				rows = append(rows, row{f.Name, f.Theme, f.About, f.Covers, f.Heavy, f.Quick})
			}
			return a.showJSON(rows)
		}
		if markdown {
			_, err := fmt.Fprint(a.stdout, chaos.Table(all))
			return err
		}
		t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		cells(t, "FAULT", "THEME", "KIND", "WHAT IT TRIES")
		for _, f := range all {
			cells(t, f.Name, f.Theme, f.Kind(), f.About)
		}
		return t.Flush()
	}
	return c
}

func (a *app) chaosRunCommand() *cobra.Command {
	var f chaosFlags
	c := &cobra.Command{
		Use: "run [NAME…]", Short: "Try faults on a cluster of real processes",
		Long: `Starts a cluster of its own (two coordinators, two participants, two schedulers,
three PostgreSQL shards, Redis, the payment simulator, a proxy on every link),
puts load on it, strikes it with each fault, heals it, and checks every
invariant, under load and at rest. A name may end in * . Without names a dozen is
drawn from the quick faults; the seed, by default the number of the day, decides
which. Exit 4: an invariant was broken, a promise not kept, or a fault did not
strike.`,
		Example: `  holdfast chaos run
  holdfast chaos run die-at-try-committed --seed 7
  holdfast chaos run 'payment-*' --seeds 3 --report chaos.html
  holdfast chaos run --all --seeds 5 --json chaos.json`,
	}
	fl := c.Flags()
	fl.Int64Var(&f.seed, "seed", 0, "first seed (default: the number of the day)")
	fl.IntVar(&f.seeds, "seeds", 1, "how many seeds each fault is tried with")
	fl.IntVar(&f.side, "side-by-side", 1, "how many clusters stand at once, each with a fault of its own")
	fl.BoolVar(&f.all, "all", false, "every fault")
	fl.StringVar(&f.time, "time", "", "begin no further fault after this time")
	fl.StringVar(&f.report, "report", "", "write an HTML report to this file")
	fl.StringVar(&f.json, "json", "", "write a JSON report to this file")
	fl.BoolVar(&f.keep, "keep", false, "keep the clusters' folders, data included")
	fl.StringVar(&f.dir, "dir", "", "folder for clusters and what is kept of failures (default: a temporary one)")
	fl.StringVar(&f.log, "log", "", "write what the clusters do to this file")
	c.RunE = func(cmd *cobra.Command, names []string) error { return a.chaosRun(cmd, &f, names) }
	return c
}

// choose finds the faults of a command line and its seeds.
func (f *chaosFlags) choose(cmd *cobra.Command, names []string) (faults []chaos.Fault, seeds []int64, err error) {
	if !cmd.Flags().Changed("seed") {
		f.seed = chaos.DaySeed(time.Now())
	}
	if f.seeds < 1 {
		return nil, nil, usagef(cmd, "--seeds must be at least 1")
	}
	if f.side < 1 {
		return nil, nil, usagef(cmd, "--side-by-side must be at least 1")
	}
	for i := range f.seeds {
		seeds = append(seeds, f.seed+int64(i))
	}
	switch {
	case f.all && len(names) > 0:
		return nil, nil, usagef(cmd, "--all and names exclude each other")
	case f.all:
		faults = chaos.Faults()
	case len(names) > 0:
		if faults, err = chaos.Find(chaos.Faults(), names); err != nil {
			return nil, nil, usagef(cmd, "%w", err)
		}
	default:
		faults = chaos.Pick(chaos.Faults(), f.seed)
	}
	return faults, seeds, nil
}

func (a *app) chaosRun(cmd *cobra.Command, f *chaosFlags, names []string) error {
	faults, seeds, err := f.choose(cmd, names)
	if err != nil {
		return err
	}
	r, closeAll, err := a.chaosRunner(cmd, f)
	if err != nil {
		return err
	}
	defer closeAll()
	fmt.Fprintf(a.stdout, "%d faults, seeds %d to %d; again with: %s\n", len(faults), seeds[0], seeds[len(seeds)-1], r.Command)
	report, err := r.Run(cmd.Context(), faults, seeds)
	if report != nil {
		if f.report != "" {
			err = errors.Join(err, report.WriteHTML(f.report))
		}
		if f.json != "" {
			err = errors.Join(err, report.WriteJSON(f.json))
		}
	}
	if err == nil && !report.OK() {
		err = fmt.Errorf("%w: see the table above", errCheckFailed)
	}
	return err
}

// chaosRunner prepares what a run needs; the cluster's processes run this very
// program.
func (a *app) chaosRunner(cmd *cobra.Command, f *chaosFlags) (*chaos.Runner, func(), error) {
	r := &chaos.Runner{Dir: f.dir, Keep: f.keep, Side: f.side, Out: a.stdout, Version: versionText(), Machine: fmt.Sprintf("%s/%s, %d cores", runtime.GOOS, runtime.GOARCH, runtime.NumCPU()),
		Program: calledAs(), Command: fmt.Sprintf("%s chaos run %s--seed %d --seeds %d", calledAs(), namesOf(cmd, f), f.seed, f.seeds)}
	var err error
	if r.Binary, err = os.Executable(); err != nil {
		return nil, nil, fmt.Errorf("find my own program: %w", err)
	}
	if f.time != "" {
		if r.Budget, err = settings.ParseDuration(f.time); err != nil {
			return nil, nil, usagef(cmd, "--time: %w", err)
		}
	}
	closeAll := func() {}
	if r.Dir == "" {
		if r.Dir, err = os.MkdirTemp("", "holdfast-chaos-"); err != nil {
			return nil, nil, err
		}
		closeAll = func() { _ = os.Remove(r.Dir) } // stays when a failure left something in it
	} else if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return nil, nil, err
	}
	// The servers may run as another user than root.
	if err := os.Chmod(r.Dir, 0o755); err != nil {
		return nil, nil, err
	}
	if f.log != "" {
		log, err := os.Create(f.log)
		if err != nil {
			return nil, nil, err
		}
		r.Log = log
		before := closeAll
		closeAll = func() { before(); _ = log.Close() }
	}
	return r, closeAll, nil
}

// calledAs is this program as a person called it: faults need the one with
// crash points, which is not the product's.
func calledAs() string { return os.Args[0] }

// namesOf repeats the selection of a command line.
func namesOf(cmd *cobra.Command, f *chaosFlags) string {
	if f.all {
		return "--all "
	}
	if args := cmd.Flags().Args(); len(args) > 0 {
		return "'" + strings.Join(args, "' '") + "' "
	}
	return ""
}

// versionText is the version for a report: the commit where the build knows it.
func versionText() string {
	v := versionOf()
	if v["commit"] != "" {
		return "holdfast " + v["commit"][:min(12, len(v["commit"]))]
	}
	return "holdfast " + v["version"]
}
