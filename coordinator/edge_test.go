package coordinator

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// TestScopes walks over every route: without a token 401, with every scope but
// its own 403, and nothing is asked of a shard by either.
func TestScopes(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	want := map[string]string{
		"POST /v1/holds": auth.HoldsCreate, "POST /v1/holds:batchCreate": auth.HoldsCreate,
		"GET /v1/holds": auth.HoldsRead, "GET /v1/holds/{id}": auth.HoldsRead, "DELETE /v1/holds/{id}": auth.HoldsCancel,
		"PUT /v1/accounts/{id}": auth.AccountsWrite, "GET /v1/accounts/{id}": auth.AccountsRead, "PATCH /v1/accounts/{id}": auth.AccountsAdmin,
		"POST /v1/accounts/{id}/deposits": auth.AccountsWrite, "POST /v1/accounts/{id}/withdrawals": auth.AccountsWrite,
		"GET /v1/accounts/{id}/entries": auth.AccountsRead,
		"GET /livez":                    "", "GET /readyz": "", "GET /metrics": "",
		"GET /admin/v1/overview": auth.AdminRead, "GET /admin/v1/holds": auth.AdminRead, "GET /admin/v1/holds/{id}": auth.AdminRead,
		"GET /admin/v1/dead-letters": auth.AdminRead, "GET /admin/v1/shards": auth.AdminRead, "GET /admin/v1/ledger/proof": auth.AdminRead,
		"GET /admin/v1/breaker": auth.AdminRead, "GET /admin/v1/scheduler": auth.AdminRead, "GET /admin/v1/audit": auth.AdminRead,
		"POST /admin/v1/holds:release": auth.AdminWrite, "POST /admin/v1/holds/{id}:release": auth.AdminWrite,
		"POST /admin/v1/dead-letters/{id}:retry": auth.AdminWrite, "POST /admin/v1/dead-letters/{id}:refund": auth.AdminWrite,
		"POST /admin/v1/dead-letters/{id}:resolve": auth.AdminWrite, "POST /admin/v1/dead-letters/{id}:close": auth.AdminWrite,
	}
	routes := append(a.publicRoutes(), a.adminRoutes()...)
	for _, rt := range routes {
		scope, known := want[rt.method+" "+rt.path]
		if !known || scope != rt.scope {
			t.Errorf("%s %s asks for %q, want %q", rt.method, rt.path, rt.scope, scope)
		}
		if rt.scope == "" {
			continue
		}
		path := strings.ReplaceAll(rt.path, "{id}", alice.String())
		a.want(a.send(rt.method, path, "", "Authorization", ""), 401, "unauthenticated")
		others := slices.DeleteFunc(auth.AllScopes(), func(s string) bool { return s == rt.scope })
		r := a.want(a.send(rt.method, path, "", "Authorization",
			"Bearer "+a.token(auth.MintOptions{Service: "x", Scopes: others})), 403, "insufficient_scope")
		if !strings.Contains(r.Header().Get("WWW-Authenticate"), `scope="`+rt.scope+`"`) {
			t.Errorf("%s: challenge %q", rt.path, r.Header().Get("WWW-Authenticate"))
		}
	}
	if len(routes) != len(want) || len(a.shards.sent) != 0 {
		t.Errorf("%d routes, want %d; asked of shards: %v", len(routes), len(want), a.shards.sent)
	}
}

func TestPathsAndMethods(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := alice.String()
	for _, c := range []struct {
		method, path string
		status       int
		code, allow  string
	}{
		{"GET", "/v1", 404, "not_found", ""},
		{"GET", "/v1/", 404, "not_found", ""},
		{"POST", "/v1/holds/", 404, "not_found", ""},
		{"POST", "/v1//holds", 404, "not_found", ""},
		{"POST", "/v1/./holds", 404, "not_found", ""},
		{"POST", "/v1/x/../holds", 404, "not_found", ""},
		{"POST", "/v1%2Fholds", 404, "not_found", ""},
		{"POST", "/V1/holds", 404, "not_found", ""},
		{"GET", "/v1/holds/" + id + "/entries", 404, "not_found", ""},
		{"GET", "/v1/holds/" + id + ":cancel", 404, "not_found", ""},
		{"POST", "/v1/accounts/" + id + "%2Fdeposits", 405, "method_not_allowed", "GET, HEAD, PATCH, PUT"},
		{"GET", "/v1/ONGOING", 404, "not_found", ""},
		{"GET", "/v1/metrics", 404, "not_found", ""},
		{"PUT", "/v1/holds", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"OPTIONS", "/v1/holds", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"POST", "/v1/holds/" + id, 405, "method_not_allowed", "DELETE, GET, HEAD"},
		{"GET", "/v1/holds:batchCreate", 405, "method_not_allowed", "POST"},
		{"GET", "/v1/accounts/" + id + "/deposits", 405, "method_not_allowed", "POST"},
		{"BREW", "/v1/holds", 405, "method_not_allowed", "GET, HEAD, POST"},
		{"GET", "/admin/v1/holds/" + id + ":release", 405, "method_not_allowed", "POST"},
		{"POST", "/admin/v1/breaker:forceOpen", 404, "not_found", ""},
		{"GET", "/debug/pprof/", 404, "not_found", ""}, // the recorder is on no loopback
	} {
		r := a.send(c.method, c.path, "")
		if r.Code != c.status || r.code() != c.code || r.Header().Get("Allow") != c.allow || r.Header().Get("Location") != "" {
			t.Errorf("%s %s: %d %s, Allow %q, want %d %s, %q", c.method, c.path, r.Code, r.code(), r.Header().Get("Allow"), c.status, c.code, c.allow)
		}
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for sent, kept := range map[string]bool{"abc-1.2_X": true, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false,
		"a b": false, "a\nb": false, "<script>": false} {
		got := a.send(http.MethodGet, "/livez", "", "X-Request-Id", sent).Header().Get("X-Request-Id")
		if (got == sent) != kept || got == "" {
			t.Errorf("sent %q, got %q", sent, got)
		}
	}
	first, second := a.send("GET", "/livez", "").Header().Get("X-Request-Id"), a.send("GET", "/livez", "").Header().Get("X-Request-Id")
	if first == second {
		t.Errorf("two requests have the id %s", first)
	}
}

// TestSameKeyInFlight: the second request waits for the first and goes on when
// it ends; when it does not end in time, the client is told to come back.
func TestSameKeyInFlight(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	entered, release := make(chan struct{}), make(chan struct{})
	var later atomic.Bool
	a.shards.on(branch.OpTry, each(func(i branch.TryItem) branch.TryResult {
		if !later.Swap(true) {
			close(entered)
			<-release
		}
		return branch.TryResult{Code: branch.CodeReplay, Hold: holdOf(i)}
	}))
	first := make(chan int)
	go func() { first <- a.send(http.MethodPost, "/v1/holds", body()).Code }()
	<-entered
	r := a.want(a.send(http.MethodPost, "/v1/holds", body()), 409, "idempotency_in_flight")
	if r.Header().Get("Retry-After") == "" || r.doc["retryable"] != true {
		t.Errorf("no word on when to come back: %s", r.Body)
	}
	a.want(a.send(http.MethodPost, "/v1/holds", body("idempotency_key", `"other"`)), 201, "")
	second := make(chan int)
	go func() { second <- a.send(http.MethodPost, "/v1/holds", body()).Code }()
	close(release)
	if x, y := <-first, <-second; x != 201 || y != 201 {
		t.Errorf("answers %d and %d", x, y)
	}
}

// TestClientHangsUp: a client that goes away does not undo what it asked for.
func TestClientHangsUp(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	ctx, hangUp := context.WithCancel(context.Background())
	var during error
	hang := &hangingTransport{scripted: a.shards, on: func(ctx context.Context) {
		hangUp()
		during = ctx.Err()
	}}
	a.Coordinator.shards.T = hang
	r := httptest.NewRequest(http.MethodPost, "/v1/holds", strings.NewReader(body())).WithContext(ctx)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+a.service())
	a.want(a.do(r), 201, "")
	if during != nil {
		t.Errorf("the step's context ended with the client's: %v", during)
	}
}

type hangingTransport struct {
	*scripted
	on func(context.Context)
}

func (h *hangingTransport) Send(ctx context.Context, shard int, op string, in, out any) error {
	h.on(ctx)
	return h.scripted.Send(ctx, shard, op, in, out)
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_900_000_000, 0)
	l := newLimiter(2, func() time.Time { return now })
	h := http.Header{}
	for i, want := range []bool{true, true, false} {
		if err := l.take(h, "a"); (err == nil) != want {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if h.Get("RateLimit-Limit") != "2" || h.Get("RateLimit-Remaining") != "0" || h.Get("RateLimit-Reset") != "1" {
		t.Errorf("headers %v", h)
	}
	if err := l.take(h, "b"); err != nil {
		t.Errorf("another subject: %v", err)
	}
	now = now.Add(500 * time.Millisecond)
	if err := l.take(h, "a"); err != nil {
		t.Errorf("after half a second: %v", err)
	}
	l.charge("a", 4)
	now = now.Add(2 * time.Second)
	if err := l.take(h, "a"); !is(err, "rate_limited") {
		t.Errorf("a batch was not charged: %v", err)
	}
	for i := range maxSubjects + 10 {
		l.take(h, string(rune(i)))
	}
	if n := len(l.state.buckets); n > maxSubjects {
		t.Errorf("%d subjects remembered", n)
	}
}

func TestLimitsAtTheDoor(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(c *Config) { c.RatePerSecond = 0.001 })
	a.want(a.send(http.MethodPost, "/v1/holds", body()), 201, "")
	r := a.want(a.send(http.MethodPost, "/v1/holds", body()), 429, "rate_limited")
	if r.Header().Get("RateLimit-Limit") != "1" || r.Header().Get("Retry-After") == "0" {
		t.Errorf("headers %v", r.Header())
	}

	a = newAPI(t, func(c *Config) { c.MaxInFlight = 1 })
	a.edge.inFlight.Store(1)
	a.want(a.send(http.MethodPost, "/v1/holds", body()), 503, "overloaded")
	a.edge.inFlight.Store(0)
	a.want(a.send(http.MethodPost, "/v1/holds", body()), 201, "")

	a.Leave()
	if r := a.want(a.send(http.MethodPost, "/v1/holds", body()), 201, ""); r.Header().Get("Connection") != "close" {
		t.Errorf("headers of one that leaves: %v", r.Header())
	}
	if r := a.send(http.MethodGet, "/readyz", ""); r.Code != 503 || r.doc["status"] != "draining" {
		t.Errorf("readyz of one that leaves: %d %s", r.Code, r.Body)
	}

	a.Drain()
	r = a.want(a.send(http.MethodPost, "/v1/holds", body()), 503, "overloaded")
	if r.Header().Get("Connection") != "close" {
		t.Errorf("headers %v", r.Header())
	}
	if r := a.send(http.MethodGet, "/readyz", ""); r.Code != 503 || r.doc["status"] != "draining" {
		t.Errorf("readyz: %d %s", r.Code, r.Body)
	}
	a.want(a.send(http.MethodGet, "/livez", ""), 200, "")
}

func TestPanic(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.shards.on(branch.OpTry, func(int, any) (any, error) { panic("a secret") })
	r := a.want(a.send(http.MethodPost, "/v1/holds", body()), 500, "internal_error")
	if strings.Contains(r.Body.String(), "secret") || !strings.Contains(a.log.String(), "a secret") {
		t.Errorf("answer %s, log %s", r.Body, a.log)
	}
	a.shards.on(branch.OpTry, each(func(i branch.TryItem) branch.TryResult { return branch.TryResult{Code: "ok", Hold: holdOf(i)} }))
	a.want(a.send(http.MethodPost, "/v1/holds", body()), 201, "") // the key and the place are free again
}

// TestHiddenRequest: a body in chunks that also has a length ends at two places
// for two readers. What one of them takes for the next request is not answered.
func TestHiddenRequest(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	srv := httptest.NewServer(a.public)
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	hidden := "0\r\n\r\nGET /v1/holds HTTP/1.1\r\nHost: x\r\n\r\n"
	fmt.Fprintf(conn, "POST /v1/holds HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s", len(hidden), hidden)
	all, err := io.ReadAll(conn)
	if n := strings.Count(string(all), "HTTP/1.1 "); err != nil || n != 1 {
		t.Errorf("%d answers to one request, %v:\n%s", n, err, all)
	}
}

// TestMetricLabels: what a client sends never becomes a label.
func TestMetricLabels(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.send("GET", "/v1/holds/"+aHold(1).ID.String(), "")
	a.send("BREW", "/v1/../x", "")
	text := a.send("GET", "/metrics", "").Body.String()
	for _, want := range []string{
		`holdfast_http_requests_total{code="200",method="GET",route="/v1/holds/{id}"} 1`,
		`holdfast_http_requests_total{code="404",method="other",route="unmatched"} 1`,
		`holdfast_http_request_duration_seconds_count{route="/v1/holds/{id}"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s", want)
		}
	}
	if strings.Contains(text, "BREW") || strings.Contains(text, aHold(1).ID.String()) {
		t.Error("a label came from a client")
	}
}

// TestOnTheWire sends real requests to a real server: what a recorder does not
// show are the server's own answers, timeouts and pprof's guard.
func TestOnTheWire(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	srv := httptest.NewUnstartedServer(a.admin)
	srv.Config = NewServer("", a.admin, time.Minute, slog.New(slog.DiscardHandler))
	if c := srv.Config; c.ReadHeaderTimeout == 0 || c.ReadTimeout == 0 || c.WriteTimeout == 0 || c.IdleTimeout == 0 || c.MaxHeaderBytes == 0 {
		t.Errorf("a limit is missing: %+v", c)
	}
	srv.Start()
	defer srv.Close()
	for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/pprof/heap": 200, "/debug/pprof/cmdline": 200, "/nothing": 404} {
		res, err := srv.Client().Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
	for addr, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "192.0.2.1:1": false} {
		tcp, _ := net.ResolveTCPAddr("tcp", addr)
		r := httptest.NewRequest("GET", "/", nil)
		if got := onLoopback(r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(tcp)))); got != want {
			t.Errorf("%s on loopback: %v", addr, got)
		}
	}
}
