// Command holdfast is the whole of Holdfast in one binary: it wires the roles
// together by hand and offers the tasks of an operator as subcommands. It is
// the only place that reads the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/spf13/cobra"
)

// Exit codes, part of the contract.
const (
	exitOK       = 0
	exitError    = 1
	exitUsage    = 2
	exitNotFound = 3
	exitCheck    = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		// From here a second Ctrl-C ends the process at once: the handler is
		// gone. The embedded servers die with the process and recover.
		stop()
	}()
	calmCollector()
	os.Exit(realMain(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}

// calmCollector lets the heap grow to four times what lives before it is
// collected: what lives is small, what passes through is not. The limit keeps
// the process below 1 GiB whatever happens. GOGC and GOMEMLIMIT overrule it.
func calmCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(800 << 20)
	}
}

// realMain runs one command line and returns its exit code. Tests call it.
func realMain(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{environ: environ, stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := a.armFailpoints()
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	var said *alreadySaid
	if !errors.As(err, &said) {
		fmt.Fprintf(stderr, "holdfast: %s\n", strings.TrimSpace(err.Error()))
		var use *usageError
		if errors.As(err, &use) && use.command != "" {
			fmt.Fprintf(stderr, "See '%s --help'.\n", use.command)
		}
	}
	return code
}

// usageError is a command line that cannot be understood.
type usageError struct {
	err     error
	command string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...), cmd.CommandPath()}
}

// checkFailed ends a command whose check did not hold.
var errCheckFailed = errors.New("the check failed")

// alreadySaid carries an exit code for an error whose text is out already.
type alreadySaid struct{ err error }

func (e *alreadySaid) Error() string { return e.err.Error() }
func (e *alreadySaid) Unwrap() error { return e.err }

func exitCode(err error) int {
	var use *usageError
	p := apiclient.AsProblem(err)
	switch {
	case errors.As(err, &use):
		return exitUsage
	case p != nil && p.Status == http.StatusNotFound:
		return exitNotFound
	case errors.Is(err, errCheckFailed):
		return exitCheck
	case strings.HasPrefix(err.Error(), "unknown command"), strings.HasPrefix(err.Error(), "required flag"):
		return exitUsage // cobra has no types for these
	}
	return exitError
}

// app is one run of the command line.
type app struct {
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer

	output string // -o
	conn   connection

	failpoints string // the plan of crash points that the environment gave
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Sharded escrow: reserve coins, pay them at maturity, cancel until then",
		Long: `Holdfast reserves coins of a sender at once and pays them to a recipient at a
time set ahead; until then the sender can cancel. It stores everything in
PostgreSQL shards and wakes up through Redis.

Start here: holdfast up`,
		Example: `  holdfast up
  holdfast account open 7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11
  holdfast ledger prove`,
		SilenceErrors: true, SilenceUsage: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err, cmd.CommandPath()}
	})
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "output: table or json")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if a.output != "table" && a.output != "json" {
			return usagef(cmd, "-o is %q, must be table or json", a.output)
		}
		return nil
	}
	root.AddCommand(a.upCommand(), a.serveCommand(), a.migrateCommand(), a.holdCommand(), a.accountCommand(),
		a.dlqCommand(), a.ledgerCommand(), a.shardCommand(), a.tokenCommand(), a.paymentSimCommand(),
		a.benchCommand(), a.demoCommand(), a.chaosCommand(), a.versionCommand())
	return root
}

// group is a command that only has subcommands.
func group(use, short string, subcommands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Example: subcommands[0].Example,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef(cmd, "there is no command %q", cmd.CommandPath()+" "+args[0])
			}
			return cmd.Help()
		}}
	g.AddCommand(subcommands...)
	return g
}

// exactly wants n arguments, named in the error.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			what := "no argument"
			if len(names) > 0 {
				what = strings.Join(names, " ")
			}
			return usagef(cmd, "%s wants %s, got %d arguments", cmd.CommandPath(), what, len(args))
		}
		return nil
	}
}
