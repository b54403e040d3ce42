package participants

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// state is a place in a hold's life: how to get there from the hold, and what
// each step does there.
type state struct {
	name    string
	delay   time.Duration // 0: matured
	near    bool          // the recipient lives on the sender's shard
	reach   []func(*life)
	status  holdfast.Status
	verdict holdfast.Verdict
	money   money
	steps   map[string]outcome
}

// life is one hold on its way through the steps.
type life struct {
	*bench
	hold    holdfast.Hold
	to      holdfast.UserID
	toShard int
}

func must(l *life, step string, got branch.Code, want ...branch.Code) {
	l.t.Helper()
	if !slices.Contains(want, got) {
		l.t.Fatalf("%s on the way to the state answered %s", step, got)
	}
}

func claimFor(leaseMS int64) func(*life) {
	return func(l *life) {
		r := l.Claim(l.ctx, 0, []branch.ClaimItem{{ID: l.hold.ID, LeaseMS: leaseMS}})[0]
		must(l, "claim", r.Code, branch.CodeClaimed)
		if leaseMS < 1000 {
			<-time.After(time.Duration(leaseMS+5) * time.Millisecond)
		}
	}
}

// Steps by name. Each answers with its code alone, the state is read after it.
var steps = map[string]func(*life) branch.Code{
	"claim": func(l *life) branch.Code {
		return l.Claim(l.ctx, 0, []branch.ClaimItem{{ID: l.hold.ID, LeaseMS: 600_000}})[0].Code
	},
	"claim refused": func(l *life) branch.Code {
		return l.Claim(l.ctx, 0, []branch.ClaimItem{{ID: l.hold.ID, LeaseMS: 600_000, Refusal: "recipient_not_payable"}})[0].Code
	},
	"settle": func(l *life) branch.Code {
		item := branch.SettleItem{ID: l.hold.ID, PaymentID: "p"}
		if l.toShard == 0 {
			item.Recipient = l.to
		}
		return l.Settle(l.ctx, 0, []branch.SettleItem{item})[0].Code
	},
	"refuse": func(l *life) branch.Code {
		return l.Refuse(l.ctx, 0, []branch.RefuseItem{{ID: l.hold.ID, Reason: "recipient_banned"}})[0].Code
	},
	"refuse watched": func(l *life) branch.Code {
		return l.Refuse(l.ctx, 0, []branch.RefuseItem{{ID: l.hold.ID, Reason: "resolved_not_paid", Watch: true}})[0].Code
	},
	"executed": func(l *life) branch.Code { return l.Executed(l.ctx, 0, []branch.IDItem{{ID: l.hold.ID}})[0].Code },
	"defer": func(l *life) branch.Code {
		return l.Defer(l.ctx, 0, []branch.DeferItem{{ID: l.hold.ID, DelayMS: 1, ActiveMS: 1, Error: "timeout", Unsure: true}})[0].Code
	},
	"refund": func(l *life) branch.Code { return l.Refund(l.ctx, 0, []branch.IDItem{{ID: l.hold.ID}})[0].Code },
	"cancel by sender": func(l *life) branch.Code {
		return l.Cancel(l.ctx, 0, []branch.CancelItem{{ID: l.hold.ID, Actor: l.hold.Sender}})[0].Code
	},
	"cancel by recipient": func(l *life) branch.Code {
		return l.Cancel(l.ctx, 0, []branch.CancelItem{{ID: l.hold.ID, Actor: l.to}})[0].Code
	},
	"cancel by stranger": func(l *life) branch.Code {
		return l.Cancel(l.ctx, 0, []branch.CancelItem{{ID: l.hold.ID, Actor: l.newUser(0)}})[0].Code
	},
	"release": func(l *life) branch.Code {
		return l.Cancel(l.ctx, 0, []branch.CancelItem{{ID: l.hold.ID, Operator: "op", Reason: "asked"}})[0].Code
	},
	"credit": func(l *life) branch.Code {
		return l.Credit(l.ctx, l.toShard, []branch.CreditItem{{ID: l.hold.ID, Recipient: l.to, Currency: "RBX", Amount: 40}})[0].Code
	},
}

// ok takes a step that must be done.
func ok(step string) func(*life) {
	return func(l *life) { l.t.Helper(); must(l, step, steps[step](l), branch.CodeOK) }
}

// deferOver defers and lets the pause pass.
func deferOver(l *life) {
	ok("defer")(l)
	<-time.After(10 * time.Millisecond)
}

// with is a table of outcomes with some of them replaced.
func with(base map[string]outcome, changes map[string]outcome) map[string]outcome {
	m := map[string]outcome{}
	for _, from := range []map[string]outcome{base, changes} {
		for step, o := range from {
			m[step] = o
		}
	}
	return m
}

// pendingSteps is what a PENDING hold answers before maturity.
var pendingSteps = map[string]outcome{
	"claim": no(branch.CodeNotDue), "claim refused": no(branch.CodeNotDue),
	"settle": impossible, "refuse": impossible, "refuse watched": impossible, "executed": impossible,
	"defer": no(branch.CodeAlready), "refund": no(branch.CodeNotRefundable),
	"cancel by sender": cancelled, "cancel by recipient": forbidden, "cancel by stranger": notFound,
	"release": no(branch.CodeNotMatured), "credit": credited,
}

var executingSteps = with(pendingSteps, map[string]outcome{
	"claim": no(branch.CodeBusy), "claim refused": no(branch.CodeBusy),
	"settle": settled, "refuse": failed, "refuse watched": failed, "defer": deferred,
	"cancel by sender": no(branch.CodeMatured), "release": no(branch.CodeMatured),
})

var paidSteps = with(executingSteps, map[string]outcome{
	"settle": no(branch.CodeAlready), "refuse": no(branch.CodeVerdictIsOther), "refuse watched": no(branch.CodeVerdictIsOther),
	"executed": {branch.CodeOK, holdfast.Executed, holdfast.Paid, inTransit, "0:holds"},
})

var failedSteps = with(executingSteps, map[string]outcome{
	"claim": no(branch.CodeToRefund), "claim refused": no(branch.CodeToRefund), "settle": late,
	"refuse": no(branch.CodeAlready), "refuse watched": no(branch.CodeAlready), "defer": no(branch.CodeAlready),
	"refund": refunded, "cancel by sender": no(branch.CodeFailed), "release": no(branch.CodeFailed),
})

var cancelledSteps = with(pendingSteps, map[string]outcome{
	"claim": no(branch.CodeEnded), "claim refused": no(branch.CodeEnded),
	"cancel by sender": no(branch.CodeAlready), "release": no(branch.CodeAlready),
})

// watching is failedSteps for a hold with a row in attempts: every look at it
// puts the next one off, and a late success ends the watch.
func watching(code branch.Code) map[string]outcome {
	look := outcome{code: code, tables: "0:attempts"}
	return map[string]outcome{"claim": look, "claim refused": look,
		"settle": {code: branch.CodeVerdictIsOther, tables: "0:attempts 0:dead_letters"}}
}

func states() []state {
	const pending, executing, executed, failedS = holdfast.Pending, holdfast.Executing, holdfast.Executed, holdfast.Failed
	claim := claimFor(600_000)
	over := map[string]outcome{"claim": taken, "claim refused": taken}
	both := outcome{code: branch.CodeRedrive, tables: "0:attempts 0:holds"}
	dropped := failed
	dropped.tables = "0:attempts 0:dead_letters 0:holds"
	toCredit := outcome{code: branch.CodeToCredit, tables: "0:attempts 0:holds"}
	return []state{
		{name: "PENDING", delay: time.Hour, status: pending, money: escrow, steps: pendingSteps},
		{name: "PENDING and due", status: pending, money: escrow, steps: with(pendingSteps, map[string]outcome{
			"claim":            {branch.CodeClaimed, executing, 0, escrow, "0:holds"},
			"claim refused":    {branch.CodeRefused, failedS, holdfast.Refused, escrow, "0:dead_letters 0:holds"},
			"cancel by sender": no(branch.CodeMatured), "release": released})},
		{name: "EXECUTING", reach: []func(*life){claim}, status: executing, money: escrow, steps: executingSteps},
		{name: "EXECUTING, its attempt is over", reach: []func(*life){claimFor(1)}, status: executing, money: escrow,
			steps: with(executingSteps, over)},
		{name: "EXECUTING, deferred", reach: []func(*life){claim, deferOver}, status: executing, money: escrow,
			steps: with(executingSteps, map[string]outcome{"claim": both, "claim refused": both, "refuse": dropped,
				"refuse watched": {branch.CodeOK, failedS, holdfast.Refused, escrow, dropped.tables}})},
		{name: "EXECUTING, recipient on the same shard", near: true, reach: []func(*life){claim}, status: executing, money: escrow,
			steps: with(executingSteps, map[string]outcome{
				"settle": {branch.CodeOK, executed, holdfast.Paid, paidOut, touched},
				"credit": {code: branch.CodeOK, tables: "0:accounts 0:barrier 0:entries"}})},
		{name: "EXECUTING and paid", reach: []func(*life){claim, ok("settle")}, status: executing, verdict: holdfast.Paid,
			money: inTransit, steps: paidSteps},
		{name: "EXECUTING and paid, its attempt is over", reach: []func(*life){claimFor(50), ok("settle")}, status: executing,
			verdict: holdfast.Paid, money: inTransit, steps: with(paidSteps, map[string]outcome{"claim": toCredit, "claim refused": toCredit})},
		{name: "EXECUTED", reach: []func(*life){claim, ok("settle"), ok("credit"), ok("executed")}, status: executed,
			verdict: holdfast.Paid, money: paidOut, steps: with(paidSteps, map[string]outcome{
				"claim": no(branch.CodeEnded), "claim refused": no(branch.CodeEnded), "executed": no(branch.CodeAlready),
				"defer": no(branch.CodeAlready), "cancel by sender": no(branch.CodeExecuted), "release": no(branch.CodeExecuted),
				"credit": no(branch.CodeAlready)})},
		{name: "FAILED", reach: []func(*life){claim, ok("refuse")}, status: failedS, verdict: holdfast.Refused, money: escrow,
			steps: failedSteps},
		{name: "FAILED and refunded", reach: []func(*life){claim, ok("refuse"), ok("refund")}, status: failedS, verdict: holdfast.Refused,
			money: back, steps: with(failedSteps, map[string]outcome{"claim": no(branch.CodeEnded), "claim refused": no(branch.CodeEnded),
				"refund": no(branch.CodeAlready)})},
		{name: "FAILED and watched", reach: []func(*life){claim, ok("defer"), ok("refuse watched")}, status: failedS,
			verdict: holdfast.Refused, money: escrow, steps: with(failedSteps, watching(branch.CodeToRefund))},
		{name: "FAILED, watched and refunded", reach: []func(*life){claim, ok("defer"), ok("refuse watched"), ok("refund")}, status: failedS,
			verdict: holdfast.Refused, money: back, steps: with(with(failedSteps, watching(branch.CodeToWatch)),
				map[string]outcome{"refund": no(branch.CodeAlready)})},
		{name: "CANCELLED", delay: time.Hour, reach: []func(*life){ok("cancel by sender")}, status: holdfast.Cancelled, money: back,
			steps: cancelledSteps},
		{name: "CANCELLED by release", reach: []func(*life){ok("release")}, status: holdfast.Cancelled, money: back, steps: cancelledSteps},
	}
}

// bring makes a new hold of 40 coins and takes it to the state.
func bring(b *bench, s state, n int) *life {
	b.t.Helper()
	l := &life{bench: b, toShard: 1}
	if s.near {
		l.toShard = 0
	}
	from := b.user(0, 100)
	l.to = b.user(l.toShard, 0)
	delay := s.delay
	if delay == 0 {
		delay = 15 * time.Millisecond
	}
	l.hold = b.mustTry(try(from, l.to, 40, fmt.Sprint(n), delay))
	if s.delay == 0 {
		b.mature(l.hold)
	}
	for _, step := range s.reach {
		step(l)
	}
	return l
}

func (l *life) is(when string, status holdfast.Status, verdict holdfast.Verdict, m money) {
	l.t.Helper()
	h := l.Get(l.ctx, 0, []branch.IDItem{{ID: l.hold.ID}})[0].Hold
	if h.Status != status || h.Verdict != verdict {
		l.t.Errorf("%s the hold is %s %q, want %s %q", when, h.Status, h.Verdict, status, verdict)
	}
	l.wantBalance(l.hold.Sender, m.available, m.held)
	l.wantBalance(l.to, m.recipient, 0)
}
