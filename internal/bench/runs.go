package bench

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Summary is one run, or the medians of several. Its JSON form is that of a
// report, with the spread and the runs behind it where there are several.
type Summary struct {
	Report
	Spread map[string]Spread `json:"spread,omitempty"` // by the JSON name of a figure
	Runs   []*Report         `json:"runs,omitempty"`
}

// Spread is the least and the greatest value of a figure.
type Spread struct {
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

// Runs makes n runs one after another, each with its own yardstick before and
// its own proof after it. When ctx ends, the runs so far count.
func (t *Bench) Runs(ctx context.Context, cfg Config, n int) (*Summary, error) {
	var all []*Report
	for i := range n {
		if n > 1 {
			t.Note("run %d of %d", i+1, n)
		}
		r, err := t.Run(ctx, cfg)
		if err != nil && len(all) == 0 {
			return nil, err
		}
		if err != nil {
			t.Note("run %d: %v", i+1, err)
			break
		}
		all = append(all, r)
		if ctx.Err() != nil {
			break
		}
	}
	return Summarize(all), nil
}

// Summarize computes the medians: of every figure for itself, so that they need
// not all come from one run. Errors add up, histograms are merged, and a promise
// is kept when every run kept it. The time line is that of the middle run.
func Summarize(all []*Report) *Summary {
	if len(all) == 1 {
		return &Summary{Report: *all[0]}
	}
	order := slices.SortedFunc(slices.Values(all), func(a, b *Report) int {
		return compare(a.CreatedPerS+a.ExecutedPerS, b.CreatedPerS+b.ExecutedPerS)
	})
	s := &Summary{Report: *order[(len(order)-1)/2], Runs: all, Spread: map[string]Spread{}}
	s.Errors, s.LedgerOK, s.Settled = map[string]int64{}, true, true
	s.create, s.cancel, s.lags = newHistogram(), newHistogram(), newHistogram()
	for _, r := range all {
		for code, n := range r.Errors {
			s.Errors[code] += n
		}
		s.LedgerOK, s.Settled = s.LedgerOK && r.LedgerOK, s.Settled && r.Settled
		s.create.Merge(r.create.Histogram)
		s.cancel.Merge(r.cancel.Histogram)
		s.lags.Merge(r.lags.Histogram)
	}
	values := make([]map[string]float64, len(all))
	for i, r := range all {
		values[i] = r.numbers()
	}
	medians := map[string]float64{}
	for name := range values[0] {
		var column []float64
		for _, v := range values {
			if x, there := v[name]; there {
				column = append(column, x)
			}
		}
		medians[name] = median(column)
		s.Spread[name] = Spread{slices.Min(column), slices.Max(column)}
	}
	s.setNumbers(medians)
	s.Early = 0 // one is too many, so they add up
	for _, r := range all {
		s.Early += r.Early
	}
	return s
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// median of an even number of values is the mean of the middle two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// numbers is every figure by its JSON name; those of a map are name.key.
func (r *Report) numbers() map[string]float64 {
	out := map[string]float64{}
	r.eachNumber(func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Float64:
			out[name] = v.Float()
		case reflect.Int64:
			out[name] = float64(v.Int())
		case reflect.Map:
			for key, x := range v.Interface().(map[string]float64) {
				out[name+"."+key] = x
			}
		}
	})
	return out
}

// setNumbers is the inverse of numbers. Maps are made anew: those of the runs
// stay as they are.
func (r *Report) setNumbers(values map[string]float64) {
	r.eachNumber(func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Float64:
			v.SetFloat(values[name])
		case reflect.Int64:
			v.SetInt(int64(values[name]))
		case reflect.Map:
			fresh := maps.Clone(v.Interface().(map[string]float64))
			for key := range fresh {
				fresh[key] = values[name+"."+key]
			}
			v.Set(reflect.ValueOf(fresh))
		}
	})
}

func (r *Report) eachNumber(f func(name string, v reflect.Value)) {
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		counts := field.Type == reflect.TypeFor[map[string]float64]() ||
			field.Type.Kind() == reflect.Float64 || field.Type.Kind() == reflect.Int64
		if field.IsExported() && counts {
			f(name, v.Field(i))
		}
	}
}
