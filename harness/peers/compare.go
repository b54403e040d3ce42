package main

import (
	"context"
	"fmt"
	"time"
)

// row is one pair: a job done by the peer and, right after it, by Holdfast.
type row struct {
	Peer     string  `json:"peer"`
	Job      string  `json:"job"`
	Rate     float64 `json:"rate,omitempty"`
	Pair     int     `json:"pair"`
	Theirs   figures `json:"theirs"`
	Holdfast figures `json:"holdfast"`
	// Ratio is Holdfast's rate over the peer's; of the lag job it is the peer's
	// p99 over Holdfast's. Above 1 Holdfast is better.
	Ratio float64 `json:"ratio,omitempty"`
}

// compare runs all pairs of all jobs, the two systems of a pair one after the
// other, so that a machine that grows slower slows both.
func (l *lab) compare(ctx context.Context) (rows []row, err error) {
	for _, job := range l.o.jobs {
		rates := []float64{0}
		if job == "lag" {
			rates = l.o.rates
		}
		for _, rate := range rates {
			for pair := range l.o.pairs {
				if job == "crash" && pair > 0 {
					break // what it shows does not depend on the machine's mood
				}
				for _, peer := range l.o.peers {
					r, err := l.pair(ctx, row{Peer: peer, Job: job, Rate: rate, Pair: pair + 1})
					if err != nil {
						return rows, fmt.Errorf("%s %s: %w", peer, job, err)
					}
					rows = append(rows, r)
				}
			}
		}
	}
	return rows, nil
}

func (l *lab) pair(ctx context.Context, r row) (_ row, err error) {
	begin := time.Now()
	if r.Theirs, err = l.runPeer(ctx, r.Peer, r.Job, r.Rate); err != nil {
		return r, err
	}
	if r.Holdfast, err = l.runHoldfast(ctx, r.Job, r.Rate); err != nil {
		return r, err
	}
	r.Ratio = ratio(r)
	say("%s %s %.0f, pair %d of %d (%.0f s): %s | holdfast %s", r.Peer, r.Job, r.Rate, r.Pair, l.o.pairs,
		time.Since(begin).Seconds(), brief(r.Job, r.Theirs), brief(r.Job, r.Holdfast))
	return r, nil
}

func ratio(r row) float64 {
	a, b := r.Holdfast.PerS, r.Theirs.PerS
	if r.Job == "lag" {
		a, b = r.Theirs.LagP99, r.Holdfast.LagP99
	}
	if r.Job == "crash" || a <= 0 || b <= 0 {
		return 0
	}
	return a / b
}
