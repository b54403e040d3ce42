package payment

import (
	"bytes"

	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

// The crash points on the way of a payment.
const (
	// The hold is EXECUTING and the payment is on the wire; its answer was not
	// read. The next driver looks the key up and sends the same one again. Seen
	// on plain connections only.
	pointSent failpoint.Point = "payment_sent"
	// The payment API has decided and said so; the hold is EXECUTING without a
	// verdict. The look-up says it again.
	pointAnswered failpoint.Point = "payment_answered"
)

// FailPoints lists the crash points of this package.
func FailPoints() []failpoint.Point { return []failpoint.Point{pointSent, pointAnswered} }

// sentOn passes the point after the bytes of a payment were written. Its error
// is the connection's, which is gone.
func sentOn(c *watchedConn, b []byte, n int, err error) (int, error) {
	if !failpoint.Enabled || err != nil || !bytes.HasPrefix(b, []byte("POST ")) {
		return n, err
	}
	if err = failpoint.Hit(pointSent); err != nil {
		_ = c.Close()
	}
	return n, err
}

// answered passes the point after the answer to a payment was judged. Its error
// is an answer that was lost on the way.
func answered(op operation, a Answer) Answer {
	if !failpoint.Enabled || op != opPay {
		return a
	}
	if err := failpoint.Hit(pointAnswered); err != nil {
		return unknown("read the answer: %w", err)
	}
	return a
}
