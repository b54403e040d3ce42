package checker

import (
	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

// The checks of what clients were told against what the shards hold at rest.

// mayHave reports whether an operation can have taken effect.
func mayHave(o workload.Op) bool {
	return o.Outcome == workload.OK || o.Outcome == workload.Unknown && !o.Nothing
}

// creates: every acknowledged create exists with exactly its terms (I4), one
// (sender, key) is one hold (I9), a refused create has left nothing (I14), and
// no hold of these senders was not asked for.
func (r *restCheck) creates() {
	senders := map[holdfast.UserID]bool{}
	for k, g := range r.groups {
		s := r.w.shards[r.c.cfg.Map.OfUser(k.sender)]
		stored := s.keys[k].hold
		unknown, possible := false, false
		for _, o := range g.ops {
			if !isCreate(o) {
				continue
			}
			senders[k.sender] = true
			possible = possible || mayHave(o)
			unknown = unknown || o.Outcome == workload.Unknown
			if o.Outcome == workload.OK {
				r.created(o, stored)
			}
		}
		if !senders[k.sender] || len(g.ops) == 0 {
			continue
		}
		r.report.Asked++
		if unknown {
			r.report.Unknown++
			if g.hold.IsZero() && !stored.IsZero() {
				r.report.UnknownDone++
			}
		}
		if !possible && !stored.IsZero() && r.hasCreate(g) {
			r.add("I14", "refused_create_made_a_hold", stored, "every create with key %q of %s was refused%s", k.key, k.sender, opsText(g.ops))
		}
		if h := s.holds[stored]; h != nil && r.hasCreate(g) && !asked(g, h) {
			r.add("I4", "hold_not_as_asked", stored, "no create with key %q of %s asked for these terms%s", k.key, k.sender, opsText(g.ops))
		}
	}
	for _, s := range r.w.shards {
		for k, o := range s.keys {
			if g := r.groups[k]; senders[k.sender] && !o.hold.IsZero() && (g == nil || !r.hasCreate(g)) {
				r.add("I14", "hold_nobody_asked_for", o.hold, "no create of the history has key %q of %s", k.key, k.sender)
			}
		}
	}
}

func (r *restCheck) hasCreate(g *group) bool {
	for _, o := range g.ops {
		if isCreate(o) {
			return true
		}
	}
	return false
}

// asked reports whether some create that may have taken effect asked for the
// terms of the hold.
func asked(g *group, h *hold) bool {
	for _, o := range g.ops {
		if isCreate(o) && mayHave(o) && o.Recipient == h.recipient && o.Amount == h.amount {
			return true
		}
	}
	return false
}

// opsText tells operations that name no hold; those that do are in its story.
func opsText(ops []workload.Op) (text string) {
	for _, o := range ops {
		if o.Hold.IsZero() {
			text += "\n  client " + opText(o)
		}
	}
	return text
}

// created checks one acknowledged create.
func (r *restCheck) created(o workload.Op, stored holdfast.HoldID) {
	h := r.w.hold(r.c.cfg.Map, o.Hold)
	switch {
	case h == nil:
		r.add("I4", "acknowledged_hold_missing", o.Hold, "op %d was answered with a hold that no shard has", o.ID)
		return
	case h.sender != o.Sender || h.recipient != o.Recipient || h.amount != o.Amount || !o.UnlockAt.IsZero() && !h.unlockAt.Equal(o.UnlockAt):
		r.add("I4", "acknowledged_hold_differs", o.Hold, "op %d asked for %d from %s to %s and was told it unlocks at %s", o.ID, o.Amount, o.Sender, o.Recipient, o.UnlockAt)
	}
	if stored != o.Hold {
		r.add("I9", "key_names_another_hold", o.Hold, "key %q of %s stands for hold %s, op %d was told this one", o.Key, o.Sender, stored, o.ID)
	}
}

// cancels: a cancel that was answered ok has cancelled for good (I6), and no
// hold is CANCELLED that nobody cancelled (I14).
func (r *restCheck) cancels() {
	possible := map[holdfast.HoldID]bool{}
	known := map[holdfast.HoldID]bool{}
	for _, o := range r.ops {
		if isCreate(o) && !o.Hold.IsZero() {
			known[o.Hold] = true
		}
		if o.Kind != workload.KindCancel {
			continue
		}
		possible[o.Hold] = possible[o.Hold] || mayHave(o)
		h := r.w.hold(r.c.cfg.Map, o.Hold)
		if o.Outcome == workload.OK && (h == nil || h.status != holdfast.Cancelled) {
			r.add("I6", "cancel_undone", o.Hold, "op %d was told CANCELLED", o.ID)
		}
		if o.Outcome == workload.Unknown {
			r.report.Unknown++
			if h != nil && h.status == holdfast.Cancelled {
				r.report.UnknownDone++
			}
		}
	}
	for id := range known {
		h := r.w.hold(r.c.cfg.Map, id)
		if h != nil && h.status == holdfast.Cancelled && !possible[id] && !r.w.shards[h.shard].released[id] {
			r.add("I14", "cancelled_by_nobody", id, "CANCELLED, and every cancel of it was refused or there was none")
		}
	}
}

// deposits: every acknowledged deposit and withdrawal is in the books once with
// its amount (I4), a refused one is not (I14).
func (r *restCheck) deposits() {
	type tally struct {
		op       workload.Op
		possible bool
	}
	all := map[cashKey]*tally{}
	for _, o := range r.ops {
		k := cashKey{o.Recipient, holdfast.MoveDeposit, o.Key}
		switch o.Kind {
		case workload.KindWithdraw:
			k = cashKey{o.Sender, holdfast.MoveWithdraw, o.Key}
		case workload.KindDeposit:
		default:
			continue
		}
		if all[k] == nil {
			all[k] = &tally{op: o}
		}
		all[k].possible = all[k].possible || mayHave(o)
		if o.Outcome != workload.OK {
			continue
		}
		c, ok := r.w.shards[r.c.cfg.Map.OfUser(k.user)].cash[k]
		if !ok || c.refusal != "" || c.amount != o.Amount || !o.Hold.IsZero() && c.ref != o.Hold {
			r.add("I4", "acknowledged_cash_missing", o.Hold, "%s, of %d for %s; the shard has %+v", opText(o), o.Amount, k.user, c)
		}
	}
	for k, t := range all {
		c, ok := r.w.shards[r.c.cfg.Map.OfUser(k.user)].cash[k]
		if ok && c.refusal == "" && !t.possible {
			r.add("I14", "refused_cash_done", c.ref, "%s; the shard has %+v", opText(t.op), c)
		}
	}
	for _, s := range r.w.shards {
		users := map[holdfast.UserID]bool{}
		for k := range all {
			users[k.user] = true
		}
		for k, c := range s.cash {
			if users[k.user] && all[k] == nil {
				r.add("I14", "cash_nobody_asked_for", c.ref, "shard %d: %s %q of %s", s.number, k.kind, k.key, k.user)
			}
		}
	}
}

// answers: no answer was about something else than was asked for, and none was a
// bare 500 (I15).
func (r *restCheck) answers() {
	for _, o := range r.ops {
		if o.Code == codeMismatch {
			r.add("I4", "answer_differs", o.Hold, "%s: %s", opText(o), o.Error)
		}
		if o.HTTP == 500 && o.Code != "outcome_unknown" {
			r.add("I15", "internal_error", o.Hold, "%s: %s", opText(o), o.Error)
		}
	}
}

// codeMismatch marks, in the history, an ok answer that shows another hold than
// was asked for.
const codeMismatch = "answer_mismatch"
