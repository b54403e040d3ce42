package harness

import (
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// TestCrash stops the coordinator at every step of a hold's life, before and
// after the step took effect, and starts another one on the same data.
func TestCrash(t *testing.T) {
	t.Parallel()
	rows := []struct {
		name  string
		op    string
		after bool
		far   bool // the recipient lives on another shard
		ban   bool
		lost  bool // the payment API's answers are lost
		end   holdfast.Status
	}{
		{name: "due id taken, nothing claimed", op: branch.OpGet, end: holdfast.Executed},
		{name: "claim not sent", op: branch.OpClaim, end: holdfast.Executed},
		{name: "claim committed, payment not sent", op: branch.OpClaim, after: true, end: holdfast.Executed},
		{name: "payment sent, answer lost", op: branch.OpDefer, lost: true, far: true, end: holdfast.Executed},
		{name: "payment answered, verdict not committed", op: branch.OpSettle, end: holdfast.Executed},
		{name: "payment answered, verdict not committed, other shard", op: branch.OpSettle, far: true, end: holdfast.Executed},
		{name: "verdict paid, credit and end committed, answer lost", op: branch.OpSettle, after: true, end: holdfast.Executed},
		{name: "verdict paid committed, answer lost", op: branch.OpSettle, after: true, far: true, end: holdfast.Executed},
		{name: "credit not sent", op: branch.OpCredit, far: true, end: holdfast.Executed},
		{name: "recipient credited, answer lost", op: branch.OpCredit, after: true, far: true, end: holdfast.Executed},
		{name: "end not sent", op: branch.OpExecuted, far: true, end: holdfast.Executed},
		{name: "end committed, answer lost", op: branch.OpExecuted, after: true, far: true, end: holdfast.Executed},
		{name: "verdict refused not committed", op: branch.OpRefuse, ban: true, end: holdfast.Failed},
		{name: "verdict refused committed, answer lost", op: branch.OpRefuse, after: true, ban: true, end: holdfast.Failed},
		{name: "refund not sent", op: branch.OpRefund, ban: true, end: holdfast.Failed},
		{name: "refund committed, answer lost", op: branch.OpRefund, after: true, ban: true, end: holdfast.Failed},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			sim := simulator(t)
			cut := NewCut(row.op, row.after)
			o := Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t), Sim: sim, Cut: cut}
			first := start(t, o)
			from, to := first.user(0, 100), first.user(map[bool]int{true: 1}[row.far], 0)
			faults := paysim.Faults{}
			if row.ban {
				faults.Banned = []holdfast.UserID{to}
			}
			if row.lost {
				faults.Mode = paysim.ModeLostResponse
			}
			first.faults(faults)
			h := first.create(in(from, to, 100, "k", 1200*time.Millisecond))
			select {
			case <-cut.Struck():
			case <-time.After(20 * time.Second):
				t.Fatalf("the cut at %s never struck: %s", row.op, first.history(h.ID))
			}
			first.die()
			if row.lost {
				faults.Mode = paysim.ModeOK
				first.faults(faults)
			}
			o.Cut = nil
			second := start(t, o)
			second.want(h.ID, row.end)
			if row.end == holdfast.Executed {
				second.wantBalance(from, 0, 0)
				second.wantBalance(to, 100, 0)
			} else {
				second.wantBalance(from, 100, 0)
				second.wantBalance(to, 0, 0)
			}
			second.whole(h.ID)
		})
	}
}

// TestCrashInFrontOfTheClient cuts the answers that clients wait for: whoever
// repeats gets the one hold, the one cancel.
func TestCrashInFrontOfTheClient(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		t.Run(map[bool]string{false: "try not sent", true: "try committed, answer lost"}[after], func(t *testing.T) {
			t.Parallel()
			sim, dsns, redis := simulator(t), testkit.Databases(t, 2), testkit.Redis(t)
			first := start(t, Options{DSNs: dsns, RedisURL: redis, Sim: sim, Cut: NewCut(branch.OpTry, after)})
			from, to := first.user(0, 100), first.user(1, 0)
			body := in(from, to, 60, "k", 3*time.Second)
			if h, err := first.API.Create(first.ctx, body); err == nil {
				t.Fatalf("a create whose answer was cut says %+v", h)
			}
			first.die()
			second := start(t, Options{DSNs: dsns, RedisURL: redis, Sim: sim})
			h := second.create(body)
			if again := second.create(body); again.ID != h.ID {
				t.Errorf("the key made two holds, %s and %s", h.ID, again.ID)
			}
			second.wantBalance(from, 40, 60)
			second.want(h.ID, holdfast.Executed)
			second.wantBalance(to, 60, 0)
			second.whole(h.ID)
		})
		t.Run(map[bool]string{false: "cancel not sent", true: "cancel committed, answer lost"}[after], func(t *testing.T) {
			t.Parallel()
			sim, dsns, redis := simulator(t), testkit.Databases(t, 2), testkit.Redis(t)
			first := start(t, Options{DSNs: dsns, RedisURL: redis, Sim: sim, Cut: NewCut(branch.OpCancel, after)})
			from, to := first.user(0, 100), first.user(1, 0)
			h := first.create(in(from, to, 60, "k", time.Hour))
			if _, err := first.API.Cancel(first.ctx, h.ID.String()); err == nil {
				t.Fatal("a cancel whose answer was cut says it was done")
			}
			first.die()
			second := start(t, Options{DSNs: dsns, RedisURL: redis, Sim: sim})
			for range 2 {
				if h, err := second.API.Cancel(second.ctx, h.ID.String()); err != nil || h.Status != holdfast.Cancelled {
					t.Fatalf("cancel again: %+v, %v", h, err)
				}
			}
			second.wantBalance(from, 100, 0)
			second.whole(h.ID)
		})
	}
}
