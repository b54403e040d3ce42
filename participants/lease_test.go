package participants

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// A driver that was overtaken decides nothing, however late its word arrives:
// the next one may have a payment open.
func TestOvertakenDriverDecidesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	from, to := b.user(0, 100), b.user(0, 0)
	h := b.mustTry(try(from, to, 40, "k", 10*time.Millisecond))
	b.mature(h)
	claim := func(lease int64) branch.ClaimResult {
		return b.Claim(b.ctx, 0, []branch.ClaimItem{{ID: h.ID, LeaseMS: lease}})[0]
	}
	first := claim(1)
	if first.Code != branch.CodeClaimed || first.Lease == 0 {
		t.Fatalf("claim: %+v", first)
	}
	var second branch.ClaimResult
	testkit.Eventually(t, 30*time.Second, func() (bool, string) {
		second = claim(60_000)
		return second.Code == branch.CodeRedrive, string(second.Code)
	})
	if second.Lease <= first.Lease {
		t.Fatalf("the second lease ends at %d, the first at %d", second.Lease, first.Lease)
	}
	refuse := func(lease int64) branch.Code {
		return b.Refuse(b.ctx, 0, []branch.RefuseItem{{ID: h.ID, Reason: "recipient_banned", Lease: lease}})[0].Code
	}
	later := func(lease int64, dead string) branch.Code {
		return b.Defer(b.ctx, 0, []branch.DeferItem{{ID: h.ID, DelayMS: 1, Error: "no answer", Dead: dead, Lease: lease}})[0].Code
	}
	before := b.checksums()
	if r, d := refuse(first.Lease), later(first.Lease, branch.DeadOutcomeUnknown); r != branch.CodeBusy || d != branch.CodeBusy {
		t.Errorf("overtaken: refuse %s, defer %s, want busy", r, d)
	}
	if what := changed(before, b.checksums()); what != "" {
		t.Errorf("an overtaken driver has changed %s", what)
	}
	if c := later(second.Lease, ""); c != branch.CodeOK {
		t.Errorf("the driver itself: defer %s", c)
	}
	if c := refuse(second.Lease); c != branch.CodeBusy {
		t.Errorf("refuse after the drive was given up: %s, want busy", c)
	}
	third := branch.ClaimResult{}
	testkit.Eventually(t, 30*time.Second, func() (bool, string) {
		third = claim(60_000)
		return third.Code == branch.CodeRedrive, string(third.Code)
	})
	if c := refuse(third.Lease); c != branch.CodeOK {
		t.Errorf("the third driver: refuse %s", c)
	}
}

// A server that panics in a commit may have flushed it: the disk decides.
func TestFateOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		severity, code string
		early          bool
		want           fate
	}{
		{"ERROR", "53100", true, fateNothingDone},
		{"ERROR", "53200", false, fateNothingDone},
		{"PANIC", "53100", false, fateUnknown},
		{"PANIC", "53100", true, fateUnknown},
		{"PANIC", "58030", false, fateUnknown},
		{"PANIC", "XX000", false, fateUnknown},
		{"FATAL", "57P01", true, fateNothingDone},
		{"FATAL", "57P01", false, fateUnknown},
		{"ERROR", "57P01", false, fateUnknown},
		{"FATAL", "57P02", true, fateUnknown},
		{"ERROR", "40P01", false, fateRetry},
		{"ERROR", "23514", false, fateBroken},
	} {
		err := error(&pgconn.PgError{SeverityUnlocalized: c.severity, Severity: c.severity, Code: c.code})
		if c.early {
			err = &incomplete{err}
		}
		if got := fateOf(fmt.Errorf("run: %w", err)); got != c.want {
			t.Errorf("%s %s (early: %v) means %d, want %d", c.severity, c.code, c.early, got, c.want)
		}
	}
	if got := fateOf(errors.New("connection reset by peer")); got != fateUnknown {
		t.Errorf("a reset means %d, want unknown", got)
	}
}

// A Try that is refused for itself waits for an earlier one with its key that
// has not committed yet: it would be told no, and then be paid for.
func TestRefusedTryWaitsForItsKey(t *testing.T) {
	t.Parallel()
	dsns := testkit.Databases(t, 1)
	b, other := benchOn(t, t.Context(), dsns, 1), benchOn(t, t.Context(), dsns, 1)
	from, to := b.user(0, 100), b.user(0, 0)
	first := try(from, to, 40, "k", time.Hour)
	again := first
	again.DelayMS, again.UnlockAtMS = 0, 1 // its time has passed since
	refused := first
	refused.Refusal = branch.CodeRecipientNotPayable
	for name, item := range map[string]branch.TryItem{"past its time": again, "recipient banned since": refused} {
		item.Key, first.Key = name, name
		// The first one is done but for its commit: a lock on its holds keeps it.
		owner := b.set.Owner(0)
		tx, err := owner.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(b.ctx, `LOCK TABLE holds IN SHARE MODE`); err != nil {
			t.Fatal(err)
		}
		waiting := func() (n int) {
			if err := owner.QueryRow(b.ctx, `SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		one, two := make(chan branch.TryResult, 1), make(chan branch.TryResult, 1)
		go func() { one <- b.Try(b.ctx, 0, []branch.TryItem{first})[0] }()
		testkit.Eventually(t, 30*time.Second, func() (bool, string) { return waiting() == 1, "the first Try does not wait" })
		go func() { two <- other.Try(b.ctx, 0, []branch.TryItem{item})[0] }()
		var second branch.TryResult
		testkit.Eventually(t, 30*time.Second, func() (bool, string) {
			select {
			case second = <-two:
				t.Errorf("%s: answered %s while the first is open", name, second.Code)
				return true, ""
			default:
				return waiting() == 2, "the second Try does not wait"
			}
		})
		if err := tx.Rollback(b.ctx); err != nil {
			t.Fatal(err)
		}
		made := <-one
		if made.Code != branch.CodeOK {
			t.Fatalf("%s: the first Try: %+v", name, made)
		}
		if second.Code == "" {
			second = <-two
		}
		if second.Code != branch.CodeReplay || second.Hold.ID != made.Hold.ID {
			t.Errorf("%s: %+v, want a replay of %s", name, second, made.Hold.ID)
		}
	}
	before := b.checksums()
	again.Key, refused.Key = "new 1", "new 2"
	if r := b.Try(b.ctx, 0, []branch.TryItem{again, refused}); r[0].Code != branch.CodeUnlockOutOfRange || r[1].Code != branch.CodeRecipientNotPayable {
		t.Errorf("with keys of their own: %s, %s", r[0].Code, r[1].Code)
	}
	if what := changed(before, b.checksums()); what != "" {
		t.Errorf("refused items have left %s", what)
	}
}
