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
	"github.com/holdfast-escrow/holdfast/shards"
)

func TestProve(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 2)
	s := newScene(b)

	t.Run("whole_books_have_no_offender", func(t *testing.T) {
		for shard := range 2 {
			p, err := prove(t.Context(), b.set.Reads(shard), shard)
			if err != nil || !p.OK {
				t.Fatalf("shard %d: %+v, %v", shard, p.Offenders, err)
			}
			if p.Debits.Cmp(p.Credits) != 0 || p.Held.Cmp(p.EscrowHolds) != 0 || p.Entries == 0 {
				t.Errorf("shard %d: debits %v credits %v held %v escrow %v", shard, p.Debits, p.Credits, p.Held, p.EscrowHolds)
			}
			if want := []int64{13, 19}[shard]; p.Transit.Int64() != want || p.TransitN != 1 {
				t.Errorf("shard %d: transit %v of %d holds, want %d of 1", shard, p.Transit, p.TransitN, want)
			}
		}
	})
	for _, c := range corruptions(s) {
		t.Run(c.name, func(t *testing.T) {
			for _, kind := range c.kinds {
				if found := planted(t, b, c.sql); !strings.Contains(found, kind) {
					t.Errorf("found %q, want %s", found, kind)
				}
			}
		})
	}
}

// planted runs statements as the owner, proves what is then there, and takes
// everything back. It returns the kinds of offenders.
func planted(t *testing.T, b *books, statements []string) string {
	t.Helper()
	tx, err := b.set.Owner(0).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	day := shards.DayAt(time.Now()).String()
	for _, sql := range append([]string{"ALTER TABLE entries_" + day + " DISABLE TRIGGER USER"}, statements...) {
		tag, err := tx.Exec(t.Context(), sql)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if (strings.HasPrefix(sql, "UPDATE") || strings.HasPrefix(sql, "DELETE") || strings.HasPrefix(sql, "INSERT")) && tag.RowsAffected() == 0 {
			t.Fatalf("%s: no row", sql)
		}
	}
	p, err := proveIn(t.Context(), tx, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, o := range p.Offenders {
		kinds = append(kinds, o.Kind)
		if o.Count < 1 || o.First == "" || o.Shard != 0 {
			t.Errorf("offender without its facts: %+v", o)
		}
	}
	return strings.Join(kinds, " ")
}

type corruption struct {
	name  string
	sql   []string
	kinds []string
}

func corruptions(s scene) []corruption {
	is := func(column string, id fmt.Stringer) string { return fmt.Sprintf(" %s = '%s' ", column, id) }
	insert := "INSERT INTO entries (posted_at, ref, user_id, amount, seq, balance_after, movement, book, currency) "
	again := func(id holdfast.HoldID, movement int) string {
		return insert + fmt.Sprintf("SELECT posted_at, ref, user_id, amount, seq, balance_after, movement, book, currency FROM entries WHERE ref = '%s' AND movement = %d", id, movement)
	}
	// A whole movement of a hold that no state demands; book1 gives, book2 gets.
	movement := func(ref, user fmt.Stringer, amount, movement, from, to int) []string {
		leg := func(book, amount int) string {
			if book > 2 {
				return insert + fmt.Sprintf("VALUES (now(), '%s', '%s', %d, NULL, NULL, %d, %d, 'RBX')", ref, user, amount, movement, book)
			}
			column := []string{"", "available", "held"}[book]
			return fmt.Sprintf(`WITH a AS (UPDATE accounts SET %s = %s + %d, seq = seq + 1 WHERE user_id = '%s' RETURNING seq, %s)
				%s SELECT now(), '%s', '%s', %d, seq, %s, %d, %d, 'RBX' FROM a`, column, column, amount, user, column, insert, ref, user, amount, column, movement, book)
		}
		return []string{leg(from, -amount), leg(to, amount)}
	}
	return []corruption{
		{"balance_off_by_one", []string{"UPDATE accounts SET available = available + 1 WHERE" + is("user_id", s.a)}, []string{branch.OffBalance}},
		{"two_errors_that_cancel_out_on_two_accounts", []string{
			"UPDATE accounts SET available = available + 1 WHERE" + is("user_id", s.a),
			"UPDATE accounts SET available = available - 1 WHERE" + is("user_id", s.near)}, []string{branch.OffBalance}},
		{"escrow_moved_between_two_users", []string{
			"UPDATE accounts SET held = held - 1 WHERE" + is("user_id", s.a),
			"UPDATE accounts SET held = held + 1 WHERE" + is("user_id", s.near)}, []string{branch.OffEscrow, branch.OffBalance}},
		{"a_leg_is_gone", []string{"DELETE FROM entries WHERE movement = 1 AND book = 2 AND" + is("ref", s.pending.ID)},
			[]string{branch.OffPostingUnbalanced, branch.OffSequence, branch.OffBalance}},
		{"a_whole_movement_is_gone", []string{"DELETE FROM entries WHERE movement = 2 AND" + is("ref", s.transit.ID)}, []string{branch.OffEntryMissing, branch.OffSequence}},
		{"the_newest_entry_is_gone", []string{"DELETE FROM entries WHERE (user_id, seq) IN (SELECT user_id, seq FROM accounts WHERE" + is("user_id", s.a) + ")"},
			[]string{branch.OffSequence, branch.OffBalance}},
		{"a_number_is_there_twice", []string{"UPDATE entries SET seq = seq - 1 WHERE seq = 4 AND" + is("user_id", s.a)}, []string{branch.OffSequence}},
		{"a_balance_after_is_wrong", []string{"UPDATE entries SET balance_after = balance_after + 1 WHERE seq = 3 AND" + is("user_id", s.a)}, []string{branch.OffBalanceAfter}},
		{"a_credit_is_doubled", []string{again(s.local.ID, 3)}, []string{branch.OffPostingDoubled}},
		{"a_credit_of_another_shard_is_doubled_with_its_balance", movement(s.arrived.ID, s.near, 19, 3, 3, 1), []string{branch.OffPostingDoubled}},
		{"a_leg_goes_the_wrong_way", []string{"UPDATE entries SET amount = -amount WHERE movement = 2 AND" + is("ref", s.transit.ID)}, []string{branch.OffPostingMalformed}},
		{"a_movement_has_another_amount_than_its_hold", []string{"UPDATE holds SET amount = 112 WHERE" + is("id", s.executing.ID)},
			[]string{branch.OffAmountMismatch, branch.OffEscrow}},
		{"a_movement_is_on_another_user", []string{"UPDATE entries SET user_id = '" + s.near.String() + "' WHERE movement = 2 AND" + is("ref", s.transit.ID)},
			[]string{branch.OffWrongAccount}},
		{"a_pending_hold_was_settled", movement(s.pending.ID, s.a, 11, 2, 2, 3), []string{branch.OffEntryUnexpected, branch.OffEscrow}},
		{"a_cancelled_hold_was_refunded_again", movement(s.cancelled.ID, s.a, 18, 4, 2, 1), []string{branch.OffEntryUnexpected, branch.OffEscrow}},
		{"a_credit_without_barrier_row", movement(s.failed.ID, s.near, 16, 3, 3, 1), []string{branch.OffEntryUnexpected, branch.OffBarrierMissing}},
		{"a_barrier_row_of_a_credit_without_entries", []string{fmt.Sprintf(
			"INSERT INTO barrier (gid, created_at, branch, op, owner_bucket) VALUES ('%s', now(), 2, 2, 1)", s.transit.ID)},
			[]string{branch.OffEntryMissing, branch.OffBarrierUnexpected}},
		{"a_verdict_was_taken_back", []string{"UPDATE holds SET verdict = NULL, decided_at = NULL WHERE" + is("id", s.transit.ID)},
			[]string{branch.OffEntryUnexpected, branch.OffBarrierUnexpected, branch.OffEscrow}},
		{"a_verdict_was_forged", []string{"UPDATE holds SET verdict = 1, decided_at = now() WHERE" + is("id", s.executing.ID)},
			[]string{branch.OffEntryMissing, branch.OffBarrierMissing, branch.OffEscrow}},
		{"a_refund_was_only_noted", []string{"UPDATE holds SET refunded_at = now() WHERE" + is("id", s.failed.ID)}, []string{branch.OffEntryMissing, branch.OffEscrow}},
		{"a_cancel_was_only_noted", []string{"UPDATE holds SET status = 5, cancelled_at = now() WHERE" + is("id", s.pending.ID)},
			[]string{branch.OffEntryMissing, branch.OffBarrierMissing, branch.OffEscrow}},
		{"a_local_credit_is_missing_after_executed", []string{"DELETE FROM entries WHERE movement = 3 AND" + is("ref", s.local.ID)}, []string{branch.OffEntryMissing}},
		{"a_hold_is_gone", []string{"DELETE FROM holds WHERE" + is("id", s.pending.ID)},
			[]string{branch.OffEntryUnexpected, branch.OffBarrierUnexpected, branch.OffEscrow}},
		{"a_barrier_row_is_gone", []string{"DELETE FROM barrier WHERE branch = 1 AND op = 2 AND" + is("gid", s.cross.ID)}, []string{branch.OffBarrierMissing}},
		{"an_account_is_gone", []string{"DELETE FROM accounts WHERE" + is("user_id", s.a)}, []string{branch.OffAccountMissing}},
		{"money_from_nowhere", movement(s.near, s.near, 30, 1, 1, 2), []string{branch.OffEntryUnexpected, branch.OffEscrow}},
		{"a_deposit_without_its_movement", []string{"UPDATE cash SET amount = amount + 1 WHERE kind = 6 AND" + is("user_id", s.a)}, []string{branch.OffCash}},
		{"coins_that_nobody_deposited", movement(holdfast.NewHoldID(1, 1, 1), s.near, 30, 6, 4, 1), []string{branch.OffCash}},
		{"a_refund_is_not_in_the_queue", []string{"UPDATE dead_letters SET unrefunded = false WHERE" + is("hold_id", s.failed.ID)}, []string{branch.OffForgotten}},
		{"a_hold_below_the_watermark_is_forgotten", []string{"UPDATE watermark SET id = 'ffffffff-ffff-ffff-ffff-ffffffffffff'"}, []string{branch.OffForgotten}},
	}
}

// The tables themselves refuse what the proof would call negative.
func TestProve_negative_balances_cannot_be_written(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	u := b.funded(0, 10)
	for _, column := range []string{"available", "held"} {
		_, err := b.set.Owner(0).Exec(t.Context(), "UPDATE accounts SET "+column+" = -1 WHERE user_id = $1", [16]byte(u))
		if err == nil || !strings.Contains(err.Error(), "23514") {
			t.Errorf("%s = -1: %v, want a check violation", column, err)
		}
	}
}

// Proofs that run while money moves must never see a step half done.
func TestProve_has_no_false_alarm_while_money_moves(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 2)
	users := []holdfast.UserID{b.funded(0, 100_000), b.funded(0, 100_000), b.funded(1, 100_000), b.funded(1, 100_000)}
	ctx, stop := context.WithCancel(t.Context())
	var movers sync.WaitGroup
	for i, from := range users {
		movers.Go(func() { moveMoney(ctx, b, i, from, users[(i+1)%len(users)], users[(i+2)%len(users)]) })
	}
	for range 6 {
		for shard := range 2 {
			p, err := prove(t.Context(), b.set.Reads(shard), shard)
			if err != nil {
				t.Error(err)
			}
			for _, o := range p.Offenders {
				t.Errorf("shard %d: %+v", shard, o)
			}
		}
	}
	stop()
	movers.Wait()
}

// moveMoney drives holds through every path until the context ends.
func moveMoney(ctx context.Context, b *books, mover int, from, to, other holdfast.UserID) {
	home := b.set.Map().OfUser(from)
	steps := context.WithoutCancel(ctx)
	for n := 0; ctx.Err() == nil; n++ {
		if n%2 == 1 {
			to, other = other, to
		}
		out := b.client.Try(steps, home, []branch.TryItem{{Sender: from, Recipient: to, Currency: "RBX", Amount: int64(1 + n%7),
			Key: fmt.Sprintf("mover %d %d", mover, n), DelayMS: 2}})
		h := out[0].Hold
		if out[0].Code != branch.CodeOK {
			continue
		}
		if n%5 == 0 {
			b.client.Cancel(steps, home, []branch.CancelItem{{ID: h.ID}})
			continue
		}
		for b.client.Claim(steps, home, []branch.ClaimItem{{ID: h.ID, LeaseMS: 60_000}})[0].Code == branch.CodeNotDue {
		}
		if n%4 == 0 {
			b.client.Refuse(steps, home, []branch.RefuseItem{{ID: h.ID, Reason: "recipient_banned"}})
			b.client.Refund(steps, home, []branch.IDItem{{ID: h.ID}})
			continue
		}
		b.client.Settle(steps, home, []branch.SettleItem{{ID: h.ID, PaymentID: "p", Recipient: to}})
		if away := b.set.Map().OfUser(to); away != home {
			b.client.Credit(steps, away, []branch.CreditItem{{ID: h.ID, Recipient: to, Currency: "RBX", Amount: h.Amount}})
			b.client.Executed(steps, home, []branch.IDItem{{ID: h.ID}})
		}
	}
}

// Balances are replayed from checkpoints: what lies before them may go cold, and
// what comes after them is checked as before.
func TestProve_from_checkpoints(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 2)
	s := newScene(b)
	owner, today := b.set.Owner(0), shards.DayAt(time.Now())
	old, cut := (today - 3).String(), (today - 2).Start().Format("2006-01-02")
	for _, sql := range []string{
		"CREATE TABLE IF NOT EXISTS entries_" + old + " PARTITION OF entries FOR VALUES FROM ('" + (today - 3).Start().Format(time.RFC3339) +
			"') TO ('" + (today - 2).Start().Format(time.RFC3339) + "')",
		"ALTER TABLE entries_" + today.String() + " DISABLE TRIGGER USER",
		"ALTER TABLE entries_" + old + " DISABLE TRIGGER USER",
		"UPDATE entries SET posted_at = posted_at - interval '3 days'",
		"UPDATE holds SET created_at = created_at - interval '3 days', decided_at = decided_at - interval '3 days', executed_at = executed_at - interval '3 days', " +
			"refunded_at = refunded_at - interval '3 days', cancelled_at = cancelled_at - interval '3 days'",
		"UPDATE barrier SET created_at = created_at - interval '3 days'",
		"UPDATE cash SET at = at - interval '3 days'",
	} {
		if _, err := owner.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	wantWhole := func(when string) {
		t.Helper()
		if p, err := prove(t.Context(), b.set.Reads(0), 0); err != nil || !p.OK {
			t.Fatalf("%s: %+v, %v", when, p.Offenders, err)
		}
	}
	wantWhole("three days later")
	if _, err := owner.Exec(t.Context(), "SELECT holdfast_checkpoint($1::date + 3)", cut); err == nil {
		t.Error("made a checkpoint of a day that is not over")
	}
	var moved int
	if err := owner.QueryRow(t.Context(), "SELECT holdfast_checkpoint($1::date)", cut).Scan(&moved); err != nil || moved != 2 {
		t.Fatalf("checkpoint of %d accounts, want 2: %v", moved, err)
	}
	wantWhole("with checkpoints")
	b.paid(s.executing)
	b.try(s.a, s.near, 5, time.Hour)
	wantWhole("with holds from before and after")
	if _, err := owner.Exec(t.Context(), "ALTER TABLE entries DETACH PARTITION entries_"+old); err != nil {
		t.Fatal(err)
	}
	wantWhole("without the old entries")
	for name, c := range map[string]struct{ sql, kind string }{
		"balance":    {"UPDATE accounts SET available = available + 1 WHERE user_id = '" + s.near.String() + "'", branch.OffBalance},
		"checkpoint": {"UPDATE checkpoints SET held = held + 1 WHERE user_id = '" + s.a.String() + "'", branch.OffBalance},
		"entries":    {"DELETE FROM entries WHERE movement = 2 AND ref = '" + s.executing.ID.String() + "'", branch.OffEntryMissing},
	} {
		if found := planted(t, b, []string{c.sql}); !strings.Contains(found, c.kind) {
			t.Errorf("%s: found %q, want %s", name, found, c.kind)
		}
	}
}
