package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// ProofReport says whether the ledger is whole. OK needs every shard: one that
// cannot be read is not proved, and Reason says so. Total adds the shards up;
// its Shard is −1. Offenders has the first of each kind over all shards.
type ProofReport struct {
	OK          bool                `json:"ok"`
	Reason      string              `json:"reason,omitempty"`
	At          time.Time           `json:"at"`
	TookMS      int64               `json:"took_ms"`
	Shards      []branch.ShardProof `json:"shards"`
	Total       branch.ShardProof   `json:"total"`
	Offenders   []branch.Offender   `json:"offenders"`
	Unavailable []int               `json:"shards_unavailable"`
}

// ProveLedger proves the ledger while money moves. Each shard is proved under a
// snapshot of its own; what crosses shards is proved in two rounds afterwards.
// It never fails: what could not be proved is in the report. One proof runs at a
// time, because each reads everything.
func (c *Coordinator) ProveLedger(ctx context.Context) ProofReport {
	start := time.Now()
	r := ProofReport{At: start.UTC(), Shards: []branch.ShardProof{}, Offenders: []branch.Offender{}, Unavailable: []int{}}
	select {
	case c.proving <- struct{}{}:
		defer func() { <-c.proving }()
	case <-ctx.Done():
		r.Reason = "another proof is running: not proved"
		return r
	}
	n := c.cfg.Map.Shards
	proofs, errs := eachShard(ctx, n, c.shards.Prove)
	for shard, err := range errs {
		if err != nil {
			c.notProved(ctx, "shard could not be proved", "shard", shard, "error", err)
			r.Unavailable = append(r.Unavailable, shard)
			continue
		}
		r.Shards = append(r.Shards, proofs[shard])
	}
	var found []branch.Offender
	for _, p := range r.Shards {
		found = append(found, p.Offenders...)
	}
	if len(r.Unavailable) == 0 {
		t := transitProof{shards: &c.shards, n: n}
		if err := t.run(ctx); err != nil {
			c.notProved(ctx, "transit could not be proved", "error", err)
			r.Reason = "what crosses shards could not be read: not proved"
		}
		found = append(found, t.offenders()...)
	} else {
		r.Reason = fmt.Sprintf("shard %d unavailable: not proved", r.Unavailable[0])
	}
	c.measure(r, found)
	r.Offenders = firstOfEachKind(found)
	r.Total = totalOf(r.Shards)
	r.OK = len(found) == 0 && r.Reason == ""
	r.Total.OK, r.Total.At, r.Total.Offenders = r.OK, r.At, r.Offenders
	r.TookMS = time.Since(start).Milliseconds()
	if r.Reason == "" && c.cfg.ProofEvery > 0 {
		c.metrics.proved.WithLabelValues().Set(float64(time.Now().UnixMilli()) / 1000)
	}
	return r
}

// notProved logs what a proof could not read, unless who asked for it went away.
func (c *Coordinator) notProved(ctx context.Context, what string, facts ...any) {
	if !errors.Is(ctx.Err(), context.Canceled) {
		c.log.Error(what, facts...)
	}
}

// proveLoop proves the ledger without being asked: a coin that is missing must
// be found by nobody's luck. A proof reads every book, so the first one comes
// after a random share of the interval: neither do coordinators that start
// together read all at once, nor does one that keeps dying read all the time.
func (c *Coordinator) proveLoop(ctx context.Context) {
	every := c.cfg.ProofEvery
	wait := time.NewTimer(rand.N(every))
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		c.proveUnasked(ctx)
		wait.Reset(every - every/10 + rand.N(every/5+1))
	}
}

// proveUnasked proves once. Nobody reads its report, so the log has what is
// wrong, a line for each kind.
func (c *Coordinator) proveUnasked(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	for _, o := range c.ProveLedger(ctx).Offenders {
		c.log.Error("the ledger is not whole", "kind", o.Kind, "shard", o.Shard, "count", o.Count, "first", o.First)
	}
}

// measure sets the gauge of each shard that was proved to the number of its
// offenders. What two shards disagree about counts on both sides of the
// comparison, that is on every shard.
func (c *Coordinator) measure(r ProofReport, found []branch.Offender) {
	for _, p := range r.Shards {
		var n int64
		for _, o := range found {
			if o.Shard == p.Shard || o.Shard < 0 {
				n += o.Count
			}
		}
		c.metrics.imbalance.WithLabelValues(strconv.Itoa(p.Shard)).Set(float64(n))
	}
}

// firstOfEachKind adds up the counts of a kind and keeps its first offender.
func firstOfEachKind(found []branch.Offender) []branch.Offender {
	list := []branch.Offender{}
	for _, o := range found {
		i := slices.IndexFunc(list, func(known branch.Offender) bool { return known.Kind == o.Kind })
		if i < 0 {
			list = append(list, o)
			continue
		}
		list[i].Count += o.Count
	}
	slices.SortFunc(list, func(a, b branch.Offender) int { return cmp.Compare(a.Kind, b.Kind) })
	return list
}

func totalOf(proofs []branch.ShardProof) branch.ShardProof {
	t := branch.ShardProof{Shard: -1, Available: new(big.Int), Held: new(big.Int), Debits: new(big.Int), Credits: new(big.Int),
		Issued: new(big.Int), EscrowHolds: new(big.Int), Transit: new(big.Int)}
	for _, p := range proofs {
		t.Accounts += p.Accounts
		t.Holds += p.Holds
		t.Entries += p.Entries
		t.TransitN += p.TransitN
		for _, sum := range [][2]*big.Int{{t.Available, p.Available}, {t.Held, p.Held}, {t.Debits, p.Debits}, {t.Credits, p.Credits},
			{t.Issued, p.Issued}, {t.EscrowHolds, p.EscrowHolds}, {t.Transit, p.Transit}} {
			sum[0].Add(sum[0], sum[1])
		}
	}
	return t
}

// eachShard asks all shards at once.
func eachShard[T any](ctx context.Context, n int, ask func(context.Context, int) (T, error)) ([]T, []error) {
	answers, errs := make([]T, n), make([]error, n)
	var all sync.WaitGroup
	for shard := range n {
		all.Go(func() { answers[shard], errs[shard] = ask(ctx, shard) })
	}
	all.Wait()
	return answers, errs
}

// transitProof proves what crosses shards, without a common snapshot and while
// money moves. A credit is posted after the verdict paid was committed, and
// EXECUTED is committed after the credit. So for two rounds of reading, all
// shards in the first before any in the second:
//
//   - every credit of round one has its verdict in round two;
//   - every EXECUTED of round one has its credit in round two.
//
// A hold that is paid and not EXECUTED is transit: it is an open attempt of its
// own shard, which proves that a driver will find it. First only digests are
// compared, by the hour and then the minute of maturity; where they agree both
// statements hold. Ids are compared for the minutes in which they differ.
type transitProof struct {
	shards *branch.Client
	n      int
	found  []branch.Offender
}

const (
	hourMS   = 3_600_000
	minuteMS = 60_000
	lastMS   = 1<<48 - 1
)

func (t *transitProof) run(ctx context.Context) error {
	hours, err := t.differing(ctx, branch.TransitRange{From: 0, To: lastMS}, hourMS)
	if err != nil {
		return err
	}
	for _, hour := range hours {
		minutes, err := t.differing(ctx, hour, minuteMS)
		if err != nil {
			return err
		}
		for _, minute := range minutes {
			if err := t.compare(ctx, minute); err != nil {
				return err
			}
		}
	}
	return nil
}

// differing reads the digests of a range twice and returns the cells in which
// the two statements are not proved by equal digests, the earliest first.
func (t *transitProof) differing(ctx context.Context, within branch.TransitRange, stepMS int64) ([]branch.TransitRange, error) {
	one, err := t.cells(ctx, within, stepMS)
	if err != nil {
		return nil, err
	}
	two, err := t.cells(ctx, within, stepMS)
	if err != nil {
		return nil, err
	}
	var differ []branch.TransitRange
	for from, b := range two {
		a := one[from]
		if a.Credited != b.Paid || a.Executed != b.Credited {
			differ = append(differ, branch.TransitRange{From: from, To: from + stepMS})
		}
	}
	for from := range one {
		if _, known := two[from]; !known { // it was there and is gone
			differ = append(differ, branch.TransitRange{From: from, To: from + stepMS})
		}
	}
	slices.SortFunc(differ, func(a, b branch.TransitRange) int { return cmp.Compare(a.From, b.From) })
	return differ, nil
}

func (t *transitProof) cells(ctx context.Context, within branch.TransitRange, stepMS int64) (map[int64]branch.TransitCell, error) {
	answers, errs := eachShard(ctx, t.n, func(ctx context.Context, shard int) (branch.TransitAnswer, error) {
		return t.shards.Transit(ctx, shard, branch.TransitRequest{Range: within, StepMS: stepMS})
	})
	sum := map[int64]branch.TransitCell{}
	for shard, answer := range answers {
		if errs[shard] != nil {
			return nil, fmt.Errorf("digests of shard %d: %w", shard, errs[shard])
		}
		for _, cell := range answer.Cells {
			s := sum[cell.From]
			s.From = cell.From
			s.Executed.Add(cell.Executed)
			s.Paid.Add(cell.Paid)
			s.Credited.Add(cell.Credited)
			sum[cell.From] = s
		}
	}
	return sum, nil
}

// sides are all verdicts and credits of one range, over all shards.
type sides struct {
	paid, credits []branch.TransitItem
}

func (t *transitProof) list(ctx context.Context, within branch.TransitRange) (all sides, err error) {
	answers, errs := eachShard(ctx, t.n, func(ctx context.Context, shard int) (s sides, err error) {
		r := branch.TransitRequest{Range: within}
		for {
			page, err := t.shards.Transit(ctx, shard, r)
			if err != nil {
				return s, err
			}
			s.paid, s.credits = append(s.paid, page.Paid...), append(s.credits, page.Credits...)
			if !page.More {
				return s, nil
			}
			r.After = page.Through
		}
	})
	for shard, s := range answers {
		if errs[shard] != nil {
			return all, fmt.Errorf("ids of shard %d: %w", shard, errs[shard])
		}
		all.paid, all.credits = append(all.paid, s.paid...), append(all.credits, s.credits...)
	}
	return all, nil
}

// compare explains one range hold by hold, in two rounds of its own.
func (t *transitProof) compare(ctx context.Context, within branch.TransitRange) error {
	one, err := t.list(ctx, within)
	if err != nil {
		return err
	}
	two, err := t.list(ctx, within)
	if err != nil {
		return err
	}
	verdicts, credited := byID(two.paid), byID(two.credits)
	seen := make(map[holdfast.HoldID]bool, len(one.credits))
	for _, c := range one.credits {
		v, paid := verdicts[c.ID]
		switch {
		case seen[c.ID]:
			t.report(branch.OffCreditDoubled, c, "was credited more than once")
		case !paid:
			t.report(branch.OffCreditWithoutVerdict, c, "was credited and has no verdict paid")
		case v.Hash != c.Hash:
			t.report(branch.OffCreditDiffers, c, fmt.Sprintf("was credited with another recipient, amount or currency than its own, amount %d", v.Amount))
		}
		seen[c.ID] = true
	}
	clear(seen)
	for _, v := range one.paid {
		if _, ok := credited[v.ID]; v.Executed && !ok {
			t.report(branch.OffCreditMissing, v, "is EXECUTED and nobody was credited")
		}
		if seen[v.ID] {
			t.report(branch.OffHoldDoubled, v, "is paid on more than one shard")
		}
		seen[v.ID] = true
	}
	return nil
}

func byID(items []branch.TransitItem) map[holdfast.HoldID]branch.TransitItem {
	m := make(map[holdfast.HoldID]branch.TransitItem, len(items))
	for _, item := range items {
		m[item.ID] = item
	}
	return m
}

func (t *transitProof) report(kind string, item branch.TransitItem, what string) {
	t.found = append(t.found, branch.Offender{Kind: kind, Shard: -1, Count: 1, Amount: item.Amount,
		First: fmt.Sprintf("hold %s of %d %s", item.ID, item.Amount, what)})
}

func (t *transitProof) offenders() []branch.Offender { return firstOfEachKind(t.found) }
