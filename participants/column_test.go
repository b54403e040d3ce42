package participants

import (
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// A later release adds columns, and this binary goes on: no step may depend on
// how many a table has, also for holds and partitions that were there before.
func TestColumnsOfALaterRelease(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	from, to := b.user(0, 1000), b.user(1, 0)
	before := b.mustTry(try(from, to, 10, "before", time.Hour))
	for shard := range 2 {
		for _, sql := range []string{`ALTER TABLE holds ADD COLUMN memo text`, `ALTER TABLE holds ADD COLUMN note text NOT NULL DEFAULT 'x'`,
			`ALTER TABLE accounts ADD COLUMN nickname text`, `ALTER TABLE barrier ADD COLUMN memo text`, `ALTER TABLE attempts ADD COLUMN memo text`} {
			if _, err := b.set.Owner(shard).Exec(b.ctx, sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(step string, got branch.Code, allowed branch.Code) {
		t.Helper()
		if got != allowed {
			t.Errorf("%s: %s, want %s", step, got, allowed)
		}
	}
	cancel := func(h holdfast.Hold) branch.Code {
		return b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: h.ID}})[0].Code
	}
	want("cancel of an older hold", cancel(before), branch.CodeOK)
	want("again", cancel(before), branch.CodeAlready)
	paid, refused := b.mustTry(try(from, to, 10, "paid", 1100*time.Millisecond)), b.mustTry(try(from, to, 10, "refused", 1100*time.Millisecond))
	b.mature(paid)
	b.mature(refused)
	want("claim", b.claim(paid.ID).Code, branch.CodeClaimed)
	want("claim of a claimed one", b.claim(paid.ID).Code, branch.CodeBusy)
	want("defer", b.Defer(b.ctx, 0, []branch.DeferItem{{ID: paid.ID, Error: "x"}})[0].Code, branch.CodeOK)
	want("settle", b.Settle(b.ctx, 0, []branch.SettleItem{{ID: paid.ID, PaymentID: "p"}})[0].Code, branch.CodeOK)
	want("settle again", b.Settle(b.ctx, 0, []branch.SettleItem{{ID: paid.ID, PaymentID: "p"}})[0].Code, branch.CodeAlready)
	want("credit", b.Credit(b.ctx, 1, []branch.CreditItem{{ID: paid.ID, Recipient: to, Currency: "RBX", Amount: 10}})[0].Code, branch.CodeOK)
	want("executed", b.Executed(b.ctx, 0, []branch.IDItem{{ID: paid.ID}})[0].Code, branch.CodeOK)
	want("executed again", b.Executed(b.ctx, 0, []branch.IDItem{{ID: paid.ID}})[0].Code, branch.CodeAlready)
	want("claim to refuse", b.claim(refused.ID).Code, branch.CodeClaimed)
	want("refuse", b.Refuse(b.ctx, 0, []branch.RefuseItem{{ID: refused.ID, Reason: "r"}})[0].Code, branch.CodeOK)
	want("refund", b.Refund(b.ctx, 0, []branch.IDItem{{ID: refused.ID}})[0].Code, branch.CodeOK)
	b.wantBalance(from, 990, 0)
	b.wantBalance(to, 10, 0)
}
