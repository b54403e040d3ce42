package participants

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// ledgerTables are the tables that a step of a hold may change.
var ledgerTables = []string{"accounts", "attempts", "audit", "barrier", "cash", "dead_letters", "entries", "holds", "idempotency", "issuance"}

// checksums are one sum per table and shard over every column of every row.
func (b *bench) checksums() map[string]string {
	b.t.Helper()
	var ask []string
	for _, table := range ledgerTables {
		ask = append(ask, fmt.Sprintf(`SELECT '%s', coalesce(md5(string_agg(x::text, '|' ORDER BY x::text)), '') FROM %[1]s x`, table))
	}
	sums := map[string]string{}
	for shard := range b.set.N() {
		rows, err := b.set.Reads(shard).Query(b.ctx, strings.Join(ask, " UNION ALL "))
		if err != nil {
			b.t.Fatal(err)
		}
		for rows.Next() {
			var table, sum string
			if err := rows.Scan(&table, &sum); err != nil {
				b.t.Fatal(err)
			}
			sums[fmt.Sprintf("%d:%s", shard, table)] = sum
		}
		if rows.Err() != nil {
			b.t.Fatal(rows.Err())
		}
	}
	return sums
}

// changed names the tables whose sums differ, in order.
func changed(before, after map[string]string) string {
	var names []string
	for name, sum := range before {
		if after[name] != sum {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// money is where the 40 coins of a hold are; the sender began with 100.
type money struct{ available, held, recipient int64 }

var (
	escrow    = money{60, 40, 0}
	inTransit = money{60, 0, 0}
	paidOut   = money{60, 0, 40}
	back      = money{100, 0, 0}
)

// outcome is what one step does to a hold in one state: its code, and where the
// state changes the new one. tables are those that change, nothing: none.
type outcome struct {
	code    branch.Code
	status  holdfast.Status // 0: as before, verdict and money too
	verdict holdfast.Verdict
	money   money
	tables  string
}

// no is an answer that changes nothing at all.
func no(code branch.Code) outcome { return outcome{code: code} }

const touched = "0:accounts 0:barrier 0:entries 0:holds"

var (
	deferred  = outcome{code: branch.CodeOK, tables: "0:attempts 0:holds"}
	taken     = outcome{code: branch.CodeRedrive, tables: "0:attempts 0:holds"}
	settled   = outcome{branch.CodeOK, holdfast.Executing, holdfast.Paid, inTransit, touched}
	failed    = outcome{branch.CodeOK, holdfast.Failed, holdfast.Refused, escrow, "0:dead_letters 0:holds"}
	refunded  = outcome{branch.CodeOK, holdfast.Failed, holdfast.Refused, back, "0:accounts 0:barrier 0:dead_letters 0:entries 0:holds"}
	cancelled = outcome{branch.CodeOK, holdfast.Cancelled, holdfast.NoVerdict, back, touched}
	released  = outcome{branch.CodeOK, holdfast.Cancelled, holdfast.NoVerdict, back, "0:accounts 0:audit 0:barrier 0:entries 0:holds"}
	// A payment that shows up after the refusal: the dead letter and nothing else.
	late = outcome{code: branch.CodeVerdictIsOther, tables: "0:dead_letters"}
	// A credit looks at its own barrier row only, whatever the hold's state: it
	// is the coordinator that asks for it after the verdict and never before.
	credited = outcome{code: branch.CodeOK, tables: "1:accounts 1:barrier 1:entries"}
)

var impossible, notFound, forbidden = no(branch.CodeImpossible), no(branch.CodeNotFound), no(branch.CodeForbidden)

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

// Every step in every state: what it answers, what it does, and that a step
// which is not done leaves every row of every table as it was.
func TestTransitions(t *testing.T) {
	t.Parallel()
	for _, s := range states() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 2)
			if len(s.steps) != len(steps) {
				t.Fatalf("%d steps have an outcome, there are %d", len(s.steps), len(steps))
			}
			n := 0
			for step, want := range s.steps {
				n++
				l := bring(b, s, n)
				l.is("before "+step, s.status, s.verdict, s.money)
				before := b.checksums()
				if got := steps[step](l); got != want.code {
					t.Errorf("%s answers %s, want %s", step, got, want.code)
				}
				if got := changed(before, b.checksums()); got != want.tables {
					t.Errorf("%s changes the tables %q, want %q", step, got, want.tables)
				}
				if want.status == 0 {
					want.status, want.verdict, want.money = s.status, s.verdict, s.money
				}
				if step == "credit" && want.code == branch.CodeOK {
					want.money.recipient = 40
				}
				l.is("after "+step, want.status, want.verdict, want.money)
			}
		})
	}
	t.Run("a hold that does not exist", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 2)
		for _, id := range []holdfast.HoldID{
			holdfast.NewHoldID(time.Now().UnixMilli(), 1, 1), holdfast.NewHoldID(1, 1, 1), holdfast.NewHoldID(1<<48-1, 1, 1),
		} {
			l := &life{bench: b, hold: holdfast.Hold{ID: id, Sender: b.newUser(0)}, to: b.newUser(1), toShard: 1}
			before := b.checksums()
			for name, step := range steps {
				if name == "credit" {
					continue
				}
				if got := step(l); got != branch.CodeNotFound {
					t.Errorf("%s of %s answers %s", name, id, got)
				}
			}
			if got := changed(before, b.checksums()); got != "" {
				t.Errorf("steps on %s change %s", id, got)
			}
		}
	})
}

// What no step does, PostgreSQL refuses as well, even to the owner.
func TestIllegalStatesAreRefusedByTheTables(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	illegal := map[string][]string{
		"PENDING": {"status = 0", "status = 6", "status = 2", "status = 3", "status = 4", "status = 5", "verdict = 1", "verdict = 2",
			"claimed_at = now()", "refunded_at = now()", "amount = 0", "amount = -40", "recipient = sender"},
		"EXECUTING": {"status = 1", "status = 3", "status = 3, executed_at = now()", "status = 4", "status = 4, decided_at = now()",
			"status = 5", "status = 5, cancelled_at = now()", "verdict = 2", "verdict = 3", "refunded_at = now()", "claimed_at = NULL", "next_attempt_at = NULL"},
		"EXECUTING and paid": {"status = 1", "status = 3", "status = 4", "status = 5, cancelled_at = now()", "verdict = 2", "refunded_at = now()"},
		"EXECUTED": {"status = 1", "status = 4", "status = 5, cancelled_at = now()", "verdict = NULL", "verdict = 2",
			"executed_at = NULL", "refunded_at = now()"},
		"FAILED": {"status = 1", "status = 2", "status = 3, executed_at = now()", "status = 5, cancelled_at = now()",
			"verdict = NULL", "verdict = 1", "decided_at = NULL"},
		"FAILED and refunded": {"status = 2, verdict = NULL", "status = 3, verdict = 1, executed_at = now()"},
		"CANCELLED":           {"status = 2", "status = 3, executed_at = now()", "status = 4", "verdict = 1", "claimed_at = now()", "cancelled_at = NULL"},
	}
	owner := b.set.Owner(0)
	refused := func(code, sql string, args ...any) {
		t.Helper()
		_, err := owner.Exec(b.ctx, sql, args...)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != code {
			t.Errorf("%s: %v, want SQLSTATE %s", sql, err, code)
		}
	}
	const check, unique, immutable = "23514", "23505", "HF009"
	seen := 0
	for i, s := range states() {
		if illegal[s.name] == nil {
			continue
		}
		seen++
		l := bring(b, s, i)
		for _, set := range illegal[s.name] {
			refused(check, "UPDATE holds SET "+set+" WHERE id = $1", [16]byte(l.hold.ID))
		}
		if s.name != "PENDING" {
			continue
		}
		user, id := [16]byte(l.hold.Sender), [16]byte(l.hold.ID)
		for _, set := range []string{"available = -1", "held = -1", "status = 0", "status = 4", "status = 3"} {
			refused(check, "UPDATE accounts SET "+set+" WHERE user_id = $1", user)
		}
		refused(unique, `INSERT INTO barrier SELECT * FROM barrier WHERE gid = $1`, id)
		refused(check, `UPDATE barrier SET op = 4 WHERE gid = $1`, id)
		refused(check, `UPDATE barrier SET branch = 3 WHERE gid = $1`, id)
		refused(unique, `INSERT INTO idempotency SELECT * FROM idempotency WHERE sender = $1`, user)
		refused(check, `UPDATE idempotency SET refusal = 'both' WHERE sender = $1`, user)
		refused(unique, `INSERT INTO cash SELECT * FROM cash WHERE user_id = $1`, user)
		refused(immutable, `UPDATE entries SET amount = amount + 1 WHERE ref = $1`, id)
		refused(immutable, `DELETE FROM entries WHERE ref = $1`, id)
		refused(check, `INSERT INTO entries (posted_at, ref, user_id, amount, movement, book, currency) VALUES (now(), $1, $1, 0, 2, 3, 'RBX')`, id)
		refused(check, `INSERT INTO entries (posted_at, ref, user_id, amount, movement, book, currency) VALUES (now(), $1, $1, 5, 2, 2, 'RBX')`, id)
	}
	if seen != len(illegal) {
		t.Errorf("%d of %d states were tried", seen, len(illegal))
	}
}
