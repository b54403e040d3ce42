package participants

import (
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// Between a person's word that nothing was paid and its verdict no driver may
// begin to pay.
func TestNotPaidHoldsDriversOff(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 100), b.funded(0, 0)
	for _, dead := range []string{branch.DeadOutcomeUnknown, branch.DeadImpossible} {
		h := b.claimed(from, to, 10)
		b.must("defer", b.client.Defer(t.Context(), 0, []branch.DeferItem{{ID: h.ID, Dead: dead, Error: "lost", Unsure: true}})[0].Code)
		if r, err := b.client.Close(t.Context(), 0, branch.OperatorRequest{ID: h.ID, Actor: "op", Reason: "seen"}); err != nil || r.Code != branch.CodeStillExecuting {
			t.Errorf("close of %s without a verdict: %s, %v", dead, r.Code, err)
		}
		word := branch.OperatorRequest{ID: h.ID, Actor: "op", Reason: "asked the bank", Outcome: "not_paid"}
		if r, err := b.client.Resolve(t.Context(), 0, word); err != nil || r.Code != branch.CodeOK {
			t.Fatalf("resolve of %s: %+v, %v", dead, r, err)
		}
		c := b.client.Claim(t.Context(), 0, []branch.ClaimItem{{ID: h.ID, LeaseMS: 1000}})[0]
		if c.Code != branch.CodeBusy || c.InMS < 30_000 {
			t.Errorf("claim after not_paid: %s in %d ms, want busy for most of a minute", c.Code, c.InMS)
		}
		if n := count(t, b.set.Reads(0), `SELECT count(*) FROM attempts WHERE next_at < now() + interval '30 seconds'`); n != 0 {
			t.Errorf("%d rows of attempts come up before the verdict", n)
		}
		// The caller died before the verdict: the same word again is taken.
		if r, err := b.client.Resolve(t.Context(), 0, word); err != nil || r.Code != branch.CodeOK {
			t.Errorf("the same word again: %+v, %v", r, err)
		}
		b.refused(h)
	}
}

// A verdict that was under way for longer than drivers are kept away is refused:
// one of them may have a payment open.
func TestNotPaidThatComesTooLate(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	h := b.claimed(b.funded(0, 100), b.funded(0, 0), 10)
	b.must("defer", b.client.Defer(t.Context(), 0, []branch.DeferItem{{ID: h.ID, Dead: branch.DeadOutcomeUnknown, Error: "lost"}})[0].Code)
	owner := func(sql string) {
		t.Helper()
		if _, err := b.set.Owner(0).Exec(t.Context(), sql, [16]byte(h.ID)); err != nil {
			t.Fatal(err)
		}
	}
	// Its driver took it over and died.
	owner(`UPDATE attempts SET driving = true WHERE hold_id = $1`)
	word := branch.OperatorRequest{ID: h.ID, Actor: "op", Reason: "asked the bank", Outcome: "not_paid"}
	said, err := b.client.Resolve(t.Context(), 0, word)
	if err != nil || said.Code != branch.CodeOK || said.Lease == 0 {
		t.Fatalf("resolve: %+v, %v", said, err)
	}
	if again, err := b.client.Resolve(t.Context(), 0, word); err != nil || again.Code != branch.CodeOK || again.Lease < said.Lease {
		t.Errorf("the same word again: %+v, %v", again, err)
	} else {
		said = again
	}
	refuse := func() branch.Code {
		return b.client.Refuse(t.Context(), 0, []branch.RefuseItem{{ID: h.ID, Reason: "not_paid", Watch: true, Lease: said.Lease}})[0].Code
	}
	owner(`UPDATE holds SET next_attempt_at = now() WHERE id = $1`) // the minute is over
	if c := b.client.Claim(t.Context(), 0, []branch.ClaimItem{{ID: h.ID, LeaseMS: 60_000}})[0]; c.Code != branch.CodeRedrive || c.SinceUnsureMS < 0 {
		t.Fatalf("claim: %+v", c)
	}
	if code := refuse(); code != branch.CodeBusy {
		t.Errorf("a late verdict: %s, want busy", code)
	}
}

// Who closes a refusal has not seen the payment that turned up since.
func TestLateSuccessIsClosedByItself(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 100), b.funded(0, 0)
	h := b.claimed(from, to, 10)
	b.refused(h)
	late := b.client.Settle(t.Context(), 0, []branch.SettleItem{{ID: h.ID, PaymentID: "p"}})[0]
	if late.Code != branch.CodeVerdictIsOther {
		t.Fatalf("a late success: %s", late.Code)
	}
	act := branch.OperatorRequest{ID: h.ID, Actor: "op", Reason: "seen"}
	byRefund := act
	byRefund.Outcome = branch.ByRefund
	for i, step := range []struct {
		act  branch.OperatorRequest
		want branch.Code
		open int
	}{{byRefund, branch.CodeOK, 1}, {byRefund, branch.CodeNoDeadLetter, 1}, {act, branch.CodeOK, 0}, {act, branch.CodeNoDeadLetter, 0}} {
		r, err := b.client.Close(t.Context(), 0, step.act)
		if err != nil || r.Code != step.want {
			t.Errorf("step %d: %s, %v; want %s", i, r.Code, err, step.want)
		}
		if n := count(t, b.set.Reads(0), `SELECT count(*) FROM dead_letters WHERE closed_at IS NULL AND code = 'late_success'`); n != step.open {
			t.Errorf("step %d: %d late successes are open, want %d", i, n, step.open)
		}
	}
}

// A hold that was being paid when its recipient was closed brings coins into a
// closed account; they find a way out.
func TestCoinsInAClosedAccount(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 100), b.funded(0, 0)
	h := b.claimed(from, to, 10)
	set := func(s holdfast.AccountStatus, want branch.Code) {
		t.Helper()
		r, err := b.client.SetStatus(t.Context(), 0, branch.AccountRequest{User: to, Currency: "RBX", Status: s, Actor: "op", Reason: "why"})
		if err != nil || r.Code != want {
			t.Fatalf("status %s: %s, %v; want %s", s, r.Code, err, want)
		}
	}
	set(holdfast.AccountClosed, branch.CodeOK)
	set(holdfast.AccountOpen, branch.CodeAccountClosed)
	b.paid(h)
	set(holdfast.AccountOpen, branch.CodeOK)
	b.cash(to, -10)
	set(holdfast.AccountClosed, branch.CodeOK)
	set(holdfast.AccountOpen, branch.CodeAccountClosed)
	if p, err := prove(t.Context(), b.set.Reads(0), 0); err != nil || !p.OK {
		t.Errorf("at %s: %+v, %v", time.Now(), p.Offenders, err)
	}
}
