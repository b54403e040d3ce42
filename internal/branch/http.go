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
// to the same participant while it answers, so that its batches grow large, to
// the next one when it cannot be reached or says nothing for a while, and back
// when it answers again.
type HTTP struct {
	cfg    HTTPConfig
	client *http.Client
	routes sync.Map // shard → *route
	said   sync.Map // complaints that were logged
}

// dialTimeout is how long a machine that is gone may hold up a call before the
// next server is asked.
const dialTimeout = 2 * time.Second

// silence is how long a server may say nothing before new calls go to another
// one. The call itself waits on: whether it was done only its answer can tell.
const silence = 2 * time.Second

// homeEvery is how often the calls of a shard that had to leave its own server
// ask whether that is back. Without it all shards would end on the server that
// was restarted longest ago.
const homeEvery = 2 * time.Second

// route is what the calls of one shard have learnt about the servers.
type route struct {
	moved atomic.Int64 // added to the shard's number; moves on when a server fails or falls silent
	asked atomic.Int64 // when the shard's own server was asked last, in Unix ms
}

// request is a call as it is sent to any of the servers.
type request struct {
	path string
	body []byte
	read bool // changes nothing
}

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
	call := request{h.stepPath(shard, op), body, slices.Contains(readOps, op)}
	return h.post(ctx, shard, call, request{h.stepPath(shard, OpGet), []byte(nobodysHold), true}, out)
}

// nobodysHold are the items of a read that goes to the shard and finds nothing.
const nobodysHold = `[{"id":"00000000-0000-0000-0000-000000000000"}]`

func (h *HTTP) stepPath(shard int, op string) string {
	path := fmt.Sprintf("/branch/v1/%d/%s", shard, op)
	if h.cfg.Shards > 0 {
		path += "?" + ShardsQuery + "=" + strconv.Itoa(h.cfg.Shards)
	}
	return path
}

// readOps change nothing: when one breaks off, the next server is asked.
var readOps = []string{OpCheck, OpGet, OpList, OpAccount, OpStatement, OpAdminHolds, OpDeadLetters, OpUnrefunded,
	OpTransit, OpDetail, OpAudit, OpStatus}

// post tries every server once, as long as surely nothing was done, or nothing
// can be. probe tells whether the shard's own server is back.
func (h *HTTP) post(ctx context.Context, shard int, call, probe request, out any) (err error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	found, _ := h.routes.LoadOrStore(shard, new(route))
	r := found.(*route)
	first, n := r.moved.Load(), int64(len(h.cfg.URLs))
	if first%n != 0 {
		h.lookHome(r, first, shard, probe)
	}
	for i := range n {
		silent := time.AfterFunc(silence, func() { r.moved.CompareAndSwap(first, first+1) })
		err = h.once(ctx, h.cfg.URLs[(first+int64(shard)+i)%n]+call.path, call.body, out)
		silent.Stop()
		if err != nil {
			r.moved.CompareAndSwap(first, first+1)
		}
		if err == nil || ctx.Err() != nil || !(call.read || errors.Is(err, holdfast.ErrShardUnavailable)) {
			return err
		}
	}
	return err
}

// lookHome asks the shard's own server, now and then and beside the calls, and
// lets them go back when it answers.
func (h *HTTP) lookHome(r *route, first int64, shard int, probe request) {
	now, n := h.cfg.Now().UnixMilli(), int64(len(h.cfg.URLs))
	asked := r.asked.Load()
	if now-asked < homeEvery.Milliseconds() || !r.asked.CompareAndSwap(asked, now) {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), homeEvery)
		defer cancel()
		var answer json.RawMessage
		if h.once(ctx, h.cfg.URLs[int64(shard)%n]+probe.path, probe.body, &answer) == nil {
			r.moved.CompareAndSwap(first, first+n-first%n)
		}
	}()
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
	return h.post(ctx, 0, askOpen, askOpen, &open) == nil && open
}

var askOpen = request{"/drive/v1/open", []byte("{}"), true}

type driveTransport struct{ h *HTTP }

func (d driveTransport) Send(ctx context.Context, shard int, _ string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return d.h.post(ctx, shard, request{path: fmt.Sprintf("/drive/v1/%d", shard), body: body}, askOpen, out)
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
