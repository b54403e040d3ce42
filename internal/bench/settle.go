package bench

import (
	"context"
	"net/http"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
)

type holdID = holdfast.HoldID

// settle waits until every hold of the run has ended, or the time for it is over.
func (b *run) settle(ctx context.Context) {
	if !b.cfg.settles() || b.seen.acked == 0 {
		b.report.Settled = true
		return
	}
	deadline := b.loadEnd.Add(b.cfg.DelayMax + b.cfg.Settle)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	said := time.Now()
	for {
		open, err := b.open(ctx)
		if err == nil && open == 0 {
			b.report.Settled = true
			return
		}
		if err == nil {
			b.report.Open = open
		}
		if time.Now().After(deadline) {
			b.cfg.Note("holds have not ended, or could not be looked at, %s after the last maturity", b.cfg.Settle)
			return
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			if err != nil {
				b.cfg.Note("waiting until the holds can be looked at: %v", err)
			} else {
				b.cfg.Note("waiting for %d holds to end", open)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// open counts the holds of the run that have not ended: all of them by SQL, or
// those of the sample through the API.
func (b *run) open(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if b.shards != nil {
		return b.shards.open(ctx, b.start, b.loadEnd.Add(b.cfg.DelayMax))
	}
	c := b.client()
	n := int64(0)
	for _, id := range b.seen.sample {
		h, err := c.Hold(ctx, id)
		if err != nil {
			return 0, err
		}
		if !h.Status.Ended() {
			n++
		}
	}
	return n, nil
}

func (b *run) client() *apiclient.Client {
	return &apiclient.Client{API: b.cfg.API, Admin: b.cfg.Admin, Token: b.cfg.Token, HTTP: &http.Client{
		Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}}
}

// sampleLag estimates what the shards would tell from the holds that the run
// remembered.
func (b *run) sampleLag(ctx context.Context) {
	c := b.client()
	lag := newHistogram()
	executed, read := 0, 0
	var first, last time.Time
	for _, id := range b.seen.sample {
		h, err := c.Hold(ctx, id)
		if err != nil {
			continue
		}
		read++
		if h.Status != holdfast.Executed {
			continue
		}
		executed++
		record(lag, h.ExecutedAt.Sub(h.UnlockAt))
		if first.IsZero() || h.ExecutedAt.Before(first) {
			first = h.ExecutedAt
		}
		if h.ExecutedAt.After(last) {
			last = h.ExecutedAt
		}
	}
	b.report.LagSampled = true
	b.report.lag(lag)
	if read > 0 {
		b.report.Executed = int64(float64(b.seen.acked) * float64(executed) / float64(read))
	}
	if span := last.Sub(first).Seconds(); span > 0 {
		b.report.ExecutedPerS = float64(b.report.Executed) / span
	}
}

// steadyWindow is the part of the run in which maturities arrive at the full
// rate: from the longest delay after its start to its end. A run shorter than
// twice its longest delay has none.
func (b *run) steadyWindow() (from, to time.Time, ok bool) {
	from = b.measured.Add(b.cfg.DelayMax)
	return from, b.loadEnd, b.cfg.Scenario != "cliff" && b.loadEnd.Sub(b.measured) >= 2*b.cfg.DelayMax
}

func ms(h *hdrhistogram.Histogram, quantile float64) float64 {
	return float64(h.ValueAtQuantile(quantile)) / 1000
}
