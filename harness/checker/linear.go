package checker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

// states is a set of states that one hold, seen through its (sender, key), may
// be in. The clients do not see what the scheduler does, so the model carries
// every state that is possible.
type states uint16

const (
	absent    states = 1 << iota
	keyUsed          // the create was refused and the refusal is remembered
	pending          //
	executing        // claimed, no verdict
	paid             // EXECUTING, verdict paid
	executed         //
	failed           // refused, not yet refunded
	refunded         // FAILED and refunded
	cancelled        //

	noHold = absent | keyUsed
	isHold = pending | executing | paid | executed | failed | refunded | cancelled
)

var stateNames = []string{"absent", "key used", "PENDING", "EXECUTING", "EXECUTING paid", "EXECUTED", "FAILED", "FAILED refunded", "CANCELLED"}

func (s states) String() string {
	var names []string
	for i, name := range stateNames {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " or ")
}

// settling adds what the scheduler can have done unseen: from PENDING only once
// the hold has matured, from there on always.
func (s states) settling(matured, released bool) states {
	if s&pending != 0 && matured {
		s |= executing
		if released {
			s |= cancelled
		}
	}
	if s&executing != 0 {
		s |= paid | failed
	}
	if s&paid != 0 {
		s |= executed
	}
	if s&failed != 0 {
		s |= refunded
	}
	return s
}

// shown is the set that an answer with this hold leaves possible.
func shown(status holdfast.Status, verdict holdfast.Verdict, isRefunded bool) states {
	switch status {
	case holdfast.Pending:
		return pending
	case holdfast.Executing:
		if verdict == holdfast.Paid {
			return paid
		}
		return executing
	case holdfast.Executed:
		return executed
	case holdfast.Failed:
		if isRefunded {
			return refunded
		}
		return failed
	case holdfast.Cancelled:
		return cancelled
	}
	return 0
}

// step is one operation as the model sees it.
type step struct {
	op      workload.Op
	what    string // kind, or one of the parts below
	matured bool   // its answer came when the hold may have matured
	early   bool   // it was invoked before the hold had surely matured
	release bool   // an operator has released this hold
}

// Parts of operations. A create that was answered as a replay has two moments:
// its effect, perhaps at an earlier attempt, and the look at the hold.
const (
	partEffect = "create (effect)"
	partLook   = "create (look)"
	partEnd    = "at rest"
)

// after is the model of one hold: the states possible after a step, none if the
// answer contradicts them all.
func (s states) after(x step) states {
	s = s.settling(x.matured, x.release)
	o := x.op
	unknown := o.Outcome == workload.Unknown
	switch x.what {
	case workload.KindCreate, workload.KindBatchItem:
		return s.create(o, unknown)
	case partEffect:
		return s.createDone() & isHold
	case workload.KindCancel:
		return s.cancel(x, unknown)
	}
	// Reads and looks. What is not answered has shown nothing.
	switch {
	case unknown:
		return s
	case o.Outcome == workload.Refused && o.Code == "hold_not_found", o.Outcome == workload.OK && o.Hold.IsZero():
		return s & noHold
	case o.Outcome == workload.Refused:
		return s
	}
	return s & shown(o.Status, o.Verdict, o.Refunded)
}

// createDone: an absent hold is there, whatever else stays as it is.
func (s states) createDone() states {
	if s&absent != 0 {
		return s&^absent | pending
	}
	return s
}

func (s states) create(o workload.Op, unknown bool) states {
	switch {
	case unknown && o.Nothing:
		return s // every attempt was answered with the promise that nothing was done
	case unknown:
		if s&absent != 0 {
			s |= pending | keyUsed
		}
		return s
	case o.Outcome == workload.OK:
		if s&absent == 0 {
			return 0
		}
		return pending & shown(o.Status, o.Verdict, o.Refunded)
	case o.Code == "insufficient_funds":
		if s&noHold == 0 {
			return 0
		}
		return keyUsed
	case o.Code == "idempotency_key_reused":
		return s &^ absent
	}
	return s
}

func (s states) cancel(x step, unknown bool) states {
	o := x.op
	can := s&pending != 0 && x.early
	switch {
	case unknown && o.Nothing:
		return s
	case unknown && can:
		return s | cancelled
	case unknown:
		return s
	case o.Outcome == workload.OK && (can || s&cancelled != 0):
		return cancelled
	case o.Outcome == workload.OK:
		return 0
	}
	switch o.Code {
	case "hold_matured":
		s &= executing | paid | pending
		if !x.matured {
			return 0
		}
	case "hold_already_executed":
		s &= executed
	case "hold_failed":
		s &= failed | refunded
	case "hold_not_found":
		return s & noHold
	default:
		return s
	}
	if o.Status != holdfast.StatusUnknown {
		s &= shown(o.Status, o.Verdict, o.Refunded)
	}
	return s
}

// holdModel is what porcupine searches an order for.
var holdModel = porcupine.Model{
	Init: func() any { return absent },
	Step: func(state, input, _ any) (bool, any) {
		next := state.(states).after(input.(step))
		return next != 0, next
	},
	Equal:         func(a, b any) bool { return a == b },
	DescribeState: func(s any) string { return s.(states).String() },
	DescribeOperation: func(input, _ any) string {
		x := input.(step)
		text := fmt.Sprintf("%s → %s", x.what, x.op.Outcome)
		if x.op.Code != "" {
			text += " " + x.op.Code
		}
		if x.op.Status != holdfast.StatusUnknown {
			text += " " + x.op.Status.String()
		}
		return text
	},
}

// group is all operations on one (sender, key) and so on one hold at most.
type group struct {
	key
	hold holdfast.HoldID // zero: no answer has named one
	ops  []workload.Op
	two  holdfast.HoldID // another hold that an answer named: two holds of one key
}

// groups sorts a history by (sender, key). An operation without a key belongs to
// the key of its hold.
func groups(ops []workload.Op) map[key]*group {
	keyOf := map[holdfast.HoldID]key{}
	for _, o := range ops {
		if o.Key != "" && !o.Hold.IsZero() && o.Outcome == workload.OK && isCreate(o) {
			keyOf[o.Hold] = key{o.Sender, o.Key}
		}
	}
	all := map[key]*group{}
	for _, o := range ops {
		if o.Kind == workload.KindDeposit || o.Kind == workload.KindWithdraw {
			continue
		}
		k, known := keyOf[o.Hold]
		if isCreate(o) || !known && o.Key != "" {
			k, known = key{o.Sender, o.Key}, true
		}
		if !known {
			k = key{o.Sender, "hold " + o.Hold.String()}
		}
		g := all[k]
		if g == nil {
			g = &group{key: k}
			all[k] = g
		}
		g.ops = append(g.ops, o)
		if o.Outcome == workload.OK && !o.Hold.IsZero() {
			if g.hold.IsZero() {
				g.hold = o.Hold
			} else if g.hold != o.Hold {
				g.two = o.Hold
			}
		}
	}
	return all
}

func isCreate(o workload.Op) bool {
	return o.Kind == workload.KindCreate || o.Kind == workload.KindBatchItem
}

// linear makes porcupine's operations of a group and adds what the shard holds
// at rest as a last look. row nil: there is no hold.
func (g *group) linear(start time.Time, skew time.Duration, row *hold, released bool) []porcupine.Operation {
	unlock := time.Time{}
	if row != nil {
		unlock = row.unlockAt
	} else if !g.hold.IsZero() {
		unlock = g.hold.UnlockAt()
	}
	end := int64(0)
	for _, o := range g.ops {
		end = max(end, o.Call)
		if o.Return != workload.Never {
			end = max(end, o.Return)
		}
	}
	last := workload.Op{Kind: partEnd, Outcome: workload.OK, Call: end + 1, Return: end + 2}
	if row != nil {
		last.Hold, last.Status, last.Verdict, last.Refunded = row.id, row.status, row.verdict, !row.refundedAt.IsZero()
	}
	var list []porcupine.Operation
	clients := map[int]int{}
	for _, o := range append(slices.Clone(g.ops), last) {
		x := step{op: o, what: o.Kind, release: released}
		x.matured = o.Return == workload.Never || o.Kind == partEnd || !start.Add(time.Duration(o.Return)).Add(skew).Before(unlock)
		x.early = start.Add(time.Duration(o.Call)).Add(-skew).Before(unlock)
		if _, ok := clients[o.Client]; !ok {
			clients[o.Client] = len(clients)
		}
		// What was never answered may take effect after everything else.
		y := porcupine.Operation{ClientId: clients[o.Client], Input: x, Call: o.Call, Return: min(o.Return, end+3)}
		if isCreate(o) && o.Outcome == workload.OK && o.Replayed {
			x.what = partEffect
			y.Input = x
			list = append(list, y)
			x.what = partLook
			y.Input = x
		}
		list = append(list, y)
	}
	return list
}

// linearTimeout bounds the search for one hold.
const linearTimeout = 10 * time.Second

// check searches for an order of a group's operations that explains every
// answer, and draws a picture if there is none.
func (g *group) check(list []porcupine.Operation, pictures string) (result porcupine.CheckResult, picture string, err error) {
	result = porcupine.CheckOperationsTimeout(holdModel, list, linearTimeout)
	if result != porcupine.Illegal || pictures == "" {
		return result, "", nil
	}
	_, info := porcupine.CheckOperationsVerbose(holdModel, list, linearTimeout)
	name := g.hold.String()
	if g.hold.IsZero() {
		name = fmt.Sprintf("%s-op%d", g.sender, g.ops[0].ID)
	}
	picture = filepath.Join(pictures, "hold-"+name+".html")
	if err = os.MkdirAll(pictures, 0o755); err == nil {
		err = porcupine.VisualizePath(holdModel, info, picture)
	}
	if err != nil {
		return result, "", fmt.Errorf("draw the history of hold %s: %w", name, err)
	}
	return result, picture, nil
}
