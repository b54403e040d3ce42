package bench

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// item is one row of a suite. set fills in what the caller left open; done are
// the runs of earlier rows in the same round.
type item struct {
	name, scenario string
	set            func(c *Config, done map[string]*Report)
	once           bool          // too long for several rounds
	longer         time.Duration // than the other rows: until maturities come at the full rate
}

// Names of rows that others or the goals refer to.
const (
	rowCreate    = "create, then cancel"
	rowBatch     = "batchCreate of 100"
	rowLifecycle = "lifecycle, maximum"
	rowHalf      = "lifecycle, half of it"
	rowHot       = "hot sender"
	rowCelebrity = "celebrity recipient"
	rowCliff     = "cliff"
	rowDrain     = "drain"
	rowDrainBusy = "drain with creates"
	rowPending   = "many pending"
)

var quick = []item{
	{name: rowCreate, scenario: "cancel"},
	{name: rowBatch, scenario: "batch"},
	{name: rowLifecycle, scenario: "lifecycle", set: brisk, longer: briskDelay},
	{name: rowHalf, scenario: "lifecycle", longer: briskDelay, set: func(c *Config, done map[string]*Report) {
		brisk(c, done)
		or(&c.PaymentLatency, time.Millisecond) // the goal of the lag is set for it
		if most := done[rowLifecycle]; most != nil && most.ExecutedPerS > 0 {
			c.Rate = most.ExecutedPerS / 2
		} else {
			or(&c.Rate, 1000)
		}
	}},
}

var full = append(quick[:len(quick):len(quick)], []item{
	{name: "create, half cancelled", scenario: "create-cancel"},
	{name: rowHot, scenario: "hot-sender"},
	{name: rowCelebrity, scenario: "celebrity", set: brisk},
	{name: "payment takes 50 ms", scenario: "slow-payment", set: brisk},
	{name: rowCliff, scenario: "cliff"},
	{name: rowDrain, scenario: "drain", once: true, set: func(c *Config, _ map[string]*Report) { or(&c.Holds, 1_000_000); or(&c.Settle, 20*time.Minute) }},
	{name: rowDrainBusy, scenario: "drain", once: true, set: func(c *Config, _ map[string]*Report) {
		or(&c.Holds, 1_000_000)
		or(&c.Settle, 20*time.Minute)
		or(&c.Rate, backgroundRate)
	}},
	{name: "one shard down", scenario: "shard-down", once: true, set: func(c *Config, _ map[string]*Report) { or(&c.Duration, 10*time.Second) }},
	{name: rowPending, scenario: "pending", once: true},
}...)

// brisk keeps the delays short, so that a short run has a steady part.
func brisk(c *Config, _ map[string]*Report) {
	if c.DelayMax == 0 {
		c.DelayMin, c.DelayMax = time.Second, briskDelay
	}
}

const briskDelay = 2 * time.Second

// Suites are the lists that --suite knows, with their defaults.
var suites = map[string]struct {
	items                       []item
	warmup, duration, yardstick time.Duration
	accounts                    int
}{
	"quick": {quick, time.Second, 5 * time.Second, 3 * time.Second, 100_000},
	"full":  {full, 3 * time.Second, 20 * time.Second, 8 * time.Second, 100_000},
}

// SuiteResult is what a suite measured.
type SuiteResult struct {
	Suite string      `json:"suite"`
	Rows  []SuiteRow  `json:"rows"`
	Goals []GoalState `json:"goals"`
}

// SuiteRow is the medians of one row.
type SuiteRow struct {
	Name string `json:"name"`
	*Summary
}

// Suite plays a suite in rounds: every row once, then all again, so that a
// machine that grows slower does so for all rows alike. base holds what the
// caller wants of all rows; what it leaves open the suite sets.
func (t *Bench) Suite(ctx context.Context, name string, base Config, rounds int) (*SuiteResult, error) {
	s, known := suites[name]
	if !known {
		return nil, fmt.Errorf("there is no suite %q: choose quick or full", name)
	}
	or(&base.Warmup, s.warmup)
	or(&base.Yardstick, s.yardstick)
	or(&base.Senders, s.accounts)
	or(&base.Recipients, s.accounts)
	runs := map[string][]*Report{}
	for round := range rounds {
		done := map[string]*Report{}
		for _, it := range s.items {
			if it.once && round > 0 || ctx.Err() != nil {
				continue
			}
			t.Note("round %d of %d: %s", round+1, rounds, it.name)
			cfg := base
			cfg.Scenario = it.scenario
			if it.set != nil {
				it.set(&cfg, done)
			}
			if t.Sim == "" { // a payment API that is not ours takes the time that it takes
				cfg.PaymentLatency = base.PaymentLatency
			}
			or(&cfg.Duration, s.duration+it.longer)
			r, err := t.Run(ctx, cfg)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", it.name, err)
			}
			done[it.name] = r
			runs[it.name] = append(runs[it.name], r)
		}
	}
	res := &SuiteResult{Suite: name}
	rows := map[string]*Summary{}
	for _, it := range s.items {
		if all := runs[it.name]; len(all) > 0 {
			rows[it.name] = Summarize(all)
			res.Rows = append(res.Rows, SuiteRow{it.name, rows[it.name]})
		}
	}
	res.Goals = judge(rows)
	return res, nil
}

// OK reports whether every run kept its promises; goals are no promises.
func (s *SuiteResult) OK() bool {
	for _, r := range s.Rows {
		if !r.OK() {
			return false
		}
	}
	return len(s.Rows) > 0
}

// Table writes the rows and how they stand to the goals.
func (s *SuiteResult) Table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	line("medians", "runs", "created/s", "cancelled/s", "executed/s", "yardstick", "ratios", "create p50/p99", "lag p50/p99",
		"CPU ms/hold", "WAL B", "disk B", "MiB", "errors", "ledger")
	for _, r := range s.Rows {
		line(r.Name, fmt.Sprint(max(1, len(r.Runs))), whole(r.CreatedPerS), whole(r.CancelledPerS), whole(r.ExecutedPerS),
			whole(r.YardstickPerS), ratios(r.Summary), pair(r.CreateP50, r.CreateP99), pair(r.LagP50, r.LagP99), short(r.CPUMSPerHold),
			whole(r.WALBytesPerHold), whole(r.DiskBytesPerHold), whole(float64(r.RSSBytes)/(1<<20)), errorCount(r.Errors), proofWord(r.OK()))
	}
	t.Flush()
	fmt.Fprintln(w)
	line("goal", "to reach", "median", "least–greatest", "")
	for _, g := range s.Goals {
		line(g.Name, g.Want, short(g.Value), short(g.Spread.Min)+"–"+short(g.Spread.Max), g.Verdict())
	}
	t.Flush()
	for _, r := range s.Rows {
		if len(r.Figures) > 0 {
			fmt.Fprintf(w, "\n%s\n", r.Name)
			r.Summary.Table(w)
		}
	}
}

func whole(x float64) string {
	if x == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", x)
}

func pair(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return short(a) + " / " + short(b)
}

func ratios(s *Summary) string {
	var parts []string
	for _, p := range []struct {
		letter string
		value  float64
	}{{"c", s.CreatedPerYardstick}, {"x", s.CancelledPerYardstick}, {"e", s.ExecutedPerYardstick}} {
		if p.value > 0 {
			parts = append(parts, fmt.Sprintf("%s %.2f", p.letter, p.value))
		}
	}
	return strings.Join(parts, " ")
}

func errorCount(errors map[string]int64) string {
	var sum int64
	for _, n := range errors {
		sum += n
	}
	return fmt.Sprint(sum)
}

func proofWord(ok bool) string {
	if ok {
		return "ok"
	}
	return "NOT OK"
}
