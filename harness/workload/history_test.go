package workload

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func TestOperationInFlightIsUnknown(t *testing.T) {
	t.Parallel()
	h := NewHistory(1)
	id := h.Begin(Op{Kind: KindCreate, Key: "a"})
	op := h.Ops()[id]
	if op.Outcome != Unknown || op.Return != Never || !op.Open() || h.Counts().Of("", Unknown) != 0 {
		t.Errorf("in flight: %+v, counts %v", op, h.Counts())
	}
	op.Outcome, op.Call = OK, 99
	if done := h.End(op); done.Return == Never || done.Open() || done.Call == 99 || done.Return < done.Call {
		t.Errorf("answered: %+v", done)
	}
	id = h.Begin(Op{Kind: KindCreate, Key: "b"})
	lost := h.End(h.Ops()[id])
	if lost.Return != Never || lost.Outcome != Unknown || lost.Open() || lost.GaveUp < lost.Call {
		t.Errorf("given up: %+v", lost)
	}
	if c := h.Counts(); c.Of(KindCreate, OK) != 1 || c.Of("", Unknown) != 1 || c.Of(KindGet, OK) != 0 {
		t.Errorf("counts %v", c)
	}
}

// The money of the world lies between what surely and what perhaps happened.
func TestMoneyCountsUnknownsBothWays(t *testing.T) {
	t.Parallel()
	a, b := holdfast.UserID{1}, holdfast.UserID{2}
	in := func(key string, user holdfast.UserID, amount int64, o Outcome) Op {
		return Op{Kind: KindDeposit, Key: key, Recipient: user, Amount: amount, Outcome: o}
	}
	out := func(key string, user holdfast.UserID, amount int64, o Outcome) Op {
		return Op{Kind: KindWithdraw, Key: key, Sender: user, Amount: amount, Outcome: o}
	}
	poor := out("9", a, 5000, Refused)
	poor.Code = codeInsufficient
	for _, row := range []struct {
		name        string
		ops         []Op
		least, most int64
	}{
		{"nothing", nil, 0, 0},
		{"ok both ways", []Op{in("1", a, 100, OK), out("1", a, 30, OK)}, 70, 70},
		{"unknown both ways", []Op{in("1", a, 100, OK), in("2", a, 7, Unknown), out("3", a, 30, Unknown)}, 70, 107},
		{"a key counts once", []Op{in("1", a, 100, OK), in("1", a, 100, OK), in("1", a, 100, Unknown)}, 100, 100},
		{"answered later", []Op{out("1", a, 10, Unknown), out("1", a, 10, OK)}, -10, -10},
		{"unknown twice", []Op{in("1", a, 10, Unknown), in("1", a, 10, Unknown)}, 0, 10},
		{"a key of two users is two", []Op{in("1", a, 10, OK), in("1", b, 10, OK)}, 20, 20},
		{"refused", []Op{in("1", a, 10, Refused)}, 0, 0},
		{"refused for good after all", []Op{out("9", a, 5000, Unknown), poor}, 0, 0},
		{"holds move nothing", []Op{{Kind: KindCreate, Key: "1", Sender: a, Amount: 5, Outcome: OK}}, 0, 0},
	} {
		h := NewHistory(1)
		for _, o := range row.ops {
			h.Record(o)
		}
		if got := h.Money(); got != (Bounds{row.least, row.most}) {
			t.Errorf("%s: %+v, want %d to %d", row.name, got, row.least, row.most)
		}
	}
	if b := (Bounds{1, 3}); b.Holds(0) || !b.Holds(1) || !b.Holds(3) || b.Holds(4) {
		t.Error("the bounds do not hold what they say")
	}
}

func TestExportedHistoryComesBack(t *testing.T) {
	t.Parallel()
	h := NewHistory(-7)
	for _, op := range []Op{
		{Kind: KindCreate, Key: "k", Hold: holdfast.NewHoldID(5, 6, 7), Sender: holdfast.UserID{1}, Recipient: holdfast.UserID{2}, Amount: 9,
			UnlockAt: time.UnixMilli(5).UTC(), UnlockSec: 3, Outcome: OK, HTTP: 201, Status: holdfast.Pending, Replayed: true, Attempts: 2},
		{Kind: KindGet, Client: clientSettle, Outcome: OK, Status: holdfast.Failed, Verdict: holdfast.Refused, Refunded: true},
		{Kind: KindCancel, Outcome: Refused, HTTP: 409, Code: "hold_matured", Error: "too late", Status: holdfast.Executing},
		{Kind: KindDeposit, Outcome: Unknown, Nothing: true},
	} {
		op.ID = h.Begin(op)
		h.End(op)
	}
	h.Begin(Op{Kind: KindList, Key: "in flight"})
	var file bytes.Buffer
	if err := h.Export(&file); err != nil {
		t.Fatal(err)
	}
	lines := file.String()
	back, err := Import(&file)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back.Ops(), h.Ops()) {
		t.Errorf("wrote %+v\nread %+v", h.Ops(), back.Ops())
	}
	if !reflect.DeepEqual(back.Counts(), h.Counts()) || back.Seed != -7 || !back.Start.Equal(h.Start) {
		t.Errorf("counts %v, want %v; seed %d, start %v", back.Counts(), h.Counts(), back.Seed, back.Start)
	}
	parts := strings.SplitAfter(lines, "\n")
	for name, text := range map[string]string{
		"empty":          "",
		"another format": strings.Replace(lines, format, "other", 1),
		"a line less":    parts[0] + parts[2],
		"cut off":        lines[:len(lines)-10],
	} {
		if _, err := Import(strings.NewReader(text)); err == nil {
			t.Errorf("%s: read without an error", name)
		}
	}
}
