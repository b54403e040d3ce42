//go:build failpoints && !planted

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// chaosBugsCommand says how to get the command.
func (a *app) chaosBugsCommand() *cobra.Command {
	c := &cobra.Command{Use: "bugs", Short: "Plant each known bug and show which check finds it first (needs the tag planted)",
		Args: cobra.ArbitraryArgs, Example: "  make bugs"}
	c.RunE = func(*cobra.Command, []string) error {
		return &usageError{err: errors.New("this binary knows no planted bugs: build one with go build -tags failpoints,planted, or use make bugs")}
	}
	return c
}
