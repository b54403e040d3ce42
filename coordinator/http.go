package coordinator

import (
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/prometheus/client_golang/prometheus"
)

// publicRoutes is the public API. The busiest come first because the router
// tries them in order.
func (c *Coordinator) publicRoutes() []route {
	return []route{
		{http.MethodPost, "/v1/holds", auth.HoldsCreate, c.createHold},
		{http.MethodGet, "/v1/holds", auth.HoldsRead, c.listHolds},
		{http.MethodGet, "/v1/holds/{id}", auth.HoldsRead, c.getHold},
		{http.MethodDelete, "/v1/holds/{id}", auth.HoldsCancel, c.cancelHold},
		{http.MethodPost, "/v1/holds:batchCreate", auth.HoldsCreate, c.batchCreate},
		{http.MethodPut, "/v1/accounts/{id}", auth.AccountsWrite, c.openAccount},
		{http.MethodGet, "/v1/accounts/{id}", auth.AccountsRead, c.getAccount},
		{http.MethodPatch, "/v1/accounts/{id}", auth.AccountsAdmin, c.patchAccount},
		{http.MethodPost, "/v1/accounts/{id}/deposits", auth.AccountsWrite, c.deposit},
		{http.MethodPost, "/v1/accounts/{id}/withdrawals", auth.AccountsWrite, c.withdraw},
		{http.MethodGet, "/v1/accounts/{id}/entries", auth.AccountsRead, c.listEntries},
	}
}

// PublicHandler serves the public API.
func (c *Coordinator) PublicHandler() http.Handler {
	return c.around(c.router(c.publicRoutes()), true)
}

// router makes a router in which each path has one entry and the entry knows
// its methods, so that a wrong method is answered with the right Allow. Paths
// are matched as they were sent: nothing is cleaned, decoded or redirected,
// because a redirect turns a POST into a GET and an encoded slash must not
// reach another route.
func (c *Coordinator) router(routes []route) *mux.Router {
	r := mux.NewRouter().SkipClean(true).UseEncodedPath()
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		problem.Write(w, q, problem.New(problem.NotFound, ""))
	})
	methods := map[string]map[string]*route{}
	for i := range routes {
		rt := &routes[i]
		if methods[rt.path] == nil {
			methods[rt.path] = map[string]*route{}
			// A colon in the last part starts the name of an act, never an id.
			r.Handle(strings.ReplaceAll(rt.path, "{id}", "{id:[^/:]+}"), c.switchMethod(rt.path, methods[rt.path]))
		}
		methods[rt.path][rt.method] = rt
	}
	return r
}

func (c *Coordinator) switchMethod(path string, methods map[string]*route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rec, ok := w.(*recorder); ok {
			rec.route = path
		}
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet // net/http leaves the body out
		}
		rt := methods[method]
		if rt == nil {
			w.Header().Set("Allow", allow(methods))
			problem.Write(w, r, problem.New(problem.MethodNotAllowed, ""))
			return
		}
		c.handle(rt, w, &call{Request: r, id: mux.Vars(r)["id"]})
	})
}

func allow(methods map[string]*route) string {
	var names []string
	for m := range methods {
		names = append(names, m)
		if m == http.MethodGet {
			names = append(names, http.MethodHead)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Route is one row of the two APIs as others see it.
type Route struct {
	Method, Path, Scope string // Scope is empty where no token is asked for
	Admin               bool   // on the admin listener
}

// Routes is every route, for those who walk over all of them.
func Routes() []Route {
	var out []Route
	c := &Coordinator{cfg: Config{Gatherer: prometheus.NewRegistry()}} // with /metrics
	for _, r := range c.publicRoutes() {
		out = append(out, Route{r.method, r.path, r.scope, false})
	}
	for _, r := range c.adminRoutes() {
		out = append(out, Route{r.method, r.path, r.scope, true})
	}
	return out
}
