package branch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// HTTPConfig names participants that each own all shards.
type HTTPConfig struct {
	URLs    []string // http://host:port
	Secret  []byte
	Timeout time.Duration // 30 s; a step that is not answered in it is unknown
	// Shards is how many there are in the caller's map; a participant that has
	// another number refuses every step, because users would be looked for on
	// the wrong shard. 0 = not said.
	Shards int
	Log    *slog.Logger // told once of a server that refuses at the door; nil = nobody
	Now    func() time.Time
}

// HTTP is a Transport to participants in other processes. A shard's calls go
// to the same participant while it answers, so that its batches grow large, and
// to the next one when it cannot be reached or says nothing for a while.
type HTTP struct {
	cfg    HTTPConfig
	client *http.Client
	prefer sync.Map // shard → *atomic.Int64, added to its number; moves on when a server fails or falls silent
	said   sync.Map // complaints that were logged
}

// dialTimeout is how long a machine that is gone may hold up a call before the
// next server is asked.
const dialTimeout = 2 * time.Second

// silence is how long a server may say nothing before new calls go to another
// one. The call itself waits on: whether it was done only its answer can tell.
const silence = 2 * time.Second

// NewHTTP makes a transport; it connects when it is first used.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	if len(cfg.URLs) == 0 {
		return nil, errors.New("no participants are named: set HOLDFAST_PARTICIPANTS")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	return &HTTP{cfg: cfg, client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, DisableCompression: true,
			DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext},
		// A redirect of a signed request is somebody else's idea.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Send posts one call to a participant that owns the shard.
func (h *HTTP) Send(ctx context.Context, shard int, op string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("%w: encode %s: %v", holdfast.ErrInvalid, op, err)
	}
	path := fmt.Sprintf("/branch/v1/%d/%s", shard, op)
	if h.cfg.Shards > 0 {
		path += "?" + ShardsQuery + "=" + strconv.Itoa(h.cfg.Shards)
	}
	return h.post(ctx, shard, path, body, out, slices.Contains(readOps, op))
}

// readOps change nothing: when one breaks off, the next server is asked.
var readOps = []string{OpCheck, OpGet, OpList, OpAccount, OpStatement, OpAdminHolds, OpDeadLetters, OpUnrefunded,
	OpTransit, OpDetail, OpAudit, OpStatus}

// post tries every server once, as long as surely nothing was done, or nothing
// can be.
func (h *HTTP) post(ctx context.Context, shard int, path string, body []byte, out any, read bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	found, _ := h.prefer.LoadOrStore(shard, new(atomic.Int64))
	prefer := found.(*atomic.Int64)
	first := prefer.Load()
	for i := range h.cfg.URLs {
		at := (first + int64(shard) + int64(i)) % int64(len(h.cfg.URLs))
		silent := time.AfterFunc(silence, func() { prefer.CompareAndSwap(first, first+1) })
		err = h.once(ctx, h.cfg.URLs[at]+path, body, out)
		silent.Stop()
		if err != nil {
			prefer.CompareAndSwap(first, first+1)
		}
		if err == nil || ctx.Err() != nil || !(read || errors.Is(err, holdfast.ErrShardUnavailable)) {
			return err
		}
	}
	return err
}

func (h *HTTP) once(ctx context.Context, url string, body []byte, out any) error {
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: %v", holdfast.ErrShardUnavailable, err)
	}
	r.Header.Set("Content-Type", "application/json")
	Sign(r, h.cfg.Secret, body, h.cfg.Now())
	answer, err := h.client.Do(r)
	if err != nil {
		if !sent.Load() {
			return fmt.Errorf("%w: %v", holdfast.ErrShardUnavailable, err)
		}
		return fmt.Errorf("%w: %v", holdfast.ErrOutcomeUnknown, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 16<<20))
	switch {
	case err != nil:
		return fmt.Errorf("%w: read the answer: %v", holdfast.ErrOutcomeUnknown, err)
	case answer.StatusCode == http.StatusOK:
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("%w: garbled answer: %v", holdfast.ErrOutcomeUnknown, err)
		}
		return nil
	case answer.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: %s", holdfast.ErrShardUnavailable, text)
	case answer.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s", holdfast.ErrOverloaded, text)
	case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusNotFound || answer.StatusCode == http.StatusBadRequest:
		// Refused at the door: nothing was done, and a person must look.
		h.complain(r.URL.Host, answer.StatusCode, string(bytes.TrimSpace(text)))
		return fmt.Errorf("%w: %s answers %d: %s", holdfast.ErrShardUnavailable, url, answer.StatusCode, bytes.TrimSpace(text))
	}
	return fmt.Errorf("%w: answer %d: %s", holdfast.ErrOutcomeUnknown, answer.StatusCode, bytes.TrimSpace(text))
}

// complain logs why a server refuses all requests, once per server and status.
func (h *HTTP) complain(server string, status int, text string) {
	if h.cfg.Log == nil {
		return
	}
	if _, said := h.said.LoadOrStore(fmt.Sprint(server, status), true); !said {
		h.cfg.Log.Error("a process refuses requests of this one: check the settings of both",
			"server", server, "status", status, "answer", text)
	}
}

// ShardsQuery names the caller's number of shards in a request's URL.
const ShardsQuery = "shards"

// Drive asks a coordinator to drive due holds of a shard; it is what the
// scheduler of another process calls.
func (h *HTTP) Drive(ctx context.Context, shard int, ids []holdfast.HoldID) []DriveResult {
	return batch(ctx, driveTransport{h}, shard, "", ids, func(c Code) DriveResult { return DriveResult{Code: c} })
}

// Open asks whether the payment breaker lets calls through. A coordinator that
// does not answer lets nothing through.
func (h *HTTP) Open(ctx context.Context) bool {
	var open bool
	return h.post(ctx, 0, "/drive/v1/open", []byte("{}"), &open, true) == nil && open
}

type driveTransport struct{ h *HTTP }

func (d driveTransport) Send(ctx context.Context, shard int, _ string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return d.h.post(ctx, shard, fmt.Sprintf("/drive/v1/%d", shard), body, out, false)
}

// WriteAnswer writes the answer of a signed request, or its error in the form
// that HTTP.Send reads back.
func WriteAnswer(w http.ResponseWriter, answer any, err error) {
	switch {
	case err == nil:
		text, err := json.Marshal(answer)
		if err != nil {
			http.Error(w, "encode the answer: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(text)
	case errors.Is(err, holdfast.ErrShardUnavailable):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case errors.Is(err, holdfast.ErrOverloaded):
		http.Error(w, err.Error(), http.StatusTooManyRequests)
	case errors.Is(err, holdfast.ErrInvalid):
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
