package coordinator

import (
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

// The crash points of a coordinator; those on the way of a payment are in the
// package payment. The action error stands for a driver that is gone: it writes
// nothing more, and the hold waits for its lease to run out.
const (
	// The claim is committed and answered, nothing was sent: the next driver
	// looks up, then posts.
	pointClaimAnswered failpoint.Point = "claim_answered"
	// The verdict paid is committed and answered, the recipient has nothing yet:
	// the next driver repeats the credit until its barrier row exists.
	pointPaidAnswered failpoint.Point = "verdict_paid_answered"
)

// FailPoints lists the crash points of this package and those below it.
func FailPoints() []failpoint.Point {
	return append([]failpoint.Point{pointClaimAnswered, pointPaidAnswered}, payment.FailPoints()...)
}
