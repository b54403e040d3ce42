package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

const (
	// stepTries is how often a step after the payment is repeated at once
	// before the hold is left to its next attempt.
	stepTries = 4
	// errorBytes bounds what is stored of an error.
	errorBytes = 300
	// quarantineMS is how long a hold in an impossible state is left alone.
	quarantineMS = 3_600_000
)

// drive is one hold in the hands of one driver, from its claim to its end or
// its next attempt.
type drive struct {
	c       *Coordinator
	shard   int // the sender's
	hold    holdfast.Hold
	claim   branch.ClaimResult
	permit  payment.Permit
	started time.Time // of the claim; monotonic
}

// first pays a hold that was PENDING a moment ago: nothing was ever sent, so a
// refusal is final.
func (d *drive) first(ctx context.Context) {
	if failpoint.Hit(pointClaimAnswered) != nil {
		return
	}
	if !d.maySend() {
		d.later(ctx, "the lease was over before the payment could be sent", false)
		return
	}
	answer := d.c.cfg.Payment.Pay(ctx, d.hold)
	d.permit.Done(answer)
	switch answer.Outcome {
	case payment.Succeeded:
		d.settle(ctx, answer.PaymentID)
	case payment.Refused:
		d.refuse(ctx, answer.Code, false)
	default:
		d.later(ctx, describe(answer), !answer.SureNotSent)
	}
}

// again takes over a hold whose earlier attempt ended without an answer. It
// asks first; it sends again, with the same key, only what was never seen, and
// only while the payment API still remembers keys of that age.
func (d *drive) again(ctx context.Context) {
	answer := d.c.cfg.Payment.Lookup(ctx, d.hold)
	d.permit.Done(answer)
	switch answer.Outcome {
	case payment.Succeeded:
		d.settle(ctx, answer.PaymentID)
		return
	case payment.Refused:
		if answer.Echoed {
			d.refuse(ctx, answer.Code, d.claim.SinceUnsureMS >= 0)
			return
		}
		// A refusal that does not say of what may be about our right to look.
		// The same key is sent once more, which says it or pays nothing new.
	case payment.Unknown:
		d.later(ctx, "look-up: "+describe(answer), false)
		return
	}
	if time.Duration(d.claim.SinceClaimMS)*time.Millisecond >= d.c.cfg.KeyLifetime {
		d.later(ctx, "never seen, and too old to be sent again", false)
		return
	}
	permit, err := d.c.cfg.Payment.Allow()
	if err != nil {
		d.later(ctx, err.Error(), false)
		return
	}
	d.permit = permit
	if !d.maySend() {
		d.permit.Cancel()
		d.later(ctx, "the lease was over before the payment could be sent", false)
		return
	}
	answer = d.c.cfg.Payment.Pay(ctx, d.hold)
	d.permit.Done(answer)
	switch answer.Outcome {
	case payment.Succeeded:
		d.settle(ctx, answer.PaymentID)
	case payment.Refused:
		d.refusedAgain(ctx, answer)
	default:
		d.later(ctx, describe(answer), !answer.SureNotSent)
	}
}

// refusedAgain is a refusal that was not the first thing sent. It is final only
// when no earlier attempt can still be open: the payment API itself must say
// that the key is refused, or enough time must have passed since the last
// attempt of which nothing is known. Even then the payment is looked up for a
// while: a success that was under way for longer must not stay unseen.
func (d *drive) refusedAgain(ctx context.Context, refusal payment.Answer) {
	if d.claim.SinceUnsureMS < 0 {
		d.refuse(ctx, refusal.Code, false)
		return
	}
	permit, err := d.c.cfg.Payment.Allow()
	if err != nil {
		d.later(ctx, err.Error(), false)
		return
	}
	seen := d.c.cfg.Payment.Lookup(ctx, d.hold)
	permit.Done(seen)
	quiet := time.Duration(d.claim.SinceUnsureMS)*time.Millisecond >= d.c.cfg.RefusalQuiet
	switch {
	case seen.Outcome == payment.Succeeded:
		d.settle(ctx, seen.PaymentID)
	case seen.Outcome == payment.Refused && seen.Echoed,
		(seen.Outcome == payment.Refused || seen.Outcome == payment.NeverSeen) && quiet:
		d.refuse(ctx, refusal.Code, true)
	default:
		d.later(ctx, "refused with "+refusal.Code+", but an earlier attempt may still be open", false)
	}
}

// watch looks up a payment that was refused, or declared not made by a person,
// after an attempt without an answer. Should it turn up all the same, the verdict stands and the dead letter late_success says so.
func (d *drive) watch(ctx context.Context) {
	permit, err := d.c.cfg.Payment.Allow()
	if err != nil {
		return
	}
	answer := d.c.cfg.Payment.Lookup(ctx, d.hold)
	permit.Done(answer)
	if answer.Outcome == payment.Succeeded {
		d.settle(ctx, answer.PaymentID)
	}
}

// maySend reports whether a try that starts now ends before the lease does.
// After the lease another driver may be at it.
func (d *drive) maySend() bool {
	return time.Since(d.started) < d.c.cfg.LeaseMargin
}

// mine reports whether the lease still runs. A driver that was paused beyond it
// decides nothing more: another one has the hold, and may have a payment open.
func (d *drive) mine() bool {
	return time.Since(d.started) < d.c.cfg.Payment.Timeout()+d.c.cfg.LeaseMargin
}

// settle commits the verdict paid. From its commit on the recipient must be
// credited, whatever happens.
func (d *drive) settle(ctx context.Context, paymentID string) {
	var r branch.HoldResult
	ok := d.step(ctx, func() branch.Code {
		r = d.c.shards.Settle(ctx, d.shard, []branch.SettleItem{{ID: d.hold.ID, PaymentID: paymentID, Recipient: d.hold.Recipient}})[0]
		return r.Code
	})
	switch {
	case !ok:
		d.later(ctx, fmt.Sprintf("paid as %s, verdict not committed: %s", paymentID, r.Code), true)
	case r.Code == branch.CodeVerdictIsOther:
		d.c.log.Error("payment succeeded after the hold was refused", "hold_id", d.hold.ID, "payment_id", paymentID,
			"dead_letter", branch.DeadLateSuccess)
	case r.Code != branch.CodeOK && r.Code != branch.CodeAlready:
		d.quarantine(ctx, "settle: "+string(r.Code))
	case r.Hold.Status == holdfast.Executed:
		if r.Code == branch.CodeOK {
			d.ended(r.Hold)
		}
	case failpoint.Hit(pointPaidAnswered) != nil:
	default:
		d.hold = r.Hold
		d.credit(ctx)
	}
}

// credit pays the recipient on its shard, then ends the hold on the sender's.
func (d *drive) credit(ctx context.Context) {
	to := d.c.cfg.Map.OfUser(d.hold.Recipient)
	item := branch.CreditItem{ID: d.hold.ID, Recipient: d.hold.Recipient, Currency: d.hold.Currency, Amount: d.hold.Amount}
	var code branch.Code
	ok := d.step(ctx, func() branch.Code {
		code = d.c.shards.Credit(ctx, to, []branch.CreditItem{item})[0].Code
		return code
	})
	switch {
	case !ok:
		d.later(ctx, "paid, credit not committed: "+string(code), false)
		return
	case code != branch.CodeOK && code != branch.CodeAlready:
		d.quarantine(ctx, "credit: "+string(code))
		return
	}
	var r branch.HoldResult
	ok = d.step(ctx, func() branch.Code {
		r = d.c.shards.Executed(ctx, d.shard, []branch.IDItem{{ID: d.hold.ID}})[0]
		return r.Code
	})
	switch {
	case !ok:
		d.later(ctx, "credited, end not committed: "+string(r.Code), false)
	case r.Code == branch.CodeOK:
		d.ended(r.Hold)
	case r.Code != branch.CodeAlready:
		d.quarantine(ctx, "executed: "+string(r.Code))
	}
}

// refuse commits the verdict refused; the refund worker gives the money back.
// With watch the payment is still looked up now and then afterwards.
func (d *drive) refuse(ctx context.Context, code string, watch bool) {
	tooLate := func() {
		d.c.log.Warn("refusal came after the lease: the next driver decides", "hold_id", d.hold.ID, "shard", d.shard, "code", code)
	}
	if !d.mine() {
		tooLate()
		return
	}
	item := branch.RefuseItem{ID: d.hold.ID, Reason: code, Detail: "refused by the payment API", Watch: watch, Lease: d.claim.Lease}
	var r branch.HoldResult
	ok := d.step(ctx, func() branch.Code {
		r = d.c.shards.Refuse(ctx, d.shard, []branch.RefuseItem{item})[0]
		return r.Code
	})
	switch {
	case !ok:
		d.later(ctx, fmt.Sprintf("refused with %s, verdict not committed: %s", code, r.Code), false)
	case r.Code == branch.CodeOK:
		d.c.count(holdfast.Failed)
		d.c.wantRefund(d.hold.ID)
	case r.Code == branch.CodeAlready || r.Code == branch.CodeVerdictIsOther:
		// Another driver was first; one verdict, for ever.
	case r.Code == branch.CodeBusy:
		tooLate()
	default:
		d.quarantine(ctx, "refuse: "+string(r.Code))
	}
}

// step repeats a step that was not answered. Every step is once-only by its
// barrier row, so that repeating an unknown outcome is what settles it.
func (d *drive) step(ctx context.Context, do func() branch.Code) bool {
	wait := 50 * time.Millisecond
	for try := 1; ; try++ {
		code := do()
		if code.Err() == nil {
			return true
		}
		if try == stepTries {
			return false
		}
		select {
		case <-d.c.hurry:
			return false
		case <-time.After(wait):
			wait *= 3
		}
	}
}

// later ends this drive without a verdict. Should this not be written either,
// the lease runs out and the next driver finds the hold above the watermark.
func (d *drive) later(ctx context.Context, why string, unsure bool) {
	if !d.mine() {
		d.c.log.Warn("lease is over: the next driver goes on", "hold_id", d.hold.ID, "shard", d.shard, "error", clip(why))
		return
	}
	delay := d.c.backoff(d.claim.Attempts)
	active := time.Since(d.started) + delay
	item := branch.DeferItem{ID: d.hold.ID, DelayMS: delay.Milliseconds(), ActiveMS: active.Milliseconds(),
		Error: clip(why), Unsure: unsure, Lease: d.claim.Lease}
	if time.Duration(d.claim.ActiveMS)*time.Millisecond+active >= d.c.cfg.GiveUp {
		item.Dead = branch.DeadOutcomeUnknown
	}
	d.c.log.Warn("hold will be driven again", "hold_id", d.hold.ID, "shard", d.shard, "attempt", d.claim.Attempts+1,
		"in_ms", item.DelayMS, "error", item.Error, "dead_letter", item.Dead)
	r := d.c.shards.Defer(ctx, d.shard, []branch.DeferItem{item})[0]
	if r.Code != branch.CodeOK && r.Code != branch.CodeAlready {
		d.c.log.Warn("the end of an attempt was not recorded, its lease must run out", "hold_id", d.hold.ID, "shard", d.shard, "code", r.Code)
	}
}

// quarantine takes one hold out of the way and goes on with the others.
func (d *drive) quarantine(ctx context.Context, why string) {
	d.c.log.Error("hold is in an impossible state", "hold_id", d.hold.ID, "shard", d.shard, "error", why,
		"status", d.hold.Status, "verdict", d.hold.Verdict, "amount", d.hold.Amount)
	d.c.shards.Defer(ctx, d.shard, []branch.DeferItem{{ID: d.hold.ID, DelayMS: quarantineMS, Error: clip(why),
		Dead: branch.DeadImpossible, Lease: d.claim.Lease}})
}

func (d *drive) ended(h holdfast.Hold) {
	d.c.count(holdfast.Executed)
	d.c.metrics.lag.Observe(h.ExecutedAt.Sub(h.UnlockAt).Seconds())
}

// backoff doubles from BackoffFirst up to BackoffMost; half of it is random, so
// that the holds of one outage do not come back as one wave.
func (c *Coordinator) backoff(attempts int) time.Duration {
	d := c.cfg.BackoffFirst << min(attempts, 30)
	if d <= 0 || d > c.cfg.BackoffMost {
		d = c.cfg.BackoffMost
	}
	return d/2 + rand.N(d/2+1)
}

func describe(a payment.Answer) string {
	if a.Err == nil {
		return a.Outcome.String()
	}
	if errors.Is(a.Err, payment.ErrPending) {
		return "the payment is still being decided"
	}
	return a.Err.Error()
}

func clip(s string) string {
	if len(s) > errorBytes {
		s = s[:errorBytes]
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
}
