package participants

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

// bench is a participant over n fresh shards and a client to it.
type bench struct {
	branch.Client
	t    *testing.T
	node *Node
	set  *shards.Set
	ctx  context.Context
}

func newBench(t *testing.T, n int) *bench {
	t.Helper()
	ctx := context.Background()
	return benchOn(t, ctx, testkit.Databases(t, n), n)
}

// benchOn starts another participant on the same shards.
func benchOn(t *testing.T, ctx context.Context, dsns []string, n int) *bench {
	t.Helper()
	set, err := shards.Open(ctx, shards.Config{DSNs: dsns, Map: holdfast.EvenShardMap(n), Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	node, err := New(Config{Shards: set, Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close(ctx) })
	return &bench{Client: branch.Client{T: node}, t: t, node: node, set: set, ctx: ctx}
}

// user opens an account on a shard and funds it.
func (b *bench) user(shard int, balance int64) holdfast.UserID {
	b.t.Helper()
	u := b.newUser(shard)
	if a, err := b.Open(b.ctx, shard, branch.AccountRequest{User: u, Currency: "RBX"}); err != nil || !a.Created {
		b.t.Fatalf("open %s: %+v, %v", u, a, err)
	}
	if balance > 0 {
		r := b.Cash(b.ctx, shard, []branch.CashItem{{User: u, Currency: "RBX", Amount: balance, Key: "first"}})[0]
		if r.Code != branch.CodeOK || r.Account.Available != balance {
			b.t.Fatalf("deposit: %+v", r)
		}
	}
	return u
}

// newUser draws ids until one lives on the shard.
func (b *bench) newUser(shard int) (u holdfast.UserID) {
	for {
		for i := range u {
			u[i] = byte(rand.Uint32())
		}
		if b.set.Map().OfUser(u) == shard {
			return u
		}
	}
}

func (b *bench) balance(u holdfast.UserID) (available, held int64) {
	b.t.Helper()
	a, err := b.Account(b.ctx, b.set.Map().OfUser(u), branch.AccountRequest{User: u, Currency: "RBX"})
	if err != nil || a.Code != branch.CodeOK {
		b.t.Fatalf("account %s: %+v, %v", u, a, err)
	}
	return a.Account.Available, a.Account.Held
}

func (b *bench) wantBalance(u holdfast.UserID, available, held int64) {
	b.t.Helper()
	if a, h := b.balance(u); a != available || h != held {
		b.t.Errorf("balance of %s is %d and %d held, want %d and %d", u, a, h, available, held)
	}
}

func try(from, to holdfast.UserID, amount int64, key string, delay time.Duration) branch.TryItem {
	return branch.TryItem{Sender: from, Recipient: to, Currency: "RBX", Amount: amount, Key: key,
		RequestHash: sha256.Sum256(fmt.Append(nil, to, amount, delay)), DelayMS: delay.Milliseconds()}
}

// mustTry reserves and returns the hold.
func (b *bench) mustTry(item branch.TryItem) holdfast.Hold {
	b.t.Helper()
	r := b.Try(b.ctx, b.set.Map().OfUser(item.Sender), []branch.TryItem{item})[0]
	if r.Code != branch.CodeOK {
		b.t.Fatalf("try: %+v", r)
	}
	return r.Hold
}

// mature waits for the maturity of a hold with a short delay: the clock that
// decides is the shard's, and the test does not bend it.
func (b *bench) mature(h holdfast.Hold) {
	b.t.Helper()
	<-time.After(time.Until(h.UnlockAt) + time.Millisecond)
}

func (b *bench) claim(id holdfast.HoldID) branch.ClaimResult {
	return b.Claim(b.ctx, b.set.Map().OfHold(id), []branch.ClaimItem{{ID: id, LeaseMS: 10_000}})[0]
}

func TestMain(m *testing.M) { testkit.Main(m) }

func TestLifecycle(t *testing.T) {
	t.Parallel()
	for _, to := range []int{0, 1} {
		t.Run(fmt.Sprintf("paid to shard %d", to), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 2)
			from, rcpt := b.user(0, 1000), b.user(to, 0)
			h := b.mustTry(try(from, rcpt, 300, "k", 20*time.Millisecond))
			b.wantBalance(from, 700, 300)
			b.mature(h)
			if c := b.claim(h.ID); c.Code != branch.CodeClaimed || c.Hold.Amount != 300 {
				t.Fatalf("claim: %+v", c)
			}
			if c := b.claim(h.ID); c.Code != branch.CodeBusy || c.InMS <= 0 {
				t.Fatalf("second claim: %+v", c)
			}
			r := b.Settle(b.ctx, 0, []branch.SettleItem{{ID: h.ID, PaymentID: "p1", Recipient: rcpt}})[0]
			if r.Code != branch.CodeOK {
				t.Fatalf("settle: %+v", r)
			}
			if to == 1 {
				if r.Hold.Status != holdfast.Executing {
					t.Fatalf("status %s, want EXECUTING", r.Hold.Status)
				}
				credit := []branch.CreditItem{{ID: h.ID, Recipient: rcpt, Currency: "RBX", Amount: 300}}
				for i, want := range []branch.Code{branch.CodeOK, branch.CodeAlready} {
					if c := b.Credit(b.ctx, 1, credit)[0]; c.Code != want {
						t.Fatalf("credit %d: %+v", i, c)
					}
				}
				r = b.Executed(b.ctx, 0, []branch.IDItem{{ID: h.ID}})[0]
			}
			if r.Hold.Status != holdfast.Executed || r.Hold.ExecutedAt.Before(h.UnlockAt) {
				t.Fatalf("end: %+v", r)
			}
			b.wantBalance(from, 700, 0)
			b.wantBalance(rcpt, 300, 0)
			if r := b.Settle(b.ctx, 0, []branch.SettleItem{{ID: h.ID, PaymentID: "p1", Recipient: rcpt}})[0]; r.Code != branch.CodeAlready {
				t.Errorf("settle again: %+v", r)
			}
			if r := b.Refuse(b.ctx, 0, []branch.RefuseItem{{ID: h.ID, Reason: "recipient_banned"}})[0]; r.Code != branch.CodeVerdictIsOther {
				t.Errorf("refuse after paid: %+v", r)
			}
			if r := b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: h.ID}})[0]; r.Code != branch.CodeExecuted {
				t.Errorf("cancel after executed: %+v", r)
			}
		})
	}
	t.Run("refused and refunded", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 500), b.user(0, 0)
		h := b.mustTry(try(from, to, 500, "k", 20*time.Millisecond))
		b.mature(h)
		b.claim(h.ID)
		if r := b.Refuse(b.ctx, 0, []branch.RefuseItem{{ID: h.ID, Reason: "recipient_banned"}})[0]; r.Code != branch.CodeOK || r.Hold.Status != holdfast.Failed {
			t.Fatalf("refuse: %+v", r)
		}
		ids, err := b.Unrefunded(b.ctx, 0, 10)
		if err != nil || len(ids) != 1 || ids[0] != h.ID {
			t.Fatalf("unrefunded: %v, %v", ids, err)
		}
		for i, want := range []branch.Code{branch.CodeOK, branch.CodeAlready} {
			if r := b.Refund(b.ctx, 0, []branch.IDItem{{ID: h.ID}})[0]; r.Code != want {
				t.Fatalf("refund %d: %+v", i, r)
			}
		}
		b.wantBalance(from, 500, 0)
		if r := b.Settle(b.ctx, 0, []branch.SettleItem{{ID: h.ID, PaymentID: "late"}})[0]; r.Code != branch.CodeVerdictIsOther {
			t.Errorf("late success: %+v", r)
		}
		b.wantBalance(from, 500, 0)
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 500), b.user(0, 0)
		h := b.mustTry(try(from, to, 400, "k", time.Hour))
		if r := b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: h.ID, Actor: to}})[0]; r.Code != branch.CodeForbidden || !r.Hold.ID.IsZero() {
			t.Errorf("cancel by the recipient: %+v", r)
		}
		if c := b.claim(h.ID); c.Code != branch.CodeNotDue || c.InMS < 3_000_000 {
			t.Errorf("early claim: %+v", c)
		}
		for i, want := range []branch.Code{branch.CodeOK, branch.CodeAlready} {
			if r := b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: h.ID, Actor: from}})[0]; r.Code != want || r.Hold.Status != holdfast.Cancelled {
				t.Fatalf("cancel %d: %+v", i, r)
			}
		}
		b.wantBalance(from, 500, 0)
	})
}
