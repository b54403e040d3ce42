package bench

import "fmt"

// goal is one number that the project wants to reach, and where a suite finds
// it. docs/performance.md says where each comes from.
type goal struct {
	row, name string
	least     bool // the value must reach the bar; otherwise it must not exceed it
	bar       float64
	unit      string
	// value of one run of the row; of is the median of another row, or nil.
	value func(r *Report, of func(row string) *Summary) float64
}

func own(f func(r *Report) float64) func(*Report, func(string) *Summary) float64 {
	return func(r *Report, _ func(string) *Summary) float64 { return f(r) }
}

func figure(name string) func(*Report, func(string) *Summary) float64 {
	return own(func(r *Report) float64 { return r.Figures[name] })
}

// against compares ratios to the yardstick, so that two runs of different
// minutes can be compared.
func against(row string, f func(r *Report) float64) func(*Report, func(string) *Summary) float64 {
	return func(r *Report, of func(string) *Summary) float64 {
		other := of(row)
		if other == nil {
			return 0
		}
		return ratio(f(r), f(&other.Report))
	}
}

var goals = []goal{
	{rowCreate, "creates / yardstick", true, 1.0, "×", own(func(r *Report) float64 { return r.CreatedPerYardstick })},
	{rowBatch, "holds by batchCreate / yardstick", true, 2.0, "×", own(func(r *Report) float64 { return r.CreatedPerYardstick })},
	{rowCreate, "cancels / yardstick", true, 1.0, "×", own(func(r *Report) float64 { return r.CancelledPerYardstick })},
	{rowLifecycle, "lifecycles / yardstick", true, 0.45, "×", own(func(r *Report) float64 { return r.ExecutedPerYardstick })},
	{rowHalf, "create p50 at half the maximum", false, 5, "ms", own(func(r *Report) float64 { return r.CreateP50 })},
	{rowHalf, "create p99 at half the maximum", false, 25, "ms", own(func(r *Report) float64 { return r.CreateP99 })},
	{rowHalf, "lag p50 at half the maximum", false, 20, "ms", own(func(r *Report) float64 { return r.LagP50 })},
	{rowHalf, "lag p99 at half the maximum", false, 100, "ms", own(func(r *Report) float64 { return r.LagP99 })},
	{rowLifecycle, "CPU per lifecycle", false, 0.45, "ms", own(func(r *Report) float64 { return r.CPUMSPerLifecycle })},
	{rowLifecycle, "WAL per lifecycle", false, 6000, "bytes", own(func(r *Report) float64 { return ratio(float64(r.WALBytes), float64(r.Executed)) })},
	{rowCliff, "cliff: until all executed", false, 20, "s", figure("until_all_executed_s")},
	{rowCliff, "cliff: creates' p99 meanwhile", false, 100, "ms", figure("create_p99_during_ms")},
	{rowCliff, "Redis per trigger", false, 150, "bytes", own(func(r *Report) float64 { return r.RedisBytesPerTrigger })},
	{rowPending, "creates with many pending / before", true, 0.9, "×", figure("created_with_pending_ratio")},
	{rowPending, "executions of old holds / of fresh ones", true, 0.8, "×", figure("executed_old_ratio")},
	{rowPending, "memory of the Go process", false, 1024, "MiB", own(func(r *Report) float64 { return float64(r.RSSBytes) / (1 << 20) })},
	{rowHot, "hot sender / uniform", true, 0.5, "×", against(rowCreate, func(r *Report) float64 { return r.CreatedPerYardstick })},
	{rowCelebrity, "celebrity / uniform", true, 0.5, "×", against(rowLifecycle, func(r *Report) float64 { return r.ExecutedPerYardstick })},
	{rowDrain, "drain / lifecycles per second", true, 1.2, "×", func(r *Report, of func(string) *Summary) float64 {
		if most := of(rowLifecycle); most != nil {
			return ratio(r.Figures["drain_per_s"], most.ExecutedPerS)
		}
		return 0
	}},
	{rowDrainBusy, "drain: creates' p99 with it", false, 100, "ms", figure("create_p99_during_ms")},
}

// GoalState is how a suite stands to one goal.
type GoalState struct {
	Name   string  `json:"name"`
	Row    string  `json:"row"`
	Want   string  `json:"want"`
	Value  float64 `json:"value"`
	Spread Spread  `json:"spread"`
	Met    bool    `json:"met"`
}

// Verdict is a word for it; a value of 0 was not measured.
func (g *GoalState) Verdict() string {
	switch {
	case g.Value == 0:
		return "not measured"
	case g.Met:
		return "met"
	}
	return "missed"
}

// judge holds the rows against the goals of those that were run.
func judge(rows map[string]*Summary) (all []GoalState) {
	of := func(row string) *Summary { return rows[row] }
	for _, g := range goals {
		s := rows[g.row]
		if s == nil {
			continue
		}
		runs := s.Runs
		if len(runs) == 0 {
			runs = []*Report{&s.Report}
		}
		var values []float64
		state := GoalState{Name: g.name, Row: g.row}
		for i, r := range runs {
			v := g.value(r, of)
			values = append(values, v)
			if i == 0 {
				state.Spread = Spread{v, v}
			}
			state.Spread = Spread{min(state.Spread.Min, v), max(state.Spread.Max, v)}
		}
		state.Value = median(values)
		sign := "≤"
		state.Met = state.Value > 0 && state.Value <= g.bar
		if g.least {
			sign, state.Met = "≥", state.Value >= g.bar
		}
		state.Want = fmt.Sprintf("%s %s %s", sign, short(g.bar), g.unit)
		all = append(all, state)
	}
	return all
}
