package checker

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
)

// Report is what a check at rest has found.
type Report struct {
	Violations []Violation    `json:"violations"`
	Holds      map[string]int `json:"holds"` // by status
	Entries    int            `json:"entries"`
	Effects    int            `json:"effects"`   // payments that were really made, as far as holds name them
	Asked      int            `json:"asked"`     // (sender, key) pairs of the history, each checked against the shards
	Ops        int            `json:"ops"`       // operations in orders that porcupine searched
	Undecided  int            `json:"undecided"` // holds whose search was given up for time: neither good nor bad
	// Unknown creates and cancels, and how many of them turned out to be done.
	Unknown     int           `json:"unknown"`
	UnknownDone int           `json:"unknown_done"`
	Money       Money         `json:"money"`
	Lateness    Lateness      `json:"lateness"`
	Proof       string        `json:"proof,omitempty"` // the product's own, when it disagrees
	Took        time.Duration `json:"took"`
}

// Money is all coins, in minor units, and what the history allows them to be.
type Money struct {
	Available *big.Int `json:"available"`
	Escrow    *big.Int `json:"escrow"`
	Transit   *big.Int `json:"transit"`
	Least     *big.Int `json:"least"`
	Most      *big.Int `json:"most"`
}

// AtRest checks everything once all holds have ended: what Cut checks, and what
// only shows when nothing is on its way. It fails when a shard, the simulator or
// the product's proof cannot be read: then nothing is proved.
func (c *Checker) AtRest(ctx context.Context, h *workload.History) (Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	began := time.Now()
	one, first := c.cut(ctx)
	two, w := c.cut(ctx) // the second round of what crosses shards
	if err := errors.Join(append(append(first.errs, w.errs...), ctx.Err())...); err != nil {
		return Report{}, fmt.Errorf("check at rest: %w", err)
	}
	rest := &restCheck{finder: &finder{clocks: c.cfg.Clocks}, c: c, w: w, h: h, ops: h.Ops()}
	rest.groups = groups(rest.ops)
	rest.ended()
	rest.money()
	rest.creates()
	rest.cancels()
	rest.deposits()
	rest.answers()
	rest.lateness()
	if err := rest.linear(); err != nil {
		return Report{}, err
	}
	index := byHold(rest.ops)
	r := &rest.report
	r.Violations = append(append(one, two...), rest.list(w, func(id holdfast.HoldID) []workload.Op { return index[id] })...)
	if err := c.prove(ctx, r); err != nil {
		return Report{}, err
	}
	r.Violations = distinct(r.Violations)
	r.Took = time.Since(began)
	return *r, nil
}

// distinct drops what both cuts have found.
func distinct(list []Violation) []Violation {
	seen := map[[3]string]bool{}
	out := []Violation{}
	for _, v := range list {
		name := [3]string{v.Invariant, v.Check, v.Hold}
		if v.Hold == "" {
			name[2] = v.Detail
		}
		if !seen[name] {
			seen[name] = true
			out = append(out, v)
		}
	}
	return out
}

// ProveBy asks a coordinator's admin API for the product's own proof.
func ProveBy(api *apiclient.Client) func(context.Context) (bool, string, error) {
	return func(ctx context.Context) (bool, string, error) {
		p, text, err := api.Prove(ctx)
		return p.OK, string(text), err
	}
}

// prove runs the product's own proof: it must agree about the books.
func (c *Checker) prove(ctx context.Context, r *Report) error {
	if c.cfg.Prove == nil {
		return nil
	}
	ok, text, err := c.cfg.Prove(ctx)
	if err != nil {
		return fmt.Errorf("run the product's own proof: %w", err)
	}
	broken := false
	for _, v := range r.Violations {
		broken = broken || v.Invariant == "I1" || v.Invariant == "I2" || v.Invariant == "I3"
	}
	f := &finder{}
	if !ok {
		r.Proof = text
		f.add("PROOF", "proof_not_ok", holdfast.HoldID{}, "the product's own proof says that the ledger is not whole: %s", text)
	} else if broken {
		f.add("PROOF", "proof_blind", holdfast.HoldID{}, "the product's own proof says that the ledger is whole, the checker has found that it is not")
	}
	r.Violations = append(r.Violations, f.list(nil, nil)...)
	return nil
}

// restCheck is one check at rest.
type restCheck struct {
	*finder
	c      *Checker
	w      *world
	h      *workload.History
	ops    []workload.Op
	groups map[key]*group
	report Report
}

// ended: no branch is open, nothing is overdue, nobody is owed a refund (I11,
// I12). A hold that matures later may still be PENDING.
func (r *restCheck) ended() {
	r.report.Holds = map[string]int{}
	for _, s := range r.w.shards {
		r.report.Entries += len(s.entries)
		for id, h := range s.holds {
			r.report.Holds[h.status.String()]++
			switch {
			case h.status == holdfast.Executing:
				r.add("I11", "branch_open", id, "EXECUTING at rest, verdict %q", h.verdict)
			case h.status == holdfast.Pending && h.unlockAt.Before(s.at):
				r.add("I12", "overdue", id, "PENDING at rest, %s after its maturity", s.at.Sub(h.unlockAt))
			case h.status == holdfast.Failed && h.refundedAt.IsZero():
				r.add("I11", "refund_open", id, "FAILED and not refunded at rest")
			case h.status == holdfast.Failed:
				r.late(s, h)
			}
		}
		for id, a := range s.attempts {
			// Watched for days: a person's word that nothing was paid, and a refusal
			// after an attempt without an answer.
			if h := s.holds[id]; h == nil || h.ended() && !(h.status == holdfast.Failed && (a.unsure || s.saidByPerson(id, "not_paid"))) {
				r.add("I11", "attempt_left_over", id, "shard %d: a row in attempts at rest", s.number)
			}
		}
	}
	if r.w.effects == nil {
		return
	}
	for id := range r.w.effects.byHold {
		paid, _ := r.w.effects.of(id)
		r.report.Effects += len(paid)
	}
}

// late: a refunded hold that was paid all the same stands in the dead letters as
// a late success, and nowhere else may there be one (I7).
func (r *restCheck) late(s *shard, h *hold) {
	if r.w.effects == nil {
		return
	}
	paid, _ := r.w.effects.of(h.id)
	if _, told := s.letterOf(h.id, "late_success"); told != (len(paid) > 0) {
		r.add("I7", "late_success_letter", h.id, "refunded, paid %d times by the payment API, and its dead letter late_success exists: %t", len(paid), told)
	}
}

// money: all coins are those that the answers say were deposited and not
// withdrawn; what nobody asked for with a key is the funding in bulk.
func (r *restCheck) money() {
	m := Money{Available: new(big.Int), Escrow: new(big.Int), Transit: new(big.Int)}
	asked := map[holdfast.UserID]bool{}
	for _, o := range r.ops {
		if o.Kind == workload.KindDeposit {
			asked[o.Recipient] = true
		} else if o.Kind == workload.KindWithdraw {
			asked[o.Sender] = true
		}
	}
	other := new(big.Int) // deposits and withdrawals that are not of this history
	for _, s := range r.w.shards {
		for _, b := range s.accounts {
			m.Available.Add(m.Available, big.NewInt(b.available))
			m.Escrow.Add(m.Escrow, big.NewInt(b.held))
		}
		for _, h := range s.holds {
			if h.status == holdfast.Executing && h.verdict == holdfast.Paid {
				m.Transit.Add(m.Transit, big.NewInt(h.amount))
			}
		}
		keyed := make(map[holdfast.HoldID]bool, len(s.cash))
		for k, c := range s.cash {
			keyed[c.ref] = asked[k.user]
		}
		for i := range s.entries {
			e := &s.entries[i]
			if e.movement >= holdfast.MoveDeposit && e.book == holdfast.BookAvailable && !keyed[e.ref] {
				other.Add(other, big.NewInt(e.amount))
			}
		}
	}
	b := r.h.Money()
	m.Least, m.Most = new(big.Int).Add(other, big.NewInt(b.Least)), new(big.Int).Add(other, big.NewInt(b.Most))
	r.report.Money = m
	all := new(big.Int).Add(m.Available, m.Escrow)
	all.Add(all, m.Transit)
	if all.Cmp(m.Least) < 0 || all.Cmp(m.Most) > 0 {
		r.add("I1", "money_total", holdfast.HoldID{}, "all accounts, escrow and transit have %s (%s + %s + %s); deposits less withdrawals are %s to %s",
			all, m.Available, m.Escrow, m.Transit, m.Least, m.Most)
	}
	if m.Transit.Sign() != 0 {
		r.add("I2", "transit_not_zero", holdfast.HoldID{}, "%s are in transit at rest", m.Transit)
	}
}

// linear searches an order for every group's operations (I10).
func (r *restCheck) linear() error {
	for _, g := range r.groups {
		if !g.two.IsZero() {
			r.add("I9", "key_two_holds", g.hold, "key %q of %s was answered with this hold and with %s", g.key.key, g.sender, g.two)
			continue
		}
		s := r.w.shards[r.c.cfg.Map.OfUser(g.sender)]
		row := s.holds[s.keys[g.key].hold]
		if row == nil && !g.hold.IsZero() {
			row = r.w.hold(r.c.cfg.Map, g.hold)
		}
		released := row != nil && s.released[row.id]
		list := g.linear(r.h.Start, r.c.cfg.Skew, row, released)
		r.report.Ops += len(list)
		result, picture, err := g.check(list, r.c.cfg.Pictures)
		if err != nil {
			return err
		}
		switch result {
		case porcupine.Unknown:
			r.report.Undecided++
		case porcupine.Illegal:
			id := g.hold
			if id.IsZero() && row != nil {
				id = row.id
			}
			text := ""
			for _, o := range g.ops {
				if o.Hold.IsZero() || id.IsZero() {
					text += "\n  client " + opText(o)
				}
			}
			r.add("I10", "not_linearizable", id, "no order of the operations with key %q of %s explains their answers and the state at rest; picture: %s%s",
				g.key.key, g.sender, picture, text)
		}
	}
	return nil
}
