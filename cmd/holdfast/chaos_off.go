//go:build !failpoints

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// chaosCommand says how to get the command: the failure injection needs the
// crash points, which an ordinary binary does not have.
func (a *app) chaosCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "chaos", Short: "Break a running Holdfast on purpose (needs a build with crash points)",
		Example: "  make chaos\n  go build -tags failpoints -o bin/holdfast-chaos ./cmd/holdfast && bin/holdfast-chaos chaos list",
		Args:    cobra.ArbitraryArgs, DisableFlagParsing: true,
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		for _, arg := range args {
			if arg == "-h" || arg == "--help" {
				return cmd.Help()
			}
		}
		return &usageError{err: errors.New("this binary has no crash points: build one with go build -tags failpoints -o bin/holdfast-chaos ./cmd/holdfast, or use make chaos")}
	}
	return c
}
