package participants

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// PostgreSQL sends the rows of a statement before it commits it. A server that
// goes away in between has told of changes that were never made: a claim that
// was believed would pay for a hold that its sender can still cancel.
func TestRowsAreNoCommit(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	owner := b.set.Owner(0)
	exec := func(sql string) {
		t.Helper()
		if _, err := owner.Exec(b.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE FUNCTION go_away() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE EXCEPTION 'going away' USING ERRCODE = '57P01'; END $$`)
	from, near, far := b.user(0, 1000), b.user(0, 0), b.user(1, 0)
	for _, when := range []struct {
		name, timing string
		want         branch.Code
	}{
		{"after its rows", "NOT DEFERRABLE", branch.CodeShardUnavailable},
		{"in its commit", "DEFERRABLE INITIALLY DEFERRED", branch.CodeOutcomeUnknown},
		// A table that is missing inside is not a day without holds.
		{"for want of a table", "NOT DEFERRABLE", branch.CodeShardUnavailable},
	} {
		if when.name == "for want of a table" {
			exec(`CREATE OR REPLACE FUNCTION go_away() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN PERFORM FROM no_such_table; RETURN NULL; END $$`)
		}
		h := b.mustTry(try(from, far, 10, when.name, 10*time.Millisecond))
		home := b.mustTry(try(from, near, 10, when.name+", at home", 10*time.Millisecond))
		b.mature(h)
		b.mature(home)
		ids := []branch.IDItem{{ID: h.ID}}
		claim := func() branch.Code {
			r := b.Claim(b.ctx, 0, []branch.ClaimItem{{ID: h.ID, LeaseMS: 60_000}, {ID: home.ID, LeaseMS: 60_000}})
			return worst(r[0].Code, r[1].Code)
		}
		settle := func() branch.Code {
			r := b.Settle(b.ctx, 0, []branch.SettleItem{{ID: h.ID, PaymentID: "p", Recipient: far}, {ID: home.ID, PaymentID: "p", Recipient: near}})
			return worst(r[0].Code, r[1].Code)
		}
		ended := func() branch.Code { return b.Executed(b.ctx, 0, ids)[0].Code }
		for _, step := range []struct {
			name string
			do   func() branch.Code
			ok   branch.Code
		}{{"claim", claim, branch.CodeClaimed}, {"settle", settle, branch.CodeOK}, {"executed", ended, branch.CodeOK}} {
			exec(fmt.Sprintf(`CREATE CONSTRAINT TRIGGER torn AFTER UPDATE ON holds %s FOR EACH ROW EXECUTE FUNCTION go_away()`, when.timing))
			before := b.checksums()
			if got := step.do(); got != when.want {
				t.Errorf("a server that goes away %s: %s answers %s, want %s", when.name, step.name, got, when.want)
			}
			if what := changed(before, b.checksums()); what != "" {
				t.Errorf("%s was rolled back and left %s", step.name, what)
			}
			exec(`DROP TRIGGER torn ON holds`)
			if got := step.do(); got != step.ok {
				t.Fatalf("%s again: %s", step.name, got)
			}
		}
	}
}

// worst is the first of two codes unless both are the same.
func worst(a, b branch.Code) branch.Code {
	if a == b {
		return a
	}
	return a + " and " + b
}
