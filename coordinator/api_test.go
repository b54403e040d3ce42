package coordinator

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/prometheus/client_golang/prometheus"
)

// The tests of the API put scripted shards behind it: they are about what is
// sent, what is answered, and that nothing else happens. What real shards do is
// tested with real PostgreSQL.

// scripted is a transport whose steps are functions of a test.
type scripted struct {
	mu    sync.Mutex
	steps map[string]func(shard int, in any) (any, error)
	sent  []string
}

func (s *scripted) on(op string, f func(shard int, in any) (any, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps[op] = f
}

func (s *scripted) Send(ctx context.Context, shard int, op string, in, out any) error {
	s.mu.Lock()
	f := s.steps[op]
	s.sent = append(s.sent, op)
	s.mu.Unlock()
	if f == nil {
		panic("the test has no script for " + op)
	}
	v, err := f(shard, in)
	if err == nil {
		reflect.ValueOf(out).Elem().Set(reflect.ValueOf(v))
	}
	return err
}

func (s *scripted) count(op string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.sent {
		if o == op {
			n++
		}
	}
	return n
}

// each answers every item of a batched step.
func each[I, O any](f func(I) O) func(int, any) (any, error) {
	return func(_ int, in any) (any, error) {
		var out []O
		for _, item := range in.([]I) {
			out = append(out, f(item))
		}
		return out, nil
	}
}

// says answers every call of a step with the same value.
func says(v any) func(int, any) (any, error) { return func(int, any) (any, error) { return v, nil } }

func breaks(err error) func(int, any) (any, error) {
	return func(int, any) (any, error) { return nil, err }
}

var (
	alice = mustUser("0190c1d2-1111-7000-8000-00000000000a")
	bob   = mustUser("0190c1d2-1111-7000-8000-00000000000b")
	carol = mustUser("0190c1d2-1111-7000-8000-00000000000c")

	unlock = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

func mustUser(s string) holdfast.UserID {
	id, err := holdfast.ParseUserID(s)
	if err != nil {
		panic(err)
	}
	return id
}

func aHold(status holdfast.Status) holdfast.Hold {
	return holdfast.Hold{ID: holdfast.NewHoldID(unlock.UnixMilli(), alice.Bucket(), 7), Status: status, Sender: alice,
		Recipient: bob, Amount: 100, Currency: "RBX", UnlockAt: unlock, CreatedAt: unlock.Add(-time.Hour)}
}

func holdOf(i branch.TryItem) holdfast.Hold {
	h := aHold(holdfast.Pending)
	h.Sender, h.Recipient, h.Amount, h.Currency, h.Reference = i.Sender, i.Recipient, i.Amount, i.Currency, i.Reference
	return h
}

// api is a coordinator with scripted shards that say yes to everything.
type api struct {
	*Coordinator
	t       testing.TB
	shards  *scripted
	public  http.Handler
	admin   http.Handler
	log     *strings.Builder
	created []holdfast.HoldID
}

var testSecret = []byte(strings.Repeat("k", auth.MinSecret))

func newAPI(t testing.TB, change ...func(*Config)) *api {
	t.Helper()
	a := &api{t: t, log: &strings.Builder{}, shards: &scripted{steps: map[string]func(int, any) (any, error){}}}
	verifier, err := auth.NewHS256(testSecret, "iss", "aud", 0)
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	cfg := Config{Participants: a.shards, Map: holdfast.EvenShardMap(4), Auth: verifier, Metrics: registry, Gatherer: registry,
		Log:     slog.New(slog.NewJSONHandler(&lockedWriter{w: a.log}, nil)),
		Created: func(_ int, ids []holdfast.HoldID) { a.created = append(a.created, ids...) }}
	for _, f := range change {
		f(&cfg)
	}
	a.Coordinator = New(cfg)
	a.public, a.admin = a.PublicHandler(), a.AdminHandler()
	a.shards.on(branch.OpCheck, each(func(branch.CheckItem) branch.CheckResult { return branch.CheckResult{Code: branch.CodeOK} }))
	a.shards.on(branch.OpTry, each(func(i branch.TryItem) branch.TryResult {
		if i.Refusal != "" {
			return branch.TryResult{Code: i.Refusal}
		}
		return branch.TryResult{Code: branch.CodeOK, Hold: holdOf(i)}
	}))
	a.answerHold(branch.OpGet, branch.CodeOK, aHold(holdfast.Pending))
	a.answerHold(branch.OpCancel, branch.CodeOK, aHold(holdfast.Cancelled))
	return a
}

// answerHold makes a batched step answer every item alike.
func (a *api) answerHold(op string, code branch.Code, h holdfast.Hold) {
	a.shards.on(op, func(_ int, in any) (any, error) {
		out := make([]branch.HoldResult, reflect.ValueOf(in).Len())
		for i := range out {
			out[i] = branch.HoldResult{Code: code, Hold: h}
		}
		return out, nil
	})
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func (a *api) token(o auth.MintOptions) string {
	a.t.Helper()
	o.Issuer, o.Audience = "iss", "aud"
	token, err := auth.Mint(testSecret, o)
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

func (a *api) user(u holdfast.UserID) string {
	return a.token(auth.MintOptions{Sub: u.String(), Scopes: auth.AllScopes()})
}

func (a *api) service() string {
	return a.token(auth.MintOptions{Service: "shop", Scopes: auth.AllScopes()})
}

// answer is what came back; doc is nil when it is no JSON object.
type answer struct {
	*httptest.ResponseRecorder
	doc map[string]any
}

func (r answer) code() string { s, _ := r.doc["code"].(string); return s }

// send makes a request of the service, or as the headers say. Paths below
// /v1 go to the public API, all others to the admin address.
func (a *api) send(method, path, body string, headers ...string) answer {
	a.t.Helper()
	var r *http.Request
	if body == "" {
		r = httptest.NewRequest(method, path, nil)
	} else {
		r = httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Authorization", "Bearer "+a.service())
	for i := 0; i < len(headers); i += 2 {
		r.Header.Del(headers[i])
		if headers[i+1] != "" {
			r.Header[http.CanonicalHeaderKey(headers[i])] = strings.Split(headers[i+1], "\n")
		}
	}
	return a.do(r)
}

func (a *api) do(r *http.Request) answer {
	a.t.Helper()
	h := a.admin
	if strings.HasPrefix(r.URL.Path, "/v1") {
		h = a.public
	}
	w := answer{ResponseRecorder: httptest.NewRecorder()}
	h.ServeHTTP(w, r)
	if w.Header().Get("X-Request-Id") == "" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		a.t.Errorf("%s %s: an answer without its headers: %v", r.Method, r.URL, w.Header())
	}
	text := w.Body.String()
	if strings.Contains(text, "FAILURE") || strings.Contains(text, "ONGOING") {
		a.t.Errorf("%s %s: the document holds a word of dtm: %s", r.Method, r.URL, text)
	}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/") {
		if err := json.Unmarshal([]byte(text), &w.doc); err != nil {
			a.t.Errorf("%s %s: %v in %s", r.Method, r.URL, err, text)
		}
	}
	if w.Code >= 400 {
		a.checkProblem(r, w)
	}
	return w
}

// checkProblem holds every error to the form of RFC 9457 that the contract says.
func (a *api) checkProblem(r *http.Request, w answer) {
	a.t.Helper()
	if _, isReady := w.doc["shards"]; isReady && r.URL.Path == "/readyz" {
		return
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		a.t.Errorf("%s %s: %d as %q", r.Method, r.URL, w.Code, got)
	}
	for _, f := range []string{"type", "title", "status", "instance", "code", "request_id", "retryable"} {
		if _, ok := w.doc[f]; !ok {
			a.t.Errorf("%s %s: no %s in %s", r.Method, r.URL, f, w.Body)
		}
	}
	if w.doc["status"] != float64(w.Code) || w.doc["request_id"] != w.Header().Get("X-Request-Id") {
		a.t.Errorf("%s %s: document and answer disagree: %s", r.Method, r.URL, w.Body)
	}
	if (w.Code == 503 || w.Code == 429) && w.Header().Get("Retry-After") == "" {
		a.t.Errorf("%s %s: %d without Retry-After", r.Method, r.URL, w.Code)
	}
	if w.Code == 401 && w.Header().Get("WWW-Authenticate") == "" {
		a.t.Errorf("%s %s: 401 without WWW-Authenticate", r.Method, r.URL)
	}
}

// want fails unless the answer has that status and code.
func (a *api) want(r answer, status int, code string) answer {
	a.t.Helper()
	if r.Code != status || r.code() != code {
		a.t.Errorf("answer %d %q, want %d %q: %s", r.Code, r.code(), status, code, r.Body)
	}
	return r
}
