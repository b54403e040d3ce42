package checker

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

// effects is what the payment API says it has done, by hold: the one witness
// that is not Holdfast's. read grows it by what is new.
type effects struct {
	byHold map[holdfast.HoldID][]paysim.Outcome
	offset int64
}

func outcomeText(o paysim.Outcome) string {
	what := "paid " + o.PaymentID
	if o.Refused {
		what = "refused"
	}
	return fmt.Sprintf("%s %d to %s at %s", what, o.Amount, o.Recipient, clock(o.At))
}

// of is the payments of a hold, and whether the payment API has refused it.
func (e *effects) of(id holdfast.HoldID) (paid []paysim.Outcome, refused bool) {
	for _, o := range e.byHold[id] {
		switch {
		case o.Refused:
			refused = true
		case !o.Lied:
			paid = append(paid, o)
		}
	}
	return paid, refused
}

// lied reports whether the payment API claimed success for a payment that it did
// not make: nobody can see that from its answers.
func (e *effects) lied(id holdfast.HoldID) bool {
	return slices.ContainsFunc(e.byHold[id], func(o paysim.Outcome) bool { return o.Lied })
}

// read asks the simulator for what it has done since the last read. A journal
// that was emptied is read from its beginning.
func (e *effects) read(ctx context.Context, client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/sim/journal?from="+strconv.FormatInt(e.offset, 10), nil)
	if err != nil {
		return fmt.Errorf("read the payment journal: %w", err)
	}
	res, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("read the payment journal: %w", err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable && e.offset > 0:
		*e = effects{byHold: map[holdfast.HoldID][]paysim.Outcome{}}
		return e.read(ctx, client, url)
	case res.StatusCode != http.StatusOK:
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return fmt.Errorf("read the payment journal: %s: %s", res.Status, text)
	}
	n, err := paysim.ReadJournal(res.Body, func(o paysim.Outcome) { e.byHold[o.Hold] = append(e.byHold[o.Hold], o) })
	e.offset += n
	return err
}

// payments compares what was really paid with the holds. The effects were read
// before the shards of now, so each effect has its claim in now; and after the
// shards of old, so each verdict of old has its effect.
func (f *finder) payments(m *holdfast.ShardMap, old, now *world) {
	if now.effects == nil {
		return
	}
	for id := range now.effects.byHold {
		paid, _ := now.effects.of(id)
		if len(paid) > 1 {
			f.add("I7", "paid_twice", id, "the payment API paid it %d times", len(paid))
		}
		s := now.shards[m.OfHold(id)]
		if len(paid) == 0 || s == nil {
			continue
		}
		f.payment(s, id, paid[0])
	}
	if old == nil {
		return
	}
	for _, s := range old.shards {
		if s == nil {
			continue
		}
		for id, h := range s.holds {
			paid, refused := now.effects.of(id)
			switch {
			case h.verdict == holdfast.Paid && len(paid) == 0 && !now.effects.lied(id) && !s.saidByPerson(id, "paid"):
				f.add("I7", "paid_without_effect", id, "the verdict is paid, the payment API never paid and no person said so")
			case h.verdict == holdfast.Refused && !refused && !h.claimedAt.Equal(h.decidedAt) && !s.saidByPerson(id, "not_paid"):
				// A refusal that was found before anything was sent is claim and
				// decision in one.
				f.add("I7", "failed_without_refusal", id, "FAILED with %q, the payment API never refused it and no person said so: unknown was taken for failed", h.refusal)
			}
		}
	}
}

func (f *finder) payment(s *shard, id holdfast.HoldID, o paysim.Outcome) {
	h := s.holds[id]
	switch {
	case h == nil:
		f.add("I7", "paid_without_hold", id, "the payment API paid a hold that does not exist on shard %d", s.number)
		return
	case h.status == holdfast.Pending:
		f.add("I7", "paid_before_claim", id, "the payment API paid it before anything was committed: the decision must be durable before the effect")
	case h.status == holdfast.Cancelled:
		f.add("I7", "paid_and_cancelled", id, "the payment API paid it and it is CANCELLED")
	case h.status == holdfast.Failed && !s.saidByPerson(id, "not_paid"):
		f.add("I7", "paid_and_failed", id, "the payment API paid it and it is FAILED, and no person said that it was not paid")
	}
	if o.Amount != h.amount || o.Recipient != h.recipient {
		f.add("I7", "paid_differently", id, "the payment API paid %d to %s", o.Amount, o.Recipient)
	}
	if h.paymentID != "" && h.paymentID != o.PaymentID && !s.saidByPerson(id, "paid") {
		f.add("I7", "payment_id_differs", id, "the payment API calls it %s", o.PaymentID)
	}
	if !o.At.IsZero() && o.At.Add(f.clocks).Before(h.unlockAt.Truncate(time.Millisecond)) {
		f.add("I8", "paid_early", id, "paid %s before maturity", h.unlockAt.Sub(o.At))
	}
}
