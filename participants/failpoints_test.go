//go:build failpoints

package participants

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

// strikesOnce arms a point to cut the connection, does a step twice, and wants
// the first answer to be unknown and the second to be what a repeat gets.
func strikesOnce(t *testing.T, p failpoint.Point, do func() branch.Code, repeat branch.Code) {
	t.Helper()
	var said strings.Builder
	if err := failpoint.Arm(string(p)+":error", FailPoints(), &said); err != nil {
		t.Fatal(err)
	}
	defer failpoint.Arm("", nil, &said)
	if code := do(); code != branch.CodeOutcomeUnknown {
		t.Errorf("%s: a step whose connection was cut answers %q", p, code)
	}
	if code := do(); code != repeat {
		t.Errorf("%s: the repeated step answers %q, want %q", p, code, repeat)
	}
	if said.String() != "failpoint struck "+string(p)+" error\n" {
		t.Errorf("%s: it says %q", p, said.String())
	}
}

// TestStruckSteps runs alone: there is one plan in a process.
func TestStruckSteps(t *testing.T) {
	b := newBench(t, 2)
	from, to := b.user(0, 100), b.user(1, 0)
	tryOnce := func(key string) func() branch.Code {
		return func() branch.Code {
			return b.Try(b.ctx, 0, []branch.TryItem{try(from, to, 10, key, time.Hour)})[0].Code
		}
	}
	strikesOnce(t, pointTryUncommitted, tryOnce("a"), branch.CodeOK) // it was rolled back
	strikesOnce(t, pointTryCommitted, tryOnce("b"), branch.CodeReplay)
	b.wantBalance(from, 80, 20)

	cancelled := b.mustTry(try(from, to, 10, "c", time.Hour))
	strikesOnce(t, pointCancelCommitted, func() branch.Code {
		return b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: cancelled.ID}})[0].Code
	}, branch.CodeAlready)

	holds := map[string]holdfast.Hold{}
	for _, key := range []string{"paid", "refused"} {
		h := b.mustTry(try(from, to, 10, key, 50*time.Millisecond))
		holds[key] = h
		b.mature(h)
		strikesOnce(t, pointClaimCommitted, func() branch.Code { return b.claim(h.ID).Code }, branch.CodeBusy)
	}
	paid, refused := []branch.IDItem{{ID: holds["paid"].ID}}, []branch.IDItem{{ID: holds["refused"].ID}}
	strikesOnce(t, pointPaidCommitted, func() branch.Code {
		return b.Settle(b.ctx, 0, []branch.SettleItem{{ID: paid[0].ID, PaymentID: "p", Recipient: to}})[0].Code
	}, branch.CodeAlready)
	strikesOnce(t, pointCredited, func() branch.Code {
		return b.Credit(b.ctx, 1, []branch.CreditItem{{ID: paid[0].ID, Recipient: to, Currency: "RBX", Amount: 10}})[0].Code
	}, branch.CodeAlready)
	strikesOnce(t, pointExecutedCommitted, func() branch.Code { return b.Executed(b.ctx, 0, paid)[0].Code }, branch.CodeAlready)
	strikesOnce(t, pointRefusedCommitted, func() branch.Code {
		return b.Refuse(b.ctx, 0, []branch.RefuseItem{{ID: refused[0].ID, Reason: "recipient_banned"}})[0].Code
	}, branch.CodeAlready)
	strikesOnce(t, pointRefundCommitted, func() branch.Code { return b.Refund(b.ctx, 0, refused)[0].Code }, branch.CodeAlready)
	b.wantBalance(from, 70, 20)
	b.wantBalance(to, 10, 0)
}
