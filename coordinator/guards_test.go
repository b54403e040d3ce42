package coordinator

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// newDriver is a coordinator whose drives have a lease of a minute.
func newDriver(t *testing.T) *api {
	t.Helper()
	pay, err := payment.New(payment.Config{URL: "http://127.0.0.1:1", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pay.Close)
	return newAPI(t, func(c *Config) { c.Payment, c.LeaseMargin, c.GiveUp = pay, time.Minute, time.Hour })
}

// A driver that was paused beyond its lease decides nothing: another one may
// have a payment open.
func TestPausedDriverDecidesNothing(t *testing.T) {
	t.Parallel()
	a := newDriver(t)
	a.answerHold(branch.OpRefuse, branch.CodeOK, aHold(holdfast.Failed))
	a.shards.on(branch.OpDefer, each(func(branch.DeferItem) branch.CodeResult { return branch.CodeResult{Code: branch.CodeOK} }))
	decide := func(ago time.Duration) {
		d := &drive{c: a.Coordinator, hold: aHold(holdfast.Executing), started: time.Now().Add(-ago)}
		d.refuse(t.Context(), "recipient_banned", false)
		d.later(t.Context(), "no answer", true)
	}
	decide(2 * time.Minute)
	if r, d := a.shards.count(branch.OpRefuse), a.shards.count(branch.OpDefer); r != 0 || d != 0 {
		t.Errorf("after its lease the driver refused %d and deferred %d times", r, d)
	}
	decide(0)
	if r, d := a.shards.count(branch.OpRefuse), a.shards.count(branch.OpDefer); r != 1 || d != 1 {
		t.Errorf("within its lease the driver refused %d and deferred %d times, want once each", r, d)
	}
}

// What a driver decides names its lease, so that the shard can tell it from the
// next driver; a lease that is over there is not taken for a fault.
func TestDriverNamesItsLease(t *testing.T) {
	t.Parallel()
	a := newDriver(t)
	var leases []int64
	a.shards.on(branch.OpRefuse, each(func(i branch.RefuseItem) branch.HoldResult {
		leases = append(leases, i.Lease)
		return branch.HoldResult{Code: branch.CodeBusy}
	}))
	a.shards.on(branch.OpDefer, each(func(i branch.DeferItem) branch.CodeResult {
		leases = append(leases, i.Lease)
		return branch.CodeResult{Code: branch.CodeBusy}
	}))
	d := &drive{c: a.Coordinator, hold: aHold(holdfast.Executing), started: time.Now(), claim: branch.ClaimResult{Lease: 7}}
	d.refuse(t.Context(), "recipient_banned", false)
	d.later(t.Context(), "no answer", true)
	if want := []int64{7, 7}; !slices.Equal(leases, want) {
		t.Errorf("leases of refuse and defer: %v, want %v: busy is an answer, no impossible state", leases, want)
	}
}

// hungShard never answers for shard 1; the others have one refund each.
type hungShard struct {
	refunds atomic.Int64
	id      holdfast.HoldID
}

func (h *hungShard) Send(ctx context.Context, shard int, _ string, in, out any) error {
	if shard == 1 {
		<-ctx.Done()
		return ctx.Err()
	}
	switch answer := out.(type) {
	case *[]holdfast.HoldID:
		*answer = []holdfast.HoldID{h.id}
	case *[]branch.HoldResult:
		*answer = make([]branch.HoldResult, len(in.([]branch.IDItem)))
		for i := range *answer {
			(*answer)[i].Code = branch.CodeOK
		}
		h.refunds.Add(1)
	}
	return nil
}

// One shard that hangs does not stop the refunds of the others, in neither of
// the two ways that refunds are found.
func TestRefundsGoOnWhileAShardHangs(t *testing.T) {
	t.Parallel()
	ids := []holdfast.HoldID{}
	shards := &hungShard{}
	a := newAPI(t, func(c *Config) { c.Participants, c.RequestTimeout = shards, 50*time.Millisecond })
	for bucket, seen := 0, map[int]bool{}; len(seen) < 4; bucket++ {
		id := holdfast.NewHoldID(1, bucket, 1)
		if shard := a.cfg.Map.OfHold(id); !seen[shard] {
			seen[shard], ids = true, append(ids, id)
		}
	}
	ends := func(what string, do func(context.Context)) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { do(ctx); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Errorf("%s waits for the shard that hangs", what)
		}
		cancel()
		<-done
		if n := shards.refunds.Swap(0); n != 3 {
			t.Errorf("%s: %d of the 3 other shards had their refunds", what, n)
		}
	}
	ends("leftovers", a.refundLeftovers)
	for _, id := range ids[1:] {
		a.wantRefund(id)
	}
	ends("fresh refunds", func(ctx context.Context) { a.refundSome(ctx, ids[0]) })
}
