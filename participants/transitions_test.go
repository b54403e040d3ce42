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
