package bench

import (
	"context"
	"net/http"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
)

type holdID = holdfast.HoldID

// settle waits until every hold of the run that matures within it has ended, or
// the time for it is over.
func (b *run) settle(ctx context.Context) {
	if b.lastDue.IsZero() || b.acked == 0 {
		b.report.Settled = true
		return
	}
	deadline := later(b.lastDue, time.Now()).Add(b.cfg.Settle)
	var watched *openHolds
	if b.shards != nil {
		watched = b.shards.watchOpen(b.start, b.start, b.lastDue)
	}
	b.report.Settled = b.await(ctx, deadline, "holds", func(ctx context.Context) (bool, error) {
		if watched == nil {
			open, err := b.openOfSample(ctx)
			b.report.Open = open
			return open == 0, err
		}
		shards, err := watched.look(ctx)
		return shards == 0, err
	})
	if !b.report.Settled && watched != nil && ctx.Err() == nil {
		b.report.Open, _ = watched.count(ctx)
	}
}

// await asks done until it says yes, the deadline is over or ctx ends. The
// question may be dear: the pause after it is ten times as long as it took.
func (b *run) await(ctx context.Context, deadline time.Time, what string, done func(context.Context) (bool, error)) bool {
	said := time.Now()
	timer := time.NewTimer(0)
	<-timer.C
	for {
		asked := time.Now()
		asking, cancel := context.WithTimeout(ctx, 30*time.Second)
		yes, err := done(asking)
		cancel()
		if err == nil && yes {
			return true
		}
		now := time.Now()
		switch {
		case now.After(deadline):
			b.Note("%s have not ended in time, or could not be looked at", what)
			return false
		case now.Sub(said) > 5*time.Second && err != nil:
			said = now
			b.Note("waiting until the %s can be looked at: %v", what, err)
		case now.Sub(said) > 5*time.Second:
			said = now
			b.Note("waiting for %s to end", what)
		}
		timer.Reset(max(100*time.Millisecond, 10*now.Sub(asked)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
	}
}

// pause waits until a moment; false: ctx ended before.
func pause(ctx context.Context, until time.Time) bool {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// openOfSample counts the holds of the sample that have not ended, through the
// API.
func (b *run) openOfSample(ctx context.Context) (n int64, err error) {
	c := b.client()
	for _, id := range b.sample {
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
	return &apiclient.Client{API: b.API, Admin: b.Admin, Token: b.Token, HTTP: &http.Client{
		Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}}
}

// sampleLag estimates what the shards would tell from the holds that the run
// remembered.
func (b *run) sampleLag(ctx context.Context) {
	c := b.client()
	lag, lags := newHistogram(), series{}
	executed, read := 0, 0
	var first, last time.Time
	for _, id := range b.sample {
		h, err := c.Hold(ctx, id)
		if err != nil {
			continue
		}
		read++
		if h.Status != holdfast.Executed {
			continue
		}
		executed++
		if b.steadyFrom.IsZero() || !h.UnlockAt.Before(b.steadyFrom) && h.UnlockAt.Before(b.steadyTo) {
			lag.record(h.ExecutedAt.Sub(h.UnlockAt))
		}
		first, last = earlier(first, h.ExecutedAt), later(last, h.ExecutedAt)
	}
	b.report.LagSampled = true
	estimate := int64(0)
	if read > 0 {
		estimate = int64(float64(b.acked) * float64(executed) / float64(read))
	}
	b.report.executions(estimate, lag, lags, first, last)
}
