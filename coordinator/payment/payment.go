// Package payment talks to the payment API: it sends one payment, asks what
// became of one, and says whether calls should be made at all (the breaker).
//
// Its one promise is that it never says more than it knows. Succeeded and
// Refused are said only for an answer that is complete, well formed and about
// this very hold; everything else is Unknown, and Unknown is never failed. It
// makes one try per call and never repeats a payment by itself: when to look a
// key up and when to send it again is decided by the coordinator, which alone
// knows what was tried before. It must not know holds' states, shards or SQL.
package payment

import (
	"errors"
	"fmt"

	"github.com/holdfast-escrow/holdfast"
)

// Outcome is what one call told us about a payment.
type Outcome int

const (
	// Unknown means that the payment may or may not have been made. It is the
	// zero value, so that an answer nobody filled in is never taken for more.
	Unknown Outcome = iota
	// Succeeded means that the payment API says it paid and names our hold,
	// our amount and our recipient.
	Succeeded
	// Refused means that the payment API will never make this payment. The
	// code is on the configured list.
	Refused
	// NeverSeen means that the payment API does not know the key. Only Lookup
	// says it, and it proves nothing while an earlier try may be in flight.
	NeverSeen
)

func (o Outcome) String() string {
	switch o {
	case Unknown:
		return "unknown"
	case Succeeded:
		return "succeeded"
	case Refused:
		return "refused"
	case NeverSeen:
		return "never_seen"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

// Answer is what came of one call.
type Answer struct {
	Outcome   Outcome
	PaymentID string // the payment API's name of the payment; only with Succeeded
	Code      string // why not; only with Refused, always one of Config.Refusals
	Echoed    bool   // a Refused that named our hold
	Err       error  // why nothing is known; only with Unknown, at most a few hundred bytes

	// SureNotSent is true when not one byte of the request left this process
	// and none can leave it any more. Only such an Unknown leaves no open try.
	SureNotSent bool
}

// Kinds of errors that callers branch on with errors.Is.
var (
	// ErrOpen is why Allow gives no permit: the breaker is open, or half-open
	// with all of its trial calls out.
	ErrOpen = errors.New("the payment breaker is open")
	// ErrAbandoned marks an Unknown that we caused ourselves: the caller's
	// context was cancelled. It says nothing about the payment API.
	ErrAbandoned = errors.New("the call was given up on our side")
	// ErrPending marks an Unknown of Lookup: the payment API knows the key, is
	// well, and has not decided yet.
	ErrPending = errors.New("the payment is still being decided")
)

// Key is the idempotency key of a hold's payment. One hold has exactly one key
// for ever, which is what makes a repeated payment harmless.
func Key(id holdfast.HoldID) string { return id.String() + ":EXECUTED" }

func unknown(format string, args ...any) Answer {
	return Answer{Err: fmt.Errorf(format, args...)}
}
