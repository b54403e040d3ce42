package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func pairs() []row {
	return []row{
		{Peer: "river", Job: "start", Pair: 1, Theirs: figures{PerS: 100, Missing: 0}, Holdfast: figures{PerS: 300}, Ratio: 3},
		{Peer: "asynq", Job: "start", Pair: 1, Theirs: figures{PerS: 50}, Holdfast: figures{PerS: 300}, Ratio: 6},
		{Peer: "river", Job: "start", Pair: 2, Theirs: figures{PerS: 200, Missing: 1}, Holdfast: figures{PerS: 200}, Ratio: 1},
		{Peer: "river", Job: "start", Pair: 3, Theirs: figures{PerS: 120, Missing: 2}, Holdfast: figures{PerS: 240}, Ratio: 2},
	}
}

// TestSummary: rates are medians, the ratio is the median of the pairs' ratios
// and not the ratio of medians, and lost money adds up.
func TestSummary(t *testing.T) {
	t.Parallel()
	s := summarise(pairs())
	if len(s) != 2 || s[0].Peer != "river" || s[1].Peer != "asynq" {
		t.Fatalf("want river and asynq, got %+v", s)
	}
	if s[0].Pairs != 3 || s[0].Ratio != 2 || s[0].Theirs.PerS != 120 || s[0].Holdfast.PerS != 240 {
		t.Errorf("want medians of three pairs, got %+v", s[0])
	}
	if s[0].Theirs.Missing != 3 {
		t.Errorf("want 3 coins missing over all pairs, got %d", s[0].Theirs.Missing)
	}
}

func TestRatio(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		r    row
		want float64
	}{
		"rates":            {row{Job: "start", Theirs: figures{PerS: 100}, Holdfast: figures{PerS: 150}}, 1.5},
		"lags":             {row{Job: "lag", Theirs: figures{PerS: 1, LagP99: 100}, Holdfast: figures{PerS: 9, LagP99: 50}}, 2},
		"crash has none":   {row{Job: "crash", Theirs: figures{PerS: 1}, Holdfast: figures{PerS: 1}}, 0},
		"nothing measured": {row{Job: "start", Holdfast: figures{PerS: 1}}, 0},
		"an early p99":     {row{Job: "lag", Theirs: figures{LagP99: -5}, Holdfast: figures{LagP99: 50}}, 0},
	} {
		if got := ratio(c.r); got != c.want {
			t.Errorf("%s: want %v, got %v", name, c.want, got)
		}
	}
}

func TestShow(t *testing.T) {
	t.Parallel()
	o, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	var table, raw bytes.Buffer
	if err := show(&table, o, pairs()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"river", "asynq", "holdfast", "2.00", "6.00"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	o.output = "json"
	if err := show(&raw, o, pairs()); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Pairs   []row
		Medians []summary
	}
	if err := json.Unmarshal(raw.Bytes(), &doc); err != nil || len(doc.Pairs) != 4 || len(doc.Medians) != 2 {
		t.Errorf("want 4 pairs and 2 medians, got %d, %d, %v", len(doc.Pairs), len(doc.Medians), err)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, bad := range [][]string{{"-peers", "temporal"}, {"-jobs", "stop"}, {"-pairs", "0"}, {"-duration", "1s"},
		{"-rates", "fast"}, {"-delay", "soon"}, {"-delay", "4s..1s"}, {"-clients", "0"}, {"-redis-fsync", "sometimes"}, {"-o", "html"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	o, err := parse([]string{"-rates", "10,20.5"})
	if err != nil || len(o.rates) != 2 || o.rates[1] != 20.5 {
		t.Errorf("want rates 10 and 20.5, got %v, %v", o, err)
	}
}

func TestBenchReportIsRead(t *testing.T) {
	t.Parallel()
	var r benchReport
	const doc = `{"acknowledged": 9, "executed": 7, "open": 5, "created_per_s": 3, "executed_per_s": 2, "settled": true, "lag_seen_p99_ms": 4, "early": 1,
		"errors": {"timeout": 1, "status_503": 2}, "ledger_ok": false}`
	if err := json.Unmarshal([]byte(doc), &r); err != nil {
		t.Fatal(err)
	}
	f := r.figures("lifecycle")
	if f.PerS != 2 || f.LagP99 != 4 || f.Acked != 9 || f.Done != 7 || f.Open != 0 || f.Failed != 3 || f.Early != 1.0/7 {
		t.Errorf("read as %+v", f)
	}
	if f = r.figures("start"); f.PerS != 3 {
		t.Errorf("the job start: %+v", f)
	}
}

// TestTransferIDsAreInDueOrder: with random keys the peers would pay for index
// pages that an ordered key does not touch.
func TestTransferIDsAreInDueOrder(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a, b := newTransfer(1, 2, now), newTransfer(1, 2, now.Add(time.Second))
	if a.ID >= b.ID {
		t.Errorf("want %s before %s", a.ID, b.ID)
	}
	if user(0xa, 1) == user(0xb, 1) || len(user(0xa, 1)) != 36 {
		t.Errorf("user ids: %s, %s", user(0xa, 1), user(0xb, 1))
	}
}
