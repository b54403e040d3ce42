package main

import (
	"math"
	"slices"
	"time"
)

// done is one finished transfer as its worker saw it: when, and how long after
// its due time. Negative: before it.
type done struct {
	AtUS  int64 `json:"at"`
	LagUS int64 `json:"lag"`
}

// quantile of sorted values by the nearest rank; 0 without values.
func quantile(sorted []int64, q float64) int64 {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// median of any values, 0 without.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// window is what a list of finished transfers says about a span of time.
type window struct {
	perS             float64
	p50, p99, max    float64 // ms of lag
	early, inWindow  int
	earlyShare       float64
	lagsWereMeasured bool
}

// overWindow counts what was finished in [from, to) for the rate, and takes the
// lags of everything that was due in it, however late it was finished: the
// slowest must not fall out of the figures.
func overWindow(all []done, from, to time.Time) window {
	var w window
	var lags []int64
	for _, d := range all {
		if d.AtUS >= from.UnixMicro() && d.AtUS < to.UnixMicro() {
			w.inWindow++
		}
		if due := d.AtUS - d.LagUS; due >= from.UnixMicro() && due < to.UnixMicro() {
			lags = append(lags, d.LagUS)
			if d.LagUS < 0 {
				w.early++
			}
		}
	}
	if s := to.Sub(from).Seconds(); s > 0 {
		w.perS = float64(w.inWindow) / s
	}
	if len(lags) == 0 {
		return w
	}
	slices.Sort(lags)
	w.lagsWereMeasured = true
	w.p50, w.p99 = float64(quantile(lags, 0.5))/1000, float64(quantile(lags, 0.99))/1000
	w.max = float64(lags[len(lags)-1]) / 1000
	w.earlyShare = float64(w.early) / float64(len(lags))
	return w
}
