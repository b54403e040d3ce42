package checker

import (
	"slices"

	"github.com/holdfast-escrow/holdfast"
)

// between compares a shard with what an earlier snapshot of it saw: committed
// rows stay, entries and barrier rows for ever as they were (I13), a hold only
// moves along the graph and an ended one not at all (I5).
func (f *finder) between(old, now *shard) {
	seen := make(map[entry]int, len(now.entries))
	for i := range now.entries {
		seen[now.entries[i]]++
	}
	for i := range old.entries {
		e := old.entries[i]
		if seen[e]--; seen[e] < 0 {
			f.add("I13", "entry_changed", e.ref, "shard %d: this entry was there at %s and is gone or changed: %s", now.number, clock(old.at), e)
		}
	}
	for gid, marks := range old.barrier {
		for _, m := range marks {
			if !slices.Contains(now.barrier[gid], m) {
				f.add("I13", "barrier_changed", gid, "shard %d: barrier row branch 0%d %s was there at %s and is gone or changed", now.number, m.branch, opName(m.op), clock(old.at))
			}
		}
	}
	for id, was := range old.holds {
		is := now.holds[id]
		if is == nil {
			f.add("I4", "hold_vanished", id, "shard %d: it was there at %s: %s", now.number, clock(old.at), was)
			continue
		}
		if what := moved(was, is); what != "" {
			f.add("I5", what, id, "shard %d: at %s it was %s", now.number, clock(old.at), was)
		}
	}
	for k, was := range old.keys {
		if is, ok := now.keys[k]; !ok || is != was {
			f.add("I9", "key_changed", was.hold, "shard %d: key %q of %s meant hold %s %s at %s and now %s %s", now.number, k.key, k.sender,
				was.hold, was.refusal, clock(old.at), is.hold, is.refusal)
		}
	}
	for k, was := range old.cash {
		if is, ok := now.cash[k]; !ok || is != was {
			f.add("I4", "cash_changed", was.ref, "shard %d: %s %q of %s was %+v at %s and now is %+v", now.number, k.kind, k.key, k.user, was, clock(old.at), is)
		}
	}
}

// moved says what is wrong about a hold that was one thing and is another.
func moved(was, is *hold) string {
	if was.sender != is.sender || was.recipient != is.recipient || was.amount != is.amount || was.currency != is.currency ||
		was.reference != is.reference || !was.unlockAt.Equal(is.unlockAt) || !was.createdAt.Equal(is.createdAt) {
		return "terms_changed"
	}
	if was.status != is.status && !reachable(was.status, is.status) {
		return "status_moved_off_the_graph"
	}
	if was.verdict != holdfast.NoVerdict && was.verdict != is.verdict {
		return "verdict_changed"
	}
	if !was.claimedAt.IsZero() && !was.claimedAt.Equal(is.claimedAt) ||
		!was.decidedAt.IsZero() && (!was.decidedAt.Equal(is.decidedAt) || was.paymentID != is.paymentID || was.refusal != is.refusal) {
		return "decision_changed"
	}
	if was.ended() && *was != *is {
		return "ended_hold_changed"
	}
	return ""
}

// reachable: some path of the graph leads there.
func reachable(from, to holdfast.Status) bool {
	for s := holdfast.Pending; s <= holdfast.Cancelled; s++ {
		if holdfast.CanMove(from, s) && (s == to || reachable(s, to)) {
			return true
		}
	}
	return false
}

// credit is one credit as the recipient's shard posted it.
type credit struct {
	entry
	shard int
}

// creditsOf collects the legs that put coins on recipients' books, of the shards
// that were read.
func (w *world) creditsOf() map[holdfast.HoldID][]credit {
	all := map[holdfast.HoldID][]credit{}
	for _, s := range w.shards {
		if s == nil {
			continue
		}
		for i := range s.entries {
			if e := &s.entries[i]; e.movement == holdfast.MoveCredit && e.book == holdfast.BookAvailable {
				all[e.ref] = append(all[e.ref], credit{*e, s.number})
			}
		}
	}
	return all
}

// across proves what crosses shards, without a common snapshot, by two rounds:
// everything of round one was read before anything of round two. A credit is
// posted after its verdict was committed, and EXECUTED is committed after the
// credit. So each credit of round one has its verdict in round two, and each
// EXECUTED of round one its credit in round two. A hold that is paid and not
// EXECUTED is an open attempt, which drivable has checked.
func (f *finder) across(m *holdfast.ShardMap, one, two *world) {
	for id, list := range one.creditsOf() {
		owner := two.shards[m.OfHold(id)]
		if owner == nil {
			continue
		}
		h := owner.holds[id]
		if len(list) > 1 {
			f.add("I2", "credited_twice", id, "credited %d times", len(list))
		}
		for _, c := range list {
			switch {
			case h == nil || h.verdict != holdfast.Paid:
				f.add("I2", "credit_without_verdict", id, "credited on shard %d, and shard %d has no verdict paid: %s", c.shard, owner.number, c.entry)
			case c.user != h.recipient || c.amount != h.amount || c.currency != h.currency:
				f.add("I2", "credit_differs", id, "credited on shard %d to another user, amount or currency than the hold's: %s", c.shard, c.entry)
			case c.shard != m.OfUser(h.recipient):
				f.add("I9", "credit_misplaced", id, "credited on shard %d, its recipient lives on %d", c.shard, m.OfUser(h.recipient))
			}
		}
	}
	credits := two.creditsOf()
	for _, s := range one.shards {
		if s == nil {
			continue
		}
		for id, h := range s.holds {
			at := two.shards[m.OfUser(h.recipient)]
			if h.status == holdfast.Executed && at != nil && len(credits[id]) == 0 {
				f.add("I2", "credit_missing", id, "EXECUTED at %s and nobody was credited on shard %d", clock(h.executedAt), at.number)
			}
		}
	}
}
