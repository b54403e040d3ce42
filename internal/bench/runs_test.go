package bench

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{4}, 4}, {[]float64{9, 1, 5}, 5}, {[]float64{1, 8, 2, 4}, 3}} {
		if got := median(c.values); got != c.want {
			t.Errorf("the median of %v is %g, want %g", c.values, got, c.want)
		}
	}
}

// sample is a report with a few figures that tell it apart.
func sample(x float64) *Report {
	r := newReport(&Config{Scenario: "lifecycle"})
	r.CreatedPerS, r.ExecutedPerS, r.YardstickPerS, r.LagP99 = x, x/2, 100, 10*x
	r.WALBytes, r.Executed, r.Settled, r.LedgerOK = int64(x), 10, true, true
	r.CPUSeconds["postgres"] = 2 * x
	r.Errors["overloaded"] = 1
	r.figure("recovery_s", x)
	r.create.record(time.Duration(x) * time.Millisecond)
	r.Line = []Second{{Answered: int64(x)}}
	r.derive()
	return r
}

func TestSummarizeTakesMediansOfEveryFigure(t *testing.T) {
	t.Parallel()
	all := []*Report{sample(30), sample(10), sample(20)}
	all[1].LagP99 = 900 // the greatest, in the slowest run
	all[1].Early = 1
	s := Summarize(all)
	if s.CreatedPerS != 20 || s.LagP99 != 300 || s.WALBytes != 20 || s.CPUSeconds["postgres"] != 40 || s.Figures["recovery_s"] != 20 {
		t.Errorf("the medians are %g/s, lag %g, WAL %d, CPU %v, %v", s.CreatedPerS, s.LagP99, s.WALBytes, s.CPUSeconds, s.Figures)
	}
	if s.CreatedPerYardstick != 0.2 || s.Spread["created_per_yardstick"] != (Spread{0.1, 0.3}) {
		t.Errorf("the ratio is %g within %v", s.CreatedPerYardstick, s.Spread["created_per_yardstick"])
	}
	if s.Spread["lag_p99_ms"] != (Spread{200, 900}) || s.Spread["cpu_seconds.postgres"] != (Spread{20, 60}) {
		t.Errorf("the spread is %v", s.Spread)
	}
	if s.Early != 1 || s.OK() {
		t.Errorf("%d early holds, ok: %t; one early hold is one too many", s.Early, s.OK())
	}
	if s.Errors["overloaded"] != 3 || s.create.TotalCount() != 3 || s.Line[0].Answered != 20 {
		t.Errorf("errors %v, %d latencies, line %v", s.Errors, s.create.TotalCount(), s.Line)
	}
	if all[0].CreatedPerS != 30 || all[0].CPUSeconds["postgres"] != 60 || all[2].CPUSeconds["postgres"] != 40 {
		t.Error("the runs themselves were changed")
	}
}

func TestSummaryIsOKOnlyWhenEveryRunIs(t *testing.T) {
	t.Parallel()
	bad := sample(2)
	bad.LedgerOK = false
	for _, all := range [][]*Report{{sample(1), bad, sample(3)}, {bad}} {
		if Summarize(all).OK() {
			t.Errorf("%d runs with a broken one count as ok", len(all))
		}
	}
	if !Summarize([]*Report{sample(1), sample(2)}).OK() {
		t.Error("whole runs do not count as ok")
	}
}

func TestSummaryKeepsTheContractsNames(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(Summarize([]*Report{sample(1), sample(2), sample(3)}))
	if err != nil {
		t.Fatal(err)
	}
	var top struct {
		Created float64           `json:"created_per_s"`
		OK      bool              `json:"ledger_ok"`
		Runs    []json.RawMessage `json:"runs"`
	}
	if err := json.Unmarshal(b, &top); err != nil || top.Created != 2 || !top.OK || len(top.Runs) != 3 {
		t.Errorf("read %+v, %v", top, err)
	}
	if b, _ = json.Marshal(Summarize([]*Report{sample(1)})); strings.Contains(string(b), `"runs"`) {
		t.Error("a single run is written twice")
	}
}

func TestGoalsAreJudgedByRun(t *testing.T) {
	t.Parallel()
	fast, slow := sample(50), sample(40) // ratios of executions 0.25 and 0.20
	hot := sample(24)                    // 0.24 of the yardstick against 0.45
	rows := map[string]*Summary{
		rowLifecycle: Summarize([]*Report{fast, slow, sample(120)}), rowCreate: Summarize([]*Report{fast, slow}), rowHot: Summarize([]*Report{hot})}
	got := map[string]GoalState{}
	for _, g := range judge(rows) {
		got[g.Name] = g
	}
	l := got["lifecycles / yardstick"]
	if l.Value != 0.25 || l.Spread != (Spread{0.2, 0.6}) || l.Met || l.Verdict() != "missed" || l.Want != "≥ 0.450 ×" {
		t.Errorf("lifecycles: %+v", l)
	}
	if h := got["hot sender / uniform"]; math.Abs(h.Value-0.24/0.45) > 1e-9 || !h.Met {
		t.Errorf("hot sender: %+v", h)
	}
	if c := got["cancels / yardstick"]; c.Verdict() != "not measured" {
		t.Errorf("cancels that were not measured: %s", c.Verdict())
	}
	if _, there := got["cliff: until all executed"]; there {
		t.Error("a goal of a row that was not run is judged")
	}
}

func TestGoalsAndSuitesFitTogether(t *testing.T) {
	t.Parallel()
	rows := map[string]bool{}
	for _, it := range full {
		c := Config{Scenario: it.scenario, Duration: time.Second}
		if it.set != nil {
			it.set(&c, map[string]*Report{})
		}
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", it.name, err)
		}
		rows[it.name] = true
	}
	for _, g := range goals {
		if !rows[g.row] {
			t.Errorf("goal %q belongs to no row", g.name)
		}
	}
	var half Config
	quick[3].set(&half, map[string]*Report{rowLifecycle: sample(800)})
	if half.Rate != 200 || half.PaymentLatency != time.Millisecond {
		t.Errorf("half of 400 executions a second are %g, payments take %s", half.Rate, half.PaymentLatency)
	}
}

func TestSuiteTableShowsRatiosAndGoals(t *testing.T) {
	t.Parallel()
	s := Summarize([]*Report{sample(50), sample(40), sample(60)})
	res := &SuiteResult{Suite: "quick", Rows: []SuiteRow{{rowLifecycle, s}}, Goals: judge(map[string]*Summary{rowLifecycle: s})}
	var b strings.Builder
	res.Table(&b)
	for _, want := range []string{"c 0.50 e 0.25", "≥ 0.450 ×     0.250   0.200–0.300     missed", "recovery s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, b.String())
		}
	}
	if !res.OK() || (&SuiteResult{}).OK() {
		t.Error("a whole suite is not ok, or one without rows is")
	}
}
