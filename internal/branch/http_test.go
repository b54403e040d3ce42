package branch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// answering is a server that counts its calls and answers all alike.
func answering(t *testing.T, f http.HandlerFunc) (url string, calls *atomic.Int64) {
	t.Helper()
	calls = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the caller left
		calls.Add(1)
		f(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, calls
}

func yes(w http.ResponseWriter, _ *http.Request) { WriteAnswer(w, "yes", nil) }

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(HeaderAnswer, "1")
		http.Error(w, "no", code)
	}
}

// proxied has done what it was asked, and a proxy before it answers something else.
func proxied(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "upstream", code) }
}

func newHTTP(t *testing.T, log io.Writer, urls ...string) *HTTP {
	t.Helper()
	h, err := NewHTTP(HTTPConfig{URLs: urls, Secret: []byte("s"), Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Only what surely did nothing is sent to the next server.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(nil)
	gone.Close()
	cut := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `"ye`)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	for name, c := range map[string]struct {
		handler  http.HandlerFunc // nil: nobody listens
		alone    error
		complain bool
	}{
		"refused connection": {nil, holdfast.ErrShardUnavailable, false},
		"unavailable":        {status(503), holdfast.ErrShardUnavailable, false},
		"wrong signature":    {status(401), holdfast.ErrShardUnavailable, true},
		"no such path":       {status(404), holdfast.ErrShardUnavailable, true},
		"other shard map":    {status(400), holdfast.ErrShardUnavailable, true},
		"overloaded":         {status(429), holdfast.ErrOverloaded, false},
		"broken inside":      {status(500), holdfast.ErrOutcomeUnknown, false},
		"somewhere else":     {status(302), holdfast.ErrOutcomeUnknown, false},
		"a proxy's 503":      {proxied(503), holdfast.ErrOutcomeUnknown, false},
		"a proxy's 429":      {proxied(429), holdfast.ErrOutcomeUnknown, false},
		"a proxy's 404":      {proxied(404), holdfast.ErrOutcomeUnknown, true},
		"cut mid-answer":     {cut, holdfast.ErrOutcomeUnknown, false},
		"cut before answer":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, holdfast.ErrOutcomeUnknown, false},
		"garbled answer":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{") }, holdfast.ErrOutcomeUnknown, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := gone.URL
			if c.handler != nil {
				first, _ = answering(t, c.handler)
			}
			var log bytes.Buffer
			var out string
			h := newHTTP(t, &log, first)
			for range 2 {
				if err := h.Send(t.Context(), 0, "op", 1, &out); !errors.Is(err, c.alone) {
					t.Fatalf("alone it says %v, want %v", err, c.alone)
				}
			}
			if n, want := strings.Count(log.String(), "\n"), map[bool]int{true: 1}[c.complain]; n != want {
				t.Errorf("%d complaints, want %d: %s", n, want, &log)
			}
			second, calls := answering(t, yes)
			err := newHTTP(t, io.Discard, first, second).Send(t.Context(), 0, "op", 1, &out)
			if errors.Is(c.alone, holdfast.ErrShardUnavailable) {
				if err != nil || out != "yes" || calls.Load() != 1 {
					t.Errorf("with a next server: %q, %v, %d calls", out, err, calls.Load())
				}
			} else if !errors.Is(err, c.alone) || calls.Load() != 0 {
				t.Errorf("what may have been done went to the next server: %v, %d calls", err, calls.Load())
			}
		})
	}
}

// moved is how often the calls of a shard left a server.
func moved(h *HTTP, shard int) int64 {
	if r, ok := h.routes.Load(shard); ok {
		return r.(*route).moved.Load()
	}
	return 0
}

// A read that breaks off is asked of the next server, and what one shard's calls
// learn about a server does not send another shard's calls to it.
func TestBrokenServer(t *testing.T) {
	t.Parallel()
	var met atomic.Int64 // apart from those who ask whether it is back
	broken, _ := answering(t, func(_ http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, OpGet) {
			met.Add(1)
		}
		panic(http.ErrAbortHandler)
	})
	well, _ := answering(t, yes)
	h := newHTTP(t, io.Discard, broken, well)
	var out string
	for shard := range 4 {
		if err := h.Send(t.Context(), shard, OpAccount, 1, &out); err != nil || out != "yes" {
			t.Errorf("read from shard %d: %q, %v", shard, out, err)
		}
	}
	for range 3 {
		for shard := range 4 {
			if err := h.Send(t.Context(), shard, OpCredit, 1, &out); err != nil {
				t.Errorf("credit on shard %d after its read: %v", shard, err)
			}
		}
	}
	if met.Load() != 2 {
		t.Errorf("the broken server was asked %d times, want once by each of the two shards that begin with it", met.Load())
	}
}

// A server that says nothing keeps the calls it has; new ones go elsewhere.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 8)
	hanging, _ := answering(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	other, calls := answering(t, yes)
	h := newHTTP(t, io.Discard, hanging, other)
	h.silence = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stuck := make(chan error, 1)
	go func() { var out string; stuck <- h.Send(ctx, 0, "op", 1, &out) }()
	<-arrived
	for until := time.Now().Add(20 * time.Second); moved(h, 0) == 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the silent server is still preferred")
		}
	}
	var out string
	if err := h.Send(t.Context(), 0, "op", 1, &out); err != nil || out != "yes" || calls.Load() != 1 {
		t.Errorf("a new call: %q, %v, %d calls", out, err, calls.Load())
	}
	select {
	case err := <-stuck:
		t.Errorf("the hanging call was answered: %v", err)
	default:
	}
	cancel()
	if err := <-stuck; !errors.Is(err, holdfast.ErrOutcomeUnknown) {
		t.Errorf("the hanging call is %v, want unknown", err)
	}
	if calls.Load() != 1 {
		t.Errorf("the hanging call was sent to the other server too: %d calls", calls.Load())
	}
}
