package chaos

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

// drainRate is HOLDFAST_DRAIN_RATE of the cluster on which the backlog of an
// outage is watched.
const drainRate = 60

func paymentFaults() []Fault {
	return []Fault{
		{Name: "payment-15-percent-errors", Theme: "payment", Quick: true, Covers: "2, I7", About: "15 % of the calls are answered 500, half of them after the payment was made.",
			Strike: paying(4*time.Second, paysim.Faults{ErrorRatio: 0.15}, "error_ratio_before", "error_ratio_after", "error_ratio_lookup")},
		{Name: "payment-down", Theme: "payment", Heavy: true, Cluster: "drain", Settings: map[string]string{"HOLDFAST_DRAIN_RATE": fmt.Sprint(drainRate)}, Covers: "2, 5, I12", Within: 90 * time.Second,
			About: "The payment API is down for twelve seconds (four hours, scaled): nothing is claimed, the backlog stays in PostgreSQL, no storm of retries, and it drains at the set rate.", Strike: longOutage},
		{Name: "payment-latency", Theme: "payment", Quick: true, Covers: "2, I7", About: "Payments take 900 ± 400 ms, around the timeout: many are made after we have given up on them.",
			Strike: paying(4*time.Second, paysim.Faults{LatencyMS: 900, JitterMS: 400}, "latency")},
		{Name: "banned-recipient", Theme: "payment", Quick: true, Covers: "2, I6, I7", About: "A recipient is banned at the payment API while holds for it are pending: each is refused and refunded once.", Load: manyEnds,
			Strike: banMany},
		{Name: "banned-between", Theme: "payment", Quick: true, Covers: "2, I7", About: "A recipient's account is banned here after the create: the hold is refused before its claim, without a payment.",
			Strike: banHere, After: banOver},
		{Name: "key-forgotten", Theme: "payment", Cluster: "giveup", Covers: "2, I7",
			Settings: giveUpSoon, Load: few,
			About: "The payment API forgets a key after its lifetime: nothing is posted again, a person resolves it.", Strike: keyForgotten},
		{Name: "success-after-refund", Theme: "payment", Cluster: "giveup", Covers: "2, I7",
			Settings: giveUpSoon, Load: few,
			About: "A person declares payments not made, their coins go back, and then they turn up: the dead letter late_success says so.", Strike: successAfterRefund},
	}
}

// giveUpSoon asks a person after a second instead of a day. The breaker stays
// closed, so that the time counts.
var giveUpSoon = map[string]string{"HOLDFAST_PAYMENT_KEY_LIFETIME": "1s", "HOLDFAST_PAYMENT_GIVE_UP": "1s", "HOLDFAST_BREAKER_ERROR_RATIO": "1"}

// few holds: each of them will be a person's business.
func few(c *workload.Config) {
	c.Rate, c.Clients, c.RefusableShare, c.MaxDelay = 12, 6, -1, 2*time.Second
}

// answerFaults are the ways to answer badly, one fault each.
func answerFaults() []Fault {
	var out []Fault
	for _, m := range []struct {
		mode  paysim.Mode
		about string
	}{
		{paysim.ModeUnauthorized, "401 to everything: a rotated key refunds nobody."},
		{paysim.ModeForbidden, "403 with a code that is no refusal: refunds nobody."},
		{paysim.ModeRateLimited, "429 to everything."},
		{paysim.ModeUnavailable, "503 to everything."},
		{paysim.ModeHang, "Calls hang until they time out."},
		{paysim.ModeRedirect, "Redirects, which nobody follows."},
		{paysim.ModeNotFound, "404 to everything, to look-ups of payments that were made too."},
		{paysim.ModeAccepted, "200 with the status pending, and nothing is done."},
		{paysim.ModeMixedUp, "200 with the success of another hold, and nothing is done."},
		{paysim.ModeLostResponse, "Payments are made and the connection closes."},
		{paysim.ModeErrorAfter, "Payments are made and answered 500."},
		{paysim.ModeGarbage, "Payments are made and answered with junk."},
		{paysim.ModeTruncated, "Payments are made and half of the answer comes."},
		{paysim.ModeWrongAmount, "Answers echo a wrong amount."},
		{paysim.ModeWrongID, "Answers echo another hold's id."},
		{paysim.ModeWrongRecipient, "Answers echo another recipient."},
		{paysim.ModeSlowBody, "Answers come at one byte a second."},
		{paysim.ModeHugeBody, "Answers have a body of 100 MB."},
		{paysim.ModePending, "Payments are made a second after the answer."},
		{paysim.ModeLate, "Payments are made a second after the connection was closed; look-ups say 404 until then."},
	} {
		// Some good answers in between keep the breaker from shielding the API.
		ratio := 0.7
		switch m.mode {
		case paysim.ModeUnauthorized, paysim.ModeForbidden, paysim.ModeRateLimited, paysim.ModeUnavailable, paysim.ModeNotFound:
			ratio = 1
		case paysim.ModeHugeBody:
			ratio = 0.05 // it is the simulator that this would exhaust
		}
		f := paysim.Faults{Rules: []paysim.Rule{{Mode: m.mode, Ratio: ratio}}, SettleAfterMS: 1000}
		out = append(out, Fault{Name: "payment-" + dashed(string(m.mode)), Theme: "payment", Quick: true, Covers: "2, I7",
			About: "The payment API fails: " + m.about, Strike: paying(3*time.Second, f, string(m.mode))})
	}
	return out
}

// paying sets faults of the payment API for a while and counts their strikes.
func paying(d time.Duration, f paysim.Faults, names ...string) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		// A breaker that is open shields the API from the load; let it be struck
		// more than once.
		before, err := r.PayStats(ctx)
		if err != nil {
			return err
		}
		if err := r.Payments(ctx, f); err != nil {
			return err
		}
		if err := r.Wait(ctx, d); err != nil {
			return err
		}
		after, err := r.PayStats(ctx)
		r.Struck(struckBySim(after, names...) - struckBySim(before, names...))
		return err
	}
}

const (
	executingSQL = `SELECT count(*) FROM holds WHERE id >= $1 AND status = 2`
	// overdueOfSQL counts what has matured and not been claimed.
	overdueOfSQL = `SELECT count(*) FROM holds WHERE id >= $1 AND status = 1 AND unlock_at < clock_timestamp()`
	// drainedSQL is the fastest second after a moment in which holds of the
	// backlog were claimed. What matured in the last seconds is no backlog: its
	// triggers go as ever.
	drainedSQL = `SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM holds
		WHERE id >= $1 AND unlock_at < $2::timestamptz - interval '4 s' AND claimed_at > $2 GROUP BY date_trunc('second', claimed_at)) s`
)

// longOutage: the load goes on through the outage, so that a backlog builds up.
func longOutage(ctx context.Context, r *Run) error {
	const d = 12 * time.Second
	before, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	if err := r.Payments(ctx, paysim.Faults{Mode: paysim.ModeDown}); err != nil {
		return err
	}
	if err := r.Wait(ctx, d); err != nil {
		return err
	}
	after, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	r.Struck(struckBySim(after, "down") - struckBySim(before, "down"))
	calls := after.Calls.Payments + after.Calls.Lookups - before.Calls.Payments - before.Calls.Lookups
	executing, err := r.sum(ctx, executingSQL, r.since())
	if err != nil {
		return err
	}
	backlog, err := r.sum(ctx, overdueOfSQL, r.since())
	if err != nil {
		return err
	}
	r.Note("%d calls during the outage, %d holds EXECUTING and %d overdue PENDING at its end", calls, executing, backlog)
	// Until the breakers open each hold in flight is paid once, and looked up when
	// it comes up again; then each coordinator tries three a second.
	if most := 100 + 2*int(executing) + 2*6*int(d/time.Second); calls > most {
		r.Fail("%d calls of a payment API that is down for %s, want at most %d: a storm of retries", calls, d, most)
	}
	if backlog == 0 {
		r.Fail("no backlog after %s of outage", d)
	}
	if executing > 200 {
		r.Fail("%d holds were claimed although their payment could not be made, want at most 200", executing)
	}
	r.endLoad()
	over := time.Now()
	if err := r.calm(ctx); err != nil {
		return err
	}
	if err := r.Until(ctx, 80*time.Second, "the backlog is drained", func() bool {
		n, err := r.sum(ctx, overdueOfSQL, r.since())
		return err == nil && n == 0
	}); err != nil {
		return err
	}
	fastest, err := r.sum(ctx, drainedSQL, r.since(), over)
	r.Note("the fastest second of the drain claimed %d, the set rate is %d", fastest, drainRate)
	if fastest > 2*drainRate {
		r.Fail("the drain claims %d holds in a second, the set rate is %d", fastest, drainRate)
	}
	return err
}

func banMany(ctx context.Context, r *Run) error {
	before, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	banned := append([]holdfast.UserID{r.World.Celebrity}, r.World.Recipients[:4]...)
	if err := r.Payments(ctx, paysim.Faults{Banned: banned}); err != nil {
		return err
	}
	opened := false
	_ = r.Until(ctx, 4*time.Second, "a breaker that counts refusals", func() bool {
		for i := range 2 {
			b, err := r.breaker(ctx, i)
			opened = opened || err == nil && b.State != "closed"
		}
		return opened
	})
	if opened {
		r.Fail("the breaker opened: a refusal is no error of the payment API")
	}
	after, err := r.PayStats(ctx)
	r.Struck(struckBySim(after, "banned") - struckBySim(before, "banned"))
	return err
}

const refusedHereSQL = `SELECT count(*) FROM holds WHERE id >= $1 AND refusal_code = 'recipient_not_payable'`

func (r *Run) setStatus(ctx context.Context, user holdfast.UserID, status string) error {
	body := map[string]string{"status": status, "reason": "the harness tries it"}
	return r.Until(ctx, 10*time.Second, "account "+status, func() bool {
		_, err := r.API(0).Public(ctx, "PATCH", "/v1/accounts/"+user.String(), body, nil)
		return err == nil
	})
}

// banHere bans the one whom everybody pays.
func banHere(ctx context.Context, r *Run) error {
	if err := r.Wait(ctx, time.Second); err != nil {
		return err
	}
	if err := r.setStatus(ctx, r.World.Celebrity, "banned"); err != nil {
		return err
	}
	err := r.Until(ctx, 10*time.Second, "a refusal before the claim", func() bool {
		n, err := r.sum(ctx, refusedHereSQL, r.since())
		return err == nil && n > 0
	})
	if err != nil {
		return err
	}
	if err := r.Wait(ctx, time.Second); err != nil {
		return err
	}
	n, err := r.sum(ctx, refusedHereSQL, r.since())
	r.Struck(int(n))
	return err
}

func banOver(ctx context.Context, r *Run) error {
	return r.setStatus(ctx, r.World.Celebrity, "open")
}

// unheard lets payments be made and nobody hear of them, neither now nor by
// looking up, until a few holds have the dead letter outcome_unknown.
func (r *Run) unheard(ctx context.Context, lifetimeMS int64) error {
	f := paysim.Faults{KeyLifetimeMS: lifetimeMS, Rules: []paysim.Rule{
		{Mode: paysim.ModeLostResponse, Calls: paysim.Payments}, {Mode: paysim.ModeError, Calls: paysim.Lookups}}}
	if err := r.Payments(ctx, f); err != nil {
		return err
	}
	if err := r.Until(ctx, 15*time.Second, "payments that nobody has heard of", func() bool {
		n, err := r.sum(ctx, executingSQL, r.since())
		return err == nil && n >= 5
	}); err != nil {
		return err
	}
	// No more of them: the rest of the world is to go on.
	r.endLoad()
	return r.Until(ctx, 40*time.Second, "dead letters outcome_unknown for all of them", func() bool {
		executing, err1 := r.sum(ctx, executingSQL, r.since())
		letters, err2 := r.sum(ctx, lettersSQL, r.since(), "outcome_unknown")
		return err1 == nil && err2 == nil && letters > 0 && letters >= executing
	})
}

const (
	lettersSQL = `SELECT count(*) FROM dead_letters WHERE hold_id >= $1 AND code = $2 AND resolution IS NULL`
	unknownSQL = `SELECT coalesce(array_agg(l.hold_id::text), '{}') FROM dead_letters l JOIN holds h ON h.id = l.hold_id
		WHERE l.hold_id >= $1 AND l.code = 'outcome_unknown' AND l.resolution IS NULL AND h.status = 2 AND h.verdict IS NULL`
)

// resolve is what a person does with every outcome_unknown.
func (r *Run) resolve(ctx context.Context, outcome string) (ids []string, err error) {
	body := map[string]string{"outcome": outcome, "evidence": "the journal of the simulator", "reason": "the harness asked"}
	for shard := range r.Cluster.Shards() {
		var some []string
		if err := r.row(ctx, shard, unknownSQL, &some, r.since()); err != nil {
			return ids, err
		}
		for _, id := range some {
			var last error
			err := r.Until(ctx, 15*time.Second, "a pause between two attempts", func() bool { // busy while one runs
				_, last = r.API(0).AdminCall(ctx, "POST", "/admin/v1/dead-letters/"+id+":resolve", body, nil)
				return last == nil
			})
			if err != nil {
				return ids, fmt.Errorf("resolve %s as %s: %w: %w", id, outcome, err, last)
			}
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// keyForgotten: the payments were made, and the API has forgotten their keys. A
// second POST would pay again, which the simulator's effects would show.
func keyForgotten(ctx context.Context, r *Run) error {
	if err := r.unheard(ctx, 1000); err != nil {
		return err
	}
	before, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	// Well again, but forgetful: look-ups say "never seen".
	if err := r.Payments(ctx, paysim.Faults{KeyLifetimeMS: 1000}); err != nil {
		return err
	}
	if err := r.Wait(ctx, 4*time.Second); err != nil {
		return err
	}
	after, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	r.Struck(after.Struck["key_forgotten"] - before.Struck["key_forgotten"])
	ids, err := r.resolve(ctx, "paid")
	r.Note("%d holds were resolved as paid, the keys were looked up %d times", len(ids), after.Calls.Lookups-before.Calls.Lookups)
	if after.Totals.Doubles > before.Totals.Doubles {
		r.Fail("%d payments were made twice", after.Totals.Doubles-before.Totals.Doubles)
	}
	return err
}

func successAfterRefund(ctx context.Context, r *Run) error {
	if err := r.unheard(ctx, 0); err != nil {
		return err
	}
	ids, err := r.resolve(ctx, "not_paid")
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return fmt.Errorf("no hold was left to resolve")
	}
	if err := r.Until(ctx, 10*time.Second, "the refunds", func() bool {
		n, err := r.sum(ctx, executingSQL, r.since())
		return err == nil && n == 0
	}); err != nil {
		return err
	}
	if err := r.calm(ctx); err != nil {
		return err
	}
	// A person's word is looked after a minute later; here it is due now.
	for i := range r.Cluster.Shards() {
		if err := r.exec(ctx, i, `UPDATE attempts SET next_at = clock_timestamp() WHERE hold_id >= $1`, r.since()); err != nil {
			return err
		}
	}
	err = r.Until(ctx, 40*time.Second, fmt.Sprintf("dead letters late_success for %d holds", len(ids)), func() bool {
		n, err := r.sum(ctx, lettersSQL, r.since(), "late_success")
		if err == nil && n == int64(len(ids)) {
			r.Struck(int(n))
			return true
		}
		return false
	})
	return err
}
