package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/holdfast-escrow/holdfast/participants"
	"github.com/holdfast-escrow/holdfast/scheduler"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// roles says which parts run in a process.
type roles struct {
	coordinator, participant, scheduler, sim bool
}

// How long each part may take to stop. What is not done by then is done by the
// next start: nothing here is needed for safety.
const (
	// stopNotice is how long a process still answers after it was asked to stop,
	// so that nobody meets a door that falls shut. A connection that ends with a
	// request on it leaves its sender with an unknown outcome.
	stopNotice   = 500 * time.Millisecond
	stopRequests = 10 * time.Second
	stopWork     = 20 * time.Second
	stopServers  = 60 * time.Second
)

// process is the roles of one process, wired together by hand.
type process struct {
	cfg   *settings.Config
	roles roles
	log   *slog.Logger
	reg   *prometheus.Registry

	leaving   atomic.Bool
	listeners *listeners
	shards    *shards.Set
	sim       *paysim.Sim
	node      *participants.Node
	pay       *payment.Client
	coord     *coordinator.Coordinator
	sched     *scheduler.Scheduler
	filler    *scheduler.Filler // sets triggers for schedulers in other processes

	maintenance chan struct{} // closed when the partitions' keeper has ended
	endKeeper   context.CancelFunc
}

// newProcess makes the parts in the order in which they need each other; dsns
// and redisURL are those of the settings or of the embedded servers.
func newProcess(ctx context.Context, cfg *settings.Config, r roles, l *listeners, dsns []string, redisURL string, log *slog.Logger) (*process, error) {
	p := &process{cfg: cfg, roles: r, log: log, reg: prometheus.NewRegistry(), listeners: l}
	p.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := func() error {
		if r.sim {
			if err := p.makeSim(); err != nil {
				return err
			}
		}
		if r.participant || r.scheduler || (r.coordinator && len(dsns) > 0) {
			if err := p.openShards(ctx, dsns); err != nil {
				return err
			}
		}
		if r.participant {
			if err := p.makeParticipant(); err != nil {
				return err
			}
		}
		if r.coordinator {
			if err := p.makeCoordinator(len(dsns), redisURL); err != nil {
				return err
			}
		}
		if r.scheduler {
			return p.makeScheduler(redisURL)
		}
		return nil
	}
	if err := build(); err != nil {
		p.release(ctx)
		return nil, err
	}
	return p, nil
}

func (p *process) makeSim() (err error) {
	p.sim, err = paysim.New(paysim.Config{Dir: filepath.Join(p.cfg.Data, "payments"), Log: p.log.With("role", "payment-sim")})
	return err
}

func (p *process) openShards(ctx context.Context, dsns []string) (err error) {
	p.shards, err = shards.Open(ctx, shards.Config{DSNs: dsns, Log: p.log.With("role", "shards"), Metrics: p.reg})
	if errors.Is(err, shards.ErrNotMigrated) {
		return fmt.Errorf("%w: run holdfast migrate up", err)
	}
	return err
}

func (p *process) makeParticipant() (err error) {
	p.node, err = participants.New(participants.Config{Shards: p.shards, Log: p.log.With("role", "participant"),
		Metrics: p.reg, Lanes: p.cfg.Lanes, Now: p.cfg.Now})
	return err
}

// transport reaches the participants: in this process, or over the network.
func (p *process) transport(shards int) (branch.Transport, error) {
	if p.node != nil {
		return p.node, nil
	}
	h, err := branch.NewHTTP(branch.HTTPConfig{URLs: p.cfg.Participants, Secret: []byte(p.cfg.BranchSecret),
		Shards: shards, Log: p.log.With("role", "coordinator"), Now: p.cfg.Now})
	if err != nil {
		return nil, err
	}
	return &branch.Coalesce{T: h}, nil
}

func (p *process) makeCoordinator(shardsGiven int, redisURL string) error {
	shardMap := holdfast.EvenShardMap(max(1, shardsGiven, p.cfg.ShardCount))
	if p.shards != nil {
		shardMap = p.shards.Map()
	}
	participants, err := p.transport(shardMap.Shards)
	if err != nil {
		return err
	}
	p.pay, err = payment.New(payment.Config{URL: p.paymentURL(), Timeout: p.cfg.PaymentTimeout,
		Refusals: p.cfg.PaymentRefusals, ErrorRatio: p.cfg.BreakerErrorRatio, OpenFor: p.cfg.BreakerOpenFor,
		// The window must outlast a call, or an API that only hangs would
		// never be counted.
		Window: max(30*time.Second, 3*p.cfg.PaymentTimeout), Metrics: p.reg, Log: p.log.With("role", "payment")})
	if err != nil {
		return err
	}
	secret, err := readSecret(p.cfg)
	if err != nil {
		return err
	}
	verifier, err := auth.NewHS256At(secret, p.cfg.JWTIssuer, p.cfg.JWTAudience, 0, p.cfg.Now)
	if err != nil {
		return err
	}
	cfg := coordinator.Config{Participants: participants, Map: shardMap, Payment: p.pay, Auth: verifier,
		Log: p.log.With("role", "coordinator"), Metrics: p.reg, Gatherer: p.reg, Currencies: p.cfg.Currencies,
		RatePerSecond: p.cfg.RateLimit, GiveUp: p.cfg.PaymentGiveUp, KeyLifetime: p.cfg.PaymentKeyLifetime,
		BackoffMost: p.cfg.PaymentRetryMost, RefusalQuiet: p.cfg.RefusalQuiet, LeaseMargin: p.cfg.LeaseMargin,
		ProofEvery: p.cfg.ProofEvery, Now: p.cfg.Now}
	// Scheduler and filler need the coordinator and are therefore made after
	// it; these functions are called only once everything has started.
	switch {
	case p.roles.scheduler:
		cfg.Created = func(shard int, ids []holdfast.HoldID) { p.sched.Triggers(context.Background(), shard, ids) }
		cfg.Scheduler = func(ctx context.Context) any { return p.sched.Status(ctx) }
		cfg.Ready = p.checks
	case redisURL != "":
		cfg.Created = func(shard int, ids []holdfast.HoldID) { p.filler.Triggers(context.Background(), shard, ids) }
		cfg.Ready = p.checks
	}
	p.coord = coordinator.New(cfg)
	if p.roles.scheduler || redisURL == "" {
		return nil
	}
	return p.makeFiller(redisURL, shardMap.Shards)
}

// makeFiller: the schedulers are elsewhere, but the coordinator knows first of
// a new hold, and one of a second is over before any sweep would find it.
func (p *process) makeFiller(redisURL string, shards int) (err error) {
	p.filler, err = scheduler.NewFiller(scheduler.FillerConfig{RedisURL: redisURL, Shards: shards,
		Horizon: p.cfg.Horizon, SweepEvery: p.cfg.SweepEvery,
		Open: func() bool { return p.coord.Open(context.Background()) },
		Log:  p.log.With("role", "filler"), Metrics: p.reg, Now: p.cfg.Now})
	return err
}

func (p *process) paymentURL() string {
	if p.cfg.PaymentURL != "" {
		return p.cfg.PaymentURL
	}
	if sim := p.listeners.sim; sim != nil {
		return "http://" + sim.Addr().String()
	}
	return apiclient.BaseURL(p.cfg.SimAddr)
}

func (p *process) makeScheduler(redisURL string) error {
	var driver scheduler.Driver = p.coord
	if p.coord == nil {
		h, err := branch.NewHTTP(branch.HTTPConfig{URLs: p.cfg.Coordinators, Secret: []byte(p.cfg.BranchSecret),
			Log: p.log.With("role", "scheduler"), Now: p.cfg.Now})
		if err != nil {
			return err
		}
		driver = h
	}
	var err error
	p.sched, err = scheduler.New(scheduler.Config{Shards: p.shards, RedisURL: redisURL, Driver: driver,
		Log: p.log.With("role", "scheduler"), Metrics: p.reg, Horizon: p.cfg.Horizon, SweepEvery: p.cfg.SweepEvery,
		Lease: p.cfg.TriggerLease, DrainRate: p.cfg.DrainRate, Now: p.cfg.Now})
	return err
}

// start lets the listeners answer and the loops run.
func (p *process) start(ctx context.Context) {
	if p.sim != nil {
		p.listeners.serve(p.listeners.sim, p.sim, p.log)
	}
	if p.listeners.branch != nil {
		p.listeners.serve(p.listeners.branch, p.internalHandler(), p.log)
	}
	// The work must outlive the signal that ends the process: it is stopped in
	// order by stop, not by the context.
	work := context.WithoutCancel(ctx)
	if p.participantKeepsShards() {
		keeper, cancel := context.WithCancel(work)
		p.endKeeper, p.maintenance = cancel, make(chan struct{})
		go func() {
			defer close(p.maintenance)
			p.shards.RunMaintenance(keeper)
		}()
	}
	if p.filler != nil {
		p.filler.Start(work)
	}
	if p.coord != nil {
		p.coord.Start(work)
		p.listeners.serve(p.listeners.api, p.coord.PublicHandler(), p.log)
		p.listeners.serve(p.listeners.admin, p.coord.AdminHandler(), p.log)
	} else if p.listeners.admin != nil {
		p.listeners.serve(p.listeners.admin, p.opsHandler(), p.log)
	}
	if p.sched != nil {
		p.sched.Start(work)
	}
}

// participantKeepsShards: whoever owns the shards keeps their partitions ahead.
func (p *process) participantKeepsShards() bool { return p.shards != nil && p.roles.participant }

// internalHandler serves signed requests of other processes. Of one that stops
// they learn, by an answer, that nothing was done, and go to the next one.
func (p *process) internalHandler() http.Handler {
	secret := []byte(p.cfg.BranchSecret)
	mux := http.NewServeMux()
	if p.node != nil {
		mux.Handle("/branch/", p.node.Handler(secret))
	}
	if p.coord != nil {
		mux.Handle("/drive/", p.coord.DriveHandler(secret))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.leaving.Load() {
			w.Header().Set("Connection", "close")
			branch.WriteAnswer(w, nil, fmt.Errorf("%w: this process is stopping", holdfast.ErrShardUnavailable))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// leave gives notice of the stop to all who send requests here.
func (p *process) leave() {
	p.leaving.Store(true)
	if p.coord != nil {
		p.coord.Leave()
	}
}

// stop ends everything in the order in which it depends on each other:
// no new requests, no new work, then the ground under them.
func (p *process) stop(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if p.coord != nil {
		p.coord.Drain()
	}
	var errs []error
	within(ctx, stopWork, func(ctx context.Context) {
		if p.sched != nil {
			errs = append(errs, p.sched.Close(ctx))
		}
	})
	within(ctx, stopRequests, func(ctx context.Context) { errs = append(errs, p.listeners.shutdownAPI(ctx)) })
	within(ctx, stopWork, func(ctx context.Context) {
		if p.filler != nil {
			errs = append(errs, p.filler.Close(ctx))
		}
		if p.coord != nil {
			p.coord.Close(ctx)
		}
	})
	if p.endKeeper != nil {
		p.endKeeper()
		<-p.maintenance
	}
	p.release(ctx)
	within(ctx, stopRequests, func(ctx context.Context) { errs = append(errs, p.listeners.shutdownRest(ctx)) })
	return errors.Join(errs...)
}

// release gives back what was opened, also after a start that went half way.
func (p *process) release(ctx context.Context) {
	within(context.WithoutCancel(ctx), stopWork, func(ctx context.Context) {
		if p.node != nil {
			p.node.Close(ctx)
		}
	})
	if p.pay != nil {
		p.pay.Close()
	}
	if p.shards != nil {
		p.shards.Close()
	}
	if p.sim != nil {
		if err := p.sim.Close(); err != nil {
			p.log.Error("close the payment simulator", "error", err)
		}
	}
}

func within(ctx context.Context, d time.Duration, f func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	f(ctx)
}
