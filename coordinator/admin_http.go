package coordinator

import (
	"net"
	"net/http"
	"net/http/pprof"

	"github.com/gorilla/mux"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminRoutes is the admin API, and what machines read of a process.
func (c *Coordinator) adminRoutes() []route {
	routes := []route{
		{http.MethodGet, "/livez", "", c.livez},
		{http.MethodGet, "/readyz", "", c.readyz},
		{http.MethodGet, "/admin/v1/overview", auth.AdminRead, c.overview},
		{http.MethodGet, "/admin/v1/holds", auth.AdminRead, c.adminHolds},
		{http.MethodGet, "/admin/v1/holds/{id}", auth.AdminRead, c.adminHold},
		{http.MethodGet, "/admin/v1/dead-letters", auth.AdminRead, c.deadLetters},
		{http.MethodGet, "/admin/v1/shards", auth.AdminRead, c.listShards},
		{http.MethodGet, "/admin/v1/ledger/proof", auth.AdminRead, c.prove},
		{http.MethodGet, "/admin/v1/breaker", auth.AdminRead, c.breaker},
		{http.MethodGet, "/admin/v1/scheduler", auth.AdminRead, c.scheduler},
		{http.MethodGet, "/admin/v1/audit", auth.AdminRead, c.audit},
		{http.MethodPost, "/admin/v1/holds:release", auth.AdminWrite, c.releaseMany},
		{http.MethodPost, "/admin/v1/holds/{id}:release", auth.AdminWrite, c.releaseHold},
		{http.MethodPost, "/admin/v1/dead-letters/{id}:retry", auth.AdminWrite, c.retryHold},
		{http.MethodPost, "/admin/v1/dead-letters/{id}:refund", auth.AdminWrite, c.refundHold},
		{http.MethodPost, "/admin/v1/dead-letters/{id}:resolve", auth.AdminWrite, c.resolveHold},
		{http.MethodPost, "/admin/v1/dead-letters/{id}:close", auth.AdminWrite, c.closeHold},
	}
	if c.cfg.Gatherer != nil {
		metrics := promhttp.HandlerFor(c.cfg.Gatherer, promhttp.HandlerOpts{})
		routes = append(routes, route{http.MethodGet, "/metrics", "", func(w http.ResponseWriter, q *call) error {
			metrics.ServeHTTP(w, q.Request)
			return nil
		}})
	}
	return routes
}

// AdminHandler serves the admin API, /metrics, /livez, /readyz and, when the
// listener is bound to loopback, pprof.
func (c *Coordinator) AdminHandler() http.Handler {
	r := c.router(c.adminRoutes())
	addProfiles(r)
	return c.around(r, false)
}

// addProfiles adds pprof. A profile shows what the process has in memory and
// asks for no token, so it exists only for those who are on the machine.
func addProfiles(r *mux.Router) {
	const root = "/debug/pprof/"
	add := func(path string, prefix bool, f http.HandlerFunc) {
		h := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if rec, ok := w.(*recorder); ok {
				rec.route = root
			}
			if !onLoopback(q) {
				problem.Write(w, q, problem.New(problem.NotFound, ""))
				return
			}
			f(w, q)
		})
		if prefix {
			r.PathPrefix(path).Handler(h)
			return
		}
		r.Handle(path, h)
	}
	add(root+"cmdline", false, pprof.Cmdline)
	add(root+"profile", false, pprof.Profile)
	add(root+"symbol", false, pprof.Symbol)
	add(root+"trace", false, pprof.Trace)
	add(root, true, pprof.Index)
}

// onLoopback reports whether the request came in on a loopback address.
func onLoopback(r *http.Request) bool {
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && addr.IP.IsLoopback()
}
