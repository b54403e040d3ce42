package participants

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func adminPages(t *testing.T, b *books, r branch.AdminListRequest) (all []holdfast.HoldID) {
	t.Helper()
	for range 500 {
		a, err := b.client.AdminHolds(t.Context(), 0, r)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, ids(a.Holds)...); a.Next == "" {
			return all
		}
		r.Before = a.Next
	}
	t.Fatal("the list has no end")
	return nil
}

func TestAdminHolds(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 1_000), b.funded(0, 0)
	late := b.try(from, to, 1, time.Millisecond)
	next := b.try(from, to, 1, 40*time.Millisecond)
	cancelled := b.try(from, to, 1, time.Hour)
	b.must("cancel", b.client.Cancel(t.Context(), 0, []branch.CancelItem{{ID: cancelled.ID}})[0].Code)
	far := b.try(from, to, 1, 80*24*time.Hour)
	testkit.Eventually(t, 5*time.Second, func() (bool, string) {
		got := adminPages(t, b, branch.AdminListRequest{Overdue: true, Limit: 1})
		return slices.Equal(got, []holdfast.HoldID{late.ID, next.ID}), "overdue, the oldest first"
	})
	for _, c := range []struct {
		status holdfast.Status
		want   []holdfast.HoldID
	}{
		{holdfast.StatusUnknown, []holdfast.HoldID{far.ID, cancelled.ID, next.ID, late.ID}},
		{holdfast.Pending, []holdfast.HoldID{far.ID, next.ID, late.ID}},
		{holdfast.Cancelled, []holdfast.HoldID{cancelled.ID}},
		{holdfast.Executed, nil},
	} {
		for _, limit := range []int{1, 2, 100} {
			if got := adminPages(t, b, branch.AdminListRequest{Status: c.status, Limit: limit}); !slices.Equal(got, c.want) {
				t.Errorf("%s in pages of %d: got %v, want %v", c.status, limit, got, c.want)
			}
		}
	}
	s, err := b.client.Status(t.Context(), 0)
	if err != nil || !s.Up || s.Holds["PENDING"] != 3 || s.Holds["CANCELLED"] != 1 || s.OldestOverdueS <= 0 ||
		s.PartitionsAhead < 90 || s.SchemaVersion < 1 || s.DatabaseBytes == 0 || s.MapEpoch != 1 || s.HoldsEstimated {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestAdminOverdue: the watermark stands at the first open hold, and passes those
// that have a row in attempts.
func TestAdminOverdue(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	exec := func(sql string, id holdfast.HoldID) {
		if _, err := b.set.Owner(0).Exec(t.Context(), sql, [16]byte(id)); err != nil {
			t.Fatal(err)
		}
	}
	from, to := b.funded(0, 1_000), b.funded(0, 0)
	ended := b.claimed(from, to, 1)
	b.refused(ended)
	waiting, stuck := b.try(from, to, 1, time.Millisecond), b.claimed(from, to, 1)
	first, second := b.try(from, to, 1, time.Millisecond), b.claimed(from, to, 1)
	later := b.try(from, to, 1, time.Hour)
	for _, h := range []holdfast.Hold{ended, waiting, stuck} {
		exec(`INSERT INTO attempts (hold_id, next_at, n, active_ms, last_error) VALUES ($1, now(), 1, 0, '')`, h.ID)
	}
	exec(`UPDATE watermark SET id = $1`, first.ID)
	for _, c := range []struct {
		status holdfast.Status
		want   []holdfast.HoldID
	}{
		{holdfast.StatusUnknown, []holdfast.HoldID{waiting.ID, stuck.ID, first.ID, second.ID}},
		{holdfast.Pending, []holdfast.HoldID{waiting.ID, first.ID}},
		{holdfast.Executing, []holdfast.HoldID{stuck.ID, second.ID}},
		{holdfast.Failed, []holdfast.HoldID{ended.ID}},
	} {
		for _, limit := range []int{1, 2, 100} {
			if got := adminPages(t, b, branch.AdminListRequest{Status: c.status, Overdue: true, Limit: limit}); !slices.Equal(got, c.want) {
				t.Errorf("%s in pages of %d: got %v, want %v", c.status, limit, got, c.want)
			}
		}
	}
	age := func() float64 {
		s, err := b.client.Status(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return s.OldestOverdueS
	}
	exec(`UPDATE watermark SET id = $1`, later.ID)
	if with := age(); with <= 0 {
		t.Errorf("a hold below the watermark is overdue for %g s", with)
	}
	exec(`DELETE FROM attempts WHERE hold_id = $1`, waiting.ID)
	if without := age(); without != 0 {
		t.Errorf("without it something is overdue for %g s", without)
	}
}

func TestAdminLists(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 2)
	s := newScene(b)

	t.Run("dead_letters_newest_first", func(t *testing.T) {
		r := branch.AdminListRequest{Limit: 1}
		var got []holdfast.HoldID
		for {
			a, err := b.client.DeadLetters(t.Context(), 0, r)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range a.DeadLetters {
				if got = append(got, d.HoldID); d.Code != "recipient_banned" || d.Hold.Status != holdfast.Failed {
					t.Errorf("%+v", d)
				}
			}
			if a.Next == "" {
				break
			}
			r.Before = a.Next
		}
		if !slices.Equal(got, []holdfast.HoldID{s.refunded.ID, s.failed.ID}) {
			t.Errorf("got %v", got)
		}
		if a, err := b.client.DeadLetters(t.Context(), 0, branch.AdminListRequest{Code: "late_success", Open: true}); err != nil || len(a.DeadLetters) != 0 {
			t.Errorf("of another code: %+v, %v", a, err)
		}
	})
	t.Run("unrefunded_are_those_whose_coins_are_in_escrow", func(t *testing.T) {
		if got, err := b.client.Unrefunded(t.Context(), 0, 10); err != nil || !slices.Equal(got, []holdfast.HoldID{s.failed.ID}) {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("detail", func(t *testing.T) {
		d, err := b.client.Detail(t.Context(), 0, branch.DetailRequest{ID: s.cross.ID})
		if err != nil || d.Code != branch.CodeOK || len(d.Entries) != 3 || len(d.Barrier) != 2 || d.Hold.Status != holdfast.Executed {
			t.Errorf("sender's side: %+v, %v", d, err)
		}
		d, err = b.client.Detail(t.Context(), 1, branch.DetailRequest{ID: s.cross.ID, Recipient: s.far, Currency: "RBX"})
		if err != nil || d.Code != branch.CodeOK || len(d.Entries) != 1 || d.Entries[0].Movement != holdfast.MoveCredit ||
			len(d.Barrier) != 1 || d.Barrier[0].Branch != "02" || d.Barrier[0].Op != "confirm" {
			t.Errorf("recipient's side: %+v, %v", d, err)
		}
		d, err = b.client.Detail(t.Context(), 0, branch.DetailRequest{ID: s.local.ID})
		if err != nil || len(d.Entries) != 4 || len(d.Barrier) != 3 {
			t.Errorf("within one shard: %+v, %v", d, err)
		}
		d, err = b.client.Detail(t.Context(), 0, branch.DetailRequest{ID: s.refunded.ID})
		if err != nil || len(d.Entries) != 4 || len(d.DeadLetters) != 1 || d.Hold.RefundedAt.IsZero() {
			t.Errorf("refunded: %+v, %v", d, err)
		}
		for _, id := range []holdfast.HoldID{holdfast.NewHoldID(0, 0, 1), {}} {
			if d, err = b.client.Detail(t.Context(), 0, branch.DetailRequest{ID: id}); err != nil || d.Code != branch.CodeNotFound {
				t.Errorf("of no hold: %+v, %v", d, err)
			}
		}
	})
	t.Run("digests_of_both_sides_agree_and_pages_are_complete", func(t *testing.T) { transitAgrees(t, b, s) })
}

// transitAgrees checks the SQL of the two sides: the digest of a hold does not
// depend on the shard that computes it.
func transitAgrees(t *testing.T, b *books, s scene) {
	all := branch.TransitRange{To: 1<<48 - 1}
	var executed, credited branch.TransitSum
	verdicts, credits := map[holdfast.HoldID]branch.TransitItem{}, map[holdfast.HoldID]branch.TransitItem{}
	for shard := range 2 {
		a, err := b.client.Transit(t.Context(), shard, branch.TransitRequest{Range: all, StepMS: 3_600_000})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range a.Cells {
			executed.Add(c.Executed)
			credited.Add(c.Credited)
		}
		r := branch.TransitRequest{Range: all, Limit: 1}
		for {
			page, err := b.client.Transit(t.Context(), shard, r)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range page.Paid {
				verdicts[v.ID] = v
			}
			for _, c := range page.Credits {
				credits[c.ID] = c
			}
			if !page.More {
				break
			}
			r.After = page.Through
		}
	}
	if executed.N != 2 || credited.N != 3 || executed.Amount != 14+15 || credited.Amount != 14+15+19 {
		t.Errorf("executed %+v, credited %+v", executed, credited)
	}
	if len(verdicts) != 4 || len(credits) != 3 {
		t.Errorf("%d verdicts and %d credits, want 4 and 3", len(verdicts), len(credits))
	}
	for id, c := range credits {
		if v := verdicts[id]; v.Hash != c.Hash || v.Amount != c.Amount {
			t.Errorf("hold %s: verdict %+v, credit %+v", id, v, c)
		}
	}
	if verdicts[s.transit.ID].Executed || !verdicts[s.cross.ID].Executed {
		t.Error("executed is told wrongly")
	}
}

func TestOperatorActs(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 1_000), b.funded(0, 0)
	act := func(h holdfast.Hold) branch.OperatorRequest {
		return branch.OperatorRequest{ID: h.ID, Actor: "op", Reason: "because", Outcome: "paid"}
	}
	want := func(what string, want branch.Code) func(branch.CodeResult, error) {
		return func(got branch.CodeResult, err error) {
			t.Helper()
			if err != nil || got.Code != want {
				t.Errorf("%s: %s, %v; want %s", what, got.Code, err, want)
			}
		}
	}
	ctx, c := t.Context(), b.client
	pending, unknown := b.try(from, to, 1, time.Hour), b.claimed(from, to, 2)
	want("retry of a PENDING hold", branch.CodeNotRetryable)(c.Retry(ctx, 0, act(pending)))
	want("retry of no hold", branch.CodeNotFound)(c.Retry(ctx, 0, branch.OperatorRequest{ID: holdfast.NewHoldID(1, 1, 1)}))
	want("retry while the first attempt runs", branch.CodeBusy)(c.Retry(ctx, 0, act(unknown)))
	want("resolve before it was given up", branch.CodeNotResolvable)(c.Resolve(ctx, 0, act(unknown)))
	want("close of nothing", branch.CodeNoDeadLetter)(c.Close(ctx, 0, act(unknown)))

	b.must("defer", c.Defer(ctx, 0, []branch.DeferItem{{ID: unknown.ID, DelayMS: 3_600_000, Dead: branch.DeadOutcomeUnknown, Error: "timeout"}})[0].Code)
	want("close without a verdict", branch.CodeStillExecuting)(c.Close(ctx, 0, act(unknown)))
	want("retry of a pause", branch.CodeOK)(c.Retry(ctx, 0, act(unknown)))
	testkit.Eventually(t, 5*time.Second, func() (bool, string) {
		code := c.Claim(ctx, 0, []branch.ClaimItem{{ID: unknown.ID, LeaseMS: 60_000}})[0].Code
		return code == branch.CodeRedrive, "claim: " + string(code)
	})
	want("retry while the second attempt runs", branch.CodeBusy)(c.Retry(ctx, 0, act(unknown)))
	other := act(unknown)
	other.Outcome = "not_paid"
	want("not paid, while an attempt may be paying", branch.CodeBusy)(c.Resolve(ctx, 0, other))
	want("resolve", branch.CodeOK)(c.Resolve(ctx, 0, act(unknown)))
	want("the same resolve again", branch.CodeOK)(c.Resolve(ctx, 0, act(unknown)))
	want("another outcome", branch.CodeNotResolvable)(c.Resolve(ctx, 0, other))
	if n := count(t, b.set.Reads(0), "SELECT count(*) FROM audit"); n != 3 {
		t.Errorf("%d acts in the audit, want the 3 that were done", n)
	}

	failed := b.claimed(from, to, 3)
	b.refused(failed)
	want("close", branch.CodeOK)(c.Close(ctx, 0, act(failed)))
	want("close again", branch.CodeNoDeadLetter)(c.Close(ctx, 0, act(failed)))
	if got, err := c.Unrefunded(ctx, 0, 10); err != nil || !slices.Contains(got, failed.ID) {
		t.Errorf("closing a dead letter must not stop its refund: %v, %v", got, err)
	}
}

func count(t *testing.T, db *pgxpool.Pool, sql string) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
