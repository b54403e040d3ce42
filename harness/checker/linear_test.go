package checker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
)

// A hand-written history is about one hold that matures two seconds after the
// start. Times are in milliseconds.
var (
	unlockMS = int64(2000)
	start    = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	theHold  = holdfast.NewHoldID(start.UnixMilli()+unlockMS, 7, 1)
)

func at(client int, kind string, call, ret int64, outcome workload.Outcome) workload.Op {
	o := workload.Op{Client: client, Kind: kind, Key: "k", Call: call * 1e6, Return: ret * 1e6, Outcome: outcome, Attempts: 1}
	if outcome == workload.Unknown {
		o.Return = workload.Never
	}
	return o
}

func seen(client int, kind string, call, ret int64, status holdfast.Status) workload.Op {
	o := at(client, kind, call, ret, workload.OK)
	o.Hold, o.Status = theHold, status
	if status == holdfast.Executed {
		o.Verdict = holdfast.Paid
	} else if status == holdfast.Failed {
		o.Verdict = holdfast.Refused
	}
	return o
}

func no(client int, kind string, call, ret int64, code string) workload.Op {
	o := at(client, kind, call, ret, workload.Refused)
	o.Code, o.Hold = code, theHold
	return o
}

func with(o workload.Op, change func(*workload.Op)) workload.Op {
	change(&o)
	return o
}

func replay(o workload.Op) workload.Op { return with(o, func(o *workload.Op) { o.Replayed = true }) }

const (
	create = workload.KindCreate
	read   = workload.KindGet
	list   = workload.KindList
	cancel = workload.KindCancel
)

var created = seen(0, create, 0, 10, holdfast.Pending)

func TestLinear(t *testing.T) {
	t.Parallel()
	empty := with(at(1, list, 20, 30, workload.OK), func(o *workload.Op) {})
	promised := func(o workload.Op) workload.Op { return with(o, func(o *workload.Op) { o.Nothing = true }) }
	for _, c := range []struct {
		name string
		end  holdfast.Status // of the row at rest; 0: there is none
		good bool
		ops  []workload.Op
	}{
		{"create and execute", holdfast.Executed, true, []workload.Op{created, seen(1, read, 2100, 2110, holdfast.Executing), seen(1, read, 2200, 2210, holdfast.Executed)}},
		{"an acknowledged create that is gone", 0, false, []workload.Op{created}},
		{"seen executing long before maturity", holdfast.Executed, false, []workload.Op{created, seen(1, read, 100, 110, holdfast.Executing)}},
		{"executed although nobody saw it mature", holdfast.Executed, true, []workload.Op{created}},
		{"pending long after maturity", holdfast.Executed, true, []workload.Op{created, seen(1, read, 9000, 9010, holdfast.Pending)}},
		{"going back", holdfast.Executed, false, []workload.Op{created, seen(1, read, 2100, 2110, holdfast.Executed), seen(1, read, 2200, 2210, holdfast.Pending)}},
		{"two reads at once see both sides", holdfast.Executed, true, []workload.Op{created, seen(1, read, 2100, 2300, holdfast.Executed), seen(2, read, 2150, 2250, holdfast.Pending)}},
		{"not found after the create", holdfast.Executed, false, []workload.Op{created, no(1, read, 20, 30, "hold_not_found")}},
		{"not found during the create", holdfast.Executed, true, []workload.Op{created, no(1, read, 5, 30, "hold_not_found")}},
		{"an empty list after the create", holdfast.Executed, false, []workload.Op{created, empty}},
		{"an empty list before it was done", holdfast.Executed, true, []workload.Op{seen(0, create, 0, 40, holdfast.Pending), empty}},
		{"failed, then refunded", holdfast.Failed, true, []workload.Op{created, seen(1, read, 2100, 2110, holdfast.Failed)}},
		{"refunded, then not", holdfast.Failed, false, []workload.Op{created,
			with(seen(1, read, 2100, 2110, holdfast.Failed), func(o *workload.Op) { o.Refunded = true }), seen(1, read, 2200, 2210, holdfast.Failed)}},

		{"cancelled", holdfast.Cancelled, true, []workload.Op{created, seen(1, cancel, 100, 110, holdfast.Cancelled)}},
		{"cancelled twice", holdfast.Cancelled, true, []workload.Op{created, seen(1, cancel, 100, 110, holdfast.Cancelled), seen(2, cancel, 3000, 3010, holdfast.Cancelled)}},
		{"cancelled and executed", holdfast.Executed, false, []workload.Op{created, seen(1, cancel, 100, 110, holdfast.Cancelled)}},
		{"cancelled first after maturity", holdfast.Cancelled, false, []workload.Op{created, seen(1, cancel, 2500, 2510, holdfast.Cancelled)}},
		{"cancelled across maturity", holdfast.Cancelled, true, []workload.Op{created, seen(1, cancel, 1990, 2500, holdfast.Cancelled)}},
		{"pending after the cancel", holdfast.Cancelled, false, []workload.Op{created, seen(1, cancel, 100, 110, holdfast.Cancelled), seen(2, read, 200, 210, holdfast.Pending)}},
		{"refused as matured too early", holdfast.Executed, false, []workload.Op{created, no(1, cancel, 100, 110, "hold_matured")}},
		{"refused as matured", holdfast.Executed, true, []workload.Op{created, no(1, cancel, 2100, 2110, "hold_matured")}},
		{"refused as executed, then seen pending", holdfast.Executed, false, []workload.Op{created, no(1, cancel, 2100, 2110, "hold_already_executed"), seen(1, read, 2200, 2210, holdfast.Pending)}},
		{"refused as failed, and executed", holdfast.Executed, false, []workload.Op{created, no(1, cancel, 2100, 2110, "hold_failed")}},
		{"cancelled by nobody", holdfast.Cancelled, false, []workload.Op{created}},
		{"an unknown cancel that came late", holdfast.Cancelled, true, []workload.Op{created, at(1, cancel, 100, 0, workload.Unknown), seen(2, read, 1500, 1510, holdfast.Pending)}},
		{"an unknown cancel that never came", holdfast.Executed, true, []workload.Op{created, at(1, cancel, 100, 0, workload.Unknown)}},
		{"an unknown cancel after maturity that did it", holdfast.Cancelled, false, []workload.Op{created, at(1, cancel, 2500, 0, workload.Unknown)}},
		{"a cancel that promised nothing and did it", holdfast.Cancelled, false, []workload.Op{created, promised(at(1, cancel, 100, 0, workload.Unknown))}},

		{"an unknown create that came late", holdfast.Executed, true, []workload.Op{at(0, create, 0, 0, workload.Unknown), empty, seen(1, list, 50, 60, holdfast.Pending)}},
		{"an unknown create that never came", 0, true, []workload.Op{at(0, create, 0, 0, workload.Unknown), empty}},
		{"an unknown create that came and went", 0, false, []workload.Op{at(0, create, 0, 0, workload.Unknown), seen(1, list, 50, 60, holdfast.Pending)}},
		{"a create that promised nothing and did it", holdfast.Executed, false, []workload.Op{promised(at(0, create, 0, 0, workload.Unknown))}},
		{"a refused create", 0, true, []workload.Op{no(0, create, 0, 10, "insufficient_funds")}},
		{"a refused create that did it", holdfast.Executed, false, []workload.Op{no(0, create, 0, 10, "insufficient_funds")}},
		{"a refusal that was forgotten", holdfast.Executed, false, []workload.Op{no(0, create, 0, 10, "insufficient_funds"), seen(0, create, 20, 30, holdfast.Pending)}},
		{"a replay", holdfast.Executed, true, []workload.Op{created, replay(seen(0, create, 20, 30, holdfast.Pending)), replay(seen(0, create, 3000, 3010, holdfast.Executed))}},
		{"a replay of its own first attempt", holdfast.Cancelled, true, []workload.Op{replay(seen(0, create, 0, 900, holdfast.Cancelled)),
			seen(1, list, 100, 110, holdfast.Pending), seen(1, cancel, 200, 210, holdfast.Cancelled)}},
		{"a replay of nothing", 0, false, []workload.Op{replay(seen(0, create, 0, 10, holdfast.Pending))}},
		{"created twice", holdfast.Executed, false, []workload.Op{created, seen(0, create, 20, 30, holdfast.Pending)}},
		{"a storm, one of them first", holdfast.Executed, true, []workload.Op{seen(0, create, 0, 30, holdfast.Pending),
			replay(seen(1, create, 0, 20, holdfast.Pending)), replay(seen(2, create, 1, 10, holdfast.Pending))}},
		{"the key is reused", holdfast.Executed, true, []workload.Op{created, no(1, create, 20, 30, "idempotency_key_reused")}},
		{"the key is reused before its first use", holdfast.Executed, false, []workload.Op{no(1, create, 0, 5, "idempotency_key_reused"), seen(0, create, 20, 30, holdfast.Pending)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			result, picture, err := check(c.ops, c.end, dir)
			want := map[bool]porcupine.CheckResult{true: porcupine.Ok, false: porcupine.Illegal}[c.good]
			if err != nil || result != want {
				t.Fatalf("%s, want %s, %v", result, want, err)
			}
			if c.good {
				return
			}
			if filepath.Dir(picture) != dir {
				t.Fatalf("picture %q", picture)
			}
			html, err := os.ReadFile(picture)
			if err != nil || !strings.Contains(string(html), partEnd) {
				t.Errorf("picture of %d bytes, %v", len(html), err)
			}
		})
	}
}

func check(ops []workload.Op, end holdfast.Status, dir string) (porcupine.CheckResult, string, error) {
	for _, g := range groups(ops) {
		var row *hold
		if end != holdfast.StatusUnknown {
			row = &hold{id: theHold, status: end, unlockAt: theHold.UnlockAt()}
			switch end {
			case holdfast.Executed:
				row.verdict = holdfast.Paid
			case holdfast.Failed:
				row.verdict, row.refundedAt = holdfast.Refused, row.unlockAt
			}
		}
		return g.check(g.linear(start, 50*time.Millisecond, row, false), dir)
	}
	panic("no operations")
}

// TestReleased: an operator may cancel what has matured and is still pending.
func TestReleased(t *testing.T) {
	t.Parallel()
	row := &hold{id: theHold, status: holdfast.Cancelled, unlockAt: theHold.UnlockAt()}
	for _, g := range groups([]workload.Op{created, seen(1, read, 3000, 3010, holdfast.Cancelled)}) {
		for released, want := range map[bool]porcupine.CheckResult{true: porcupine.Ok, false: porcupine.Illegal} {
			if result, _, err := g.check(g.linear(start, 0, row, released), ""); result != want || err != nil {
				t.Errorf("released %t: %s, want %s, %v", released, result, want, err)
			}
		}
	}
}

// TestGroups: what carries no key belongs to the key of its hold, and two holds
// under one key are noticed.
func TestGroups(t *testing.T) {
	t.Parallel()
	keyless := with(seen(1, read, 20, 30, holdfast.Pending), func(o *workload.Op) { o.Key = "" })
	all := groups([]workload.Op{created, keyless, at(1, workload.KindDeposit, 0, 1, workload.OK)})
	if len(all) != 1 || len(all[key{created.Sender, "k"}].ops) != 2 {
		t.Errorf("%+v", all)
	}
	other := with(created, func(o *workload.Op) { o.Hold[15] ^= 1 })
	if g := groups([]workload.Op{created, other})[key{created.Sender, "k"}]; g.hold != theHold || g.two != other.Hold {
		t.Errorf("%+v", g)
	}
}
