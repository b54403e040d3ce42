package checker

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// eachHold checks every hold of one shard against its entries, barrier rows,
// key, and the columns that its status demands.
func (f *finder) eachHold(m *holdfast.ShardMap, s *shard) {
	keyOf := make(map[holdfast.HoldID]int, len(s.holds))
	for k, o := range s.keys {
		if o.hold.IsZero() {
			continue
		}
		keyOf[o.hold]++
		if h := s.holds[o.hold]; h == nil {
			f.add("I9", "key_without_hold", o.hold, "shard %d: key %q of %s names a hold that does not exist", s.number, k.key, k.sender)
		} else if h.sender != k.sender {
			f.add("I9", "key_of_another", o.hold, "shard %d: key %q of %s names a hold of %s", s.number, k.key, k.sender, h.sender)
		}
	}
	for id, h := range s.holds {
		f.legal(s, h)
		f.entriesOf(m, s, h)
		f.barrierOf(m, s, h)
		f.drivable(s, h)
		if n := keyOf[id]; n != 1 {
			f.add("I9", "hold_without_one_key", id, "shard %d: %d idempotency keys name this hold", s.number, n)
		}
		if id.UnlockAtMS() != h.unlockAt.UnixMilli() || h.unlockAt.Nanosecond()%1e6 != 0 {
			f.add("I8", "maturity_differs", id, "the id matures at %s, the row at %s", id.UnlockAt(), h.unlockAt)
		}
		if id.Bucket() != h.sender.Bucket() || m.OfHold(id) != s.number {
			f.add("I9", "hold_misplaced", id, "it is on shard %d, its id says %d, its sender %d", s.number, m.OfHold(id), m.OfUser(h.sender))
		}
	}
	f.strangers(m, s)
}

// legal: the columns are those that status and verdict allow, in an order of
// times that can happen, and never before maturity (I5, I8).
func (f *finder) legal(s *shard, h *hold) {
	state := fmt.Sprintf("%s %s", h.status, h.verdict)
	var want string // c claimed, n next attempt, d decided, e executed, x cancelled, p payment id, r refusal code
	switch state {
	case "PENDING ":
		want = ""
	case "EXECUTING ":
		want = "cn"
	case "EXECUTING paid":
		want = "cndp"
	case "EXECUTED paid":
		want = "cndep"
	case "FAILED refused":
		want = "cndr"
	case "CANCELLED ":
		want = "x"
	default:
		f.add("I5", "state_illegal", h.id, "shard %d: status %s with verdict %q does not exist", s.number, h.status, h.verdict)
		return
	}
	for _, column := range []struct {
		letter string
		set    bool
	}{{"c", !h.claimedAt.IsZero()}, {"n", !h.nextAttemptAt.IsZero()}, {"d", !h.decidedAt.IsZero()}, {"e", !h.executedAt.IsZero()},
		{"x", !h.cancelledAt.IsZero()}, {"p", h.paymentID != ""}, {"r", h.refusal != ""}} {
		if strings.Contains(want, column.letter) != column.set {
			f.add("I5", "state_illegal", h.id, "shard %d: a hold that is %s must have columns %q and no others; %q is %t", s.number, state, want, column.letter, column.set)
			return
		}
	}
	if !h.refundedAt.IsZero() && h.status != holdfast.Failed {
		f.add("I5", "state_illegal", h.id, "shard %d: %s and refunded", s.number, state)
	}
	for _, pair := range [][2]time.Time{{h.createdAt, h.claimedAt}, {h.claimedAt, h.decidedAt}, {h.decidedAt, h.executedAt},
		{h.decidedAt, h.refundedAt}, {h.createdAt, h.cancelledAt}} {
		if !pair[1].IsZero() && pair[1].Add(f.clocks).Before(pair[0]) {
			f.add("I5", "times_out_of_order", h.id, "shard %d: %s is before %s", s.number, clock(pair[1]), clock(pair[0]))
		}
	}
	// The claim is the decision: no fault of any clock excuses an early one.
	for t, tolerance := range map[time.Time]time.Duration{h.decidedAt: f.clocks, h.executedAt: f.clocks, h.claimedAt: 0} {
		if !t.IsZero() && t.Add(tolerance).Before(h.unlockAt) {
			f.add("I8", "early", h.id, "shard %d: something was done at %s, %s before maturity", s.number, clock(t), h.unlockAt.Sub(t))
			break
		}
	}
	if h.status == holdfast.Cancelled && !h.cancelledAt.Before(h.unlockAt) && !s.released[h.id] {
		f.add("I6", "cancelled_after_maturity", h.id, "shard %d: cancelled %s after maturity, and no operator released it", s.number, h.cancelledAt.Sub(h.unlockAt))
	}
}

// entriesOf: the movements of a hold are exactly those that its state tells of,
// of its amount and on its users' books (I2: escrow and transit are explained
// hold by hold).
func (f *finder) entriesOf(m *holdfast.ShardMap, s *shard, h *hold) {
	local := m.OfUser(h.recipient) == s.number
	want := map[holdfast.Movement]bool{
		holdfast.MoveReserve: true,
		holdfast.MoveSettle:  h.verdict == holdfast.Paid,
		holdfast.MoveCredit:  h.status == holdfast.Executed && local,
		holdfast.MoveRefund:  !h.refundedAt.IsZero(),
		holdfast.MoveCancel:  h.status == holdfast.Cancelled,
	}
	for move := holdfast.MoveReserve; move <= holdfast.MoveWithdraw; move++ {
		has := s.moved(h.id, move)
		// A credit on this shard comes with EXECUTED or, if the two were two
		// transactions, before it.
		if move == holdfast.MoveCredit && has && local && h.verdict == holdfast.Paid {
			continue
		}
		if has && !want[move] {
			f.add("I2", "entry_unexpected", h.id, "shard %d: %s was posted, which a hold that is %s %s does not have", s.number, move, h.status, h.verdict)
		} else if !has && want[move] {
			f.add("I2", "entry_missing", h.id, "shard %d: %s was not posted, which a hold that is %s %s must have", s.number, move, h.status, h.verdict)
		}
	}
	for _, i := range s.byRef[h.id] {
		e := &s.entries[i]
		who := h.sender
		if e.movement == holdfast.MoveCredit {
			who = h.recipient
		}
		if e.user != who || e.currency != h.currency || max(e.amount, -e.amount) != h.amount {
			f.add("I2", "entry_differs", h.id, "shard %d: a movement of another user, amount or currency than the hold's: %s", s.number, e)
		}
		if e.postedUS+f.clocks.Microseconds() < h.unlockAt.UnixMicro() && (e.movement == holdfast.MoveSettle || e.movement == holdfast.MoveCredit || e.movement == holdfast.MoveRefund) {
			f.add("I8", "early", h.id, "shard %d: posted before maturity: %s", s.number, e)
		}
	}
}

// barrierOf: each step that a hold's state tells of has its barrier row, once,
// with the bucket of the user whose money moved, and no other has one (I11).
func (f *finder) barrierOf(m *holdfast.ShardMap, s *shard, h *hold) {
	local := m.OfUser(h.recipient) == s.number
	want := map[[2]int16]bool{{1, 1}: true}
	if h.verdict == holdfast.Paid {
		want[[2]int16{1, 2}] = true
	}
	if h.status == holdfast.Cancelled || !h.refundedAt.IsZero() {
		want[[2]int16{1, 3}] = true
	}
	if local && s.moved(h.id, holdfast.MoveCredit) {
		want[[2]int16{2, 2}] = true
	}
	for _, b := range s.barrier[h.id] {
		step := [2]int16{b.branch, b.op}
		if !want[step] {
			f.add("I11", "barrier_unexpected", h.id, "shard %d: barrier row branch 0%d %s twice or of a step that a hold that is %s %s has not done", s.number,
				b.branch, opName(b.op), h.status, h.verdict)
		}
		delete(want, step)
		owner := h.sender.Bucket()
		if b.branch == 2 {
			owner = h.recipient.Bucket()
		}
		if int(b.bucket) != owner {
			f.add("I11", "barrier_owner_wrong", h.id, "shard %d: barrier row branch 0%d %s belongs to bucket %d and not %d", s.number, b.branch, opName(b.op), b.bucket, owner)
		}
	}
	for step := range want {
		f.add("I11", "barrier_missing", h.id, "shard %d: no barrier row branch 0%d %s, though the hold is %s %s", s.number, step[0], opName(step[1]), h.status, h.verdict)
	}
}

// drivable: whatever is not ended will be found again by somebody (I12).
func (f *finder) drivable(s *shard, h *hold) {
	_, attempted := s.attempts[h.id]
	below := string(h.id[:]) < string(s.watermark[:])
	if !h.status.Ended() && below && !attempted {
		f.add("I12", "forgotten", h.id, "shard %d: %s, below the watermark and without a row in attempts: no driver will find it", s.number, h.status)
	}
	if h.status != holdfast.Failed {
		return
	}
	queued := false
	for _, l := range s.letters[h.id] {
		queued = queued || l.unrefunded
	}
	if queued == !h.refundedAt.IsZero() {
		f.add("I12", "refund_queue_wrong", h.id, "shard %d: refunded %s, and in the refund worker's queue: %t", s.number, clock(h.refundedAt), queued)
	}
	if _, ok := s.letterOf(h.id, h.refusal); !ok {
		f.add("I5", "dead_letter_missing", h.id, "shard %d: FAILED with %q and no dead letter of that code", s.number, h.refusal)
	}
}

// strangers are entries and barrier rows whose hold is not on this shard: the
// credits of other shards' holds, and Cancels that came before their Try.
func (f *finder) strangers(m *holdfast.ShardMap, s *shard) {
	for ref, legs := range s.byRef {
		if s.holds[ref] != nil {
			continue
		}
		for _, i := range legs {
			e := &s.entries[i]
			if e.movement >= holdfast.MoveDeposit {
				continue
			}
			if e.movement != holdfast.MoveCredit || m.OfHold(ref) == s.number {
				f.add("I2", "entry_without_hold", ref, "shard %d: no hold explains %s", s.number, e)
				break
			}
			if e.postedUS+f.clocks.Microseconds() < ref.UnlockAt().UnixMicro() {
				f.add("I8", "early", ref, "shard %d: posted before maturity: %s", s.number, e)
			}
		}
		if s.moved(ref, holdfast.MoveCredit) && len(s.barrier[ref]) == 0 {
			f.add("I11", "barrier_missing", ref, "shard %d: a credit without barrier row branch 02 confirm", s.number)
		}
	}
	for gid, marks := range s.barrier {
		if s.holds[gid] != nil {
			continue
		}
		credit := len(marks) == 1 && marks[0].branch == 2 && marks[0].op == 2
		nullCancel := len(marks) == 2 && marks[0].branch == 1 && marks[1].branch == 1 && marks[0].op+marks[1].op == 4
		if !credit && !nullCancel {
			f.add("I11", "barrier_unexpected", gid, "shard %d: barrier rows that no hold explains", s.number)
		} else if credit != s.moved(gid, holdfast.MoveCredit) {
			f.add("I11", "entry_missing", gid, "shard %d: barrier row branch 02 confirm without the credit's entries", s.number)
		}
	}
}
