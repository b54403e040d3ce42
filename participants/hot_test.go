package participants

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// proven fails the test when a shard's books are not whole.
func (b *bench) proven() {
	b.t.Helper()
	for shard := range b.set.N() {
		if p, err := b.Prove(b.ctx, shard); err != nil || !p.OK {
			b.t.Errorf("proof of shard %d: %+v, %v", shard, p, err)
		}
	}
}

// Eight callers of two processes debit one account at once, and it has less
// than they want: it ends at what is left over, to the coin.
func TestHotSender(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dsns := testkit.Databases(t, 1)
	nodes := []*bench{benchOn(t, ctx, dsns, 1), benchOn(t, ctx, dsns, 1)}
	const callers, batches, items, funds = 8, 10, 20, 5_000
	from, to := nodes[0].user(0, funds), nodes[0].user(0, 0)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var taken, refused int64
	for c := range callers {
		wg.Go(func() {
			for n := range batches {
				batch := make([]branch.TryItem, items)
				for i := range batch {
					batch[i] = try(from, to, int64(1+i%7), fmt.Sprint(c, n, i), time.Hour)
				}
				for i, r := range nodes[c%2].Try(ctx, 0, batch) {
					mu.Lock()
					switch r.Code {
					case branch.CodeOK:
						taken += batch[i].Amount
					case branch.CodeInsufficientFunds:
						refused++
						if r.Available >= batch[i].Amount || r.Available < 0 {
							t.Errorf("%d were refused with %d available", batch[i].Amount, r.Available)
						}
					default:
						t.Errorf("try: %+v", r)
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	// The smallest wish is 1 coin, so that nothing may be left while some were refused.
	if taken != funds || refused == 0 {
		t.Errorf("%d of %d coins were taken, %d items refused", taken, funds, refused)
	}
	nodes[0].wantBalance(from, funds-taken, taken)
	nodes[0].proven()
}

// Credits of many holds go to one account from concurrent batches, each twice.
func TestHotRecipient(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	const holds, callers = 200, 8
	to := b.user(1, 0)
	var credits []branch.CreditItem
	var ids []branch.IDItem
	var last holdfast.Hold
	for u := range 4 {
		from := b.user(0, holds)
		items := make([]branch.TryItem, holds/4)
		for i := range items {
			items[i] = try(from, to, int64(1+i%3), fmt.Sprint(u, i), 50*time.Millisecond)
		}
		for _, r := range b.Try(b.ctx, 0, items) {
			if r.Code != branch.CodeOK {
				t.Fatalf("try: %+v", r)
			}
			last = r.Hold
			ids = append(ids, branch.IDItem{ID: r.Hold.ID})
			credits = append(credits, branch.CreditItem{ID: r.Hold.ID, Recipient: to, Currency: "RBX", Amount: r.Hold.Amount})
		}
	}
	b.mature(last)
	claims, settles := make([]branch.ClaimItem, holds), make([]branch.SettleItem, holds)
	want := int64(0)
	for i, id := range ids {
		claims[i], settles[i] = branch.ClaimItem{ID: id.ID, LeaseMS: 60_000}, branch.SettleItem{ID: id.ID, PaymentID: "p"}
		want += credits[i].Amount
	}
	b.Claim(b.ctx, 0, claims)
	b.Settle(b.ctx, 0, settles)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := map[branch.Code]int{}
	for c := range callers {
		wg.Go(func() {
			// Every credit is asked for by two callers, in different orders.
			mine := append([]branch.CreditItem(nil), credits[c/2*holds/4:(c/2+1)*holds/4]...)
			rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
			for len(mine) > 0 {
				n := min(10, len(mine))
				for _, r := range b.Credit(b.ctx, 1, mine[:n]) {
					mu.Lock()
					done[r.Code]++
					mu.Unlock()
				}
				mine = mine[n:]
			}
		})
	}
	wg.Wait()
	if done[branch.CodeOK] != holds || done[branch.CodeAlready] != holds {
		t.Errorf("credits: %v, want %d ok and as many already", done, holds)
	}
	for _, r := range b.Executed(b.ctx, 0, ids) {
		if r.Code != branch.CodeOK {
			t.Errorf("executed: %+v", r)
		}
	}
	b.wantBalance(to, want, 0)
	b.proven()
}

// The same key a hundred times at once, inside one batch and across batches of
// two processes, is one hold and one debit.
func TestDuplicatesAreOneHold(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dsns := testkit.Databases(t, 1)
	nodes := []*bench{benchOn(t, ctx, dsns, 1), benchOn(t, ctx, dsns, 1)}
	from, to := nodes[0].user(0, 1000), nodes[0].user(0, 0)
	item := try(from, to, 7, "one", time.Hour)
	other := try(from, to, 8, "one", time.Hour)
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes, ids := map[branch.Code]int{}, map[holdfast.HoldID]int{}
	for c := range 20 {
		wg.Go(func() {
			batch := []branch.TryItem{item, item, item, item, item}
			for _, r := range nodes[c%2].Try(ctx, 0, batch) {
				mu.Lock()
				codes[r.Code]++
				ids[r.Hold.ID]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if codes[branch.CodeOK] != 1 || codes[branch.CodeReplay] != 99 || len(ids) != 1 {
		t.Errorf("a hundred times one key: %v, holds %v", codes, ids)
	}
	if r := nodes[1].Try(ctx, 0, []branch.TryItem{item, other, item}); r[0].Code != branch.CodeReplay || r[1].Code != branch.CodeKeyReused || r[2].Code != branch.CodeReplay {
		t.Errorf("with another request in between: %+v", r)
	}
	nodes[0].wantBalance(from, 993, 7)
	nodes[0].proven()
}

// Cash too: a hundred deposits and withdrawals under one key each.
func TestDuplicatesAreOneDeposit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dsns := testkit.Databases(t, 1)
	nodes := []*bench{benchOn(t, ctx, dsns, 1), benchOn(t, ctx, dsns, 1)}
	u := nodes[0].user(0, 1000)
	in, out := branch.CashItem{User: u, Currency: "RBX", Amount: 50, Key: "k"}, branch.CashItem{User: u, Currency: "RBX", Amount: -20, Key: "k"}
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[branch.Code]int{}
	for c := range 20 {
		wg.Go(func() {
			for _, r := range nodes[c%2].Cash(ctx, 0, []branch.CashItem{in, out, in, out, in}) {
				mu.Lock()
				codes[r.Code]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if codes[branch.CodeOK] != 2 || codes[branch.CodeReplay] != 98 {
		t.Errorf("codes %v", codes)
	}
	nodes[0].wantBalance(u, 1030, 0)
	nodes[0].proven()
}

// killSQL ends one connection in the middle of a batch.
const killSQL = `SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
	WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active' AND query LIKE '%FROM holdfast_try(%' LIMIT 1) x`

// The connections of batches are killed while they run. Whatever an item was
// answered, its key says afterwards what became of it: one hold or none, and
// asking again with it never makes a second one.
func TestKilledConnections(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	const callers, rounds, items = 8, 40, 5
	from, to := b.user(0, 1_000_000), b.user(0, 0)
	done := make(chan struct{})
	var killed, accepted atomic.Int64
	var killer sync.WaitGroup
	killer.Go(func() {
		for before := int64(-1); ; {
			select {
			case <-done:
				return
			case <-time.After(15 * time.Millisecond):
			}
			if before == accepted.Load() {
				continue // on a busy machine nothing would ever get through
			}
			before = accepted.Load()
			var n int64
			if err := b.set.Owner(0).QueryRow(b.ctx, killSQL).Scan(&n); err != nil {
				t.Errorf("kill: %v", err)
				return
			}
			killed.Add(n)
		}
	})
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := map[branch.Code]int{}
	acknowledged := map[string]holdfast.HoldID{}
	var all []branch.TryItem
	var undone []string // answered with "surely nothing was done"
	for c := range callers {
		wg.Go(func() {
			for n := 0; n < rounds || killed.Load() < 3 && n < 100*rounds; n++ {
				batch := make([]branch.TryItem, items)
				for i := range batch {
					batch[i] = try(from, to, 3, fmt.Sprint(c, "-", n, "-", i), time.Hour)
				}
				res := b.Try(b.ctx, 0, batch)
				mu.Lock()
				all = append(all, batch...)
				for i, r := range res {
					answers[r.Code]++
					switch r.Code {
					case branch.CodeOK:
						accepted.Add(1)
						acknowledged[batch[i].Key] = r.Hold.ID
					case branch.CodeShardUnavailable:
						undone = append(undone, batch[i].Key)
					case branch.CodeOutcomeUnknown:
					default:
						t.Errorf("try: %+v", r)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(done)
	killer.Wait()
	t.Logf("%d connections killed, answers %v", killed.Load(), answers)
	if killed.Load() == 0 || answers[branch.CodeOutcomeUnknown]+len(undone) == 0 || answers[branch.CodeOK] == 0 {
		t.Errorf("%d connections killed, answers %v: nothing was tried", killed.Load(), answers)
	}
	var found int
	if err := b.set.Reads(0).QueryRow(b.ctx, `SELECT count(*) FROM idempotency WHERE key = ANY ($1)`, undone).Scan(&found); err != nil || found != 0 {
		t.Errorf("%d of %d items were done although the answer says surely not, %v", found, len(undone), err)
	}
	b.proven() // whole before anybody repeats
	settled := map[string]holdfast.HoldID{}
	testkit.Eventually(t, 30*time.Second, func() (bool, string) {
		var left []branch.TryItem
		for _, item := range all {
			if settled[item.Key].IsZero() {
				left = append(left, item)
			}
		}
		for i, r := range b.Try(b.ctx, 0, left) {
			if r.Code == branch.CodeOK || r.Code == branch.CodeReplay {
				settled[left[i].Key] = r.Hold.ID
				if id, ok := acknowledged[left[i].Key]; ok && (r.Code != branch.CodeReplay || id != r.Hold.ID) {
					t.Errorf("key %s was acknowledged as %s, now %s %s", left[i].Key, id, r.Code, r.Hold.ID)
				}
			}
		}
		return len(settled) == len(all), fmt.Sprintf("%d of %d keys are settled", len(settled), len(all))
	})
	var holds, distinct int
	if err := b.set.Reads(0).QueryRow(b.ctx, `SELECT (SELECT count(*) FROM holds), (SELECT count(DISTINCT hold_id) FROM idempotency)`).Scan(&holds, &distinct); err != nil {
		t.Fatal(err)
	}
	if holds != len(all) || distinct != len(all) {
		t.Errorf("%d keys made %d holds under %d keys", len(all), holds, distinct)
	}
	b.wantBalance(from, 1_000_000-3*int64(len(all)), 3*int64(len(all)))
	b.proven()
}
