package paysim

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
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
)

func (s *Sim) routes() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("POST /v1/payments", s.pay)
	m.HandleFunc("GET /v1/payments/{key}", s.lookup)
	m.HandleFunc("PUT /sim/faults", s.putFaults)
	m.HandleFunc("GET /sim/faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Faults()) })
	m.HandleFunc("GET /sim/effects", s.getEffects)
	m.HandleFunc("GET /sim/journal", s.getJournal)
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
	x := s.draw()
	if s.breakEarly(w, r, x) {
		return
	}
	key, p, code, err := readPayment(r, body)
	if err != nil {
		refuse(w, http.StatusBadRequest, code, err.Error())
		return
	}
	if x.fail && !x.after {
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error before the payment")
		return
	}
	res, err := s.settle(key, p)
	switch {
	case errors.Is(err, errOtherBody):
		refuse(w, http.StatusUnprocessableEntity, codeKeyReused, err.Error())
	case err != nil:
		s.log.Error("payment not written", "hold_id", p.Hold, "err", err)
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "the journal cannot be written")
	case x.mode == ModeLostResponse:
		panic(http.ErrAbortHandler)
	case x.mode == ModeGarbage:
		garbage(w)
	case x.fail:
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error after the payment")
	default:
		status, answer := res.answer(key)
		writeRaw(w, status, answer)
	}
}

func (s *Sim) lookup(w http.ResponseWriter, r *http.Request) {
	x := s.draw()
	if s.breakEarly(w, r, x) {
		return
	}
	if x.mode == ModeGarbage {
		garbage(w)
		return
	}
	if x.fail {
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error")
		return
	}
	key := hashKey(r.PathValue("key"))
	res, known, err := s.find(key)
	switch {
	case err != nil:
		s.log.Error("payment journal broken", "err", err)
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "the journal cannot be written")
	case !known:
		refuse(w, http.StatusNotFound, codeNotFound, "no payment was asked for under this key")
	default:
		status, answer := res.answer(key)
		writeRaw(w, status, answer)
	}
}

// breakEarly plays the faults that come before any effect and reports whether
// the call ended there.
func (s *Sim) breakEarly(w http.ResponseWriter, r *http.Request, x fate) bool {
	switch x.mode {
	case ModeDown:
		panic(http.ErrAbortHandler)
	case ModeHang:
		select {
		case <-r.Context().Done():
		case <-s.closed:
		}
		panic(http.ErrAbortHandler)
	case ModeUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="payments"`)
		refuse(w, http.StatusUnauthorized, codeNoAuth, "the key is not known")
		return true
	}
	if x.latencyMS > 0 {
		// A client that leaves does not stop a payment that is under way.
		wait := time.NewTimer(time.Duration(x.latencyMS) * time.Millisecond)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-s.closed:
			panic(http.ErrAbortHandler)
		}
	}
	return false
}

func readPayment(r *http.Request, body []byte) (key keyHash, p payment, code string, err error) {
	k := r.Header.Get("Idempotency-Key")
	if k == "" || len(k) > maxKey {
		return key, p, codeKeyMissing, errors.New("header Idempotency-Key must have 1 to 255 bytes")
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return key, p, codeInvalid, err
	}
	return hashKey(k), p, codeInvalid, p.check()
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
		"latency_ms", f.LatencyMS, "banned", len(f.Banned), "seed", f.Seed)
	writeJSON(w, http.StatusOK, s.Faults())
}

func (s *Sim) getEffects(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
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

func (s *Sim) reset(w http.ResponseWriter, _ *http.Request) {
	if err := s.Reset(); err != nil {
		s.log.Error("payment simulator not reset", "err", err)
		refuse(w, http.StatusInternalServerError, codeInternal, "the journal cannot be emptied")
		return
	}
	s.log.Info("payment simulator reset")
	writeJSON(w, http.StatusOK, s.Totals())
}

func garbage(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"payment_id":"pay_`+"\x01\xff"+`","status":"succ`)
}

func refuse(w http.ResponseWriter, status int, code, detail string) {
	writeJSON(w, status, map[string]string{"code": code, "detail": detail})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	writeRaw(w, status, b)
}

// writeRaw ignores the error of the write: the client has left, and what was
// done is in the journal.
func writeRaw(w http.ResponseWriter, status int, body []byte) {
	w.Header()["Content-Type"] = []string{"application/json"}
	w.WriteHeader(status)
	w.Write(body)
}
