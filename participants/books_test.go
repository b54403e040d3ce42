package participants

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

// books is a participant over fresh shards, and the steps to move money on them.
type books struct {
	t      *testing.T
	set    *shards.Set
	client branch.Client
	keys   int
}

func newBooks(t *testing.T, n int) *books {
	t.Helper()
	set, err := shards.Open(t.Context(), shards.Config{DSNs: testkit.Databases(t, n), Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	node, err := New(Config{Shards: set, Log: testkit.Logger(t), OnImpossible: func(why string) { t.Errorf("impossible state: %s", why) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		node.Close(context.Background())
		set.Close()
	})
	return &books{t: t, set: set, client: branch.Client{T: node}}
}

// user makes a user of a shard.
func (b *books) user(shard int) (u holdfast.UserID) {
	for {
		binary.BigEndian.PutUint64(u[:], rand.Uint64())
		binary.BigEndian.PutUint64(u[8:], rand.Uint64())
		if b.set.Map().OfUser(u) == shard {
			return u
		}
	}
}

// funded opens an account and deposits into it.
func (b *books) funded(shard int, amount int64) holdfast.UserID {
	b.t.Helper()
	u := b.user(shard)
	r := branch.AccountRequest{User: u, Currency: "RBX"}
	if a, err := openAccount(b.t.Context(), b.set.Money(shard), b.set.Map().Epoch, r); err != nil || !a.Created {
		b.t.Fatalf("open account: %+v, %v", a, err)
	}
	if amount > 0 {
		b.cash(u, amount)
	}
	return u
}

func (b *books) cash(u holdfast.UserID, amount int64) {
	b.t.Helper()
	b.keys++
	out := b.client.Cash(b.t.Context(), b.set.Map().OfUser(u), []branch.CashItem{{User: u, Currency: "RBX", Amount: amount,
		Key: fmt.Sprint("cash ", b.keys), RequestHash: sha256.Sum256([]byte{1})}})
	if out[0].Code != branch.CodeOK {
		b.t.Fatalf("cash %d: %s", amount, out[0].Code)
	}
}

func (b *books) try(from, to holdfast.UserID, amount int64, delay time.Duration) holdfast.Hold {
	b.t.Helper()
	b.keys++
	out := b.client.Try(b.t.Context(), b.set.Map().OfUser(from), []branch.TryItem{{Sender: from, Recipient: to, Currency: "RBX",
		Amount: amount, Key: fmt.Sprint("try ", b.keys), RequestHash: sha256.Sum256([]byte{2}), DelayMS: delay.Milliseconds()}})
	if out[0].Code != branch.CodeOK {
		b.t.Fatalf("try: %s", out[0].Code)
	}
	return out[0].Hold
}

// claimed makes a hold that is EXECUTING.
func (b *books) claimed(from, to holdfast.UserID, amount int64) holdfast.Hold {
	b.t.Helper()
	h := b.try(from, to, amount, 5*time.Millisecond)
	testkit.Eventually(b.t, 10*time.Second, func() (bool, string) {
		out := b.client.Claim(b.t.Context(), b.set.Map().OfHold(h.ID), []branch.ClaimItem{{ID: h.ID, LeaseMS: 60_000}})
		return out[0].Code == branch.CodeClaimed, "claim: " + string(out[0].Code)
	})
	return h
}

func (b *books) must(what string, code branch.Code) {
	b.t.Helper()
	if code != branch.CodeOK {
		b.t.Fatalf("%s: %s", what, code)
	}
}

// paid gives the verdict paid. A hold within one shard is EXECUTED by it.
func (b *books) paid(h holdfast.Hold) {
	b.t.Helper()
	out := b.client.Settle(b.t.Context(), b.set.Map().OfHold(h.ID), []branch.SettleItem{{ID: h.ID, PaymentID: "p", Recipient: h.Recipient}})
	b.must("settle", out[0].Code)
}

func (b *books) credited(h holdfast.Hold) {
	b.t.Helper()
	out := b.client.Credit(b.t.Context(), b.set.Map().OfUser(h.Recipient),
		[]branch.CreditItem{{ID: h.ID, Recipient: h.Recipient, Currency: h.Currency, Amount: h.Amount}})
	b.must("credit", out[0].Code)
}

func (b *books) executed(h holdfast.Hold) {
	b.t.Helper()
	b.must("executed", b.client.Executed(b.t.Context(), b.set.Map().OfHold(h.ID), []branch.IDItem{{ID: h.ID}})[0].Code)
}

func (b *books) refused(h holdfast.Hold) {
	b.t.Helper()
	b.must("refuse", b.client.Refuse(b.t.Context(), b.set.Map().OfHold(h.ID), []branch.RefuseItem{{ID: h.ID, Reason: "recipient_banned"}})[0].Code)
}

// scene has a hold in every state, on shard 0 unless it says otherwise.
type scene struct {
	a, near, far, back                                holdfast.UserID // far lives on shard 1
	pending, executing, transit, local, cross, failed holdfast.Hold
	refunded, cancelled, arrived                      holdfast.Hold // arrived came from shard 1
}

func newScene(b *books) (s scene) {
	s.a, s.near, s.far, s.back = b.funded(0, 10_000), b.funded(0, 0), b.funded(1, 0), b.funded(1, 5_000)
	b.cash(s.a, -500)
	s.pending = b.try(s.a, s.far, 11, time.Hour)
	s.executing = b.claimed(s.a, s.far, 12)
	s.transit = b.claimed(s.a, s.far, 13)
	b.paid(s.transit)
	s.local = b.claimed(s.a, s.near, 14)
	b.paid(s.local)
	s.cross = b.claimed(s.a, s.far, 15)
	b.paid(s.cross)
	b.credited(s.cross)
	b.executed(s.cross)
	s.failed = b.claimed(s.a, s.far, 16)
	b.refused(s.failed)
	s.refunded = b.claimed(s.a, s.far, 17)
	b.refused(s.refunded)
	b.must("refund", b.client.Refund(b.t.Context(), 0, []branch.IDItem{{ID: s.refunded.ID}})[0].Code)
	s.cancelled = b.try(s.a, s.near, 18, time.Hour)
	b.must("cancel", b.client.Cancel(b.t.Context(), 0, []branch.CancelItem{{ID: s.cancelled.ID}})[0].Code)
	s.arrived = b.claimed(s.back, s.near, 19)
	b.paid(s.arrived)
	b.credited(s.arrived)
	return s
}
