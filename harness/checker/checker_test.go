package checker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestChecker makes one world with the real product, finds nothing wrong in it,
// and then breaks one thing at a time.
func TestChecker(t *testing.T) {
	t.Parallel()
	s := play(t)
	proof := func(context.Context) (bool, string, error) { return true, "", nil }
	t.Run("nothing is found in a clean world", func(t *testing.T) {
		t.Parallel()
		st := s.stage(t, Config{Bound: time.Minute, Pictures: t.TempDir(), Target: Target{Prove: proof}})
		for range 2 {
			if got := st.checker.Cut(t.Context()); len(got) > 0 {
				t.Fatalf("%v", got)
			}
		}
		r, err := st.checker.AtRest(t.Context(), s.history)
		if err != nil || len(r.Violations) > 0 {
			t.Fatalf("%v, %v", r.Violations, err)
		}
		if r.Effects != 2 || r.Asked != 6 || r.Holds["EXECUTED"] != 2 || r.Holds["FAILED"] != 1 || r.Holds["CANCELLED"] != 1 ||
			r.Holds["PENDING"] != 1 || r.Lateness.N != 3 || r.Lateness.Worst <= 0 || r.Lateness.P50 > r.Lateness.Worst {
			t.Errorf("report %+v", r)
		}
		// 1007 deposited, 5 withdrawn, 40 waiting.
		if m := r.Money; m.Available.Int64() != 962 || m.Escrow.Int64() != 40 || m.Transit.Sign() != 0 || m.Least.Int64() != 1002 || m.Most.Int64() != 1002 {
			t.Errorf("money %+v", m)
		}
		if stats := st.checker.Stats(); stats.Cuts != 4 || stats.Missed != 0 || stats.Holds != 5 {
			t.Errorf("stats %+v", stats)
		}
	})
	for _, c := range underLoad {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			st := s.stage(t, Config{})
			if got := st.checker.Cut(t.Context()); len(got) > 0 {
				t.Fatalf("before anything was broken: %v", got)
			}
			st.corrupt(c.shard, c.sql)
			found := append(st.checker.Cut(t.Context()), st.checker.Cut(t.Context())...)
			if got := strings.Join(checks(found), ", "); got != c.want {
				t.Errorf("found %s\n want %s\n%v", got, c.want, found)
			}
		})
	}
	for _, c := range effectsChanged {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			st := s.stage(t, Config{})
			if got := st.checker.Cut(t.Context()); len(got) > 0 {
				t.Fatalf("before anything was broken: %v", got)
			}
			c.do(st)
			found := append(st.checker.Cut(t.Context()), st.checker.Cut(t.Context())...)
			if got := strings.Join(checks(found), ", "); got != c.want {
				t.Errorf("found %s\n want %s\n%v", got, c.want, found)
			}
		})
	}
	t.Run("at rest", func(t *testing.T) { atRest(t, s) })
	t.Run("told", func(t *testing.T) { told(t, s) })
	t.Run("reading", func(t *testing.T) { reading(t, s) })
}

// underLoad is what a cut finds.
var underLoad = []struct {
	name  string
	shard int
	sql   string
	want  string
}{
	{"a leg of another amount", 0, `UPDATE entries SET amount = amount + 1 WHERE ref = :paidnear AND book = 3 AND movement = 2`,
		"I1 posting_unbalanced, I13 entry_changed, I2 entry_differs"},
	{"a posting of another amount", 0, `UPDATE entries SET amount = amount + sign(amount) WHERE ref = :paidnear AND book IN (2, 3) AND movement = 2`,
		"I1 balance_after_wrong, I13 entry_changed, I2 entry_differs"},
	{"a leg that is gone", 0, `DELETE FROM entries WHERE ref = :gone AND movement = 5 AND book = 1`,
		"I1 posting_unbalanced, I1 sequence_broken, I13 entry_changed"},
	{"a movement that is gone", 1, `DELETE FROM entries WHERE ref = :paidfar`,
		"I1 balance_differs, I11 entry_missing, I13 entry_changed, I2 credit_missing"},
	{"a movement twice", 0, `INSERT INTO entries SELECT * FROM entries WHERE ref = :paidfar AND movement = 2`,
		"I1 posting_doubled, I1 sequence_broken"},
	{"a leg that goes no way", 0, `UPDATE entries SET book = 4, seq = NULL, balance_after = NULL WHERE ref = :paidnear AND book = 3 AND movement = 2`,
		"I1 posting_malformed, I13 entry_changed"},
	{"a posting of another user", 1, `UPDATE entries SET user_id = :banned WHERE ref = :paidfar AND book = 3`,
		"I1 posting_malformed, I13 entry_changed"},
	{"an entry posted at another time", 0, `UPDATE entries SET posted_at = posted_at + interval '1 second' WHERE ref = :gone AND movement = 5`,
		"I13 entry_changed"},
	{"a balance after that is wrong", 0, `UPDATE entries SET balance_after = balance_after + 1 WHERE ref = :refused AND movement = 4 AND book = 1`,
		"I1 balance_after_wrong, I13 entry_changed"},
	{"coins from nowhere", 1, `UPDATE accounts SET available = available + 1 WHERE user_id = :far`, "I1 balance_differs"},
	{"a negative balance", 1, `UPDATE accounts SET available = -1 WHERE user_id = :far`, "I1 balance_differs, I3 balance_negative"},
	{"an account that is gone", 0, `DELETE FROM accounts WHERE user_id = :near`, "I1 account_missing"},
	{"held that no hold explains", 0, `UPDATE accounts SET held = held + 1 WHERE user_id = :sender`, "I1 balance_differs, I2 escrow_differs"},
	{"a pending hold of another amount", 0, `UPDATE holds SET amount = amount + 1 WHERE id = :waiting`,
		"I2 entry_differs, I2 escrow_differs, I5 terms_changed"},
	{"an executed hold of another amount", 0, `UPDATE holds SET amount = amount + 1 WHERE id = :paidfar`,
		"I2 credit_differs, I2 entry_differs, I5 terms_changed, I7 paid_differently"},
	{"a hold that is gone", 0, `DELETE FROM holds WHERE id = :waiting`,
		"I11 barrier_unexpected, I2 entry_without_hold, I2 escrow_differs, I4 hold_vanished, I9 key_without_hold"},
	{"a credited hold that is gone", 0, `DELETE FROM holds WHERE id = :paidfar`,
		"I11 barrier_unexpected, I2 credit_without_verdict, I2 entry_without_hold, I4 hold_vanished, I7 paid_without_hold, I9 key_without_hold"},
	{"an ended hold alive again", 0, `UPDATE holds SET status = 1, cancelled_at = NULL WHERE id = :gone`,
		"I11 barrier_unexpected, I2 entry_unexpected, I2 escrow_differs, I5 status_moved_off_the_graph"},
	{"cancelled without a trace in the books", 0, `UPDATE holds SET status = 5, cancelled_at = clock_timestamp() WHERE id = :waiting`,
		"I11 barrier_missing, I2 entry_missing, I2 escrow_differs"},
	{"a cancel that was not posted", 0, `DELETE FROM entries WHERE ref = :gone AND movement = 5`,
		"I1 sequence_broken, I13 entry_changed, I2 entry_missing"},
	{"paid and cancelled at once", 0, `UPDATE holds SET cancelled_at = clock_timestamp() WHERE id = :paidnear`,
		"I5 ended_hold_changed, I5 state_illegal"},
	{"a status without its verdict", 0, `UPDATE holds SET verdict = NULL WHERE id = :paidnear`,
		"I11 barrier_unexpected, I2 credit_without_verdict, I2 entry_unexpected, I5 state_illegal, I5 verdict_changed"},
	{"claimed early", 0, `UPDATE holds SET claimed_at = unlock_at - interval '1 ms' WHERE id = :paidnear`,
		"I5 decision_changed, I8 early"},
	{"credited early", 1, `UPDATE entries SET posted_at = posted_at - interval '1 minute' WHERE ref = :paidfar`,
		"I13 entry_changed, I8 early"},
	{"cancelled after maturity", 0, `UPDATE holds SET cancelled_at = unlock_at WHERE id = :gone`,
		"I5 ended_hold_changed, I6 cancelled_after_maturity"},
	{"times out of order", 0, `UPDATE holds SET created_at = cancelled_at + interval '1 ms' WHERE id = :gone`,
		"I5 terms_changed, I5 times_out_of_order"},
	{"another maturity than the id's", 0, `UPDATE holds SET unlock_at = unlock_at + interval '1 ms' WHERE id = :waiting`,
		"I5 terms_changed, I8 maturity_differs"},
	{"a barrier row that is gone", 0, `DELETE FROM barrier WHERE gid = :gone AND op = 3`, "I11 barrier_missing, I13 barrier_changed"},
	{"a credit's barrier row that is gone", 1, `DELETE FROM barrier WHERE gid = :paidfar`, "I11 barrier_missing, I13 barrier_changed"},
	{"a barrier row too many", 0, `INSERT INTO barrier SELECT gid, created_at, 1, 3, owner_bucket FROM barrier WHERE gid = :waiting`,
		"I11 barrier_unexpected"},
	{"a barrier row of another bucket", 0, `UPDATE barrier SET owner_bucket = owner_bucket + 1 WHERE gid = :waiting`,
		"I11 barrier_owner_wrong, I13 barrier_changed"},
	{"a key that is gone", 0, `DELETE FROM idempotency WHERE hold_id = :waiting`, "I9 hold_without_one_key, I9 key_changed"},
	{"a key for another hold", 0, `UPDATE idempotency SET hold_id = :waiting WHERE hold_id = :gone`,
		"I9 hold_without_one_key, I9 key_changed"},
	{"two keys for one hold", 0, `INSERT INTO idempotency SELECT sender, expires_at, hold_id, 'other', request_hash FROM idempotency WHERE hold_id = :gone`,
		"I9 hold_without_one_key"},
	{"a deposit that is gone", 0, `DELETE FROM cash WHERE user_id = :sender AND kind = 6`, "I4 cash_changed"},
	{"a withdrawal nobody asked for", 0, `DELETE FROM cash WHERE user_id = :sender AND kind = 7 AND refusal IS NULL`,
		"I1 cash_without_row, I4 cash_changed"},
	{"a deposit of another amount", 0, `UPDATE cash SET amount = amount + 1 WHERE user_id = :sender AND kind = 6`,
		"I1 cash_differs, I4 cash_changed"},
	{"a refused withdrawal accepted", 0, `UPDATE cash SET refusal = NULL WHERE refusal IS NOT NULL`, "I1 cash_without_entries, I4 cash_changed"},
	{"an accepted withdrawal refused", 0, `UPDATE cash SET refusal = 'insufficient_funds' WHERE kind = 7 AND refusal IS NULL`,
		"I14 refused_cash_moved, I4 cash_changed"},
	{"forgotten below the watermark", 0, `UPDATE watermark SET id = 'ffffffff-0000-0000-0000-000000000000'`, "I12 forgotten"},
	{"a refund still queued", 0, `UPDATE dead_letters SET unrefunded = true`, "I12 refund_queue_wrong"},
	{"a dead letter that is gone", 0, `DELETE FROM dead_letters`, "I5 dead_letter_missing"},
	{"wired to another shard", 1, `UPDATE shard_self SET shard = 0`, "I9 shard_wired_wrongly"},
	{"credited twice on one shard", 1, `INSERT INTO entries SELECT posted_at, ref, user_id, amount, seq + CASE WHEN book = 1 THEN 1 END,
		balance_after + 200, movement, book, currency FROM entries WHERE ref = :paidfar;
		UPDATE accounts SET available = available + 200, seq = seq + 1 WHERE user_id = :far`,
		"I1 posting_doubled, I2 credited_twice"},
	{"credited on the wrong shard", 0, `INSERT INTO accounts SELECT :far, 200, 0, 1, opened_at, 1, currency FROM accounts WHERE user_id = :near;
		INSERT INTO entries SELECT posted_at + interval '1 s', :paidfar, :far, sign(amount) * 200, seq, balance_after + 100, movement, book, currency
		FROM entries WHERE ref = :paidnear AND movement = 3`,
		"I2 credited_twice, I2 entry_unexpected, I9 account_misplaced, I9 credit_misplaced"},
	{"credited with another amount, and whole by itself", 1, `UPDATE entries SET amount = amount + sign(amount), balance_after = balance_after + 1 WHERE ref = :paidfar;
		UPDATE accounts SET available = available + 1 WHERE user_id = :far`,
		"I13 entry_changed, I2 credit_differs"},
}

// effectsChanged is what the payment API tells otherwise.
var effectsChanged = []struct {
	name string
	do   func(*stage)
	want string
}{
	{"paid twice", func(st *stage) { st.effect("paid", st.paidFar, st.far, 200, time.Now()) }, "I7 paid_twice"},
	{"paid before the claim", func(st *stage) { st.effect("paid", st.waiting, st.far, 40, st.waiting.UnlockAt()) }, "I7 paid_before_claim"},
	{"paid early", func(st *stage) { st.effect("paid", st.waiting, st.far, 40, time.Now()) }, "I7 paid_before_claim, I8 paid_early"},
	{"paid and cancelled", func(st *stage) { st.effect("paid", st.gone, st.far, 30, st.gone.UnlockAt()) }, "I7 paid_and_cancelled"},
	{"paid and refunded", func(st *stage) { st.effect("paid", st.refused, st.banned, 50, time.Now()) }, "I7 paid_and_failed"},
	{"paid differently", func(st *stage) {
		st.corrupt(0, `UPDATE dead_letters SET code = code; INSERT INTO dead_letters (hold_id, created_at, unrefunded, code, resolution)
			VALUES (:refused, clock_timestamp(), false, 'outcome_unknown', 'not_paid')`)
		st.effect("paid", st.refused, st.far, 51, time.Now())
	}, "I7 paid_differently"},
	{"never paid", func(st *stage) { st.without(st.paidNear.String()) }, "I7 paid_without_effect"},
	{"never refused", func(st *stage) { st.without(st.refused.String()) }, "I7 failed_without_refusal"},
	{"another payment", func(st *stage) {
		st.corrupt(0, `UPDATE holds SET payment_id = 'pay_1' WHERE id = :paidnear`)
	}, "I5 decision_changed, I7 payment_id_differs"},
}

// without starts a simulator whose journal lacks one line.
func (st *stage) without(word string) {
	st.t.Helper()
	var kept []string
	for _, line := range strings.SplitAfter(string(st.journal), "\n") {
		if !strings.Contains(line, word) {
			kept = append(kept, line)
		}
	}
	if len(kept) != strings.Count(string(st.journal), "\n") {
		st.t.Fatalf("the journal has no line of %s", word)
	}
	st.dir = st.t.TempDir()
	st.write(strings.Join(kept, ""))
	st.serve()
	st.checker.cfg.PaymentURL = st.url
}

// atRest is what only a check at rest finds.
func atRest(t *testing.T, s *scene) {
	t.Parallel()
	for _, c := range []struct {
		name, sql, want string
		effect          bool
	}{
		{"overdue", `UPDATE holds SET unlock_at = clock_timestamp() - interval '1 s' WHERE id = :waiting`, "I12 overdue, I4 acknowledged_hold_differs, I8 maturity_differs", false},
		{"a branch open", `UPDATE holds SET status = 2, claimed_at = unlock_at, next_attempt_at = unlock_at WHERE id = :waiting`, "I11 branch_open", false},
		// The watermark may have passed the hold already: the row in attempts keeps the case from depending on it.
		{"in transit", `UPDATE holds SET status = 2, executed_at = NULL WHERE id = :paidfar;
			INSERT INTO attempts (hold_id, next_at, n, active_ms, last_error) VALUES (:paidfar, clock_timestamp(), 1, 1, 'x')`,
			"I10 not_linearizable, I11 branch_open, I1 money_total, I2 transit_not_zero", false},
		{"an attempt left over", `INSERT INTO attempts (hold_id, next_at, n, active_ms, last_error) VALUES (:gone, clock_timestamp(), 1, 1, 'x')`,
			"I11 attempt_left_over", false},
		{"a late success that nobody was told of", `INSERT INTO dead_letters (hold_id, created_at, unrefunded, code, resolution)
			VALUES (:refused, clock_timestamp(), false, 'outcome_unknown', 'not_paid')`, "I7 late_success_letter", true},
		{"a late success in the dead letters", `INSERT INTO dead_letters (hold_id, created_at, unrefunded, code, resolution)
			VALUES (:refused, clock_timestamp(), false, 'outcome_unknown', 'not_paid'), (:refused, clock_timestamp(), false, 'late_success', NULL)`, "", true},
		{"more money than was deposited", `UPDATE accounts SET available = available + 9 WHERE user_id = :near;
			UPDATE entries SET amount = amount + 9 * sign(amount), balance_after = balance_after + 9 WHERE ref = :paidnear AND movement = 3`,
			"I1 money_total, I2 credit_differs, I2 entry_differs", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			st := s.stage(t, Config{})
			st.corrupt(0, c.sql)
			if c.effect {
				st.effect("paid", st.refused, st.banned, 50, time.Now())
			}
			r, err := st.checker.AtRest(t.Context(), s.history)
			want := strings.Split(c.want, ", ")
			slices.Sort(want)
			if got := checks(r.Violations); err != nil || strings.Join(got, ", ") != strings.Join(want, ", ") {
				t.Errorf("found %s\n want %s, %v\n%v", got, want, err, r.Violations)
			}
		})
	}
	t.Run("later than the bound", func(t *testing.T) {
		t.Parallel()
		st := s.stage(t, Config{Bound: time.Nanosecond})
		r, err := st.checker.AtRest(t.Context(), s.history)
		if got := checks(r.Violations); err != nil || !slices.Equal(got, []string{"I12 late"}) {
			t.Errorf("%s, %v", got, err)
		}
		st.checker.FaultOver(time.Now())
		if r, err = st.checker.AtRest(t.Context(), s.history); err != nil || len(r.Violations) > 0 {
			t.Errorf("with a fault that is over after all ended: %s, %v", r.Violations, err)
		}
	})
	t.Run("the proofs disagree", func(t *testing.T) {
		t.Parallel()
		says := false
		st := s.stage(t, Config{Target: Target{Prove: func(context.Context) (bool, string, error) { return says, "the books", nil }}})
		r, err := st.checker.AtRest(t.Context(), s.history)
		if got := checks(r.Violations); err != nil || !slices.Equal(got, []string{"PROOF proof_not_ok"}) {
			t.Errorf("%s, %v", got, err)
		}
		says = true
		st.corrupt(1, `UPDATE accounts SET available = available + 1 WHERE user_id = :far`)
		r, err = st.checker.AtRest(t.Context(), s.history)
		if got := checks(r.Violations); err != nil || !slices.Equal(got, []string{"I1 balance_differs", "I1 money_total", "PROOF proof_blind"}) {
			t.Errorf("%s, %v", got, err)
		}
	})
}

func TestLeaks(t *testing.T) {
	t.Parallel()
	before := []Usage{{"a", 10, 20, 1 << 20}, {"b", 10, 20, 1 << 20}}
	after := []Usage{{"a", 15, 25, 2 << 20}, {"b", 16, 20, 1 << 20}, {"new", 99, 99, 99 << 20}}
	found := Leaks(before, after, Usage{FDs: 5, Goroutines: 5, RSS: 1 << 20})
	if len(found) != 1 || !strings.Contains(found[0].Detail, "b had 10 file descriptors") {
		t.Errorf("%v", found)
	}
}
