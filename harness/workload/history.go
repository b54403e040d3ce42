package workload

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Outcome is what a client knows of an operation once it stopped asking.
type Outcome string

// The three outcomes. An operation in flight is unknown until it is answered.
const (
	OK      Outcome = "ok"      // done, and answered so
	Refused Outcome = "refused" // definitely not done, now and later
	Unknown Outcome = "unknown" // never answered: it may take effect at any time, or never
)

// Kinds of operations.
const (
	KindCreate    = "create"     // POST /v1/holds
	KindBatchItem = "batch_item" // one item of POST /v1/holds:batchCreate
	KindGet       = "get"        // GET /v1/holds/{id}
	KindList      = "list"       // GET /v1/holds?sender_id=…&idempotency_key=…
	KindCancel    = "cancel"     // DELETE /v1/holds/{id}
	KindDeposit   = "deposit"    // POST /v1/accounts/{id}/deposits; the account is Recipient
	KindWithdraw  = "withdraw"   // POST /v1/accounts/{id}/withdrawals; the account is Sender
)

// Kinds is every kind, in the order of reports.
var Kinds = []string{KindCreate, KindBatchItem, KindGet, KindList, KindCancel, KindDeposit, KindWithdraw}

// Never is the Return of an operation that has not been answered.
const Never int64 = math.MaxInt64

// Op is one logical operation: one intent of one client with all its retries.
// Call and Return are nanoseconds since the history's start on one monotonic
// clock, so that the order of a return and a later call is real.
type Op struct {
	ID        int              `json:"id"`
	Client    int              `json:"client"` // -1: the preparation, -2: the settling
	Kind      string           `json:"kind"`
	Key       string           `json:"key,omitempty"`
	Hold      holdfast.HoldID  `json:"hold,omitzero"`
	Sender    holdfast.UserID  `json:"sender,omitzero"`
	Recipient holdfast.UserID  `json:"recipient,omitzero"`
	Amount    int64            `json:"amount,omitzero"`
	UnlockAt  time.Time        `json:"unlock_at,omitzero"`  // as answered
	UnlockSec int64            `json:"unlock_sec,omitzero"` // as asked
	Call      int64            `json:"call"`
	Return    int64            `json:"return"`
	Outcome   Outcome          `json:"outcome"`
	HTTP      int              `json:"http,omitzero"` // of the last answer; 0: there was none
	Code      string           `json:"code,omitempty"`
	Status    holdfast.Status  `json:"status,omitzero"` // of the hold as answered
	Verdict   holdfast.Verdict `json:"verdict,omitzero"`
	Refunded  bool             `json:"refunded,omitempty"`
	// CancelledAt is when, as answered and so by the clock of the shard.
	CancelledAt time.Time `json:"cancelled_at,omitzero"`
	Replayed    bool      `json:"replayed,omitempty"`
	Attempts    int       `json:"attempts"`
	Failed      int       `json:"failed,omitempty"` // attempts with no answer, or one of 500 or more
	Before      string    `json:"before,omitempty"` // the answers before the last one, for the reader of a report
	// Nothing: no attempt of this operation can have done anything, if the
	// product keeps its word: each was answered with a promise of that (429,
	// 503 overloaded or shard_unavailable, 409 idempotency_in_flight) or found
	// nobody who listened. The outcome is unknown all the same; a checker may
	// hold the product to the promise, over all operations of one key.
	Nothing bool `json:"nothing,omitempty"`
	// GaveUp is when the client stopped asking; 0 while it asks or was answered.
	GaveUp int64  `json:"gave_up,omitzero"`
	Error  string `json:"error,omitempty"` // of the last attempt, for the reader of a report
}

// Open reports whether the operation is still being asked for.
func (o Op) Open() bool { return o.Return == Never && o.GaveUp == 0 }

// History is every operation of a run. It is safe for concurrent use. An
// operation enters at its invocation, so that a checker that looks in the
// middle of a run sees what is in flight.
type History struct {
	Start time.Time // what Call and Return count from
	Seed  int64

	mu     sync.Mutex
	ops    []Op
	counts Counts
}

// NewHistory starts an empty history now.
func NewHistory(seed int64) *History { return &History{Start: time.Now(), Seed: seed} }

// Now is the time on the history's clock.
func (h *History) Now() int64 { return int64(time.Since(h.Start)) }

// Begin records an invocation and returns the operation's id.
func (h *History) Begin(op Op) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	op.ID, op.Call, op.Return, op.Outcome, op.GaveUp = len(h.ops), h.Now(), Never, Unknown, 0
	h.ops = append(h.ops, op)
	return op.ID
}

// End records what became of an operation: op.ID names it, its invocation
// stays. It returns the operation as recorded.
func (h *History) End(op Op) Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	op.Call, op.Return, op.GaveUp = h.ops[op.ID].Call, h.Now(), 0
	if op.Outcome == Unknown || op.Outcome == "" {
		op.Outcome, op.GaveUp, op.Return = Unknown, op.Return, Never
	}
	h.ops[op.ID] = op
	h.count(op)
	return op
}

// count adds an operation that has come to an end. h.mu is held, or h is not
// shared yet.
func (h *History) count(op Op) {
	if h.counts == nil {
		h.counts = Counts{}
	}
	if h.counts[op.Kind] == nil {
		h.counts[op.Kind] = map[Outcome]int{}
	}
	h.counts[op.Kind][op.Outcome]++
}

// Record adds an operation that is over, with its own Call and Return.
func (h *History) Record(op Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op.ID = len(h.ops)
	h.ops = append(h.ops, op)
	h.count(op)
}

// Ops is a copy of everything so far; operations in flight are unknown.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}

// Len is the number of operations invoked so far.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}

// Counts says how many operations of each kind had each outcome.
type Counts map[string]map[Outcome]int

// Of is the number of operations of a kind ("": all) with an outcome.
func (c Counts) Of(kind string, o Outcome) (n int) {
	for k, by := range c {
		if kind == "" || k == kind {
			n += by[o]
		}
	}
	return n
}

// Counts counts the operations that have come to an end; those in flight are
// left out.
func (h *History) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := Counts{}
	for kind, by := range h.counts {
		out[kind] = maps.Clone(by)
	}
	return out
}

// Bounds are the coins that the world may have from outside: deposits minus
// withdrawals, where each unknown one may or may not have happened.
type Bounds struct{ Least, Most int64 }

// Holds reports whether a total lies within.
func (b Bounds) Holds(total int64) bool { return b.Least <= total && total <= b.Most }

// cashKey is what makes two deposits or two withdrawals the same.
type cashKey struct {
	kind, key string
	user      holdfast.UserID
}

func cashOf(o Op) (k cashKey, ok bool) {
	switch o.Kind {
	case KindDeposit:
		return cashKey{o.Kind, o.Key, o.Recipient}, true
	case KindWithdraw:
		return cashKey{o.Kind, o.Key, o.Sender}, true
	}
	return k, false
}

// Money is the total over every account, escrow and transit, as far as the
// answers tell. For a cut under load take the bounds before and after it: what
// was in flight at neither counts exactly, and any sum in between is legal.
// One key counts once however many operations carried it.
func (h *History) Money() (b Bounds) {
	done, open := map[cashKey]int64{}, map[cashKey]int64{}
	never := map[cashKey]bool{}
	for _, o := range h.Ops() {
		k, ok := cashOf(o)
		switch {
		case !ok:
		case o.Outcome == OK:
			done[k] = o.Amount
		case o.Outcome == Unknown:
			open[k] = max(open[k], o.Amount)
		case remembered(o):
			never[k] = true
		}
	}
	for k, amount := range done {
		if k.kind == KindWithdraw {
			amount = -amount
		}
		b.Least, b.Most = b.Least+amount, b.Most+amount
	}
	for k, amount := range open {
		if _, certain := done[k]; certain || never[k] {
			continue
		}
		if k.kind == KindDeposit {
			b.Most += amount
		} else {
			b.Least -= amount
		}
	}
	return b
}

// head is the first line of an exported history.
type head struct {
	Format string    `json:"format"`
	Start  time.Time `json:"start"`
	Seed   int64     `json:"seed"`
}

const format = "holdfast-history-1"

// Export writes the history as JSON lines: a head, then one operation a line.
func (h *History) Export(w io.Writer) error {
	buf := bufio.NewWriter(w)
	enc := json.NewEncoder(buf)
	if err := enc.Encode(head{format, h.Start, h.Seed}); err != nil {
		return fmt.Errorf("export a history: %w", err)
	}
	for _, o := range h.Ops() {
		if err := enc.Encode(o); err != nil {
			return fmt.Errorf("export operation %d: %w", o.ID, err)
		}
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("export a history: %w", err)
	}
	return nil
}

// Import reads what Export wrote, so that a run can be checked again. The
// monotonic clock does not survive: nothing may be added to the result.
func Import(r io.Reader) (*History, error) {
	dec := json.NewDecoder(r)
	var hd head
	if err := dec.Decode(&hd); err != nil {
		return nil, fmt.Errorf("import a history: %w", err)
	}
	if hd.Format != format {
		return nil, fmt.Errorf("import a history: the format is %q, want %q", hd.Format, format)
	}
	h := &History{Start: hd.Start, Seed: hd.Seed}
	for {
		var o Op
		if err := dec.Decode(&o); err == io.EOF {
			return h, nil
		} else if err != nil {
			return nil, fmt.Errorf("import operation %d: %w", len(h.ops), err)
		}
		if o.ID != len(h.ops) {
			return nil, fmt.Errorf("import operation %d: it calls itself %d; a line is missing or out of order", len(h.ops), o.ID)
		}
		h.ops = append(h.ops, o)
		if !o.Open() {
			h.count(o)
		}
	}
}
