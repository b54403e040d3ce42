package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// class is what one answer, or its absence, says about one attempt.
type class int

const (
	open    class = iota // it may have been done, or may yet be
	nothing              // promised, or certain: this attempt did nothing
	refused              // a definite no
	done
)

// Codes that decide more than their status does.
const (
	codeOverloaded   = "overloaded"
	codeUnavailable  = "shard_unavailable"
	codeInFlight     = "idempotency_in_flight"
	codeKeyReused    = "idempotency_key_reused"
	codeInsufficient = "insufficient_funds"
	// CodeMismatch marks an ok operation whose answer shows another hold than
	// was asked for. No product answers so; the checker reports it.
	CodeMismatch = "answer_mismatch"
)

// answer is what came back for one attempt.
type answer struct {
	class      class
	status     int
	code       string
	replayed   bool
	retryAfter time.Duration
	body       []byte
	hold       *holdfast.Hold // of a success, or beside a conflict
	movement   holdfast.HoldID
	err        string
}

// request is one attempt to be made; headers are name and value in turn.
type request struct {
	method, path string
	body         []byte
	headers      []string
}

// send makes one attempt. Everything that is not clearly an answer of the
// product leaves the attempt open: a broken body may follow a commit.
func (w *World) send(ctx context.Context, base string, q request) answer {
	var body io.Reader
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(ctx, q.method, base+q.path, body)
	if err != nil {
		return answer{class: nothing, err: err.Error()}
	}
	// The transport must not repeat a request behind our back: an attempt that
	// is not counted could contradict a promise that nothing was done.
	r.GetBody = nil
	r.Header.Set("Authorization", "Bearer "+w.cfg.Token)
	if q.body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(q.headers); i += 2 {
		r.Header.Set(q.headers[i], q.headers[i+1])
	}
	res, err := w.http.Do(r)
	if err != nil {
		a := answer{class: open, err: err.Error()}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			a.class = nothing // no connection, so not a byte of it has left
		}
		return a
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode, replayed: res.Header.Get("Idempotent-Replayed") == "true"}
	if a.body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer)); err != nil {
		a.err = fmt.Sprintf("read the answer: %v", err)
		return a
	}
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		a.retryAfter = time.Duration(seconds) * time.Second
	}
	if a.status/100 == 2 {
		a.class = done
		return a
	}
	a.problem(a.body)
	return a
}

// problem reads a problem document and judges it with a.status.
func (a *answer) problem(document []byte) {
	var p struct {
		Code   string         `json:"code"`
		Detail string         `json:"detail"`
		Hold   *holdfast.Hold `json:"hold"`
	}
	if err := json.Unmarshal(document, &p); err != nil || p.Code == "" {
		a.class, a.err = open, fmt.Sprintf("an answer with status %d that is no problem document", a.status)
		return
	}
	a.code, a.err, a.hold = p.Code, p.Detail, p.Hold
	a.class = judge(a.status, a.code)
}

// judge says what a problem means for the attempt. A refusal is definite; what
// lies with the server is open unless it promises that nothing was done.
func judge(status int, code string) class {
	switch {
	case status == http.StatusTooManyRequests,
		status == http.StatusServiceUnavailable && (code == codeOverloaded || code == codeUnavailable),
		status == http.StatusConflict && code == codeInFlight:
		return nothing
	case status == http.StatusRequestTimeout:
		return open
	case status/100 == 4:
		return refused
	}
	return open
}

// garbled turns a success that cannot be read into no answer at all.
func (a *answer) garbled(what string) {
	a.class, a.err, a.hold = open, fmt.Sprintf("status %d with an answer that is not %s", a.status, what), nil
}

// readHold reads the hold of a success.
func (a *answer) readHold() {
	if a.class != done {
		return
	}
	var h holdfast.Hold
	if err := json.Unmarshal(a.body, &h); err != nil || h.ID.IsZero() || h.Status == holdfast.StatusUnknown {
		a.garbled("a hold")
		return
	}
	a.hold = &h
}

// readMovement reads the answer of a deposit or withdrawal.
func (a *answer) readMovement() {
	if a.class != done {
		return
	}
	var m struct {
		Ref holdfast.HoldID `json:"movement_id"`
	}
	if err := json.Unmarshal(a.body, &m); err != nil || m.Ref.IsZero() {
		a.garbled("a movement")
		return
	}
	a.movement = m.Ref
}

// readBatch takes an answer to a batch of n apart.
func (a *answer) readBatch(n int) []answer {
	out := make([]answer, n)
	var page struct {
		Results []struct {
			Status   int             `json:"status"`
			Hold     *holdfast.Hold  `json:"hold"`
			Replayed bool            `json:"idempotent_replayed"`
			Problem  json.RawMessage `json:"problem"`
		} `json:"results"`
	}
	if a.class == done && (json.Unmarshal(a.body, &page) != nil || len(page.Results) != n) {
		a.garbled("a result for each item of the batch")
	}
	for i := range out {
		if a.class != done {
			out[i] = *a
			continue
		}
		r := page.Results[i]
		item := answer{status: r.Status, hold: r.Hold, replayed: r.Replayed, retryAfter: a.retryAfter}
		switch {
		case r.Status/100 != 2:
			item.problem(r.Problem)
		case r.Hold == nil || r.Hold.ID.IsZero():
			item.garbled("a hold")
		default:
			item.class = done
		}
		out[i] = item
	}
	return out
}

// asking is an operation on its way: what its attempts have left open so far.
type asking struct {
	op    Op
	open  bool // an earlier attempt may still take effect
	ended bool
}

// take adds the answer of one attempt.
func (k *asking) take(a answer) {
	o := &k.op
	o.Attempts++
	if o.Attempts > 1 {
		o.Before += fmt.Sprintf("%d %s%s, then ", o.HTTP, o.Code, o.Error)
	}
	o.HTTP, o.Code, o.Error = a.status, a.code, a.err
	if a.status == 0 || a.status >= 500 {
		o.Failed++
	}
	switch a.class {
	case open:
		k.open = true
	case nothing:
	case refused:
		k.ended, o.Replayed = true, a.replayed
		k.show(a.hold)
		if o.Outcome = Refused; k.open && !final(*o) {
			o.Outcome = Unknown
		}
	case done:
		k.ended, o.Outcome, o.Replayed = true, OK, a.replayed
		k.show(a.hold)
		if !a.movement.IsZero() {
			o.Hold = a.movement
		}
		k.compare(a.hold)
	}
	o.Nothing = !k.open && !k.ended
}

// show records a hold as it was answered.
func (k *asking) show(h *holdfast.Hold) {
	if h == nil {
		return
	}
	o := &k.op
	if o.Hold.IsZero() {
		o.Hold = h.ID
	}
	if o.Kind == KindList {
		o.Recipient, o.Amount = h.Recipient, h.Amount // asked for by key alone
	}
	o.UnlockAt, o.Status, o.Verdict, o.Refunded = h.UnlockAt.UTC(), h.Status, h.Verdict, !h.RefundedAt.IsZero()
	o.CancelledAt = h.CancelledAt.UTC()
}

// compare marks an answer that is about something else than was asked for.
func (k *asking) compare(h *holdfast.Hold) {
	o := &k.op
	if h == nil {
		return
	}
	if h.ID != o.Hold || h.Sender != o.Sender || h.Recipient != o.Recipient || h.Amount != o.Amount ||
		o.Kind == KindCancel && h.Status != holdfast.Cancelled {
		o.Code = CodeMismatch
		o.Error = fmt.Sprintf("answered hold %s %s of %d from %s to %s", h.ID, h.Status, h.Amount, h.Sender, h.Recipient)
	}
}

// remembered reports whether a refusal is stored under its key, so that no
// earlier attempt with the key can still be accepted.
func remembered(o Op) bool { return o.Replayed || o.Code == codeInsufficient }

// final reports whether a refusal holds for the attempts before it too, whose
// answers never came. Reads take no effect. A key that carries another request
// will never carry this one. A hold whose payment has begun can no longer be
// cancelled; one that only was refused for its time might be, by a clock that
// is set back.
func final(o Op) bool {
	switch o.Kind {
	case KindGet, KindList:
		return true
	case KindCancel:
		return o.Status == holdfast.Executing || o.Status == holdfast.Executed || o.Status == holdfast.Failed
	}
	return remembered(o) || o.Code == codeKeyReused
}
