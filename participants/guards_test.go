package participants

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// A batch that breaks between two days: what is done is answered as done, and
// of the rest nothing is known.
func TestBatchBreaksBetweenTwoDays(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	from, to := b.user(0, 100), b.user(0, 0)
	today := b.mustTry(try(from, to, 10, "today", 50*time.Millisecond))
	later := b.mustTry(try(from, to, 20, "later", 24*time.Hour))
	// A statement trigger: it strikes though no row of that day would change.
	if _, err := b.set.Owner(0).Exec(b.ctx, fmt.Sprintf(`
		CREATE FUNCTION breaks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the second day breaks'; END $$;
		CREATE TRIGGER breaks BEFORE UPDATE ON holds_%s FOR EACH STATEMENT EXECUTE FUNCTION breaks()`,
		later.UnlockAt.UTC().Format("20060102"))); err != nil {
		t.Fatal(err)
	}
	b.mature(today)
	claims := b.Claim(b.ctx, 0, []branch.ClaimItem{{ID: later.ID, LeaseMS: 60_000}, {ID: today.ID, LeaseMS: 60_000}})
	if claims[0].Code != branch.CodeOutcomeUnknown || claims[1].Code != branch.CodeClaimed {
		t.Fatalf("claims are %s and %s, want outcome_unknown and claimed", claims[0].Code, claims[1].Code)
	}
	settled := b.Settle(b.ctx, 0, []branch.SettleItem{{ID: later.ID, PaymentID: "l", Recipient: to}, {ID: today.ID, PaymentID: "t", Recipient: to}})
	if settled[0].Code != branch.CodeOutcomeUnknown || settled[1].Code != branch.CodeOK {
		t.Fatalf("settles are %s and %s, want outcome_unknown and ok", settled[0].Code, settled[1].Code)
	}
	b.wantBalance(from, 70, 20)
	b.wantBalance(to, 10, 0)
}

// An outcome that is unknown again opens its dead letter again, and so does a
// state that is impossible still: closed, it would keep a stuck hold silent.
func TestDeadLetterOpensAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	from, to := b.user(0, 100), b.user(0, 0)
	h := b.mustTry(try(from, to, 10, "k", 50*time.Millisecond))
	b.mature(h)
	if r := b.claim(h.ID); r.Code != branch.CodeClaimed {
		t.Fatalf("claim: %+v", r)
	}
	for _, dead := range []string{branch.DeadOutcomeUnknown, branch.DeadImpossible} {
		letter := func() {
			t.Helper()
			if r := b.Defer(b.ctx, 0, []branch.DeferItem{{ID: h.ID, Error: "lost", Dead: dead}})[0]; r.Code != branch.CodeOK {
				t.Fatalf("defer: %+v", r)
			}
		}
		letter()
		tag, err := b.set.Owner(0).Exec(b.ctx, `UPDATE dead_letters SET closed_at = now(), closed_by = 'me' WHERE hold_id = $1 AND code = $2`, [16]byte(h.ID), dead)
		if err != nil || tag.RowsAffected() != 1 {
			t.Fatalf("close %s: %v, %v", dead, tag, err)
		}
		letter()
		var is bool
		if err := b.set.Owner(0).QueryRow(b.ctx, `SELECT closed_at IS NULL FROM dead_letters WHERE hold_id = $1 AND code = $2`,
			[16]byte(h.ID), dead).Scan(&is); err != nil || !is {
			t.Errorf("%s stayed closed, %v", dead, err)
		}
	}
}
