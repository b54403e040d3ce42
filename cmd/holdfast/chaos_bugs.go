//go:build failpoints && planted

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-escrow/holdfast/harness/chaos"
	"github.com/holdfast-escrow/holdfast/harness/planted"
)

// chaosBugsCommand tests the tester.
func (a *app) chaosBugsCommand() *cobra.Command {
	var f chaosFlags
	c := &cobra.Command{
		Use: "bugs [NAME…]", Short: "Plant each known bug and show which check finds it first",
		Long: `Builds a binary with each planted bug, tries the faults that should find it until
the first check is red, and prints bug, fault, seconds and check. It needs the Go
tool and this program's source in the present folder. Exit 4: a bug escaped.`,
		Example: `  holdfast chaos bugs
  holdfast chaos bugs lost_update idempotency_outside`,
	}
	c.Flags().Int64Var(&f.seed, "seed", 1, "seed of every fault")
	c.Flags().StringVar(&f.dir, "dir", "", "folder for clusters (default: a temporary one)")
	c.Flags().StringVar(&f.json, "json", "", "write the table as JSON to this file")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		bugs, err := plantedBugs(names)
		if err != nil {
			return usagef(cmd, "%w", err)
		}
		r, closeAll, err := a.chaosRunner(cmd, &f)
		if err != nil {
			return err
		}
		defer closeAll()
		found, ok, err := r.Hunt(cmd.Context(), bugs, f.seed)
		fmt.Fprintf(a.stdout, "\n%s", chaos.CatchTable(found))
		if f.json != "" {
			err = errors.Join(err, chaos.WriteCatches(f.json, found))
		}
		if err == nil && !ok {
			err = fmt.Errorf("%w: a planted bug escaped", errCheckFailed)
		}
		return err
	}
	return c
}

func plantedBugs(names []string) (bugs []chaos.Bug, err error) {
	if _, err := os.Stat(filepath.Join("harness", "planted")); err != nil {
		return nil, errors.New("not in the source folder: a bug cannot be planted")
	}
	var known []string
	for _, b := range planted.All() {
		known = append(known, b.Name)
		if len(names) == 0 || slices.Contains(names, b.Name) {
			bugs = append(bugs, chaos.Bug{Name: b.Name, About: b.About,
				Build: func(ctx context.Context, out string) error { return planted.Build(ctx, ".", b, out) }})
		}
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("there is no bug %q: choose from %s", n, strings.Join(known, ", "))
		}
	}
	return bugs, nil
}
