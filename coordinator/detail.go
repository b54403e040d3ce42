package coordinator

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
)

// event is one line of a hold's history.
type event struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
	Who  string    `json:"who,omitempty"`
	Note string    `json:"note,omitempty"`
}

type paymentDoc struct {
	Attempts    int       `json:"attempts"` // that ended without an answer
	ActiveMS    int64     `json:"active_ms"`
	LastError   string    `json:"last_error,omitempty"`
	NextAttempt time.Time `json:"next_attempt_at,omitzero"`
}

type detailDoc struct {
	Hold        holdfast.Hold       `json:"hold"`
	Shard       int                 `json:"shard"`
	Recipient   int                 `json:"recipient_shard"`
	Timeline    []event             `json:"timeline"`
	Payment     paymentDoc          `json:"payment"`
	Entries     []holdfast.Entry    `json:"entries"`
	Barrier     []branch.BarrierRow `json:"barrier"`
	DeadLetters []branch.DeadLetter `json:"dead_letters"`
	Audit       []branch.AuditRow   `json:"audit"`
	Unavailable []int               `json:"shards_unavailable,omitempty"`
}

// adminHold shows everything that is known of a hold. Its credit and the branch
// row of that are on the recipient's shard.
func (c *Coordinator) adminHold(w http.ResponseWriter, q *call) error {
	id, err := parseHold(q.id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(q.Context(), fanTimeout)
	defer cancel()
	shard := c.cfg.Map.OfHold(id)
	d, err := c.shards.Detail(ctx, shard, branch.DetailRequest{ID: id})
	if err != nil {
		return c.readError(branch.OpDetail, shard, err)
	}
	if d.Code != branch.CodeOK {
		return c.readProblem(branch.OpDetail, shard, d.Code)
	}
	doc := detailDoc{
		Hold: shown(d.Hold), Shard: shard, Recipient: c.cfg.Map.OfUser(d.Hold.Recipient),
		Payment: paymentDoc{d.Attempts, d.ActiveMS, d.LastError, d.NextAttempt.UTC()},
		Entries: shownEntries(d.Entries), Barrier: append([]branch.BarrierRow{}, d.Barrier...),
		DeadLetters: shownLetters(d.DeadLetters), Audit: shownAudit(d.Audit),
	}
	if doc.Recipient != shard {
		other, err := c.shards.Detail(ctx, doc.Recipient,
			branch.DetailRequest{ID: id, Recipient: d.Hold.Recipient, Currency: d.Hold.Currency})
		if err != nil {
			doc.Unavailable = []int{doc.Recipient}
		}
		doc.Entries = append(doc.Entries, shownEntries(other.Entries)...)
		doc.Barrier = append(doc.Barrier, other.Barrier...)
	}
	slices.SortStableFunc(doc.Entries, func(a, b holdfast.Entry) int { return a.PostedAt.Compare(b.PostedAt) })
	for i := range doc.Barrier {
		doc.Barrier[i].CreatedAt = doc.Barrier[i].CreatedAt.UTC()
	}
	doc.Timeline = timeline(&doc)
	problem.JSON(w, http.StatusOK, doc)
	return nil
}

func timeline(d *detailDoc) []event {
	h := &d.Hold
	events := []event{{At: h.CreatedAt, What: "created"}}
	add := func(at time.Time, what, who, note string) {
		if !at.IsZero() {
			events = append(events, event{at, what, who, note})
		}
	}
	add(h.ClaimedAt, "claimed", "", "")
	if h.Verdict == holdfast.Paid {
		add(h.DecidedAt, "paid", "", h.PaymentID)
	} else {
		add(h.DecidedAt, "refused", "", h.RefusalCode)
	}
	add(h.ExecutedAt, "executed", "", "")
	add(h.CancelledAt, "cancelled", "", "")
	add(h.RefundedAt, "refunded", "", "")
	for _, l := range d.DeadLetters {
		add(l.CreatedAt, "dead letter "+l.Code, "", l.Detail)
		add(l.ClosedAt, "dead letter "+l.Code+" closed: "+l.Resolution, l.ClosedBy, l.Note)
	}
	for _, a := range d.Audit {
		add(a.At, a.Action, a.Actor, a.Reason)
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.At.Compare(b.At) })
	return events
}

type overviewDoc struct {
	Holds           map[string]int64 `json:"holds"`
	HoldsEstimated  bool             `json:"holds_estimated,omitempty"`
	OldestOverdueS  float64          `json:"oldest_overdue_seconds"`
	OpenDeadLetters map[string]int64 `json:"open_dead_letters"`
	Attempts        int64            `json:"attempts"`
	Driving         int              `json:"driving"` // between claim and end, in this process
	Draining        bool             `json:"draining"`
	Breaker         *breakerDoc      `json:"breaker,omitempty"`
	Shards          map[int]string   `json:"shards"`
	Unavailable     []int            `json:"shards_unavailable,omitempty"`
}

// overview sums the shards up: how many holds where, what is late, what waits
// for a person.
func (c *Coordinator) overview(w http.ResponseWriter, q *call) error {
	states, away := c.shardStates(q.Context())
	doc := overviewDoc{Holds: map[string]int64{}, OpenDeadLetters: map[string]int64{}, Shards: map[int]string{},
		Driving: len(c.driving), Draining: c.Draining(), Breaker: c.breakerNow(), Unavailable: away}
	for s := holdfast.Pending; s <= holdfast.Cancelled; s++ {
		doc.Holds[s.String()] = 0
	}
	for _, s := range states {
		doc.Shards[s.Shard] = "down"
		if s.Up {
			doc.Shards[s.Shard] = "up"
		}
		for name, n := range s.Holds {
			doc.Holds[name] += n
		}
		for code, n := range s.OpenDeadLetters {
			doc.OpenDeadLetters[code] += n
		}
		doc.HoldsEstimated = doc.HoldsEstimated || s.HoldsEstimated
		doc.OldestOverdueS = max(doc.OldestOverdueS, s.OldestOverdueS)
		doc.Attempts += s.Attempts
	}
	problem.JSON(w, http.StatusOK, doc)
	return nil
}
