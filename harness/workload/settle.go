package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Settled is what the API shows after a run, when nothing moves any more.
type Settled struct {
	Holds map[holdfast.HoldID]holdfast.Hold `json:"holds,omitempty"` // all of the senders', as last seen
	// Open are the holds that had not ended (or were FAILED and not refunded)
	// when the time was up.
	Open []holdfast.Hold `json:"open,omitempty"`
	// Lost were answered 201 and are shown by no list: I4 is broken.
	Lost []Op `json:"lost,omitempty"`
	// Stray are holds under no key of ours, or under a key of which every
	// operation was refused.
	Stray []holdfast.Hold `json:"stray,omitempty"`
	// Unread are senders whose list was not answered in the end; nothing is
	// said about their holds.
	Unread        []holdfast.UserID `json:"unread,omitempty"`
	Found, Absent int               `json:"-"` // keys with an unknown create only: there is a hold, or none
	CashOpen      int               `json:"-"` // deposits and withdrawals that are unknown still
	Took          time.Duration     `json:"took_ns"`

	reads map[holdfast.HoldID][2]int64 // when the last look at a hold began and ended
}

// OK reports whether everything came to rest and nothing is lost or stray.
func (s *Settled) OK() bool {
	return len(s.Open)+len(s.Lost)+len(s.Stray)+len(s.Unread)+s.CashOpen == 0
}

func (s *Settled) String() string {
	return fmt.Sprintf("%d holds, %d open, %d lost, %d stray, %d senders unread; unknown creates: %d found, %d absent; unknown cash: %d; %v",
		len(s.Holds), len(s.Open), len(s.Lost), len(s.Stray), len(s.Unread), s.Found, s.Absent, s.CashOpen, s.Took.Round(time.Millisecond))
}

// atRest reports whether nothing more will happen to a hold.
func atRest(h holdfast.Hold) bool {
	return h.Status.Ended() && (h.Status != holdfast.Failed || !h.RefundedAt.IsZero())
}

// Settle asks until every hold of the senders has come to its end, every
// deposit and withdrawal that was not answered is repeated and answered, and no
// request of a client that gave up can still be at work; or until ctx ends.
// What it reads joins the history as operations of client -2. Call it when Run
// has returned and the faults are over.
func (w *World) Settle(ctx context.Context) *Settled {
	began := time.Now()
	s := &Settled{Holds: map[holdfast.HoldID]holdfast.Hold{}, reads: map[holdfast.HoldID][2]int64{}}
	quiet := w.quiet()
	w.repeatCash(ctx)
	w.lookUp(ctx)
	left, wait := w.senders(), settlePause
	for len(left) > 0 {
		round := time.Now()
		again := w.readAll(ctx, left, s)
		if again = append(again, w.unsettled(s, left, round.Before(quiet))...); len(again) == 0 {
			break
		}
		slices.SortFunc(again, func(a, b holdfast.UserID) int { return slices.Compare(a[:], b[:]) })
		left = slices.Compact(again)
		if !pause(ctx, wait) {
			break
		}
		wait = min(wait*3/2, settleMost) // a long list is not read for nothing
	}
	w.judge(s)
	w.recordEnds(s)
	s.Took = time.Since(began)
	return s
}

// quiet is when no request of a client that gave up can still be at work.
func (w *World) quiet() time.Time {
	var last int64 = -1
	for _, o := range w.History.Ops() {
		if o.Kind == KindCreate || o.Kind == KindBatchItem {
			last = max(last, o.GaveUp-1)
		}
	}
	if last < 0 {
		return time.Time{}
	}
	return w.History.Start.Add(time.Duration(last) + w.cfg.Linger)
}

// senders is whoever a create was sent for.
func (w *World) senders() []holdfast.UserID {
	all := map[holdfast.UserID]bool{}
	for _, o := range w.History.Ops() {
		if o.Kind == KindCreate || o.Kind == KindBatchItem {
			all[o.Sender] = true
		}
	}
	return slices.Collect(maps.Keys(all))
}

// repeatCash asks once more for every deposit and withdrawal that is unknown,
// under its key: afterwards the world's money is known exactly.
func (w *World) repeatCash(ctx context.Context) {
	open := w.openCash()
	_ = w.each(len(open), clientSettle, func(l *lane, i int) error {
		o := open[i]
		user := o.Recipient
		if o.Kind == KindWithdraw {
			user = o.Sender
		}
		for ctx.Err() == nil {
			if again := w.cash(ctx, l, o.Kind, o.Key, user, o.Amount); again.Outcome != Unknown {
				break
			}
		}
		return nil
	})
}

// openCash is one operation of each key of cash about which nothing is certain.
func (w *World) openCash() []Op {
	certain, open := map[cashKey]bool{}, map[cashKey]Op{}
	for _, o := range w.History.Ops() {
		switch k, ok := cashOf(o); {
		case !ok:
		case o.Outcome == OK || o.Outcome == Refused && (remembered(o) || o.Client == clientSettle):
			certain[k] = true
		case o.Outcome == Unknown:
			open[k] = o
		}
	}
	maps.DeleteFunc(open, func(k cashKey, _ Op) bool { return certain[k] })
	return slices.Collect(maps.Values(open))
}

// createKey is what makes two creates the same.
type createKey struct {
	sender holdfast.UserID
	key    string
}

// keyed is what the operations of one key came to.
type keyed struct {
	ok, unknown []Op
	refused     int
}

func (w *World) byKey() map[createKey]*keyed {
	out := map[createKey]*keyed{}
	for _, o := range w.History.Ops() {
		if o.Kind != KindCreate && o.Kind != KindBatchItem {
			continue
		}
		k := createKey{o.Sender, o.Key}
		if out[k] == nil {
			out[k] = &keyed{}
		}
		switch o.Outcome {
		case OK:
			out[k].ok = append(out[k].ok, o)
		case Unknown:
			out[k].unknown = append(out[k].unknown, o)
		default:
			out[k].refused++
		}
	}
	return out
}

// lookUp asks by sender and key what became of each create that nobody knows.
func (w *World) lookUp(ctx context.Context) {
	var lost []seen
	for k, v := range w.byKey() {
		if len(v.ok) == 0 && len(v.unknown) > 0 {
			lost = append(lost, seen{key: k.key, sender: k.sender})
		}
	}
	_ = w.each(len(lost), clientSettle, func(l *lane, i int) error {
		if ctx.Err() == nil {
			w.list(ctx, l, lost[i])
		}
		return nil
	})
}

// readAll reads the whole lists of senders into s and returns those that did
// not answer.
func (w *World) readAll(ctx context.Context, senders []holdfast.UserID, s *Settled) (unread []holdfast.UserID) {
	var mu sync.Mutex
	s.Unread = nil
	_ = w.each(len(senders), clientSettle, func(l *lane, i int) error {
		call := w.History.Now()
		holds, ok := w.readSender(ctx, l, senders[i])
		mu.Lock()
		defer mu.Unlock()
		for _, h := range holds {
			s.Holds[h.ID], s.reads[h.ID] = h, [2]int64{call, w.History.Now()}
		}
		if !ok {
			unread = append(unread, senders[i])
		}
		return nil
	})
	s.Unread = slices.Clone(unread)
	return unread
}

// readSender reads one sender's list; false: not to its end.
func (w *World) readSender(ctx context.Context, l *lane, sender holdfast.UserID) (all []holdfast.Hold, whole bool) {
	q := url.Values{"sender_id": {sender.String()}, "page_size": {fmt.Sprint(pageSize)}}
	for range maxPages {
		var p holdPage
		w.pursue(ctx, l, w.cfg.GiveUp, func(ctx context.Context, base string) (bool, time.Duration) {
			a := w.send(ctx, base, request{method: http.MethodGet, path: "/v1/holds?" + q.Encode()})
			p = holdPage{}
			p.read(&a)
			return a.class != done, a.retryAfter
		})
		if p.Holds == nil {
			return all, false
		}
		if all = append(all, p.Holds...); p.Next == "" {
			return all, true
		}
		q.Set("page_token", p.Next)
	}
	return all, false
}

// unsettled is the senders among those just read who must be read again: a hold
// of theirs has not ended, or an unknown create may still arrive.
func (w *World) unsettled(s *Settled, read []holdfast.UserID, early bool) (again []holdfast.UserID) {
	open := map[holdfast.UserID]bool{}
	for _, h := range s.Holds {
		if !atRest(h) {
			open[h.Sender] = true
		}
	}
	if early {
		for k, v := range w.byKey() {
			if len(v.unknown) > 0 {
				open[k.sender] = true
			}
		}
	}
	for _, u := range read {
		if open[u] {
			again = append(again, u)
		}
	}
	return again
}

// judge compares the holds with what was answered.
func (w *World) judge(s *Settled) {
	keys, found := w.byKey(), map[createKey]bool{}
	for _, h := range s.Holds {
		if !atRest(h) {
			s.Open = append(s.Open, h)
		}
		k := createKey{h.Sender, h.Reference}
		found[k] = true
		if v := keys[k]; v == nil || len(v.ok)+len(v.unknown) == 0 {
			s.Stray = append(s.Stray, h)
		}
	}
	for k, v := range keys {
		switch {
		case len(v.ok) > 0:
			for _, o := range v.ok {
				if _, ok := s.Holds[o.Hold]; !ok && !slices.Contains(s.Unread, k.sender) {
					s.Lost = append(s.Lost, o)
				}
			}
		case len(v.unknown) > 0 && found[k]:
			s.Found++
		case len(v.unknown) > 0:
			s.Absent++
		}
	}
	s.CashOpen = len(w.openCash())
}

// recordEnds adds what the lists showed in the end to the history, as a read of
// each hold that took as long as the reading of the whole list.
func (w *World) recordEnds(s *Settled) {
	for id, h := range s.Holds {
		k := asking{op: Op{Client: clientSettle, Kind: KindGet, Key: h.Reference, Hold: id, Sender: h.Sender,
			Recipient: h.Recipient, Amount: h.Amount, Call: s.reads[id][0], Return: s.reads[id][1]}}
		k.take(answer{class: done, status: http.StatusOK, hold: &h})
		w.History.Record(k.op)
	}
}

// MarshalJSON leaves out the holds that came to rest: a report names offenders.
func (s *Settled) MarshalJSON() ([]byte, error) {
	type plain Settled
	short := plain(*s)
	short.Holds = nil
	return json.Marshal(struct {
		plain
		Count    int `json:"hold_count"`
		Found    int `json:"unknown_found"`
		Absent   int `json:"unknown_absent"`
		CashOpen int `json:"unknown_cash"`
	}{short, len(s.Holds), s.Found, s.Absent, s.CashOpen})
}
