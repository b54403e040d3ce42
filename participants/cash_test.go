package participants

import (
	"testing"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

func TestCash(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	u, banned, closed := b.user(0, 100), b.user(0, 100), b.user(0, 0)
	for user, status := range map[holdfast.UserID]holdfast.AccountStatus{banned: holdfast.AccountBanned, closed: holdfast.AccountClosed} {
		if a, err := b.SetStatus(b.ctx, 0, branch.AccountRequest{User: user, Currency: "RBX", Status: status, Actor: "me", Reason: "test"}); err != nil || a.Code != branch.CodeOK {
			t.Fatalf("set status: %+v, %v", a, err)
		}
	}
	item := func(user holdfast.UserID, amount int64, key string) branch.CashItem {
		return branch.CashItem{User: user, Currency: "RBX", Amount: amount, Key: key, RequestHash: [32]byte{byte(amount)}}
	}
	for _, row := range []struct {
		name    string
		item    branch.CashItem
		code    branch.Code
		refusal branch.Code
		left    int64
	}{
		{"a deposit", item(u, 50, "a"), branch.CodeOK, "", 150},
		{"again", item(u, 50, "a"), branch.CodeReplay, "", 150},
		{"its key for another amount", item(u, 51, "a"), branch.CodeKeyReused, "", 150},
		{"the same key for a withdrawal", item(u, -20, "a"), branch.CodeOK, "", 130},
		{"too much", item(u, -131, "b"), branch.CodeInsufficientFunds, "", 130},
		{"too much is remembered", item(u, -131, "b"), branch.CodeReplay, branch.CodeInsufficientFunds, 130},
		{"no account", item(b.newUser(0), 5, "a"), branch.CodeUnknownAccount, "", 0},
		{"a banned account takes", item(banned, 5, "a"), branch.CodeOK, "", 105},
		{"a banned account gives nothing", item(banned, -5, "a"), branch.CodeSenderNotActive, "", 105},
		{"a closed account", item(closed, 5, "a"), branch.CodeAccountClosed, "", 0},
		{"the issuance cap", item(u, 9_000_000_000_000_000_000, "cap"), branch.CodeIssuanceCap, "", 0},
	} {
		r := b.Cash(b.ctx, 0, []branch.CashItem{row.item})[0]
		if r.Code != row.code || r.Refusal != row.refusal || r.Account.Available != row.left {
			t.Errorf("%s: %s %s with %d, want %s %s with %d", row.name, r.Code, r.Refusal, r.Account.Available, row.code, row.refusal, row.left)
		}
	}
	// Several of one user in one batch are decided in arrival order.
	rs := b.Cash(b.ctx, 0, []branch.CashItem{item(u, -100, "x"), item(u, -100, "y"), item(u, -30, "z")})
	if rs[0].Code != branch.CodeOK || rs[1].Code != branch.CodeInsufficientFunds || rs[2].Code != branch.CodeOK {
		t.Errorf("batch: %+v", rs)
	}
	b.wantBalance(u, 0, 0)
}

// The quick way to fund a benchmark goes through the same books: a proof that
// saw coins without a deposit would refuse every benchmark.
func TestBulkFundingIsDeposits(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	users := [][16]byte{b.user(0), b.user(0)}
	for _, want := range []int{2, 0} { // accounts opened: a second time there are deposits only
		var opened int
		if err := b.set.Money(0).QueryRow(t.Context(), `SELECT holdfast_bulk_fund($1, $2::uuid[], 'RBX', 70)`, b.set.Map().Epoch, users).Scan(&opened); err != nil || opened != want {
			t.Fatalf("opened %d, %v; want %d", opened, err, want)
		}
	}
	if n := count(t, b.set.Reads(0), `SELECT count(*) FROM cash WHERE amount = 70 AND kind = 6`); n != 4 {
		t.Errorf("%d deposits, want 4", n)
	}
	if n := count(t, b.set.Reads(0), `SELECT count(*) FROM accounts WHERE available = 140`); n != 2 {
		t.Errorf("%d accounts have 140, want 2", n)
	}
	if p, err := prove(t.Context(), b.set.Reads(0), 0); err != nil || !p.OK {
		t.Errorf("%+v, %v", p.Offenders, err)
	}
}
