package coordinator

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/problem"
)

// edge is what the two APIs share between requests.
type edge struct {
	inFlight atomic.Int64
	keys     flights
	rate     limiter
	bodies   sync.Pool // *bytes.Buffer
	ready    readiness
}

func newEdge(cfg *Config) *edge {
	return &edge{
		keys:   newFlights(),
		rate:   newLimiter(cfg.RatePerSecond, cfg.Now),
		bodies: sync.Pool{New: func() any { return new(bytes.Buffer) }},
	}
}

// NewServer wraps a handler of the coordinator with the timeouts that bound
// every connection. write bounds an answer and must be longer than
// Config.RequestTimeout.
func NewServer(addr string, h http.Handler, write time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Addr: addr, Handler: h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      write,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// call is one request on its way through a handler.
type call struct {
	*http.Request
	id  string // the {id} of the path, still encoded
	who *auth.Principal
}

// route is one row of an API. A route without a scope is open to everybody.
type route struct {
	method, path, scope string
	serve               func(w http.ResponseWriter, q *call) error
}

// recorder remembers what was answered, for the metrics and for a handler that
// panics half way.
type recorder struct {
	http.ResponseWriter
	route  string
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// around is the outermost layer of both APIs: request id, headers, metrics,
// panics, and for the public API the limits that hold before anything is read.
func (c *Coordinator) around(next http.Handler, public bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		h := w.Header()
		h.Set(problem.RequestID, requestID(r))
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if len(r.TransferEncoding) > 0 {
			// net/http drops the Content-Length of a body in chunks and reads
			// on. A proxy that went by the length takes what follows for part
			// of the body: a request that somebody hid there must not be
			// answered, so nothing is read after it (RFC 9112, 6.1).
			h.Set("Connection", "close")
		}
		rec := &recorder{ResponseWriter: w, route: "unmatched"}
		defer func() {
			if p := recover(); p != nil {
				c.panicked(rec, r, p)
			}
			if rec.status == 0 {
				rec.status = http.StatusOK
			}
			c.metrics.requests.WithLabelValues(rec.route, methodLabel(r.Method), strconv.Itoa(rec.status)).Inc()
			c.metrics.duration.WithLabelValues(rec.route).Observe(time.Since(start).Seconds())
		}()
		if public {
			defer c.edge.inFlight.Add(-1)
			n := c.edge.inFlight.Add(1)
			if c.leaving.Load() {
				h.Set("Connection", "close")
			}
			if c.Draining() {
				problem.Write(rec, r, problem.New(problem.Overloaded, "this process is shutting down"))
				return
			}
			if n > int64(c.cfg.MaxInFlight) {
				problem.Write(rec, r, problem.New(problem.Overloaded, ""))
				return
			}
		}
		next.ServeHTTP(rec, r)
	})
}

func (c *Coordinator) panicked(rec *recorder, r *http.Request, p any) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p)
	}
	c.log.Error("request panicked", "route", rec.route, "request_id", rec.Header().Get(problem.RequestID),
		"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	if rec.status != 0 {
		// Half an answer is out; only breaking the connection tells the client.
		panic(http.ErrAbortHandler)
	}
	problem.Write(rec, r, problem.New(problem.Internal, ""))
}

// handle runs one route: who asks, may they, the handler, and the one place
// that turns an error into an answer.
func (c *Coordinator) handle(rt *route, w http.ResponseWriter, q *call) {
	err := c.admit(rt, w, q)
	if err == nil {
		err = rt.serve(w, q)
	}
	if err != nil {
		problem.Write(w, q.Request, c.explain(rt, w, err))
	}
}

// explain makes the document of an error. Only a problem that somebody wrote
// for the user reaches the user; everything else is a bare 500 and goes to the
// log.
func (c *Coordinator) explain(rt *route, w http.ResponseWriter, err error) *problem.Problem {
	var p *problem.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, holdfast.ErrOverloaded):
		return problem.New(problem.Overloaded, "")
	case errors.Is(err, holdfast.ErrShardUnavailable):
		return problem.New(problem.ShardUnavailable, "")
	case errors.Is(err, holdfast.ErrOutcomeUnknown):
		return problem.New(problem.OutcomeUnknown, "")
	}
	c.log.Error("request ended with an error nobody expected", "route", rt.path, "method", rt.method,
		"request_id", w.Header().Get(problem.RequestID), "error", err.Error())
	return problem.New(problem.Internal, "")
}

// admit checks the token, its scope and the rate of its subject.
func (c *Coordinator) admit(rt *route, w http.ResponseWriter, q *call) error {
	if rt.scope == "" {
		return nil
	}
	const challenge = "WWW-Authenticate"
	token, ok := bearer(q.Header)
	if !ok || c.cfg.Auth == nil {
		w.Header().Set(challenge, `Bearer realm="holdfast"`)
		return problem.New(problem.Unauthenticated, "send the header Authorization: Bearer <token>")
	}
	who, err := c.cfg.Auth.Verify(token)
	if err != nil {
		c.log.Debug("token refused", "request_id", w.Header().Get(problem.RequestID), "error", err.Error())
		w.Header().Set(challenge, `Bearer realm="holdfast", error="invalid_token"`)
		return problem.New(problem.Unauthenticated, "the token is not valid or has expired")
	}
	if !who.Has(rt.scope) {
		w.Header().Set(challenge, `Bearer realm="holdfast", error="insufficient_scope", scope="`+rt.scope+`"`)
		return problem.New(problem.InsufficientScope, "this needs the scope "+rt.scope)
	}
	q.who = who
	if strings.HasPrefix(rt.scope, "admin:") {
		return nil // operators must get through when clients storm
	}
	return c.edge.rate.take(w.Header(), who.Subject)
}

// bearer reads the token of the one Authorization header.
func bearer(h http.Header) (string, bool) {
	values := h["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	token = strings.Trim(token, " ")
	return token, ok && token != "" && strings.EqualFold(scheme, "Bearer")
}

// requestID takes over a client's id when it is harmless in a log line, and
// makes one otherwise.
func requestID(r *http.Request) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	if id := r.Header[problem.RequestID]; len(id) == 1 && id[0] != "" && len(id[0]) <= 64 &&
		strings.Trim(id[0], letters) == "" {
		return id[0]
	}
	var b [16]byte
	for i, n := 0, rand.Uint64(); i < 8; i++ {
		b[i] = byte(n >> (8 * i))
	}
	for i, n := 0, rand.Uint64(); i < 8; i++ {
		b[8+i] = byte(n >> (8 * i))
	}
	return hex.EncodeToString(b[:])
}

// methodLabel keeps the label of the metric to a known set.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return m
	}
	return "other"
}
