package harness

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// rig is a stack under test with the data it can be started on again.
type rig struct {
	*Stack
	t   *testing.T
	ctx context.Context
}

// start starts a stack; o.DSNs decides on which data.
func start(t *testing.T, o Options) *rig {
	t.Helper()
	o.Log = testkit.Logger(t)
	s, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Stack: s, t: t, ctx: context.Background()}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.Stop(ctx)
	})
	return r
}

// simulator starts a payment simulator that outlives the stacks of a test.
func simulator(t *testing.T) *Simulator {
	t.Helper()
	s, err := NewSimulator(testkit.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// die ends the stack like a process that is gone: nothing is waited for.
func (r *rig) die() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.Coord.Close(ctx)
	if r.Sched != nil {
		_ = r.Sched.Close(ctx)
	}
}

func (r *rig) user(shard int, balance int64) holdfast.UserID {
	r.t.Helper()
	var u holdfast.UserID
	for u.IsZero() || r.Map.OfUser(u) != shard {
		_, _ = rand.Read(u[:])
	}
	if _, err := r.API.OpenAccount(r.ctx, u.String()); err != nil {
		r.t.Fatal(err)
	}
	if balance > 0 {
		if _, err := r.API.Deposit(r.ctx, u.String(), apiclient.Cash{Amount: balance, Currency: "RBX", Key: "first"}); err != nil {
			r.t.Fatal(err)
		}
	}
	return u
}

// in builds a create whose hold matures after the delay.
func in(from, to holdfast.UserID, amount int64, key string, delay time.Duration) apiclient.CreateHold {
	at := time.Now().Add(delay)
	return apiclient.CreateHold{Sender: from.String(), Recipient: to.String(), Amount: amount, Key: key, UnlockAt: &at}
}

func (r *rig) create(c apiclient.CreateHold) holdfast.Hold {
	r.t.Helper()
	h, err := r.API.Create(r.ctx, c)
	if err != nil {
		r.t.Fatalf("create: %v", err)
	}
	return h
}

func (r *rig) get(id holdfast.HoldID) holdfast.Hold {
	return r.Client.Get(r.ctx, r.Map.OfHold(id), []branch.IDItem{{ID: id}})[0].Hold
}

// want waits until the hold has the status (and, when FAILED, its refund).
func (r *rig) want(id holdfast.HoldID, status holdfast.Status) holdfast.Hold {
	r.t.Helper()
	var h holdfast.Hold
	testkit.Eventually(r.t, 30*time.Second, func() (bool, string) {
		h = r.get(id)
		done := h.Status == status && (status != holdfast.Failed || !h.RefundedAt.IsZero())
		return done, "hold " + r.history(id)
	})
	return h
}

// history is everything the shard knows of a hold, for a failing test.
func (r *rig) history(id holdfast.HoldID) string {
	d, err := r.API.AdminCall(r.ctx, "GET", "/admin/v1/holds/"+id.String(), nil, nil)
	if err != nil {
		return fmt.Sprintf("%s: %v", id, err)
	}
	return string(d)
}

// whole proves that no coin is missing and that the payment API paid exactly
// the holds that say so.
func (r *rig) whole(holds ...holdfast.HoldID) {
	r.t.Helper()
	proof, text, err := r.API.Prove(r.ctx)
	if err != nil || !proof.OK {
		r.t.Errorf("the ledger is not whole: %v\n%s", err, text)
	}
	for _, id := range holds {
		h := r.get(id)
		effects := r.Sim.Effects(id).Effects
		if want := map[bool]int{true: 1}[h.Status == holdfast.Executed]; effects != want {
			r.t.Errorf("hold %s is %s and was paid %d times, want %d", id, h.Status, effects, want)
		}
	}
}

func (r *rig) balance(u holdfast.UserID) (available, held int64) {
	r.t.Helper()
	a, err := r.API.Account(r.ctx, u.String())
	if err != nil {
		r.t.Fatal(err)
	}
	return a.Available, a.Held
}

func (r *rig) wantBalance(u holdfast.UserID, available, held int64) {
	r.t.Helper()
	if a, h := r.balance(u); a != available || h != held {
		r.t.Errorf("balance of %s is %d and %d held, want %d and %d", u, a, h, available, held)
	}
}

func (r *rig) faults(f paysim.Faults) {
	r.t.Helper()
	if f.Mode == "" {
		f.Mode = paysim.ModeOK
	}
	if err := r.Sim.SetFaults(f); err != nil {
		r.t.Fatal(err)
	}
}

func TestMainJob(t *testing.T) {
	t.Parallel()
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t)})
	from, near, far, banned := r.user(0, 1000), r.user(0, 0), r.user(1, 0), r.user(1, 0)
	r.faults(paysim.Faults{Banned: []holdfast.UserID{banned}})
	h1 := r.create(in(from, near, 100, "near", 1500*time.Millisecond))
	h2 := r.create(in(from, far, 200, "far", 1500*time.Millisecond))
	h3 := r.create(in(from, banned, 300, "banned", 1500*time.Millisecond))
	h4 := r.create(in(from, far, 50, "cancelled", time.Hour))
	r.wantBalance(from, 350, 650)
	if h, err := r.API.Cancel(r.ctx, h4.ID.String()); err != nil || h.Status != holdfast.Cancelled {
		t.Fatalf("cancel: %+v, %v", h, err)
	}
	r.wantBalance(from, 400, 600)
	for _, h := range []holdfast.Hold{h1, h2} {
		e := r.want(h.ID, holdfast.Executed)
		if e.ExecutedAt.Before(h.UnlockAt) {
			t.Errorf("hold %s was executed %s early", h.ID, h.UnlockAt.Sub(e.ExecutedAt))
		}
		t.Logf("lag %s", e.ExecutedAt.Sub(h.UnlockAt))
	}
	if h := r.want(h3.ID, holdfast.Failed); h.RefusalCode != "recipient_banned" {
		t.Errorf("refusal code %q", h.RefusalCode)
	}
	r.wantBalance(from, 700, 0)
	r.wantBalance(near, 100, 0)
	r.wantBalance(far, 200, 0)
	r.wantBalance(banned, 0, 0)
	r.whole(h1.ID, h2.ID, h3.ID, h4.ID)
	var letters struct {
		DeadLetters []branch.DeadLetter `json:"dead_letters"`
	}
	text, err := r.API.AdminCall(r.ctx, "GET", "/admin/v1/dead-letters", nil, nil)
	if err != nil || json.Unmarshal(text, &letters) != nil || len(letters.DeadLetters) != 1 || letters.DeadLetters[0].HoldID != h3.ID {
		t.Errorf("dead letters: %s, %v", text, err)
	}
}

var _ = payment.Open
