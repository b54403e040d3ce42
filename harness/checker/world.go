package checker

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// shard is everything that one shard holds, as one snapshot saw it.
type shard struct {
	number    int
	self      int // what the shard calls itself
	at        time.Time
	watermark holdfast.HoldID
	holds     map[holdfast.HoldID]*hold
	entries   []entry
	barrier   map[holdfast.HoldID][]mark
	accounts  map[account]balance
	keys      map[key]outcome
	cash      map[cashKey]cash
	attempts  map[holdfast.HoldID]attempt
	letters   map[holdfast.HoldID][]letter
	released  map[holdfast.HoldID]bool // by an operator

	byRef map[holdfast.HoldID][]int32 // ref → places in entries
}

// hold is a row of the holds table, and the shard it was found on.
type hold struct {
	id                                                                       holdfast.HoldID
	sender, recipient                                                        holdfast.UserID
	amount                                                                   int64
	currency, reference                                                      string
	unlockAt, createdAt                                                      time.Time
	claimedAt, nextAttemptAt, decidedAt, executedAt, cancelledAt, refundedAt time.Time // zero: not yet
	status                                                                   holdfast.Status
	verdict                                                                  holdfast.Verdict
	paymentID, refusal                                                       string
	shard                                                                    int
}

// inEscrow: its coins are on the sender's held book (I2).
func (h *hold) inEscrow() bool {
	switch h.status {
	case holdfast.Pending:
		return true
	case holdfast.Executing:
		return h.verdict != holdfast.Paid
	case holdfast.Failed:
		return h.refundedAt.IsZero()
	}
	return false
}

// ended: nothing is left to do for it.
func (h *hold) ended() bool {
	return h.status.Ended() && (h.status != holdfast.Failed || !h.refundedAt.IsZero())
}

// endedAt is when the last thing was done for a hold that has ended.
func (h *hold) endedAt() time.Time {
	switch h.status {
	case holdfast.Executed:
		return h.executedAt
	case holdfast.Cancelled:
		return h.cancelledAt
	}
	return h.refundedAt
}

// entry is a row of the ledger. It is comparable: two equal entries are the same
// leg twice.
type entry struct {
	postedUS int64 // Unix microseconds, all that PostgreSQL keeps
	ref      holdfast.HoldID
	user     holdfast.UserID
	amount   int64
	seq      int64 // 0: none
	after    int64 // −1: none
	movement holdfast.Movement
	book     holdfast.Book
	currency string
}

func (e entry) String() string {
	text := fmt.Sprintf("%s %s %s %+d %s", e.movement, e.book, e.user, e.amount, e.currency)
	if e.seq != 0 {
		text += fmt.Sprintf(" (entry %d, then %d)", e.seq, e.after)
	}
	return text + " at " + time.UnixMicro(e.postedUS).UTC().Format(clockFormat)
}

const clockFormat = "15:04:05.000000"

// mark is a barrier row. branch: 1 sender, 2 recipient; op: 1 try, 2 confirm, 3 cancel.
type mark struct{ branch, op, bucket int16 }

type account struct {
	user     holdfast.UserID
	currency string
}

type balance struct{ available, held, seq int64 }

// key is the scope of a create's idempotency, outcome what became of it.
type key struct {
	sender holdfast.UserID
	key    string
}

type outcome struct {
	hold    holdfast.HoldID // zero: refused
	refusal string
}

type cashKey struct {
	user holdfast.UserID
	kind holdfast.Movement
	key  string
}

type cash struct {
	ref      holdfast.HoldID
	amount   int64
	currency string
	refusal  string
}

type attempt struct {
	nextAt    time.Time
	n         int
	lastError string
	unsure    bool // something was sent once of which nothing was known
}

type letter struct {
	code, resolution string
	unrefunded       bool
	closedAt         time.Time
}

func (s *shard) index() {
	s.byRef = make(map[holdfast.HoldID][]int32, len(s.entries)/2)
	for i := range s.entries {
		s.byRef[s.entries[i].ref] = append(s.byRef[s.entries[i].ref], int32(i))
	}
}

// legs are the entries of a hold, a deposit or a withdrawal on this shard.
func (s *shard) legs(ref holdfast.HoldID) []entry {
	var list []entry
	for _, i := range s.byRef[ref] {
		list = append(list, s.entries[i])
	}
	return list
}

// moved reports whether a movement was posted for ref on this shard.
func (s *shard) moved(ref holdfast.HoldID, m holdfast.Movement) bool {
	return slices.ContainsFunc(s.byRef[ref], func(i int32) bool { return s.entries[i].movement == m })
}

// letterOf finds a dead letter by its code.
func (s *shard) letterOf(id holdfast.HoldID, code string) (letter, bool) {
	for _, l := range s.letters[id] {
		if l.code == code {
			return l, true
		}
	}
	return letter{}, false
}

// saidByPerson reports whether an operator has decided the outcome of a hold
// that was given up: then the payment API may know otherwise.
func (s *shard) saidByPerson(id holdfast.HoldID, resolution string) bool {
	l, ok := s.letterOf(id, "outcome_unknown")
	return ok && l.resolution == resolution
}

// world is all shards, each under a snapshot of its own, and what the payment
// API had done before the first of them was taken. A shard that could not be
// read is nil.
type world struct {
	shards  []*shard
	effects *effects // nil: not read
	began   time.Time
	errs    []error
}

// hold finds a hold on the shard that owns it; nil if that was not read or has
// no such hold.
func (w *world) hold(m *holdfast.ShardMap, id holdfast.HoldID) *hold {
	if s := w.shards[m.OfHold(id)]; s != nil {
		return s.holds[id]
	}
	return nil
}
