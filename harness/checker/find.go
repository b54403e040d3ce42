package checker

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

// Violation is one broken promise. Detail says what was found and then all that
// is known of the hold: its row, entries and barrier rows on every shard, what
// the payment API did, and what the clients asked and were told.
type Violation struct {
	Invariant string    `json:"invariant"` // I1 … I15 of the design; PROOF: the product's own proof
	Check     string    `json:"check"`     // fixed words, one per check
	Detail    string    `json:"detail"`
	Hold      string    `json:"hold,omitempty"`
	At        time.Time `json:"at"`
}

func (v Violation) String() string {
	return fmt.Sprintf("%s %s: %s", v.Invariant, v.Check, v.Detail)
}

// maxPerCheck bounds how many violations of one check are told one by one: a bug
// that breaks every hold must not drown the report.
const maxPerCheck = 10

// finder collects the violations of one cut.
type finder struct {
	clocks time.Duration // Config.Clocks
	found  []found
	count  map[string]int
}

type found struct {
	Violation
	id holdfast.HoldID
}

func (f *finder) add(invariant, check string, id holdfast.HoldID, format string, args ...any) {
	if f.count == nil {
		f.count = map[string]int{}
	}
	f.count[invariant+check]++
	if f.count[invariant+check] > maxPerCheck {
		return
	}
	v := Violation{Invariant: invariant, Check: check, Detail: fmt.Sprintf(format, args...), At: time.Now().UTC()}
	if !id.IsZero() {
		v.Hold = id.String()
	}
	f.found = append(f.found, found{v, id})
}

// list is what was found, each with the story of its hold.
func (f *finder) list(w *world, ops func(holdfast.HoldID) []workload.Op) []Violation {
	var list []Violation
	for _, x := range f.found {
		if !x.id.IsZero() {
			var told []workload.Op
			if ops != nil {
				told = ops(x.id)
			}
			x.Detail += "\n" + w.describe(x.id, told)
		}
		if n := f.count[x.Invariant+x.Check] - maxPerCheck; n > 0 {
			x.Detail += fmt.Sprintf("\n(and %d more of this kind)", n)
		}
		list = append(list, x.Violation)
	}
	return list
}

// describe tells everything that is known of one hold.
func (w *world) describe(id holdfast.HoldID, ops []workload.Op) string {
	var b strings.Builder
	for _, s := range w.shards {
		if s == nil {
			continue
		}
		at := fmt.Sprintf("  shard %d: ", s.number)
		if h := s.holds[id]; h != nil {
			fmt.Fprintln(&b, at+"row "+h.String())
		}
		for _, e := range s.legs(id) {
			fmt.Fprintln(&b, at+"entry "+e.String())
		}
		for _, m := range s.barrier[id] {
			fmt.Fprintf(&b, "%sbarrier row branch 0%d %s, bucket %d\n", at, m.branch, opName(m.op), m.bucket)
		}
		if a, ok := s.attempts[id]; ok {
			fmt.Fprintf(&b, "%sattempts row: %d made, next at %s, last error %q\n", at, a.n, a.nextAt.UTC().Format(clockFormat), a.lastError)
		}
		for _, l := range s.letters[id] {
			fmt.Fprintf(&b, "%sdead letter %s, unrefunded %t, resolution %q, closed %s\n", at, l.code, l.unrefunded, l.resolution, clock(l.closedAt))
		}
		if s.released[id] {
			fmt.Fprintln(&b, at+"released by an operator")
		}
	}
	if w.effects != nil {
		for _, o := range w.effects.byHold[id] {
			fmt.Fprintf(&b, "  payment API: %s\n", outcomeText(o))
		}
	}
	slices.SortStableFunc(ops, func(a, b workload.Op) int { return int(min(1, max(-1, a.Call-b.Call))) })
	for _, o := range ops {
		fmt.Fprintln(&b, "  client "+opText(o))
	}
	if b.Len() == 0 {
		return "  nothing at all is known of hold " + id.String()
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (h *hold) String() string {
	return fmt.Sprintf("%s %s verdict %q, %d %s from %s to %s, unlock %s, created %s, claimed %s, next attempt %s, decided %s, executed %s, cancelled %s, refunded %s, payment %q, refusal %q",
		h.id, h.status, h.verdict, h.amount, h.currency, h.sender, h.recipient, h.unlockAt.UTC().Format(time.RFC3339Nano), clock(h.createdAt),
		clock(h.claimedAt), clock(h.nextAttemptAt), clock(h.decidedAt), clock(h.executedAt), clock(h.cancelledAt), clock(h.refundedAt),
		h.paymentID, h.refusal)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(clockFormat)
}

func opName(op int16) string {
	if op < 1 || op > 3 {
		return fmt.Sprintf("op %d", op)
	}
	return [...]string{"", "try", "confirm", "cancel"}[op]
}

// opText is one operation of the history in one line.
func opText(o workload.Op) string {
	end := "never answered"
	if o.Return != workload.Never {
		end = "to " + seconds(o.Return)
	}
	text := fmt.Sprintf("%d op %d: %s key %q at %s %s: %s", o.Client, o.ID, o.Kind, o.Key, seconds(o.Call), end, o.Outcome)
	if o.HTTP != 0 {
		text += fmt.Sprintf(", HTTP %d %s", o.HTTP, o.Code)
	}
	if o.Status != holdfast.StatusUnknown {
		text += fmt.Sprintf(", told %s", o.Status)
	}
	if o.Replayed {
		text += ", replayed"
	}
	return text + fmt.Sprintf(", %d attempts", o.Attempts)
}

func seconds(ns int64) string { return fmt.Sprintf("%.6fs", float64(ns)/1e9) }
