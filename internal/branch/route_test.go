package branch

import (
	"context"
	"encoding/json"
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

// saying answers 200 with a code for every item.
func saying(codes ...Code) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		items := make([]CodeResult, len(codes))
		for i, c := range codes {
			items[i].Code = c
		}
		WriteAnswer(w, items, nil)
	}
}

// asked splits the questions whether a server is back from the calls.
func asked(question, call http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, OpGet) {
			question(w, r)
			return
		}
		call(w, r)
	}
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come", what)
		}
	}
}

func credit(ctx context.Context, h *HTTP) ([]CodeResult, error) {
	var out []CodeResult
	err := h.Send(ctx, 0, OpCredit, []CreditItem{{}}, &out)
	return out, err
}

// Only an answer of the shard itself shows that a participant reaches it.
func TestIsHome(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		handler     http.HandlerFunc
		shard, open bool // home for the calls of a shard, for those to a coordinator
	}{
		"reaches the shard":      {saying(CodeNotFound), true, true},
		"does not reach it":      {saying(CodeShardUnavailable), false, true},
		"answers something else": {yes, false, true},
		"no items":               {saying(), false, true},
		"unavailable":            {status(503), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, _ := answering(t, c.handler)
			h := newHTTP(t, io.Discard, url)
			if got := h.isHome(t.Context(), url, 0, false); got != c.shard {
				t.Errorf("as a participant: home = %t", got)
			}
			if got := h.isHome(t.Context(), url, 0, true); got != c.open {
				t.Errorf("as a coordinator: home = %t", got)
			}
		})
	}
	t.Run("the question is a hold that may exist", func(t *testing.T) {
		t.Parallel()
		ids := make(chan []IDItem, 1)
		s := httptest.NewServer(Signed([]byte("s"), time.Now, func(w http.ResponseWriter, r *http.Request, body []byte) {
			var items []IDItem
			_ = json.Unmarshal(body, &items)
			ids <- items
			saying(CodeNotFound)(w, r)
		}))
		t.Cleanup(s.Close)
		if !newHTTP(t, io.Discard, s.URL).isHome(t.Context(), s.URL, 0, false) {
			t.Fatal("not home")
		}
		got := <-ids
		if len(got) != 1 || !got[0].ID.Valid() || time.Since(got[0].ID.UnlockAt()).Abs() > time.Hour {
			t.Errorf("asked for %v: that reaches no partition of today", got)
		}
	})
}

// Calls go back to their own server when it reaches the shard again, and not before.
func TestBackHome(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	var questions, met atomic.Int64
	home, _ := answering(t, asked(
		func(w http.ResponseWriter, r *http.Request) {
			code := CodeNotFound
			if away.Load() {
				code = CodeShardUnavailable
			}
			saying(code)(w, r)
			questions.Add(1)
		},
		func(w http.ResponseWriter, r *http.Request) {
			met.Add(1)
			if away.Load() {
				status(503)(w, r)
				return
			}
			saying(CodeOK)(w, r)
		}))
	other, _ := answering(t, saying(CodeOK))
	h := newHTTP(t, io.Discard, home, other)
	var now time.Duration
	h.clock = func() time.Duration { return now }
	send := func() {
		t.Helper()
		if _, err := credit(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	away.Store(true)
	for range 5 {
		send()
	}
	if questions.Load() != 0 {
		t.Error("it was asked at once")
	}
	for i := range int64(3) {
		now += homeEvery
		send()
		until(t, "the question whether it is back", func() bool { return questions.Load() == i+1 })
		send()
	}
	if met.Load() != 1 || moved(h, 0) != 1 || questions.Load() != 3 {
		t.Errorf("the server that is away met %d calls and %d questions, they moved %d times, want 1, 3 and 1", met.Load(), questions.Load(), moved(h, 0))
	}
	away.Store(false)
	now += homeEvery
	send()
	until(t, "the way back", func() bool { return moved(h, 0) == 2 })
	send()
	if met.Load() != 2 {
		t.Error("the calls did not go back to the server that answers again")
	}
}

// A participant that cannot reach the shard says so in an answer of status 200.
// The next calls go elsewhere; when the shard itself is down they do not go
// round, and no call is sent twice.
func TestNoWayToTheShard(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		home, other http.HandlerFunc
		moved       int64
		calls       [2]int64 // that the servers met
	}{
		"of one server": {saying(CodeShardUnavailable), saying(CodeOK), 1, [2]int64{1, 4}},
		"of both":       {saying(CodeShardUnavailable), saying(CodeShardUnavailable), 1, [2]int64{1, 4}},
		"of one item":   {saying(CodeShardUnavailable, CodeOK), saying(CodeOK), 0, [2]int64{5, 0}},
		"overloaded":    {saying(CodeOverloaded), saying(CodeOK), 0, [2]int64{5, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, met := answering(t, c.home)
			second, met2 := answering(t, c.other)
			h := newHTTP(t, io.Discard, first, second)
			h.clock = func() time.Duration { return 0 }
			for range 5 {
				if out, err := credit(t.Context(), h); err != nil || len(out) == 0 {
					t.Fatalf("%v, %v", out, err)
				}
			}
			if got := [2]int64{met.Load(), met2.Load()}; got != c.calls || moved(h, 0) != c.moved {
				t.Errorf("the servers met %v calls, they moved %d times, want %v and %d", got, moved(h, 0), c.calls, c.moved)
			}
		})
	}
	t.Run("behind a coordinator", func(t *testing.T) {
		t.Parallel()
		url, _ := answering(t, saying(CodeShardUnavailable))
		h := newHTTP(t, io.Discard, url, url)
		h.Drive(t.Context(), 0, make([]holdfast.HoldID, 1))
		if moved(h, 0) != 0 {
			t.Error("a shard that is down moved the way to the coordinator")
		}
	})
}

// A server that answers the question whether it is back and then hangs on the
// calls meets ever fewer of them, whatever the time of day does meanwhile.
func TestHangingWrites(t *testing.T) {
	t.Parallel()
	var met atomic.Int64
	home, _ := answering(t, asked(saying(CodeNotFound), func(_ http.ResponseWriter, r *http.Request) {
		met.Add(1)
		<-r.Context().Done()
	}))
	other, _ := answering(t, saying(CodeOK))
	h := newHTTP(t, io.Discard, home, other)
	h.cfg.Timeout, h.silence = 200*time.Millisecond, 20*time.Millisecond
	var now time.Duration
	h.clock = func() time.Duration { return now }
	h.cfg.Now = func() time.Time { return time.Now().Add(-now * 60) } // runs backwards
	r := new(route)
	h.routes.Store(0, r)
	send := func() {
		atHome := r.moved.Load()%2 == 0
		question := !atHome && now >= r.ask
		if _, err := credit(t.Context(), h); atHome != errors.Is(err, holdfast.ErrOutcomeUnknown) {
			t.Fatalf("at home %t: %v", atHome, err)
		}
		if question {
			until(t, "the way home", func() bool { return r.moved.Load()%2 == 0 })
			r.mu.Lock() // until it is written down when
			defer r.mu.Unlock()
		}
	}
	for ; now < time.Minute; now += time.Second {
		send()
	}
	if n := met.Load(); n < 3 || n > 6 {
		t.Errorf("in a minute it met %d calls, want 3 to 6", n)
	}
	for r.moved.Load()%2 != 0 {
		now += time.Second
		send()
	}
	now += homeAtMost
	send()
	if r.doubt != homeEvery {
		t.Errorf("after a minute at home the pause is %s, want %s again", r.doubt, homeEvery)
	}
}

// Who hangs up says nothing about the server.
func TestHangUp(t *testing.T) {
	t.Parallel()
	slow, calls := answering(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	h := newHTTP(t, io.Discard, slow, slow)
	h.silence = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := credit(ctx, h); err == nil {
		t.Fatal("answered")
	}
	if moved(h, 0) != 0 || calls.Load() > 1 {
		t.Errorf("a caller who hung up moved the calls %d times, the server met %d", moved(h, 0), calls.Load())
	}
}

// A proof and a drive take their time: that is not silence. A proof has as long
// as its caller gives it, on both sides of the wire; a step of a hold has not.
func TestLongCalls(t *testing.T) {
	t.Parallel()
	const short = 100 * time.Millisecond
	s := httptest.NewUnstartedServer(Signed([]byte("s"), time.Now, func(w http.ResponseWriter, r *http.Request, _ []byte) {
		select {
		case <-time.After(5 * short):
			WriteAnswer(w, struct{}{}, nil)
		case <-r.Context().Done(): // as the query of a proof ends with it
			WriteAnswer(w, nil, r.Context().Err())
		}
	}))
	s.Config.ReadTimeout, s.Config.WriteTimeout = short, short
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	h := newHTTP(t, io.Discard, s.URL, s.URL)
	h.cfg.Timeout, h.silence = short, short/10
	c := Client{T: h}
	if _, err := c.Prove(t.Context(), 0); err != nil {
		t.Errorf("proof: %v", err)
	}
	if _, err := c.Transit(t.Context(), 0, TransitRequest{}); err != nil {
		t.Errorf("transit: %v", err)
	}
	if moved(h, 0) != 0 {
		t.Error("a long proof moved the calls")
	}
	h.cfg.Timeout = time.Minute
	if _, err := c.Retry(t.Context(), 1, OperatorRequest{}); !errors.Is(err, holdfast.ErrOutcomeUnknown) {
		t.Errorf("a step that is longer than the server's write timeout: %v", err)
	}
	slow, _ := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		<-time.After(short)
		WriteAnswer(w, make([]DriveResult, 1), nil)
	})
	h = newHTTP(t, io.Discard, slow, slow)
	h.silence = short / 10
	h.Drive(t.Context(), 0, make([]holdfast.HoldID, 1))
	if moved(h, 0) != 0 {
		t.Error("a long drive moved the calls")
	}
}

// Nothing of a garbled answer is mixed into the next server's.
func TestGarbledThenWell(t *testing.T) {
	t.Parallel()
	write := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
	}
	first, _ := answering(t, write(`{"code":"ok","reason":"left behind","n":"x"}`))
	second, _ := answering(t, write(`{"n":1}`))
	var out struct {
		Code, Reason string
		N            int
	}
	if err := newHTTP(t, io.Discard, first, second).Send(t.Context(), 0, OpAccount, 1, &out); err != nil {
		t.Fatal(err)
	}
	if out.Code != "" || out.Reason != "" || out.N != 1 {
		t.Errorf("two answers became %+v", out)
	}
}

// A server that was left in doubt is gone back to when it answers, not because
// the other one fails too: each stay may cost calls whose outcome is unknown.
func TestDoubtfulHomeIsNotARefuge(t *testing.T) {
	t.Parallel()
	h := newHTTP(t, io.Discard, "http://a", "http://b")
	var now time.Duration
	h.clock = func() time.Duration { return now }
	found, _ := h.routes.LoadOrStore(0, new(route))
	r := found.(*route)
	h.leave(r, 0, false)
	for _, step := range []struct {
		at    time.Duration
		first int64
		told  bool
		want  int64
	}{{time.Second, 1, false, 1}, {time.Second, 1, true, 2}, {2 * time.Second, 2, false, 3}, {30 * time.Second, 3, false, 4}} {
		now = step.at
		h.leave(r, step.first, step.told)
		if got := r.moved.Load(); got != step.want {
			t.Fatalf("after %s, told: %v: at %d, want %d", step.at, step.told, got, step.want)
		}
	}
}
