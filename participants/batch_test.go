package participants

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func codes(rs []branch.TryResult) string {
	var s []string
	for _, r := range rs {
		s = append(s, string(r.Code))
	}
	return strings.Join(s, " ")
}

func TestTryBatch(t *testing.T) {
	t.Parallel()
	t.Run("items of one sender are decided in arrival order and a refused one takes nothing", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 100), b.user(0, 0)
		rs := b.Try(b.ctx, 0, []branch.TryItem{
			try(from, to, 60, "a", time.Hour), try(from, to, 50, "b", time.Hour),
			try(from, to, 30, "c", time.Hour), try(from, to, 11, "d", time.Hour), try(from, to, 10, "e", time.Hour)})
		if got := codes(rs); got != "ok insufficient_funds ok insufficient_funds ok" {
			t.Fatalf("codes %s", got)
		}
		if rs[1].Available != 40 || rs[3].Available != 10 {
			t.Errorf("available at the refusals: %d and %d, want 40 and 10", rs[1].Available, rs[3].Available)
		}
		b.wantBalance(from, 0, 100)
		s, err := b.Statement(b.ctx, 0, branch.AccountRequest{User: from, Currency: "RBX", Limit: 50})
		if err != nil || len(s.Entries) != 7 {
			t.Fatalf("statement: %d entries, %v", len(s.Entries), err)
		}
		for i, e := range s.Entries {
			if e.Seq != int64(7-i) {
				t.Errorf("entry %d has seq %d", i, e.Seq)
			}
		}
	})
	t.Run("a key is one hold: replayed, reused, refused for ever", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 100), b.user(0, 0)
		first := b.mustTry(try(from, to, 60, "a", time.Hour))
		refused := try(from, to, 90, "poor", time.Hour)
		if r := b.Try(b.ctx, 0, []branch.TryItem{refused})[0]; r.Code != branch.CodeInsufficientFunds {
			t.Fatalf("poor: %+v", r)
		}
		b.Cash(b.ctx, 0, []branch.CashItem{{User: from, Currency: "RBX", Amount: 1000, Key: "rich"}})
		away := try(from, to, 60, "a", time.Hour)
		away.Refusal = branch.CodeShardUnavailable
		unknown := try(from, to, 60, "new", time.Hour)
		unknown.Refusal = branch.CodeRecipientNotPayable
		rs := b.Try(b.ctx, 0, []branch.TryItem{try(from, to, 60, "a", time.Hour), try(from, to, 61, "a", time.Hour), refused, away, unknown})
		if got := codes(rs); got != "replay idempotency_key_reused replay replay recipient_not_payable" {
			t.Fatalf("codes %s", got)
		}
		if rs[0].Hold.ID != first.ID || rs[2].Refusal != branch.CodeInsufficientFunds || rs[3].Hold.ID != first.ID {
			t.Errorf("replays %+v", rs)
		}
		b.wantBalance(from, 1040, 60)
	})
	t.Run("a clock that is behind what was settled makes no hold", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 100), b.user(0, 0)
		old := b.mustTry(try(from, to, 10, "old", time.Hour))
		floor := holdfast.NewHoldID(time.Now().Add(2*time.Hour).UnixMilli(), 0, 0)
		if _, err := b.set.Owner(0).Exec(b.ctx, `UPDATE watermark SET floor = $1`, [16]byte(floor)); err != nil {
			t.Fatal(err)
		}
		before := b.checksums()
		rs := b.Try(b.ctx, 0, []branch.TryItem{try(from, to, 10, "below", time.Hour), try(from, to, 10, "old", time.Hour)})
		if got := codes(rs); got != "shard_unavailable replay" || rs[1].Hold.ID != old.ID {
			t.Fatalf("codes %s", got)
		}
		if d := changed(before, b.checksums()); d != "" {
			t.Errorf("a refused Try changed %s", d)
		}
		b.mustTry(try(from, to, 10, "below", 3*time.Hour))
		b.wantBalance(from, 80, 20)
	})
	t.Run("unknown, banned and broke senders leave no row", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		to, banned := b.user(0, 0), b.user(0, 10)
		if a, err := b.SetStatus(b.ctx, 0, branch.AccountRequest{User: banned, Currency: "RBX", Status: holdfast.AccountBanned, Actor: "me", Reason: "test"}); err != nil || a.Code != branch.CodeOK {
			t.Fatalf("ban: %+v, %v", a, err)
		}
		late := try(to, banned, 1, "late", 0)
		late.UnlockAtMS = time.Now().Add(-time.Second).UnixMilli()
		far := try(to, banned, 1, "far", holdfast.MaxDelay+time.Minute)
		rs := b.Try(b.ctx, 0, []branch.TryItem{try(b.newUser(0), to, 1, "x", time.Hour), try(banned, to, 1, "x", time.Hour), late, far})
		if got := codes(rs); got != "unknown_sender sender_not_active unlock_at_out_of_range unlock_at_out_of_range" {
			t.Fatalf("codes %s", got)
		}
		var rows int
		if err := b.set.Reads(0).QueryRow(b.ctx, `SELECT (SELECT count(*) FROM idempotency) + (SELECT count(*) FROM holds) + (SELECT count(*) FROM barrier)`).Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%d rows were left, %v", rows, err)
		}
	})
	t.Run("one poisoned item among 500 fails alone", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 10_000), b.user(0, 0)
		items := make([]branch.TryItem, 500)
		for i := range items {
			items[i] = try(from, to, 1, fmt.Sprint(i), time.Hour)
		}
		items[313].Reference = "nul\x00nul" // PostgreSQL has no such text
		ok := 0
		for i, r := range b.Try(b.ctx, 0, items) {
			switch {
			case r.Code == branch.CodeOK:
				ok++
			case i != 313 || r.Code != branch.CodeItemBroken:
				t.Errorf("item %d: %+v", i, r)
			}
		}
		if ok != 499 {
			t.Errorf("%d items done, want 499", ok)
		}
		b.wantBalance(from, 10_000-499, 499)
	})
}

// Two processes, many callers, the same keys, senders named in opposite orders:
// nobody deadlocks and every key moves its money once.
func TestConcurrentBatches(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dsns := testkit.Databases(t, 1)
	a, b := benchOn(t, ctx, dsns, 1), benchOn(t, ctx, dsns, 1)
	const users, keys = 20, 30
	all := make([]holdfast.UserID, users)
	for i := range all {
		all[i] = a.user(0, 1000)
	}
	var wg sync.WaitGroup
	for k := range keys {
		for i, who := range []*bench{a, b, a, b} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				items := make([]branch.TryItem, users)
				for j := range items {
					u := j
					if i%2 == 1 {
						u = users - 1 - j
					}
					items[j] = try(all[u], all[(u+1)%users], 7, fmt.Sprint("k", k), time.Hour)
				}
				for _, r := range who.Try(ctx, 0, items) {
					if r.Code != branch.CodeOK && r.Code != branch.CodeReplay {
						t.Errorf("try: %+v", r)
					}
				}
			}()
		}
	}
	wg.Wait()
	for _, u := range all {
		a.wantBalance(u, 1000-7*keys, 7*keys)
	}
}

// A batch locks the tables of its own days, not those of all of them.
func TestLocksPerBatch(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	from, to := b.user(0, 1000), b.user(0, 0)
	var ids []holdfast.HoldID
	for i := range 50 {
		ids = append(ids, b.mustTry(try(from, to, 1, fmt.Sprint(i), time.Hour)).ID)
	}
	owner, err := b.set.Money(0).Acquire(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Release()
	tx, err := owner.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(b.ctx) }()
	l := b.node.shards[0].ledger
	items := make([]branch.CancelItem, len(ids))
	for i := range ids {
		items[i].ID = ids[i]
	}
	order, days, sortedIDs := sorted(items, func(i *branch.CancelItem) holdfast.HoldID { return i.ID })
	n := len(ids)
	rows, err := tx.Query(b.ctx, cancelSQL, l.epoch, days, sortedIDs, make([]*string, n), make([]string, n), make([]string, n), make([]bool, n), make([]int16, n))
	if err != nil {
		t.Fatal(err)
	}
	rows.Close()
	if rows.Err() != nil || len(order) != n {
		t.Fatal(rows.Err())
	}
	var relations, partitions int
	if err := tx.QueryRow(b.ctx, `SELECT count(DISTINCT relation), count(DISTINCT relation) FILTER (WHERE relation::regclass::text ~ '^holds_[0-9]+$')
		FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation'`).Scan(&relations, &partitions); err != nil {
		t.Fatal(err)
	}
	if partitions > 2 || relations > 40 {
		t.Errorf("a batch of %d holds locks %d relations, %d of them partitions of holds", n, relations, partitions)
	}
	t.Logf("%d relations, %d partitions of holds", relations, partitions)
}

func TestBarrier(t *testing.T) {
	t.Parallel()
	given := func(b *bench, from, to holdfast.UserID, key string) branch.TryItem {
		item := try(from, to, 10, key, 0)
		item.UnlockAtMS = time.Now().Add(time.Hour).UnixMilli()
		item.ID = holdfast.NewHoldID(item.UnlockAtMS, from.Bucket(), 12345)
		return item
	}
	t.Run("a Cancel without a Try suspends the late Try", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 100), b.user(0, 0)
		item := given(b, from, to, "k")
		for i, want := range []branch.Code{branch.CodeNullCancel, branch.CodeAlready} {
			if r := b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: item.ID, NullOK: true}})[0]; r.Code != want {
				t.Fatalf("cancel %d: %+v", i, r)
			}
		}
		if r := b.Try(b.ctx, 0, []branch.TryItem{item})[0]; r.Code != branch.CodeSuspended {
			t.Fatalf("late try: %+v", r)
		}
		b.wantBalance(from, 100, 0)
	})
	t.Run("a Cancel with its Try gives the money back once", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 100), b.user(0, 0)
		item := given(b, from, to, "k")
		for i, want := range []branch.Code{branch.CodeOK, branch.CodeReplay, branch.CodeReplay} {
			if r := b.Try(b.ctx, 0, []branch.TryItem{item})[0]; r.Code != want || r.Hold.ID != item.ID {
				t.Fatalf("try %d: %+v", i, r)
			}
		}
		b.wantBalance(from, 90, 10)
		for i, want := range []branch.Code{branch.CodeOK, branch.CodeAlready} {
			if r := b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: item.ID, NullOK: true}})[0]; r.Code != want {
				t.Fatalf("cancel %d: %+v", i, r)
			}
		}
		b.wantBalance(from, 100, 0)
	})
	t.Run("a stranger's Cancel of nothing leaves no row", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 100), b.user(0, 0)
		item := given(b, from, to, "k")
		if r := b.Cancel(b.ctx, 0, []branch.CancelItem{{ID: item.ID, Actor: from}})[0]; r.Code != branch.CodeNotFound {
			t.Fatalf("cancel: %+v", r)
		}
		if r := b.Try(b.ctx, 0, []branch.TryItem{item})[0]; r.Code != branch.CodeOK {
			t.Fatalf("try: %+v", r)
		}
	})
	t.Run("a stale shard map is refused", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, 1)
		from, to := b.user(0, 100), b.user(0, 0)
		b.node.shards[0].epoch = 99
		if r := b.Try(b.ctx, 0, []branch.TryItem{try(from, to, 1, "k", time.Hour)})[0]; r.Code != branch.CodeShardUnavailable {
			t.Fatalf("try: %+v", r)
		}
		b.wantBalance(from, 100, 0)
	})
}
