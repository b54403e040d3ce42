package participants

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// conflicts counts batches that lost a deadlock: they are repeated, and so only
// the log tells of them.
type conflicts struct {
	slog.Handler
	n    *atomic.Int64
	last *atomic.Value
}

func (c conflicts) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "batch lost a conflict" {
		c.n.Add(1)
		r.Attrs(func(a slog.Attr) bool { c.last.Store(fmt.Sprint(c.last.Load(), " ", a)); return true })
	}
	return c.Handler.Handle(ctx, r)
}

func (c conflicts) WithAttrs(a []slog.Attr) slog.Handler {
	return conflicts{c.Handler.WithAttrs(a), c.n, c.last}
}

// Two participants take different holds of the same sixty accounts through every
// step at once. Whoever locks accounts in another order than the others meets
// them in a deadlock soon.
func TestBatchesNeverDeadlock(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsns := testkit.Databases(t, 1)
	count := conflicts{testkit.Logger(t).Handler(), new(atomic.Int64), new(atomic.Value)}
	both := make([]*bench, 2)
	for i := range both {
		b := benchOn(t, ctx, dsns, 1)
		node, err := New(Config{Shards: b.set, Log: slog.New(count)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { node.Close(context.Background()) })
		both[i] = &bench{Client: branch.Client{T: node}, t: t, node: node, set: b.set, ctx: ctx}
	}
	users := make([]holdfast.UserID, 60)
	for i := range users {
		users[i] = both[0].user(0, 100_000)
	}
	ended := map[branch.Code]int{}
	for round := range 12 {
		for code, n := range storm(both, users, round) {
			ended[code] += n
		}
	}
	if n := count.n.Load(); n > 0 {
		t.Errorf("%d batches lost a conflict: %v", n, count.last.Load())
	}
	for _, code := range []branch.Code{"settle ok", "cancel ok", "refuse ok", "refund ok", "settle verdict_is_other", "try ok"} {
		if ended[code] == 0 {
			t.Errorf("no step ended with %q: %v", code, ended)
		}
	}
	both[0].proven()
}

// storm makes holds for every step and takes all of them at once; the counts are
// by step and code.
func storm(both []*bench, users []holdfast.UserID, round int) map[branch.Code]int {
	ctx := both[0].ctx
	some := func(kind string, n int, delay time.Duration) []branch.TryItem {
		var items []branch.TryItem
		for i := range n {
			at := rand.Perm(len(users))
			items = append(items, try(users[at[0]], users[at[1]], 1, fmt.Sprint(kind, round, i), delay))
		}
		return items
	}
	made := func(items []branch.TryItem) (holds []holdfast.Hold) {
		for _, r := range both[0].Try(ctx, 0, items) {
			holds = append(holds, r.Hold)
		}
		return holds
	}
	due, refused, far := made(some("due", 200, 20*time.Millisecond)), made(some("no", 60, 20*time.Millisecond)), made(some("far", 100, time.Hour))
	both[0].mature(refused[len(refused)-1])
	var claims []branch.ClaimItem
	var noes []branch.RefuseItem
	for _, h := range append(due[:len(due):len(due)], refused...) {
		claims = append(claims, branch.ClaimItem{ID: h.ID, LeaseMS: 60_000})
	}
	for _, h := range refused {
		noes = append(noes, branch.RefuseItem{ID: h.ID, Reason: "recipient_banned"})
	}
	both[0].Claim(ctx, 0, claims)
	both[0].Refuse(ctx, 0, noes)

	var mu sync.Mutex
	ended := map[branch.Code]int{"refuse ok": len(noes)}
	note := func(step string, rs []branch.HoldResult) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range rs {
			ended[branch.Code(step+" "+strings.TrimSpace(string(r.Code)))]++
		}
	}
	var steps sync.WaitGroup
	for w := range 4 { // each on holds of its own, on the accounts of all
		b, of := both[w%2], func(all []holdfast.Hold) []holdfast.Hold { n := len(all) / 4; return all[w*n : (w+1)*n] }
		steps.Go(func() {
			var items []branch.SettleItem
			for _, h := range append(of(due), of(refused)...) { // after a refusal: a late success
				items = append(items, branch.SettleItem{ID: h.ID, PaymentID: "p", Recipient: h.Recipient})
			}
			note("settle", b.Settle(ctx, 0, items))
		})
		steps.Go(func() {
			var items []branch.CancelItem
			for _, h := range of(far) {
				items = append(items, branch.CancelItem{ID: h.ID})
			}
			note("cancel", b.Cancel(ctx, 0, items))
		})
		steps.Go(func() {
			var items []branch.IDItem
			for _, h := range of(refused) {
				items = append(items, branch.IDItem{ID: h.ID})
			}
			note("refund", b.Refund(ctx, 0, items))
		})
		steps.Go(func() {
			for _, r := range b.Try(ctx, 0, some(fmt.Sprint("more", w), 50, time.Hour)) {
				note("try", []branch.HoldResult{{Code: r.Code}})
			}
		})
	}
	steps.Wait()
	return ended
}
