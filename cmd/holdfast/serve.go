package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/spf13/cobra"
)

func (a *app) serveCommand() *cobra.Command {
	var names []string
	c := &cobra.Command{
		Use: "serve --role ROLE[,ROLE…]", Short: "Run some roles against servers of your own", Args: exactly(),
		Long: `Runs one or more roles: coordinator (public and admin API, drives holds),
participant (moves money on the shards), scheduler (wakes holds at maturity),
payment-sim. Roles in other processes are reached over signed HTTP: name them
with HOLDFAST_PARTICIPANTS and HOLDFAST_COORDINATORS and give all of them the
same HOLDFAST_BRANCH_SECRET. The schema must be there: holdfast migrate up.

Every flag below is also a setting of the environment, named in brackets.`,
		Example: `  holdfast serve --role coordinator,participant,scheduler
  holdfast serve --role participant --branch-addr 0.0.0.0:8083
  holdfast serve --role coordinator --participants http://p1:8083,http://p2:8083 --shard-count 4`,
	}
	given := settingFlags(c)
	c.Flags().StringSliceVar(&names, "role", nil, "roles of this process: coordinator, participant, scheduler, payment-sim")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		r, err := parseRoles(names)
		if err != nil {
			return usagef(cmd, "%w", err)
		}
		cfg, err := a.settings(given())
		if err != nil {
			return err
		}
		if err := enough(cfg, r); err != nil {
			return &usageError{err: err}
		}
		return a.serve(cmd.Context(), cfg, r)
	}
	return c
}

func parseRoles(names []string) (r roles, err error) {
	if len(names) == 0 {
		return r, errors.New("--role is missing: coordinator, participant, scheduler, payment-sim, or several with commas")
	}
	for _, n := range names {
		switch strings.TrimSpace(n) {
		case "coordinator":
			r.coordinator = true
		case "participant":
			r.participant = true
		case "scheduler":
			r.scheduler = true
		case "payment-sim":
			r.sim = true
		default:
			return r, fmt.Errorf("there is no role %q: choose from coordinator, participant, scheduler, payment-sim", n)
		}
	}
	return r, nil
}

// enough checks that the settings name what the roles need, in one line.
func enough(cfg *settings.Config, r roles) error {
	alone := r.coordinator && r.participant && r.scheduler
	onlySim := r == roles{sim: true}
	switch {
	case (r.participant || r.scheduler) && len(cfg.Shards) == 0:
		return errors.New("HOLDFAST_SHARDS is not set: participant and scheduler need the DSNs of the shards")
	case r.scheduler && cfg.RedisURL == "":
		return errors.New("HOLDFAST_REDIS_URL is not set: the scheduler needs Redis")
	case r.coordinator && !r.participant && len(cfg.Participants) == 0:
		return errors.New("HOLDFAST_PARTICIPANTS is not set: a coordinator without a participant in its process must know where they are")
	case r.coordinator && !r.participant && len(cfg.Shards) == 0 && cfg.ShardCount == 0:
		return errors.New("HOLDFAST_SHARD_COUNT is not set: a coordinator must know how many shards there are")
	case r.scheduler && !r.coordinator && len(cfg.Coordinators) == 0:
		return errors.New("HOLDFAST_COORDINATORS is not set: a scheduler without a coordinator in its process must know where they are")
	case !alone && !onlySim && cfg.BranchSecret == "":
		return errors.New("HOLDFAST_BRANCH_SECRET is not set: processes sign their requests to one another with it")
	case r.coordinator && cfg.PaymentURL == "" && !r.sim && !cfg.Given("HOLDFAST_SIM_ADDR"):
		return errors.New("HOLDFAST_PAYMENT_URL is not set: name the payment API, or a simulator with HOLDFAST_SIM_ADDR or --role payment-sim")
	}
	return nil
}

// serve runs the roles until ctx ends. Logs go to stderr as JSON.
func (a *app) serve(ctx context.Context, cfg *settings.Config, r roles) error {
	log := slog.New(slog.NewJSONHandler(a.stderr, &slog.HandlerOptions{Level: logLevel(cfg)}))
	a.warnUnarmed(log)
	internal := cfg.BranchSecret != "" && (r.coordinator || r.participant)
	l, err := listen(cfg, r, internal)
	if err != nil {
		return err
	}
	p, err := newProcess(ctx, cfg, r, l, cfg.Shards, cfg.RedisURL, log)
	if err != nil {
		l.close()
		return err
	}
	p.start(ctx)
	log.Info("serving", "api", addrOf(l.api), "admin", addrOf(l.admin), "branch", addrOf(l.branch), "sim", addrOf(l.sim))
	<-ctx.Done()
	log.Info("stopping")
	p.leave()
	<-time.After(stopNotice)
	return p.stop(ctx)
}

func (a *app) paymentSimCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "payment-sim", Short: "Run the payment simulator alone", Args: exactly(),
		Long: `Runs a payment API to try Holdfast against. Its faults are set with
PUT /sim/faults, what it really paid is told by GET /sim/effects?hold_id=…`,
		Example: `  holdfast payment-sim --sim-addr 127.0.0.1:8082
  curl -X PUT localhost:8082/sim/faults -d '{"mode":"down"}'`,
	}
	given := settingFlags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := a.settings(given())
		if err != nil {
			return err
		}
		return a.serve(cmd.Context(), cfg, roles{sim: true})
	}
	return c
}
