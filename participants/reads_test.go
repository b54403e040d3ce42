package participants

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

func ids(holds []holdfast.Hold) (list []holdfast.HoldID) {
	for _, h := range holds {
		list = append(list, h.ID)
	}
	return list
}

// pages reads a list to its end in pages of n.
func pages(t *testing.T, b *books, r branch.ListRequest, n int) (all []holdfast.Hold, answers int) {
	t.Helper()
	for r.Limit = n; answers < 1000; answers++ {
		a, err := b.client.List(t.Context(), b.set.Map().OfUser(r.Sender), r)
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Holds) > n {
			t.Fatalf("a page of %d has %d holds", n, len(a.Holds))
		}
		if all = append(all, a.Holds...); a.Next == "" {
			return all, answers + 1
		}
		r.Before = a.Next
	}
	t.Fatal("the list has no end")
	return nil, 0
}

func TestList(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 1_000_000), b.funded(0, 0)
	for _, u := range []holdfast.UserID{from, to} {
		if _, err := b.client.Open(t.Context(), 0, branch.AccountRequest{User: u, Currency: "EUR"}); err != nil {
			t.Fatal(err)
		}
	}
	cash := branch.CashItem{User: from, Currency: "EUR", Amount: 1_000, Key: "eur"}
	b.must("deposit", b.client.Cash(t.Context(), 0, []branch.CashItem{cash})[0].Code)
	var want []holdfast.HoldID
	for n := range 40 {
		item := branch.TryItem{Sender: from, Recipient: to, Currency: []string{"RBX", "EUR"}[n/3%2], Amount: 1,
			Key: fmt.Sprint("list ", n), DelayMS: int64(1+n%5) * 86_400_000}
		out := b.client.Try(t.Context(), 0, []branch.TryItem{item})[0]
		b.must("try", out.Code)
		want = append([]holdfast.HoldID{out.Hold.ID}, want...)
		if n%4 == 0 {
			b.must("cancel", b.client.Cancel(t.Context(), 0, []branch.CancelItem{{ID: out.Hold.ID}})[0].Code)
		}
	}
	t.Run("newest_first_over_currencies_and_days_of_maturity", func(t *testing.T) {
		for _, n := range []int{1, 7, 200} {
			if got, _ := pages(t, b, branch.ListRequest{Sender: from}, n); !slices.Equal(ids(got), want) {
				t.Errorf("pages of %d: got %d holds in another order, want %d", n, len(got), len(want))
			}
		}
	})
	t.Run("only_one_status", func(t *testing.T) {
		got, _ := pages(t, b, branch.ListRequest{Sender: from, Status: holdfast.Cancelled}, 3)
		if len(got) != 10 {
			t.Errorf("got %d cancelled holds, want 10", len(got))
		}
		for _, h := range got {
			if h.Status != holdfast.Cancelled || h.CancelledAt.IsZero() {
				t.Errorf("hold %s is %s", h.ID, h.Status)
			}
		}
	})
	t.Run("by_key", func(t *testing.T) {
		for key, n := range map[string]int{"list 39": 1, "never used": 0} {
			a, err := b.client.List(t.Context(), 0, branch.ListRequest{Sender: from, Key: key})
			if err != nil || len(a.Holds) != n || a.Next != "" || (n == 1 && a.Holds[0].ID != want[0]) {
				t.Errorf("key %q: %+v, %v", key, a, err)
			}
		}
	})
	t.Run("a_user_without_holds_or_account", func(t *testing.T) {
		for _, u := range []holdfast.UserID{to, b.user(0)} {
			if got, _ := pages(t, b, branch.ListRequest{Sender: u}, 5); len(got) != 0 {
				t.Errorf("got %d holds", len(got))
			}
		}
	})
	t.Run("a_forged_position_is_invalid", func(t *testing.T) {
		_, err := b.client.List(t.Context(), 0, branch.ListRequest{Sender: from, Before: "!"})
		if !errors.Is(err, holdfast.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	})
}

// One page looks at a bounded number of entries, however few of them match.
func TestList_work_per_page_is_bounded(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 1_000_000), b.funded(0, 0)
	var items []branch.TryItem
	for n := range walkExamined { // two entries each
		items = append(items, branch.TryItem{Sender: from, Recipient: to, Currency: "RBX", Amount: 1, Key: fmt.Sprint(n), DelayMS: 3_600_000})
	}
	b.client.Try(t.Context(), 0, items)
	got, answers := pages(t, b, branch.ListRequest{Sender: from, Status: holdfast.Failed}, 10)
	if len(got) != 0 || answers < 2 {
		t.Errorf("%d holds on %d pages, want none on several", len(got), answers)
	}
}

func TestHoldsByID(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 1_000), b.funded(0, 0)
	one, two := b.try(from, to, 1, time.Hour), b.try(from, to, 2, 50*24*time.Hour)
	strange := []holdfast.HoldID{
		{}, holdfast.NewHoldID(0, 0, 0), holdfast.NewHoldID(1<<48-1, 4095, 1<<62-1), holdfast.NewHoldID(one.UnlockAt.UnixMilli(), 5, 9),
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	for name, asked := range map[string][]holdfast.HoldID{"known days": {one.ID, two.ID}, "with days that do not exist": append(strange, one.ID, two.ID)} {
		got, err := holdsByID(t.Context(), b.set.Reads(0), asked)
		if err != nil || len(got) != 2 || got[one.ID] != one || got[two.ID] != two {
			t.Errorf("%s: %+v, %v; want %+v and %+v", name, got, err, one, two)
		}
	}
}

// Reading a few holds must not lock the partitions of all days.
func TestHoldsByID_locks_only_its_days(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 1_000), b.funded(0, 0)
	h := b.try(from, to, 1, time.Hour)
	err := pgx.BeginFunc(t.Context(), b.set.Reads(0), func(tx pgx.Tx) error {
		if _, err := holdsByID(t.Context(), tx, []holdfast.HoldID{h.ID}); err != nil {
			return err
		}
		var locks int
		err := tx.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation'
			AND relation::regclass::text LIKE '%holds%'`).Scan(&locks)
		if locks < 1 || locks > 2 {
			t.Errorf("%d locks on holds, want the table of the day and its key", locks)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStatement(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	s := b.funded(0, 1_000)
	to := b.funded(0, 0)
	for range 5 {
		b.try(s, to, 10, time.Hour)
	}
	r := branch.AccountRequest{User: s, Currency: "RBX", Limit: 4}
	var all []holdfast.Entry
	for {
		a, err := b.client.Statement(t.Context(), 0, r)
		if err != nil || a.Code != branch.CodeOK || len(a.Entries) > 4 {
			t.Fatalf("%+v, %v", a, err)
		}
		if all = append(all, a.Entries...); a.Next == 0 {
			break
		}
		r.Before = a.Next
	}
	if len(all) != 11 {
		t.Fatalf("got %d entries, want 11", len(all))
	}
	for i, e := range all {
		if e.Seq != int64(11-i) || e.User != s {
			t.Errorf("entry %d has number %d of %s", i, e.Seq, e.User)
		}
	}
	if newest := all[0]; newest.BalanceAfter != 50 || newest.Book != holdfast.BookHeld || newest.Movement != holdfast.MoveReserve {
		t.Errorf("newest entry: %+v", newest)
	}
	if oldest := all[10]; oldest.BalanceAfter != 1_000 || oldest.Movement != holdfast.MoveDeposit {
		t.Errorf("oldest entry: %+v", oldest)
	}
	a, err := b.client.Statement(t.Context(), 0, branch.AccountRequest{User: b.user(0), Currency: "RBX"})
	if err != nil || a.Code != branch.CodeUnknownAccount {
		t.Errorf("of nobody: %+v, %v", a, err)
	}
}

func TestSetStatus(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	empty, full := b.funded(0, 0), b.funded(0, 5)
	steps := []struct {
		user holdfast.UserID
		to   holdfast.AccountStatus
		want branch.Code
	}{
		{b.user(0), holdfast.AccountBanned, branch.CodeUnknownAccount},
		{full, holdfast.AccountClosed, branch.CodeAccountNotEmpty},
		{full, holdfast.AccountBanned, branch.CodeOK},
		{full, holdfast.AccountBanned, branch.CodeOK},
		{full, holdfast.AccountClosed, branch.CodeAccountNotEmpty},
		{full, holdfast.AccountOpen, branch.CodeOK},
		{empty, holdfast.AccountClosed, branch.CodeOK},
		{empty, holdfast.AccountClosed, branch.CodeOK},
		{empty, holdfast.AccountOpen, branch.CodeAccountClosed},
		{empty, holdfast.AccountBanned, branch.CodeAccountClosed},
	}
	for i, s := range steps {
		a, err := b.client.SetStatus(t.Context(), 0, branch.AccountRequest{User: s.user, Currency: "RBX", Status: s.to, Actor: "op", Reason: "why"})
		if err != nil || a.Code != s.want || (a.Code == branch.CodeOK && a.Account.Status != s.to) {
			t.Errorf("step %d: %+v, %v; want %s", i, a, err, s.want)
		}
	}
	a, err := b.client.Audit(t.Context(), 0, branch.AdminListRequest{Limit: 2})
	if err != nil || len(a.Rows) != 2 || a.Rows[0].Action != "account_closed" || a.Rows[0].User != empty || a.Rows[0].Actor != "op" || a.Next == "" {
		t.Fatalf("%+v, %v", a, err)
	}
	rest, err := b.client.Audit(t.Context(), 0, branch.AdminListRequest{Limit: 2, Before: a.Next})
	if err != nil || len(rest.Rows) != 1 || rest.Next != "" {
		t.Errorf("%+v, %v; want the one act that is left: repeating a status is none", rest, err)
	}
}

func TestWrites_refuse_a_stale_shard_map(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	u := b.user(0)
	if _, err := openAccount(t.Context(), b.set.Money(0), 99, branch.AccountRequest{User: u, Currency: "RBX"}); err == nil {
		t.Error("opened an account with another epoch")
	}
	if a, err := b.client.Account(t.Context(), 0, branch.AccountRequest{User: u, Currency: "RBX"}); err != nil || a.Code != branch.CodeUnknownAccount {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	u := b.user(0)
	for i, created := range []bool{true, false} {
		// A client that hangs up does not undo it.
		ctx, cancel := context.WithCancel(t.Context())
		a, err := b.client.Open(ctx, 0, branch.AccountRequest{User: u, Currency: "RBX"})
		cancel()
		if err != nil || a.Code != branch.CodeOK || a.Created != created || a.Account.User != u || a.Account.Status != holdfast.AccountOpen {
			t.Errorf("open %d: %+v, %v", i, a, err)
		}
	}
}

// A shard's clock may have been ahead over midnight and be right again: then the
// numbers of an account's entries do not grow with the day. Nothing of it may
// be hidden from statement and list.
func TestEntriesOfAWrongClock(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	u := b.funded(0, 0)
	for range 20 {
		b.cash(u, 5)
	}
	conn := b.set.Owner(0)
	for _, sql := range []string{
		`DO $$ DECLARE t text; BEGIN FOR t IN SELECT relid::text FROM pg_partition_tree('entries') WHERE isleaf LOOP
			EXECUTE 'ALTER TABLE ' || t || ' DISABLE TRIGGER USER'; END LOOP; END $$`,
		`UPDATE entries SET posted_at = posted_at + interval '1 day' WHERE seq BETWEEN 8 AND 12`,
		`UPDATE entries SET posted_at = posted_at - interval '1 day' WHERE seq IN (15, 3)`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, limit := range []int{1, 3, 4, 7, 20, 50} {
		var seen []int64
		r := branch.AccountRequest{User: u, Currency: "RBX", Limit: limit}
		for {
			a, err := b.client.Statement(t.Context(), 0, r)
			if err != nil || a.Code != branch.CodeOK {
				t.Fatalf("statement: %+v, %v", a, err)
			}
			for _, e := range a.Entries {
				seen = append(seen, e.Seq)
			}
			if a.Next == 0 {
				break
			}
			r.Before = a.Next
		}
		for i, seq := range seen {
			if seq != int64(20-i) {
				t.Fatalf("in pages of %d the statement has the numbers %v", limit, seen)
			}
		}
		if len(seen) != 20 {
			t.Errorf("in pages of %d the statement has %d of 20 entries: %v", limit, len(seen), seen)
		}
	}
}
