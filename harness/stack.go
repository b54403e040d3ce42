// Package harness tries to break Holdfast and proves that no coin is lost. It
// puts the roles together the way the binary does, lets a test cut any call
// between them before or after it took effect, stops roles at that point and
// starts them again on the same data.
package harness

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
	"github.com/holdfast-escrow/holdfast/participants"
	"github.com/holdfast-escrow/holdfast/scheduler"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/prometheus/client_golang/prometheus"
)

// Options says how a stack differs from the plain one.
type Options struct {
	DSNs     []string
	RedisURL string // may point nowhere
	Log      *slog.Logger
	// Cut sees every call from the coordinator to a participant; nil: none.
	Cut *Cut
	// NoScheduler leaves the waking of holds to the test.
	NoScheduler bool
	// Coordinator and Payment change the settings before the start.
	Coordinator func(*coordinator.Config)
	Payment     func(*payment.Config)
	Scheduler   func(*scheduler.Config)
	// Server changes the HTTP servers of the two APIs before the start.
	Server func(*http.Server)
	// PaymentURL replaces the simulator that the stack brings along.
	PaymentURL string
	// Sim is shared by stacks on the same data; nil: a new one.
	Sim *Simulator
}

// Stack is every role in one process on servers of the caller's.
type Stack struct {
	Options
	Map     *holdfast.ShardMap
	Set     *shards.Set
	Node    *participants.Node
	Coord   *coordinator.Coordinator
	Sched   *scheduler.Scheduler
	Payment *payment.Client
	Client  branch.Client     // past the cut: what the data says
	API     *apiclient.Client // the coordinator's own HTTP APIs, as a service with all scopes
	servers []*http.Server
	ownSim  bool
}

// Simulator is a payment simulator on a port of its own.
type Simulator struct {
	*paysim.Sim
	URL    string
	server *http.Server
}

// NewSimulator starts a simulator on a free loopback port.
func NewSimulator(log *slog.Logger) (*Simulator, error) {
	sim, err := paysim.New(paysim.Config{Log: log})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the simulator: %w", err)
	}
	s := &Simulator{Sim: sim, URL: "http://" + l.Addr().String(), server: &http.Server{Handler: sim, ReadHeaderTimeout: 5 * time.Second}}
	go func() { _ = s.server.Serve(l) }()
	return s, nil
}

// Stop ends the simulator.
func (s *Simulator) Stop() {
	_ = s.Close()
	_ = s.server.Close()
}

// Start puts a stack together and starts it.
func Start(ctx context.Context, o Options) (*Stack, error) {
	s := &Stack{Options: o, Map: holdfast.EvenShardMap(len(o.DSNs))}
	var err error
	if s.Sim == nil && o.PaymentURL == "" {
		if s.Sim, err = NewSimulator(o.Log); err != nil {
			return nil, err
		}
		s.ownSim = true
	}
	metrics := prometheus.NewRegistry()
	if s.Set, err = shards.Open(ctx, shards.Config{DSNs: o.DSNs, Map: s.Map, Log: o.Log, MoneyConns: 8}); err != nil {
		return nil, err
	}
	if s.Node, err = participants.New(participants.Config{Shards: s.Set, Log: o.Log, Metrics: metrics}); err != nil {
		return nil, err
	}
	s.Client = branch.Client{T: s.Node}
	if err := s.startCoordinator(ctx, metrics); err != nil {
		return nil, err
	}
	if err := s.serve(); err != nil {
		return nil, err
	}
	if o.NoScheduler {
		return s, nil
	}
	cfg := scheduler.Config{Shards: s.Set, RedisURL: o.RedisURL, Driver: s.Coord, Log: o.Log, Metrics: metrics,
		DispatchEvery: 100 * time.Millisecond}
	if o.Scheduler != nil {
		o.Scheduler(&cfg)
	}
	if s.Sched, err = scheduler.New(cfg); err != nil {
		return nil, err
	}
	s.Sched.Start(ctx)
	return s, nil
}

func (s *Stack) startCoordinator(ctx context.Context, metrics *prometheus.Registry) (err error) {
	url := s.PaymentURL
	if url == "" {
		url = s.Sim.URL
	}
	pay := payment.Config{URL: url, Timeout: 2 * time.Second, Log: s.Log, Metrics: metrics}
	if s.Options.Payment != nil {
		s.Options.Payment(&pay)
	}
	if s.Payment, err = payment.New(pay); err != nil {
		return err
	}
	cfg := coordinator.Config{Participants: s.Node, Map: s.Map, Payment: s.Payment, Log: s.Log, Metrics: metrics,
		Gatherer: metrics, LeaseMargin: time.Second, BackoffFirst: 50 * time.Millisecond, BackoffMost: time.Second,
		RefundEvery: 50 * time.Millisecond}
	if s.Cut != nil {
		s.Cut.next = s.Node
		cfg.Participants = s.Cut
	}
	cfg.Created = func(shard int, ids []holdfast.HoldID) {
		if s.Sched != nil {
			s.Sched.Triggers(context.Background(), shard, ids)
		}
	}
	if cfg.Auth, err = auth.NewHS256(secret, "harness", "holdfast", 0); err != nil {
		return err
	}
	if s.Coordinator != nil {
		s.Coordinator(&cfg)
	}
	s.Coord = coordinator.New(cfg)
	s.Coord.Start(ctx)
	return nil
}

// secret signs the tokens of this process's stacks only.
var secret = []byte("a secret of the harness, thirty-two bytes and more")

// Signing is what tokens of the stacks are signed with and for whom.
func Signing() (key []byte, issuer, audience string) { return secret, "harness", "holdfast" }

// serve puts the APIs on free loopback ports.
func (s *Stack) serve() error {
	token, err := auth.Mint(secret, auth.MintOptions{Service: "harness", Scopes: auth.AllScopes(), Issuer: "harness", Audience: "holdfast"})
	if err != nil {
		return err
	}
	s.API = &apiclient.Client{Token: token}
	for _, side := range []struct {
		url     *string
		handler http.Handler
	}{{&s.API.API, s.Coord.PublicHandler()}, {&s.API.Admin, s.Coord.AdminHandler()}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("listen for the API: %w", err)
		}
		*side.url = "http://" + l.Addr().String()
		server := coordinator.NewServer("", side.handler, 30*time.Second, s.Log)
		if s.Server != nil {
			s.Server(server)
		}
		s.servers = append(s.servers, server)
		go func() { _ = server.Serve(l) }()
	}
	return nil
}

// Stop ends every role in order; it waits for drives as the binary does.
func (s *Stack) Stop(ctx context.Context) {
	for _, server := range s.servers {
		_ = server.Close()
	}
	if s.Sched != nil {
		_ = s.Sched.Close(ctx)
	}
	s.Coord.Close(ctx)
	s.Payment.Close()
	s.Node.Close(ctx)
	s.Set.Close()
	if s.ownSim {
		s.Sim.Stop()
	}
}
