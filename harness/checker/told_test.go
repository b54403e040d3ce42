package checker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/workload"
)

// told changes what clients were told: the shards then say otherwise.
func told(t *testing.T, s *scene) {
	t.Parallel()
	find := func(ops []workload.Op, kind, key string) *workload.Op {
		for i := range ops {
			if ops[i].Kind == kind && ops[i].Key == key {
				return &ops[i]
			}
		}
		t.Fatalf("no %s %s", kind, key)
		return nil
	}
	for _, c := range []struct {
		name, want string
		change     func(ops []workload.Op) []workload.Op
	}{
		{"another amount", "I4 acknowledged_hold_differs, I4 hold_not_as_asked", func(ops []workload.Op) []workload.Op {
			find(ops, workload.KindCreate, "waiting").Amount++
			return ops
		}},
		{"another maturity", "I4 acknowledged_hold_differs", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindCreate, "waiting")
			o.UnlockAt = o.UnlockAt.Add(time.Millisecond)
			return ops
		}},
		{"a hold that no shard has", "I10 not_linearizable, I4 acknowledged_hold_missing", func(ops []workload.Op) []workload.Op {
			find(ops, workload.KindCreate, "poor").Outcome = workload.OK
			find(ops, workload.KindCreate, "poor").Hold = s.unknown(s.waiting)
			return ops
		}},
		{"a refused create that made a hold", "I10 not_linearizable, I14 refused_create_made_a_hold, I4 hold_not_as_asked", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindCreate, "waiting")
			o.Outcome, o.Code, o.Hold, o.Status = workload.Refused, "insufficient_funds", [16]byte{}, 0
			return ops
		}},
		{"a promise of nothing that was broken", "I10 not_linearizable, I14 refused_create_made_a_hold, I4 hold_not_as_asked", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindCreate, "waiting")
			o.Outcome, o.Return, o.Nothing, o.Hold, o.Status = workload.Unknown, workload.Never, true, [16]byte{}, 0
			return ops
		}},
		{"nobody asked for it", "I14 hold_nobody_asked_for", func(ops []workload.Op) []workload.Op {
			return slices.DeleteFunc(ops, func(o workload.Op) bool { return o.Key == "waiting" })
		}},
		{"unknown, and it was done", "", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindCreate, "waiting")
			o.Outcome, o.Return, o.Hold, o.Status = workload.Unknown, workload.Never, [16]byte{}, 0
			return ops
		}},
		{"unknown, and it was not done", "", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindCreate, "poor")
			o.Outcome, o.Return, o.Code = workload.Unknown, workload.Never, ""
			return ops
		}},
		{"a cancel that did not last", "I10 not_linearizable, I6 cancel_undone", func(ops []workload.Op) []workload.Op {
			o := *find(ops, workload.KindCancel, "gone")
			o.Key, o.Hold = "waiting", s.waiting
			return append(ops, o)
		}},
		{"a refused cancel that was done", "I10 not_linearizable, I14 cancelled_by_nobody", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindCancel, "gone")
			o.Outcome, o.Code, o.Status = workload.Refused, "hold_matured", 0
			return ops
		}},
		{"an unknown cancel that was done", "", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindCancel, "gone")
			o.Outcome, o.Return, o.Status = workload.Unknown, workload.Never, 0
			return ops
		}},
		{"a deposit that is not there", "I1 money_total, I4 acknowledged_cash_missing", func(ops []workload.Op) []workload.Op {
			o := *find(ops, workload.KindDeposit, "first")
			o.Key, o.Hold = "second", [16]byte{}
			return append(ops, o)
		}},
		{"a refused deposit that is there", "I1 money_total, I14 refused_cash_done", func(ops []workload.Op) []workload.Op {
			find(ops, workload.KindDeposit, "first").Outcome = workload.Refused
			return ops
		}},
		{"a withdrawal nobody asked for", "I1 money_total, I14 cash_nobody_asked_for", func(ops []workload.Op) []workload.Op {
			return slices.DeleteFunc(ops, func(o workload.Op) bool { return o.Key == "some" })
		}},
		{"one key, two holds", "I4 acknowledged_hold_differs, I9 key_names_another_hold, I9 key_two_holds", func(ops []workload.Op) []workload.Op {
			o := *find(ops, workload.KindCreate, "near")
			o.Hold = s.waiting
			return append(ops, o)
		}},
		{"a read of the past", "I10 not_linearizable", func(ops []workload.Op) []workload.Op {
			o := find(ops, workload.KindGet, "near") // after a replay had shown EXECUTED
			o.Status, o.Verdict = 1, 0
			return ops
		}},
		{"a bare 500 and a wrong answer", "I15 internal_error, I4 answer_differs", func(ops []workload.Op) []workload.Op {
			find(ops, workload.KindGet, "far").Code = "answer_mismatch"
			o := find(ops, workload.KindCreate, "poor")
			o.Outcome, o.Return, o.HTTP, o.Code = workload.Unknown, workload.Never, 500, "internal_error"
			return ops
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			st := s.stage(t, Config{})
			r, err := st.checker.AtRest(t.Context(), s.edited(t, c.change))
			if got := strings.Join(checks(r.Violations), ", "); err != nil || got != c.want {
				t.Errorf("found %s\n want %s, %v\n%v", got, c.want, err, r.Violations)
			}
		})
	}
}

// reading: what cannot be read is no violation, and is never proved.
func reading(t *testing.T, s *scene) {
	t.Parallel()
	st := s.stage(t, Config{Timeout: 5 * time.Second})
	if n, oldest, err := st.checker.Overdue(t.Context()); n != 0 || oldest != 0 || err != nil {
		t.Errorf("overdue %d by %s, %v", n, oldest, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := st.checker.WaitSettled(short, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "1 holds have not ended") {
		t.Errorf("a hold that matures in an hour has ended: %v", err)
	}
	st.corrupt(0, `UPDATE holds SET unlock_at = clock_timestamp() - interval '1 minute' WHERE id = :waiting`)
	if n, oldest, err := st.checker.Overdue(t.Context()); n != 1 || oldest < time.Minute || err != nil {
		t.Errorf("overdue %d by %s, %v", n, oldest, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var told []string
	times := 0
	st.checker.Watch(ctx, time.Millisecond, func(list []Violation) { told, times = append(told, checks(list)...), times+1; stop() })
	if times != 1 || !slices.Equal(told, []string{"I8 maturity_differs"}) {
		t.Errorf("told %d times: %s", times, told)
	}
	if fresh := st.checker.fresh(st.checker.Cut(t.Context())); len(fresh) > 0 {
		t.Errorf("told again: %v", fresh)
	}
	story := st.checker.Cut(t.Context())[0].Detail
	for _, part := range []string{"row " + s.waiting.String(), "entry reserve held", "barrier row branch 01 try", "client 0 op", "told PENDING"} {
		if !strings.Contains(story, part) {
			t.Errorf("the story has no %q: %s", part, story)
		}
	}
	st.checker.cfg.DSNs[1] = strings.Replace(st.checker.cfg.DSNs[1], "/stage_", "/nobody_", 1)
	st.checker.drop(1)
	if found := st.checker.Cut(t.Context()); st.checker.Stats().Missed != 1 || !slices.Equal(checks(found), []string{"I8 maturity_differs"}) {
		t.Errorf("with a shard away: %+v, %v", st.checker.Stats(), found)
	}
	if _, err := st.checker.AtRest(t.Context(), s.history); err == nil || !strings.Contains(err.Error(), "shard 1") {
		t.Errorf("proved without a shard: %v", err)
	}
}
