package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// brief is one run in a few words.
func brief(job string, f figures) string {
	switch job {
	case "start":
		return fmt.Sprintf("%.0f/s", f.PerS)
	case "lifecycle":
		return fmt.Sprintf("%.0f/s, open %d", f.PerS, f.Open)
	case "lag":
		return fmt.Sprintf("lag %.0f/%.0f ms, %.0f/s, open %d", f.LagP50, f.LagP99, f.PerS, f.Open)
	}
	return fmt.Sprintf("acked %d, done %d, open %d, missing %d, doubles %d, done less paid %d, %.0f s",
		f.Acked, f.Done, f.Open, f.Missing, f.Doubles, f.Unpaid, f.RecoveredS)
}

// summary is the medians of the pairs of one job.
type summary struct {
	Peer     string  `json:"peer"`
	Job      string  `json:"job"`
	Rate     float64 `json:"rate,omitempty"`
	Pairs    int     `json:"pairs"`
	Theirs   figures `json:"theirs"`
	Holdfast figures `json:"holdfast"`
	Ratio    float64 `json:"ratio,omitempty"` // median of the pairs' ratios
}

// summarise keeps the order in which the jobs were run. Counts of what went
// wrong are added up and not averaged: one lost coin is one too many.
func summarise(rows []row) []summary {
	var out []summary
	for i, first := range rows {
		if first.Pair != 1 {
			continue
		}
		s := summary{Peer: first.Peer, Job: first.Job, Rate: first.Rate}
		var theirs, ours []figures
		var ratios []float64
		for _, r := range rows[i:] {
			if r.Peer == s.Peer && r.Job == s.Job && r.Rate == s.Rate {
				theirs, ours, ratios = append(theirs, r.Theirs), append(ours, r.Holdfast), append(ratios, r.Ratio)
			}
		}
		s.Pairs, s.Ratio = len(ratios), median(ratios)
		s.Theirs, s.Holdfast = middle(theirs), middle(ours)
		out = append(out, s)
	}
	return out
}

func middle(all []figures) (m figures) {
	of := func(get func(figures) float64) float64 {
		var v []float64
		for _, f := range all {
			v = append(v, get(f))
		}
		return median(v)
	}
	m.PerS = of(func(f figures) float64 { return f.PerS })
	m.LagP50 = of(func(f figures) float64 { return f.LagP50 })
	m.LagP99 = of(func(f figures) float64 { return f.LagP99 })
	m.LagMax = of(func(f figures) float64 { return f.LagMax })
	m.Early = of(func(f figures) float64 { return f.Early })
	m.RecoveredS = of(func(f figures) float64 { return f.RecoveredS })
	for _, f := range all {
		m.Acked += f.Acked
		m.Failed += f.Failed
		m.Done += f.Done
		m.Open += f.Open
		m.Missing += f.Missing
		m.Payments += f.Payments
		m.Doubles += f.Doubles
		m.Unpaid += f.Unpaid
		if m.Note == "" {
			m.Note = f.Note
		}
	}
	return m
}

func show(w io.Writer, o *options, rows []row) error {
	sums := summarise(rows)
	if o.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"clients": o.clients, "duration_s": o.duration.Seconds(), "senders": o.senders,
			"recipients": o.recipients, "redis_fsync": o.redisFsync, "pairs": rows, "medians": sums})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "job\tsystem\tper s\tlag p50 ms\tp99 ms\tearly\tratio\tacked\tfailed\tdone\topen\tmissing\tdoubles\tdone-paid\trecovered s")
	for _, s := range sums {
		job := s.Job
		if s.Rate > 0 {
			job = fmt.Sprintf("%s %.0f/s", s.Job, s.Rate)
		}
		line(t, job, s.Peer, s.Theirs, 0)
		line(t, "", "holdfast", s.Holdfast, s.Ratio)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range sums {
		for name, f := range map[string]figures{s.Peer: s.Theirs, "holdfast": s.Holdfast} {
			if f.Note != "" {
				fmt.Fprintf(w, "%s %s: %s\n", name, s.Job, f.Note)
			}
		}
	}
	return nil
}

func line(t io.Writer, job, system string, f figures, ratio float64) {
	times := ""
	if ratio > 0 {
		times = fmt.Sprintf("%.2f", ratio)
	}
	fmt.Fprintf(t, "%s\t%s\t%.0f\t%.1f\t%.1f\t%.0f%%\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.1f\n", job, system, f.PerS, f.LagP50, f.LagP99,
		100*f.Early, times, f.Acked, f.Failed, f.Done, f.Open, f.Missing, f.Doubles, f.Unpaid, f.RecoveredS)
}
