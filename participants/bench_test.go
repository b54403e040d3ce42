package participants

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

// BenchmarkSteps times each step of a life as one batch on one connection, by
// batch size: what a batch costs whatever is in it, and what an item adds.
func BenchmarkSteps(b *testing.B) {
	set, err := shards.Open(b.Context(), shards.Config{DSNs: testkit.Databases(b, 1), Map: holdfast.EvenShardMap(1), Log: testkit.Logger(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer set.Close()
	node, err := New(Config{Shards: set, Log: testkit.Logger(b)})
	if err != nil {
		b.Fatal(err)
	}
	l := node.shards[0].ledger
	users := make([][16]byte, 2000)
	for i := range users {
		users[i] = holdfast.NewHoldID(time.Now().UnixMilli(), i, uint64(i)*7919)
	}
	if _, err := set.Money(0).Exec(b.Context(), `SELECT holdfast_bulk_fund(1, $1, 'RBX', 1000000000)`, users); err != nil {
		b.Fatal(err)
	}
	key := 0
	for _, size := range []int{1, 10, 100, 500} {
		var took [6]time.Duration
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			took = [6]time.Duration{}
			for b.Loop() {
				items := make([]branch.TryItem, size)
				for i := range items {
					key++
					items[i] = try(users[key*7%len(users)], users[(key*7+1)%len(users)], 1, fmt.Sprint("b", key), 0)
					items[i].UnlockAtMS = time.Now().UnixMilli() + 5 + int64(size)/10
				}
				lap := time.Now()
				step := func(i int) { took[i] += time.Since(lap); lap = time.Now() }
				holds := make([]holdfast.Hold, size)
				for i, r := range l.tryBatch(items) {
					if r.Code != branch.CodeOK {
						b.Fatal(r)
					}
					holds[i] = r.Hold
				}
				step(0)
				<-time.After(time.Until(holds[size-1].UnlockAt) + 2*time.Millisecond)
				lap = time.Now()
				claims, ids := make([]branch.ClaimItem, size), make([]branch.IDItem, size)
				settles, credits := make([]branch.SettleItem, size), make([]branch.CreditItem, size)
				for i, h := range holds {
					claims[i], ids[i] = branch.ClaimItem{ID: h.ID, LeaseMS: 10_000}, branch.IDItem{ID: h.ID}
					settles[i] = branch.SettleItem{ID: h.ID, PaymentID: "p"}
					credits[i] = branch.CreditItem{ID: h.ID, Recipient: h.Recipient, Currency: h.Currency, Amount: 1}
				}
				l.getBatch(ids)
				step(1)
				l.claimBatch(claims)
				step(2)
				if r := l.settleBatch(settles)[0]; r.Code != branch.CodeOK {
					b.Fatal(r)
				}
				step(3)
				l.creditBatch(credits)
				step(4)
				if r := l.executedBatch(ids)[0]; r.Code != branch.CodeOK {
					b.Fatal(r)
				}
				step(5)
			}
			for i, name := range []string{"try", "get", "claim", "settle", "credit", "executed"} {
				b.ReportMetric(float64(took[i].Microseconds())/float64(b.N), name+"-µs/batch")
			}
		})
	}
}
