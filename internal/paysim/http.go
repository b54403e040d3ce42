package paysim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const (
	maxPaymentBody = 16 << 10
	maxFaultsBody  = 8 << 20
	maxKey         = 255

	codeBanned      = "recipient_banned"
	codeKeyReused   = "idempotency_key_reused"
	codeKeyMissing  = "idempotency_key_missing"
	codeInvalid     = "invalid_request"
	codeNotFound    = "payment_not_found"
	codeInternal    = "internal_error"
	codeNoAuth      = "unauthenticated"
	codeUnavailable = "unavailable"
	codeForbidden   = "forbidden"
	codeRateLimited = "rate_limited"
	codeInFlight    = "idempotency_in_flight"
)

func (s *Sim) routes() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("POST /v1/payments", s.pay)
	m.HandleFunc("GET /v1/payments/{key}", s.lookup)
	m.HandleFunc("PUT /sim/faults", s.putFaults)
	m.HandleFunc("GET /sim/faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Faults()) })
	m.HandleFunc("GET /sim/stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Stats()) })
	m.HandleFunc("GET /sim/effects", s.getEffects)
	m.HandleFunc("GET /sim/journal", s.getJournal)
	m.HandleFunc(elsewhere+"/", s.follow)
	m.HandleFunc("POST /sim/reset", s.reset)
	m.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	return m
}

// ServeHTTP answers the payment API under /v1 and the controls under /sim.
// Faults touch /v1 only.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Sim) pay(w http.ResponseWriter, r *http.Request) {
	// The body is read first in every mode: a server notices only after it
	// that the client has left.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPaymentBody))
	if err != nil {
		refuse(w, http.StatusBadRequest, codeInvalid, "the body cannot be read: "+err.Error())
		return
	}
	c, code, err := readPayment(r, body)
	x := s.draw(c)
	if modes[x.mode].phase == before {
		s.answerInstead(w, r, x.mode, c)
		return
	}
	s.wait(x)
	if err != nil {
		refuse(w, http.StatusBadRequest, code, err.Error())
		return
	}
	if x.fail && !x.after {
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error before the payment")
		return
	}
	res, pending, err := s.settle(c, x.mode)
	switch {
	case errors.Is(err, errOtherBody):
		refuse(w, http.StatusUnprocessableEntity, codeKeyReused, err.Error())
	case errors.Is(err, errInFlight):
		refuse(w, http.StatusConflict, codeInFlight, err.Error())
	case err != nil:
		s.refuseUnwritten(w, c, err)
	case pending && x.mode == ModeLate:
		panic(http.ErrAbortHandler)
	case pending:
		status, answer := c.answer(statusPending)
		writeRaw(w, status, answer)
	case x.fail:
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error after the payment")
	default:
		s.answerBadly(w, r, x.mode, c.key, res)
	}
}

func (s *Sim) refuseUnwritten(w http.ResponseWriter, c call, err error) {
	s.log.Error("payment not written", "hold_id", c.Hold, "err", err)
	refuse(w, http.StatusServiceUnavailable, codeUnavailable, "the journal cannot be written")
}

func (s *Sim) lookup(w http.ResponseWriter, r *http.Request) {
	c := call{name: r.PathValue("key"), lookup: true}
	c.key = hashKey(c.name)
	x := s.draw(c)
	if modes[x.mode].phase == before {
		s.answerInstead(w, r, x.mode, c)
		return
	}
	s.wait(x)
	if x.fail {
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error")
		return
	}
	res, known, pending, err := s.find(c.key)
	switch {
	case err != nil:
		s.log.Error("payment journal broken", "err", err)
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "the journal cannot be written")
	case pending:
		status, answer := res.say(c.key, statusPending)
		writeRaw(w, status, answer)
	case known || x.mode == ModeGarbage || x.mode == ModeErrorAfter:
		s.answerBadly(w, r, x.mode, c.key, res)
	default:
		refuse(w, http.StatusNotFound, codeNotFound, "no payment was asked for under this key")
	}
}

// wait plays the latency. A client that leaves does not stop a payment that is
// under way.
func (s *Sim) wait(x fate) {
	if x.wait <= 0 {
		return
	}
	wait := time.NewTimer(x.wait)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-s.closed:
		panic(http.ErrAbortHandler)
	}
}

// follow is where a redirect leads: a client of a payment API must not go there.
func (s *Sim) follow(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	s.struck[struckFollowed]++
	s.mu.Unlock()
	refuse(w, http.StatusInternalServerError, codeInternal, "a redirect was followed, nothing was done")
}

func readPayment(r *http.Request, body []byte) (c call, code string, err error) {
	c.name = r.Header.Get("Idempotency-Key")
	if c.name == "" || len(c.name) > maxKey {
		return c, codeKeyMissing, errors.New("header Idempotency-Key must have 1 to 255 bytes")
	}
	c.key = hashKey(c.name)
	if err := json.Unmarshal(body, &c.payment); err != nil {
		return c, codeInvalid, err
	}
	return c, codeInvalid, c.check()
}

func (s *Sim) putFaults(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxFaultsBody))
	if err != nil {
		refuse(w, http.StatusBadRequest, codeInvalid, "the body cannot be read: "+err.Error())
		return
	}
	f, err := parseFaults(body)
	if err == nil {
		err = s.SetFaults(f)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, codeInvalid, err.Error())
		return
	}
	s.log.Info("payment faults changed", "mode", f.Mode, "error_ratio", f.ErrorRatio,
		"latency_ms", f.LatencyMS, "rules", len(f.Rules), "banned", len(f.Banned), "seed", f.Seed)
	writeJSON(w, http.StatusOK, s.Faults())
}

func (s *Sim) getEffects(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Has("after") {
		s.listEffects(w, q)
		return
	}
	if !q.Has("hold_id") {
		writeJSON(w, http.StatusOK, s.Totals())
		return
	}
	id, err := holdfast.ParseHoldID(q.Get("hold_id"))
	if err != nil {
		refuse(w, http.StatusBadRequest, codeInvalid, "hold_id: "+err.Error())
		return
	}
	writeJSON(w, http.StatusOK, s.Effects(id))
}

func (s *Sim) listEffects(w http.ResponseWriter, q url.Values) {
	after, err := strconv.ParseInt(q.Get("after"), 10, 64)
	limit := defaultPage
	if err == nil && q.Has("limit") {
		limit, err = strconv.Atoi(q.Get("limit"))
	}
	if err != nil || limit < 1 || limit > maxPage {
		refuse(w, http.StatusBadRequest, codeInvalid, fmt.Sprintf("after and limit are integers, limit 1 to %d", maxPage))
		return
	}
	page, err := s.EffectsAfter(after, limit)
	switch {
	case errors.Is(err, errNoSuchPlace):
		refuse(w, http.StatusBadRequest, codeInvalid, err.Error())
	case err != nil:
		s.log.Error("payment journal not read", "err", err)
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "the journal cannot be read")
	default:
		writeJSON(w, http.StatusOK, page)
	}
}

func (s *Sim) reset(w http.ResponseWriter, _ *http.Request) {
	if err := s.Reset(); err != nil {
		s.log.Error("payment simulator not reset", "err", err)
		refuse(w, http.StatusInternalServerError, codeInternal, "the journal cannot be emptied")
		return
	}
	s.log.Info("payment simulator reset")
	writeJSON(w, http.StatusOK, s.Totals())
}
