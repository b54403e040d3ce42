package paysim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Mode is how the simulator treats a call under /v1.
type Mode string

const (
	ModeOK Mode = "ok"

	// Nothing is done, and the caller is told so, or nothing, or a lie.

	ModeDown         Mode = "down"         // closes the connection
	ModeHang         Mode = "hang"         // never answers
	ModeUnauthorized Mode = "unauthorized" // 401
	ModeForbidden    Mode = "forbidden"    // 403 with a code that is no refusal
	ModeRateLimited  Mode = "rate_limited" // 429 with Retry-After
	ModeError        Mode = "error"        // 500
	ModeUnavailable  Mode = "unavailable"  // 503
	ModeNotFound     Mode = "not_found"    // 404, to look-ups of known keys too
	ModeRedirect     Mode = "redirect"     // 307 to an address that counts who follows
	ModeAccepted     Mode = "accepted"     // payments only: 200 and status pending, and that was all
	ModeLie          Mode = "lie"          // payments only: 200 and an echo of success
	ModeMixedUp      Mode = "mixed_up"     // payments only: 200 and the success of another hold

	// The payment is done, and the answer says it badly. Look-ups are answered
	// as badly, except where the mode is about payments only.

	ModeLostResponse   Mode = "lost_response"   // payments only: closes the connection
	ModeErrorAfter     Mode = "error_after"     // 500
	ModeGarbage        Mode = "garbage"         // 200 with junk
	ModeTruncated      Mode = "truncated"       // 200, half of the body, then the connection ends
	ModeWrongAmount    Mode = "wrong_amount"    // success, one coin more
	ModeWrongID        Mode = "wrong_id"        // success, of another hold
	ModeWrongRecipient Mode = "wrong_recipient" // success, to somebody else
	ModeSlowBody       Mode = "slow_body"       // one byte of the answer per second
	ModeHugeBody       Mode = "huge_body"       // 100 MB, whole and true at its beginning

	// The payment is done settle_after_ms later; payments only.

	ModePending Mode = "pending" // 200 and status pending, from look-ups too until then
	ModeLate    Mode = "late"    // closes the connection; look-ups say 404 until then
)

// phase is when in a call a mode strikes.
type phase int

const (
	normal phase = iota
	before       // instead of doing anything
	after        // on the answer
	later        // instead of paying now
)

// modes is every mode: its phase, and whether it is about payments only.
var modes = map[Mode]struct {
	phase   phase
	payOnly bool
}{
	ModeOK:   {normal, false},
	ModeDown: {before, false}, ModeHang: {before, false}, ModeUnauthorized: {before, false},
	ModeForbidden: {before, false}, ModeRateLimited: {before, false}, ModeError: {before, false},
	ModeUnavailable: {before, false}, ModeNotFound: {before, false}, ModeRedirect: {before, false},
	ModeAccepted: {before, true}, ModeLie: {before, true}, ModeMixedUp: {before, true},
	ModeLostResponse: {after, true}, ModeErrorAfter: {after, false}, ModeGarbage: {after, false},
	ModeTruncated: {after, false}, ModeWrongAmount: {after, false}, ModeWrongID: {after, false},
	ModeWrongRecipient: {after, false}, ModeSlowBody: {after, false}, ModeHugeBody: {after, false},
	ModePending: {later, true}, ModeLate: {later, true},
}

const (
	hugeBody   = 100 << 20
	elsewhere  = "/sim/elsewhere" // where redirects lead
	retryAfter = "1"              // seconds, of a 429 or 503
)

// answerInstead plays a mode that does nothing.
func (s *Sim) answerInstead(w http.ResponseWriter, r *http.Request, m Mode, c call) {
	switch m {
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
	case ModeForbidden:
		refuse(w, http.StatusForbidden, codeForbidden, "this key may not pay")
	case ModeRateLimited:
		w.Header().Set("Retry-After", retryAfter)
		refuse(w, http.StatusTooManyRequests, codeRateLimited, "too many payments")
	case ModeError:
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error, nothing was done")
	case ModeUnavailable:
		w.Header().Set("Retry-After", retryAfter)
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "a simulated failure, nothing was done")
	case ModeNotFound:
		refuse(w, http.StatusNotFound, codeNotFound, "no payment was asked for under this key")
	case ModeRedirect:
		w.Header().Set("Location", elsewhere+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
	case ModeAccepted:
		status, body := c.answer(statusPending)
		writeRaw(w, status, body)
	case ModeLie:
		if err := s.lie(c); err != nil {
			s.refuseUnwritten(w, c, err)
			return
		}
		status, body := c.answer(statusSucceeded)
		writeRaw(w, status, body)
	case ModeMixedUp:
		other := c
		other.Hold[len(other.Hold)-1] ^= 1
		status, body := other.answer(statusSucceeded)
		writeRaw(w, status, body)
	default:
		panic(fmt.Sprintf("paysim: mode %s does not come before the payment", m))
	}
}

// answerBadly tells of what is done as the mode wants it.
func (s *Sim) answerBadly(w http.ResponseWriter, r *http.Request, m Mode, key keyHash, res result) {
	wrong := res
	switch m {
	case ModeWrongAmount:
		wrong.amount++
	case ModeWrongID:
		wrong.hold[len(wrong.hold)-1] ^= 1
	case ModeWrongRecipient:
		wrong.recipient[len(wrong.recipient)-1] ^= 1
	}
	status, body := wrong.answer(key)
	switch m {
	case ModeLostResponse:
		panic(http.ErrAbortHandler)
	case ModeErrorAfter:
		refuse(w, http.StatusInternalServerError, codeInternal, "a simulated error after the payment")
	case ModeGarbage:
		garbage(w)
	case ModeTruncated:
		announce(w, status, len(body))
		w.Write(body[:len(body)/2])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case ModeSlowBody:
		s.drip(w, r, status, body)
	case ModeHugeBody:
		huge(w, status, body)
	default:
		writeRaw(w, status, body)
	}
}

func announce(w http.ResponseWriter, status, length int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(status)
}

// drip writes one byte per second, for as long as somebody reads.
func (s *Sim) drip(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	announce(w, status, len(body))
	flusher := http.NewResponseController(w)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range body {
		if _, err := w.Write(body[i : i+1]); err != nil || flusher.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-s.closed:
			panic(http.ErrAbortHandler)
		}
	}
}

// huge writes the answer with a padding that makes it 100 MB of good JSON.
func huge(w http.ResponseWriter, status int, body []byte) {
	head := append(body[:len(body)-1:len(body)-1], `,"padding":"`...)
	announce(w, status, hugeBody)
	w.Write(head)
	chunk := []byte(strings.Repeat("x", 64<<10))
	for left := hugeBody - len(head) - len(`"}`); left > 0; {
		n, err := w.Write(chunk[:min(left, len(chunk))])
		if err != nil {
			return
		}
		left -= n
	}
	w.Write([]byte(`"}`))
}

func garbage(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(`{"payment_id":"pay_` + "\x01\xff" + `","status":"succ`))
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
