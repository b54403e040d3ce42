package coordinator

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

const (
	// deferBusyMS is when to ask again for an id that found no room here.
	deferBusyMS = 100
	// deferAwayMS is when to ask again for an id whose recipient's shard, or the
	// payment API, is away.
	deferAwayMS = 1000
	// comesUpMost is how long after its end a hold may come up again by itself:
	// triggers are taken from Redis within their lease.
	comesUpMost = 30 * time.Second
	// checkTimeout is how long the recipients' shards have to say whether they
	// may be paid.
	checkTimeout = time.Second
)

// Drive decides about due holds of one shard: each is checked, given a permit of
// the breaker, and claimed, in this order. It answers as soon as the claims are
// committed; the payments go on behind the answer, and end whatever the caller
// does. An id that is not claimed is still PENDING and PostgreSQL has it.
func (c *Coordinator) Drive(ctx context.Context, shard int, ids []holdfast.HoldID) []branch.DriveResult {
	out := make([]branch.DriveResult, len(ids))
	if !c.begin() {
		return fillDeferred(out, deferAwayMS)
	}
	defer c.running.Done()
	b := c.look(ctx, shard, ids, out)
	c.checkRecipients(ctx, b)
	if ctx.Err() != nil {
		b.keep(func(int) bool { return false },
			func(int) branch.DriveResult { return branch.DriveResult{Code: branch.DriveDeferred, InMS: deferBusyMS} })
	}
	c.takePermits(b)
	c.claim(ctx, b)
	return out
}

func fillDeferred(out []branch.DriveResult, inMS int64) []branch.DriveResult {
	for i := range out {
		out[i] = branch.DriveResult{Code: branch.DriveDeferred, InMS: inMS}
	}
	return out
}

// driveBatch is what one Drive works on; out[at[i]] is the answer of items[i].
type driveBatch struct {
	shard   int
	items   []branch.ClaimItem
	holds   []holdfast.Hold
	permits []payment.Permit
	at      []int
	out     []branch.DriveResult
	started time.Time
}

// look reads the holds, answers those that have ended, and keeps the others.
func (c *Coordinator) look(ctx context.Context, shard int, ids []holdfast.HoldID, out []branch.DriveResult) *driveBatch {
	b := &driveBatch{shard: shard, out: out, started: time.Now()}
	items := make([]branch.IDItem, len(ids))
	for i, id := range ids {
		items[i].ID = id
	}
	lease := (c.cfg.Payment.Timeout() + c.cfg.LeaseMargin).Milliseconds()
	seen := make(map[holdfast.HoldID]bool, len(ids))
	for i, r := range c.shards.Get(ctx, shard, items) {
		switch {
		case r.Code != branch.CodeOK:
			out[i] = branch.DriveResult{Code: r.Code, InMS: deferAwayMS}
		case seen[ids[i]]:
			out[i] = branch.DriveResult{Code: branch.CodeBusy}
		case endedLately(r.Hold, b.started):
			out[i] = branch.DriveResult{Code: branch.CodeEnded}
		default:
			seen[ids[i]] = true
			b.items = append(b.items, branch.ClaimItem{ID: ids[i], LeaseMS: lease})
			b.holds = append(b.holds, r.Hold)
			b.at = append(b.at, i)
		}
	}
	return b
}

// endedLately reports whether a hold needs no claim because it has ended. One that
// still comes up long after its end does go through the claim, which clears away
// whatever makes it come up.
func endedLately(h holdfast.Hold, now time.Time) bool {
	switch h.Status {
	case holdfast.Executed:
		return now.Sub(h.ExecutedAt) < comesUpMost
	case holdfast.Cancelled:
		return now.Sub(h.CancelledAt) < comesUpMost
	}
	return false
}

// keep drops the items that keep says no to; answer gives theirs. Both are asked
// in order, with the index that the item has before it moves.
func (b *driveBatch) keep(keep func(i int) bool, answer func(i int) branch.DriveResult) {
	n := 0
	for i := range b.items {
		if !keep(i) {
			b.out[b.at[i]] = answer(i)
			continue
		}
		b.items[n], b.holds[n], b.at[n] = b.items[i], b.holds[i], b.at[i]
		if b.permits != nil {
			b.permits[n] = b.permits[i]
		}
		n++
	}
	b.items, b.holds, b.at = b.items[:n], b.holds[:n], b.at[:n]
}

// checkRecipients looks once more whether the recipients may be paid: before
// the claim, and only before it, a refusal needs no word of the payment API. A
// hold whose recipient's shard is away is not claimed and delays nobody else.
func (c *Coordinator) checkRecipients(ctx context.Context, b *driveBatch) {
	byShard := map[int][]int{}
	for i, h := range b.holds {
		s := c.cfg.Map.OfUser(h.Recipient)
		byShard[s] = append(byShard[s], i)
	}
	codes := make([]branch.Code, len(b.items))
	var all sync.WaitGroup
	for s, list := range byShard {
		all.Go(func() {
			// A shard that hangs delays nobody else's holds.
			ctx, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			items := make([]branch.CheckItem, len(list))
			for j, i := range list {
				items[j] = branch.CheckItem{User: b.holds[i].Recipient, Currency: b.holds[i].Currency}
			}
			for j, r := range c.shards.Check(ctx, s, items) {
				codes[list[j]] = r.Code
			}
		})
	}
	all.Wait()
	for i, code := range codes {
		if code == branch.CodeUnknownRecipient || code == branch.CodeRecipientNotPayable {
			b.items[i].Refusal = string(code)
		}
	}
	b.keep(func(i int) bool { return codes[i].Err() == nil },
		func(int) branch.DriveResult { return branch.DriveResult{Code: branch.DriveDeferred, InMS: deferAwayMS} })
}

// takePermits takes a slot and a permit for every hold that may need a call of
// the payment API. The batch claims no more than it has permits.
func (c *Coordinator) takePermits(b *driveBatch) {
	b.permits = make([]payment.Permit, len(b.items))
	busy := make([]bool, len(b.items))
	b.keep(func(i int) bool {
		select {
		case c.driving <- struct{}{}:
		default:
			busy[i] = true
			return false
		}
		if b.items[i].Refusal != "" && b.holds[i].Status == holdfast.Pending || b.holds[i].Verdict != holdfast.NoVerdict {
			return true // nothing will be sent
		}
		permit, err := c.cfg.Payment.Allow()
		if err != nil {
			<-c.driving
			return false
		}
		b.permits[i] = permit
		return true
	}, func(i int) branch.DriveResult {
		if busy[i] {
			return branch.DriveResult{Code: branch.DriveDeferred, InMS: deferBusyMS}
		}
		return branch.DriveResult{Code: branch.DriveDeferred, InMS: deferAwayMS}
	})
}

// claim commits the claims and hands each claimed hold to a goroutine of its
// own, which owns it from here to its end or its next attempt.
func (c *Coordinator) claim(ctx context.Context, b *driveBatch) {
	// The lease is counted from here, by a clock that a paused process cannot
	// stop, and so never ends later for us than for the shard. Whoever asked
	// may leave: a claim that is committed must find its driver.
	b.started = time.Now()
	work := context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeout(work, c.cfg.RequestTimeout)
	defer cancel()
	for i, r := range c.shards.Claim(ctx, b.shard, b.items) {
		b.out[b.at[i]] = branch.DriveResult{Code: r.Code, InMS: r.InMS}
		d := &drive{c: c, shard: b.shard, hold: r.Hold, claim: r, permit: b.permits[i], started: b.started}
		var next func(context.Context)
		switch r.Code {
		case branch.CodeClaimed:
			c.count(holdfast.Executing)
			next = d.first
		case branch.CodeRedrive:
			next = d.again
		case branch.CodeToCredit:
			next = d.credit
		case branch.CodeToWatch:
			next = d.watch
		case branch.CodeRefused:
			c.count(holdfast.Executing)
			c.count(holdfast.Failed)
			c.wantRefund(r.Hold.ID)
		case branch.CodeToRefund:
			c.wantRefund(r.Hold.ID)
		}
		if next == nil {
			d.permit.Cancel()
			<-c.driving
			continue
		}
		c.running.Add(1)
		go func() {
			defer c.running.Done()
			defer func() { <-c.driving }()
			defer d.permit.Cancel() // a no-op where the call was made
			next(work)
		}()
	}
}

// begin counts a drive in, unless the coordinator is closing.
func (c *Coordinator) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.running.Add(1)
	return true
}

// nudge drives one hold now; for operators who have just changed its fate.
func (c *Coordinator) nudge(id holdfast.HoldID) {
	if !c.begin() {
		return
	}
	go func() {
		defer c.running.Done()
		ctx, cancel := context.WithTimeout(context.Background(), c.cfg.RequestTimeout)
		defer cancel()
		c.Drive(ctx, c.cfg.Map.OfHold(id), []holdfast.HoldID{id})
	}()
}

// Open reports whether due holds may be sent: the breaker is not open and the
// coordinator is not closing.
func (c *Coordinator) Open(context.Context) bool {
	return c.cfg.Payment.State() != payment.Open && !c.Draining()
}

func (c *Coordinator) count(to holdfast.Status) {
	c.metrics.transitions.WithLabelValues(to.String()).Inc()
}
