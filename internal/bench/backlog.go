package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Scenarios that first make many holds and then look at what becomes of them.

// A fill is expected to make so many holds a second at least; its holds must
// not mature before the last is made.
const fillPerSecond = 10_000

// backgroundRate is that of the creates that go on meanwhile.
const backgroundRate = 200

// calm is how long the background creates run before what they are to feel.
const calm = 5 * time.Second

func fillTime(n int64) time.Duration {
	return 5*time.Second + time.Duration(float64(n)/fillPerSecond*float64(time.Second))
}

func presetCliff(c *Config) {
	or(&c.Holds, 200_000)
	or(&c.Rate, backgroundRate)
	if c.DelayMax == 0 {
		c.DelayMin = fillTime(c.Holds)
		c.DelayMax = c.DelayMin
	}
}

// presetDrain leaves the rate open: 0 means that nothing else goes on.
func presetDrain(c *Config) {
	or(&c.Holds, 200_000)
	if c.DelayMax == 0 {
		c.DelayMin = fillTime(c.Holds)
		c.DelayMax = c.DelayMin
	}
}

func presetPending(c *Config) {
	or(&c.Pending, 1_000_000)
	or(&c.Holds, 20_000)
}

// fill makes n holds through batchCreate, which is the way of real ones, as
// fast as it goes. shape says when they mature.
func (b *run) fill(ctx context.Context, n int64, shape func(p *phase)) (perSecond float64, err error) {
	p := b.newPhase(stepBatch)
	p.Rate, p.Warmup, p.Duration, p.Clients, p.Batch, p.Zipf = 0, 0, time.Hour, 16, int(min(100, n)), 0
	p.Most, p.Start = (n+int64(p.Batch)-1)/int64(p.Batch), time.Now()
	shape(&p)
	b.Note("making %d holds in batches", n)
	made, err := b.load(ctx, p)
	if err != nil {
		return 0, err
	}
	took := time.Since(p.Start).Seconds()
	if made.Acked < n && ctx.Err() == nil {
		return 0, fmt.Errorf("only %d of %d holds could be made: %v", made.Acked, n, made.Errors)
	}
	return float64(made.Acked) / took, ctx.Err()
}

// fillUntil is fill of holds that mature in the span after a moment, and
// refuses to go on when they mature before all of them are there.
func (b *run) fillUntil(ctx context.Context, n int64, at time.Time, spread time.Duration) (float64, error) {
	rate, err := b.fill(ctx, n, func(p *phase) { p.UnlockAt, p.UnlockSpread = at, spread })
	if err == nil && !time.Now().Before(at) {
		err = fmt.Errorf("%d holds could not be made in time: give them more with --delay", n)
	}
	b.due(at.Add(spread))
	return rate, err
}

// background creates holds far ahead at the configured rate until stop is
// called, which returns what the clients saw. Rate 0: none.
func (b *run) background(ctx context.Context) (stop func() (*seen, error)) {
	if b.cfg.Rate == 0 {
		return func() (*seen, error) { return newSeen(), nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	p := b.newPhase(stepCreate)
	p.Warmup, p.Duration, p.DelayMin, p.DelayMax, p.Start = 0, time.Hour, 6*time.Hour, 12*time.Hour, time.Now()
	type result struct {
		s   *seen
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := b.load(ctx, p)
		done <- result{s, err}
	}()
	return func() (*seen, error) {
		cancel()
		r := <-done
		if r.err == nil {
			b.loadEnd = time.Now()
			b.report.creates(r.s, p.elapsed(b.loadEnd))
		}
		return r.s, r.err
	}
}

// allEnded waits until no hold that matures in a span is open.
func (b *run) allEnded(ctx context.Context, from, to time.Time) bool {
	watched := b.shards.watchOpen(b.start, from, to)
	return b.await(ctx, time.Now().Add(b.cfg.Settle), "holds", func(ctx context.Context) (bool, error) {
		shards, err := watched.look(ctx)
		return shards == 0, err
	})
}

// playCliff: all holds mature within one second.
func playCliff(ctx context.Context, b *run) error {
	at := time.Now().Add(b.cfg.DelayMin).Truncate(time.Second)
	rate, err := b.fillUntil(ctx, b.cfg.Holds, at, time.Second)
	if err != nil {
		return err
	}
	b.triggers.to(b.redis(ctx))
	if !pause(ctx, at.Add(-calm)) {
		return ctx.Err()
	}
	stop := b.background(ctx)
	b.Note("%d holds mature at %s", b.cfg.Holds, at.Format("15:04:05"))
	pause(ctx, at)
	b.allEnded(ctx, at, at.Add(time.Second))
	ended := time.Now()
	made, err := stop()
	b.report.figure("fill_per_s", rate)
	b.report.during(made, at, ended)
	b.finish = func(_, last time.Time) { b.report.figure("until_all_executed_s", last.Sub(at).Seconds()) }
	return err
}

// playDrain: the holds become overdue while no payment gets through.
func playDrain(ctx context.Context, b *run) error {
	const spread = 5 * time.Second
	at := time.Now().Add(b.cfg.DelayMin).Truncate(time.Second)
	rate, err := b.fillUntil(ctx, b.cfg.Holds, at, spread)
	if err != nil {
		return err
	}
	b.triggers.to(b.redis(ctx))
	b.Note("payments are down until %d holds are overdue", b.cfg.Holds)
	if err := b.faults(ctx, simFaults{Mode: "down"}); err != nil {
		return err
	}
	defer b.mend(ctx)
	pause(ctx, at.Add(spread))
	stop := b.background(ctx)
	pause(ctx, time.Now().Add(calm))
	overdue, err := b.shards.watchOpen(b.start, at, at.Add(spread)).count(ctx)
	if err != nil {
		_, stopErr := stop()
		return errors.Join(err, stopErr)
	}
	mended := time.Now()
	if err := b.faults(ctx, simFaults{LatencyMS: b.cfg.PaymentLatency.Milliseconds()}); err != nil {
		_, stopErr := stop()
		return errors.Join(err, stopErr)
	}
	b.Note("payments work again, %d holds are overdue", overdue)
	b.allEnded(ctx, at, at.Add(spread))
	ended := time.Now()
	made, err := stop()
	b.report.figure("fill_per_s", rate)
	b.report.figure("overdue", float64(overdue))
	b.report.during(made, mended, ended)
	b.finish = func(_, last time.Time) {
		b.report.figure("until_none_overdue_s", last.Sub(mended).Seconds())
		if resumed, err := b.firstExecution(context.WithoutCancel(ctx), mended); err == nil && last.After(resumed) {
			b.report.figure("until_first_executed_s", resumed.Sub(mended).Seconds())
			b.report.figure("drain_per_s", float64(overdue)/last.Sub(resumed).Seconds())
		}
	}
	return err
}

const spanSQL = `SELECT count(*), min(executed_at), max(executed_at) FROM holds
WHERE id >= $1 AND id < $2 AND created_at >= $3 AND status = 3 AND executed_at >= $4`

// executed is how many holds that mature in a span were executed from since on,
// and when the first and the last.
func (b *run) executed(ctx context.Context, from, to, since time.Time) (sum int64, first, last time.Time, err error) {
	err = b.shards.each(ctx, b.DSNs, func(ctx context.Context, _ int, c *pgx.Conn) error {
		var n int64
		var lo, hi *time.Time
		err := c.QueryRow(ctx, spanSQL, lowest(from), lowest(to), b.start, since).Scan(&n, &lo, &hi)
		b.mu.Lock()
		defer b.mu.Unlock()
		sum += n
		if lo != nil {
			first, last = earlier(first, *lo), later(last, *hi)
		}
		return err
	})
	return sum, first, last, err
}

func (b *run) firstExecution(ctx context.Context, since time.Time) (time.Time, error) {
	_, first, _, err := b.executed(ctx, b.start, b.lastDue.Add(time.Minute), since)
	if err == nil && first.IsZero() {
		err = errors.New("nothing was executed")
	}
	return first, err
}

// playPending compares creates, and executions of a small cliff, before and
// after many holds were put on top.
func playPending(ctx context.Context, b *run) error {
	p := b.newPhase(stepCreate)
	b.Note("%s", b.describe(p))
	if _, err := b.main(ctx, p); err != nil {
		return err
	}
	before := b.report.CreatedPerS
	at := time.Now().Add(fillTime(b.cfg.Holds)).Truncate(time.Second)
	rate, err := b.fillUntil(ctx, b.cfg.Holds, at, time.Second)
	if err != nil {
		return err
	}
	fresh, err := b.smallCliff(ctx, at)
	if err != nil {
		return err
	}
	// The old ones are made first and mature when all else is done. A long fill
	// is slower than the short one whose rate is known.
	needed := 2.5*float64(b.cfg.Holds+b.cfg.Pending)/rate + (p.Warmup + p.Duration).Seconds() + 10
	at = time.Now().Add(time.Duration(needed * float64(time.Second))).Truncate(time.Second)
	if _, err = b.fillUntil(ctx, b.cfg.Holds, at, time.Second); err != nil {
		return err
	}
	rate, err = b.fill(ctx, b.cfg.Pending, func(p *phase) { p.DelayMin, p.DelayMax = 24*time.Hour, 30*24*time.Hour })
	if err != nil {
		return err
	}
	if _, err := b.main(ctx, p); err != nil {
		return err
	}
	if time.Now().After(at) {
		b.Note("the old holds matured before everything else was done: their rate is that of a busy machine")
	}
	old, err := b.smallCliff(ctx, at)
	b.report.figure("fill_per_s", rate)
	b.report.figure("pending", float64(b.cfg.Pending))
	b.report.figure("created_before_per_s", before)
	b.report.figure("created_with_pending_ratio", ratio(b.report.CreatedPerS, before))
	b.report.figure("executed_fresh_per_s", fresh)
	b.report.figure("executed_old_per_s", old)
	b.report.figure("executed_old_ratio", ratio(old, fresh))
	return err
}

// smallCliff waits for the holds that mature in the second from at and returns
// how many were executed per second.
func (b *run) smallCliff(ctx context.Context, at time.Time) (float64, error) {
	if pause(ctx, at) {
		b.allEnded(ctx, at, at.Add(time.Second))
	}
	n, first, last, err := b.executed(ctx, at, at.Add(time.Second), at)
	return ratio(float64(n), last.Sub(first).Seconds()), err
}

// ratio is 0 where it has no meaning.
func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}
