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

	// clock is the time since the start. Pauses are not measured by the time of
	// day: a clock that is set back would stop the way home.
	clock   func() time.Duration
	silence time.Duration // the constant of that name, shorter in tests
}

// dialTimeout is how long a machine that is gone may hold up a call before the
// next server is asked.
const dialTimeout = 2 * time.Second

// request is a call as it is sent to any of the servers.
type request struct {
	path string
	body []byte
	read bool // changes nothing
	// patient: it takes long by nature, so that silence says nothing about the
	// server. proof: its time is the caller's and not the transport's.
	patient, proof bool
	// drive: it goes to a coordinator, and what the items of an answer say is
	// about the participants behind that.
	drive bool
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
	started := time.Now()
	return &HTTP{cfg: cfg, silence: silence, clock: func() time.Duration { return time.Since(started) }, client: &http.Client{
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
	proof := slices.Contains(proofOps, op)
	call := request{path: h.stepPath(shard, op), body: body, read: slices.Contains(readOps, op), patient: proof, proof: proof}
	return h.post(ctx, shard, call, out)
}

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

// proofOps read a whole ledger. They take the caller's time, at most proofTime,
// and a participant has as long to answer them.
var proofOps = []string{OpProve, OpTransit}

const proofTime = 15 * time.Minute

// once sends a call to one server. It returns the text of the answer; every
// status but 200 is an error.
func (h *HTTP) once(ctx context.Context, url string, body []byte) ([]byte, error) {
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", holdfast.ErrShardUnavailable, err)
	}
	r.Header.Set("Content-Type", "application/json")
	Sign(r, h.cfg.Secret, body, h.cfg.Now())
	answer, err := h.client.Do(r)
	if err != nil {
		if !sent.Load() {
			return nil, fmt.Errorf("%w: %v", holdfast.ErrShardUnavailable, err)
		}
		return nil, fmt.Errorf("%w: %v", holdfast.ErrOutcomeUnknown, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: read the answer: %v", holdfast.ErrOutcomeUnknown, err)
	}
	if answer.StatusCode == http.StatusOK {
		return text, nil
	}
	return nil, h.refusal(answer, bytes.TrimSpace(text))
}

// refusal is the error behind a status that is not 200.
func (h *HTTP) refusal(answer *http.Response, text []byte) error {
	door := slices.Contains([]int{http.StatusUnauthorized, http.StatusNotFound, http.StatusBadRequest}, answer.StatusCode)
	if door {
		// A person must look.
		h.complain(answer.Request.URL.Host, answer.StatusCode, string(text))
	}
	if answer.Header.Get(HeaderAnswer) == "" {
		// Whoever wrote this, a proxy perhaps, may have handed the call on
		// before and cannot say what became of it.
		return fmt.Errorf("%w: answer %d without %s: %s", holdfast.ErrOutcomeUnknown, answer.StatusCode, HeaderAnswer, text)
	}
	switch {
	case answer.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: %s", holdfast.ErrShardUnavailable, text)
	case answer.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s", holdfast.ErrOverloaded, text)
	case door: // nothing was done
		return fmt.Errorf("%w: %s answers %d: %s", holdfast.ErrShardUnavailable, answer.Request.URL, answer.StatusCode, text)
	}
	return fmt.Errorf("%w: answer %d: %s", holdfast.ErrOutcomeUnknown, answer.StatusCode, text)
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
	return h.post(ctx, 0, askOpen, &open) == nil && open
}

var askOpen = request{path: "/drive/v1/open", body: []byte("{}"), read: true, drive: true}

type driveTransport struct{ h *HTTP }

func (d driveTransport) Send(ctx context.Context, shard int, _ string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	call := request{path: fmt.Sprintf("/drive/v1/%d", shard), body: body, patient: true, drive: true}
	return d.h.post(ctx, shard, call, out)
}

// WriteAnswer writes the answer of a signed request, or its error in the form
// that HTTP.Send reads back.
func WriteAnswer(w http.ResponseWriter, answer any, err error) {
	w.Header().Set(HeaderAnswer, "1")
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
