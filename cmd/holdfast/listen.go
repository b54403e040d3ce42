package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// listeners are the sockets of a process. They are taken before any work
// starts, so that a port in use stops the start and not half of it; what comes
// in before the start is done waits in the backlog of the kernel.
type listeners struct {
	api, admin, branch, sim net.Listener

	mu      sync.Mutex
	servers map[net.Listener]*http.Server
}

// listen takes the sockets that the roles need.
func listen(cfg *settings.Config, r roles, internal bool) (*listeners, error) {
	l := &listeners{servers: map[net.Listener]*http.Server{}}
	for _, s := range []struct {
		into   *net.Listener
		wanted bool
		name   string
		addr   string
	}{
		{&l.api, r.coordinator, "HOLDFAST_API_ADDR", cfg.APIAddr},
		{&l.admin, r.coordinator || r.participant || r.scheduler, "HOLDFAST_ADMIN_ADDR", cfg.AdminAddr},
		{&l.branch, internal, "HOLDFAST_BRANCH_ADDR", cfg.BranchAddr},
		{&l.sim, r.sim, "HOLDFAST_SIM_ADDR", cfg.SimAddr},
	} {
		if !s.wanted {
			continue
		}
		var err error
		if *s.into, err = net.Listen("tcp", s.addr); err != nil {
			l.close()
			return nil, listenError(s.name, s.addr, err)
		}
	}
	return l, nil
}

func listenError(name, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("address %s is in use: stop the other process or set %s", addr, name)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("address %s needs rights that this user does not have: set %s to a port above 1023", addr, name)
	}
	return fmt.Errorf("listen at %s (%s): %w", addr, name, err)
}

// serve answers on a socket until shutdown. WriteTimeout covers the longest
// request: the ledger proof and a CPU profile on the admin address, a payment
// simulator that hangs on purpose. On the internal address branch.Signed gives
// the steps of a proof more.
func (l *listeners) serve(socket net.Listener, h http.Handler, log *slog.Logger) {
	if socket == nil {
		return
	}
	write := 30 * time.Second
	if socket == l.admin || socket == l.sim {
		write = 15 * time.Minute
	}
	s := coordinator.NewServer("", h, write, log)
	l.mu.Lock()
	l.servers[socket] = s
	l.mu.Unlock()
	go func() {
		if err := s.Serve(socket); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error("a listener died", "addr", socket.Addr().String(), "error", err)
		}
	}()
}

// shutdownAPI stops the public API and the internal listener: what is running
// there is answered, nothing new is taken.
func (l *listeners) shutdownAPI(ctx context.Context) error {
	return errors.Join(l.shutdown(ctx, l.api), l.shutdown(ctx, l.branch))
}

// shutdownRest stops the rest: metrics and health are visible to the last.
func (l *listeners) shutdownRest(ctx context.Context) error {
	return errors.Join(l.shutdown(ctx, l.sim), l.shutdown(ctx, l.admin))
}

func (l *listeners) shutdown(ctx context.Context, socket net.Listener) error {
	if socket == nil {
		return nil
	}
	l.mu.Lock()
	s := l.servers[socket]
	l.mu.Unlock()
	if s == nil {
		return socket.Close()
	}
	if err := s.Shutdown(ctx); err != nil {
		s.Close()
		return fmt.Errorf("requests at %s did not end in time and were cut off", socket.Addr())
	}
	return nil
}

// close gives the sockets back when the start failed.
func (l *listeners) close() {
	for _, socket := range []net.Listener{l.api, l.admin, l.branch, l.sim} {
		if socket != nil {
			socket.Close()
		}
	}
}

func addrOf(socket net.Listener) string {
	if socket == nil {
		return ""
	}
	return socket.Addr().String()
}

// opsHandler is the admin address of a process without a coordinator: metrics,
// health and profiles only.
func (p *process) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", p.readyz)
	if a, ok := p.listeners.admin.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return mux // profiles show what is in memory and ask for no token
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	return mux
}
