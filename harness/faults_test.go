package harness

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// holds creates n holds of 1 coin each that mature together.
func (r *rig) holds(n int, from, to holdfast.UserID, delay time.Duration) (ids []holdfast.HoldID) {
	r.t.Helper()
	for i := range n {
		ids = append(ids, r.create(in(from, to, 1, fmt.Sprint("h", i), delay)).ID)
	}
	return ids
}

// However the payment API misbehaves, every hold is paid once when it is well
// again, and nothing is refunded that was not refused.
func TestPaymentAPI(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]paysim.Faults{
		"down":                              {Mode: paysim.ModeDown},
		"hangs":                             {Mode: paysim.ModeHang},
		"answers after the effect are lost": {Mode: paysim.ModeLostResponse},
		"garbage":                           {Mode: paysim.ModeGarbage},
		"401 to everything":                 {Mode: paysim.ModeUnauthorized},
		"half of the calls fail":            {ErrorRatio: 0.5, Seed: 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t),
				Payment: func(p *payment.Config) { p.Timeout = 500 * time.Millisecond; p.OpenFor = 500 * time.Millisecond }})
			from, to := r.user(0, 40), r.user(1, 0)
			r.faults(f)
			ids := r.holds(40, from, to, 1500*time.Millisecond)
			testkit.Eventually(t, 30*time.Second, func() (bool, string) {
				tried := 0
				for _, id := range ids {
					if r.get(id).Status != holdfast.Pending {
						tried++
					}
				}
				return tried >= 10, fmt.Sprintf("%d of %d were tried; breaker %s", tried, len(ids), r.Payment.State())
			})
			if available, _ := r.balance(from); available != 0 {
				t.Errorf("%d coins were refunded although nothing was refused", available)
			}
			r.faults(paysim.Faults{})
			for _, id := range ids {
				r.want(id, holdfast.Executed)
			}
			r.wantBalance(to, 40, 0)
			r.whole(ids...)
		})
	}
}

// While the breaker is open nothing is claimed: the backlog waits as PENDING,
// where an operator may still release it.
func TestBreakerKeepsHoldsPending(t *testing.T) {
	t.Parallel()
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t),
		Payment: func(p *payment.Config) { p.OpenFor = time.Hour }})
	from, to := r.user(0, 100), r.user(1, 0)
	r.faults(paysim.Faults{Mode: paysim.ModeUnauthorized})
	r.holds(30, from, to, 1500*time.Millisecond)
	testkit.Eventually(t, 30*time.Second, func() (bool, string) { return r.Payment.State() == payment.Open, r.Payment.State() })
	h := r.create(in(from, to, 5, "late", 1200*time.Millisecond))
	<-time.After(time.Until(h.UnlockAt) + 500*time.Millisecond)
	if got := r.get(h.ID); got.Status != holdfast.Pending {
		t.Fatalf("with the breaker open the hold became %s", got.Status)
	}
	if _, err := r.API.Cancel(r.ctx, h.ID.String()); err == nil {
		t.Error("a matured hold was cancelled by its sender")
	}
	if _, err := r.API.AdminCall(r.ctx, "POST", "/admin/v1/holds/"+h.ID.String()+":release", map[string]string{"reason": "the API is down"}, nil); err != nil {
		t.Fatalf("release: %v", err)
	}
	if got := r.get(h.ID); got.Status != holdfast.Cancelled {
		t.Errorf("released, it is %s", got.Status)
	}
	r.whole(h.ID)
}

// After the give-up a person decides; a success that shows up later is said.
func TestGiveUpAndLateSuccess(t *testing.T) {
	t.Parallel()
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t),
		Coordinator: func(c *coordinator.Config) { c.GiveUp = time.Second; c.BackoffMost = 200 * time.Millisecond }})
	from, to := r.user(0, 100), r.user(1, 0)
	r.faults(paysim.Faults{Mode: paysim.ModeGarbage})
	paid, lost := r.create(in(from, to, 10, "paid", 1200*time.Millisecond)), r.create(in(from, to, 20, "lost", 1200*time.Millisecond))
	has := func(h holdfast.Hold, code string) (bool, string) {
		d, err := r.Client.DeadLetters(r.ctx, 0, deadLetters(code))
		for _, l := range d.DeadLetters {
			if l.HoldID == h.ID {
				return true, ""
			}
		}
		return false, fmt.Sprintf("no %s for %s, %v", code, r.history(h.ID), err)
	}
	letter := func(h holdfast.Hold, code string) {
		t.Helper()
		testkit.Eventually(t, 30*time.Second, func() (bool, string) { return has(h, code) })
	}
	letter(paid, "outcome_unknown")
	letter(lost, "outcome_unknown")
	resolve := func(h holdfast.Hold, outcome string) {
		t.Helper()
		body := map[string]string{"outcome": outcome, "evidence": "statement of the bank", "reason": "asked them"}
		testkit.Eventually(t, 30*time.Second, func() (bool, string) { // busy while an attempt runs
			_, err := r.API.AdminCall(r.ctx, "POST", "/admin/v1/dead-letters/"+h.ID.String()+":resolve", body, nil)
			return err == nil, fmt.Sprintf("resolve %s: %v", outcome, err)
		})
	}
	resolve(paid, "paid")
	r.want(paid.ID, holdfast.Executed)
	resolve(lost, "not_paid")
	r.want(lost.ID, holdfast.Failed)
	r.wantBalance(from, 90, 0)
	r.wantBalance(to, 10, 0)
	// Garbage pays before it answers: the payment of lost turns up now.
	r.faults(paysim.Faults{})
	testkit.Eventually(t, 60*time.Second, func() (bool, string) {
		// A look while the breaker is open still puts the next one an hour off.
		if _, err := r.Set.Owner(0).Exec(r.ctx, `UPDATE attempts SET next_at = now() WHERE hold_id = $1`, lost.ID.String()); err != nil {
			t.Fatal(err)
		}
		return has(lost, "late_success")
	})
	r.wantBalance(from, 90, 0)
	proof, text, err := r.API.Prove(r.ctx)
	if err != nil || !proof.OK {
		t.Errorf("proof: %s, %v", text, err)
	}
}

// Redis may forget everything, lie, or be away; holds are paid all the same.
func TestRedis(t *testing.T) {
	t.Parallel()
	run := func(name string, disturb func(r *rig, redis redisFaults)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := testkit.Stack(t, 2)
			var dsns []string
			for i := range 2 {
				dsns = append(dsns, servers.DSNs[i])
			}
			migrateAll(t, dsns)
			redis := redisFaults{t: t, stack: servers, url: servers.RedisURL}
			if name == "absent at start" {
				redis.kill()
			}
			r := start(t, Options{DSNs: dsns, RedisURL: servers.RedisURL})
			from, to := r.user(0, 60), r.user(1, 0)
			ids := r.holds(30, from, to, 2500*time.Millisecond)
			if disturb != nil {
				disturb(r, redis)
			}
			for _, id := range ids {
				r.want(id, holdfast.Executed)
			}
			r.wantBalance(to, 30, 0)
			r.whole(ids...)
		})
	}
	run("flushed", func(_ *rig, redis redisFaults) { redis.do("FLUSHALL") })
	run("killed and gone", func(_ *rig, redis redisFaults) { redis.kill() })
	run("killed and back empty", func(_ *rig, redis redisFaults) { redis.kill(); redis.again() })
	run("absent at start", nil)
	run("stale and forged triggers", func(r *rig, redis redisFaults) {
		redis.do("ZADD", "pending_triggers:{0}", "1", "0123456789abcdef")
		redis.do("ZADD", "pending_triggers:{1}", "1", "not an id")
		redis.do("ZADD", "pending_triggers:{0}", "99999999999999", "a stale member..")
	})
}
