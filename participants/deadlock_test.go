package participants

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// Every step locks holds before accounts and both in order, so that batches over
// the same few of them, in any order and from two participants, never deadlock.
// PostgreSQL itself counts: a step that was repeated would hide it from us.
func TestBatchesNeverDeadlock(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dsns := testkit.Databases(t, 1)
	both := []*bench{benchOn(t, ctx, dsns, 1), benchOn(t, ctx, dsns, 1)}
	users := make([]holdfast.UserID, 6)
	for i := range users {
		users[i] = both[0].user(0, 100_000)
	}
	var all sync.WaitGroup
	for worker := range 2 {
		all.Go(func() {
			for round := range 12 {
				var tries []branch.TryItem
				for i := range 24 { // near: every user is sender and recipient
					from := rand.IntN(len(users))
					tries = append(tries, try(users[from], users[(from+1+i%5)%6], 1, fmt.Sprint(worker, round, i), 10*time.Millisecond))
				}
				tangle(ctx, both, tries)
			}
		})
	}
	all.Wait()
	var deadlocks int
	testkit.Eventually(t, 20*time.Second, func() (bool, string) { // its figures come late
		var commits int
		err := both[0].set.Owner(0).QueryRow(ctx, `SELECT deadlocks, xact_commit FROM pg_stat_database
			WHERE datname = current_database()`).Scan(&deadlocks, &commits)
		return err == nil && commits > 100, fmt.Sprint(commits, err)
	})
	if deadlocks != 0 {
		t.Errorf("%d deadlocks", deadlocks)
	}
}

// tangle takes one set of holds to its end by every way at once.
func tangle(ctx context.Context, both []*bench, tries []branch.TryItem) {
	var holds []holdfast.Hold
	for _, r := range both[0].Try(ctx, 0, tries) {
		if r.Code == branch.CodeOK {
			holds = append(holds, r.Hold)
		}
	}
	if len(holds) == 0 {
		return
	}
	<-time.After(time.Until(holds[len(holds)-1].UnlockAt) + 5*time.Millisecond)
	var steps sync.WaitGroup
	for i := range 8 {
		mixed := append([]holdfast.Hold(nil), holds...)
		rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		steps.Go(func() {
			var claims []branch.ClaimItem
			var settles []branch.SettleItem
			var cancels []branch.CancelItem
			var refuses []branch.RefuseItem
			var refunds []branch.IDItem
			for k, h := range mixed {
				claims = append(claims, branch.ClaimItem{ID: h.ID, LeaseMS: 60_000})
				settles = append(settles, branch.SettleItem{ID: h.ID, PaymentID: "p", Recipient: h.Recipient})
				cancels = append(cancels, branch.CancelItem{ID: h.ID})
				if k%3 == 0 {
					refuses = append(refuses, branch.RefuseItem{ID: h.ID, Reason: "recipient_banned"})
				}
				refunds = append(refunds, branch.IDItem{ID: h.ID})
			}
			b := both[i%2]
			if i%4 == 0 {
				b.Cancel(ctx, 0, cancels[:len(cancels)/4])
			}
			b.Claim(ctx, 0, claims)
			if i%2 == 0 {
				b.Refuse(ctx, 0, refuses) // a settle after it is late
			}
			b.Settle(ctx, 0, settles)
			b.Refund(ctx, 0, refunds)
		})
	}
	steps.Wait()
}
