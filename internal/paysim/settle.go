package paysim

import (
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const (
	statusSucceeded = "succeeded"
	statusRefused   = "refused"
	statusPending   = "pending"
)

var (
	errOtherBody = errors.New("the key was used for another payment")
	errInFlight  = errors.New("a payment under this key is under way")
)

// settle pays or refuses once per key, and returns only when that is in the
// journal. A key that is known gets its result again, when its line is written.
// The modes pending and late pay later: pending reports it.
func (s *Sim) settle(c call, m Mode) (r result, pending bool, err error) {
	now := time.Now()
	s.mu.Lock()
	s.ripen(now)
	r, known := s.recall(c.key, now)
	under, waits := s.underWay[c.key]
	if known || waits {
		written := s.journal.pending()
		s.mu.Unlock()
		switch {
		case known && r.body != c.hash() || waits && under.body != c.hash():
			return result{}, false, errOtherBody
		case waits && under.word == wordHidden:
			return result{}, false, errInFlight
		case waits:
			return under.result, true, written.wait()
		}
		return r, false, written.wait()
	}
	rec := record{word: wordPaid, key: c.key, name: c.name, result: result{hold: c.Hold, recipient: c.Recipient,
		amount: c.Amount, at: now.UnixMilli(), body: c.hash()}}
	switch {
	case s.banned[c.Recipient]:
		rec.word, rec.refused = wordRefused, true
		s.struck[struckBanned]++
	case m == ModePending:
		rec.word = wordPending
	case m == ModeLate:
		rec.word = wordHidden
	}
	rec.due = rec.at + s.faults.SettleAfterMS
	written := s.write(rec)
	s.mu.Unlock()
	return rec.result, modes[m].phase == later && !rec.refused, written.wait()
}

// recall is what became of a key, unless that is forgotten. s.mu is held.
func (s *Sim) recall(key keyHash, now time.Time) (r result, known bool) {
	r, known = s.results[key]
	if life := s.faults.KeyLifetimeMS; known && life > 0 && now.UnixMilli()-r.at >= life {
		delete(s.results, key)
		s.struck[struckKeyForgotten]++
		return result{}, false
	}
	return r, known
}

// find is what became of a key.
func (s *Sim) find(key keyHash) (r result, known, pending bool, err error) {
	now := time.Now()
	s.mu.Lock()
	s.ripen(now)
	r, known = s.recall(key, now)
	if under, waits := s.underWay[key]; waits && under.word == wordPending {
		r, known, pending = under.result, true, true
	}
	written := s.journal.pending()
	s.mu.Unlock()
	return r, known, pending, written.wait()
}

// lie writes down that success is claimed for a payment that is not made.
func (s *Sim) lie(c call) error {
	s.mu.Lock()
	written := s.write(record{word: wordLied, key: c.key, name: c.name, result: result{hold: c.Hold,
		recipient: c.Recipient, amount: c.Amount, at: time.Now().UnixMilli(), body: c.hash()}})
	s.mu.Unlock()
	return written.wait()
}

// ripen makes the payments whose time has come. Everything that can see a
// payment calls it first, so that nobody can tell it from a clock that ticks.
// s.mu is held.
func (s *Sim) ripen(now time.Time) {
	for len(s.order) > 0 && s.order[0].due <= now.UnixMilli() {
		r := heap.Pop(&s.order).(record)
		if _, waits := s.underWay[r.key]; !waits {
			continue // paid already, in the journal of an earlier run
		}
		r.word, r.at = wordPaid, r.due
		s.struck[struckSettledLate]++
		s.write(r)
	}
}

// dueHeap has what is due first on top.
type dueHeap []record

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(r any)        { *h = append(*h, r.(record)) }
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	r := (*h)[last]
	*h = (*h)[:last]
	return r
}

// answer is the status and body that a result is told with, always the same.
func (r result) answer(key keyHash) (int, []byte) {
	if r.refused {
		return r.say(key, statusRefused)
	}
	return r.say(key, statusSucceeded)
}

// say tells a status of a payment, true or not.
func (r result) say(key keyHash, status string) (int, []byte) {
	a := struct {
		PaymentID string          `json:"payment_id,omitempty"`
		Status    string          `json:"status"`
		Code      string          `json:"code,omitempty"`
		Hold      holdfast.HoldID `json:"hold_id"`
		Amount    int64           `json:"amount"`
		Recipient holdfast.UserID `json:"recipient_id"`
	}{Status: status, Hold: r.hold, Amount: r.amount, Recipient: r.recipient}
	code := http.StatusOK
	switch status {
	case statusRefused:
		code, a.Code = http.StatusForbidden, codeBanned
	case statusSucceeded:
		a.PaymentID = paymentID(key.number())
	}
	b, err := json.Marshal(a)
	if err != nil {
		panic(fmt.Sprintf("paysim: marshal %+v: %v", a, err)) // strings and integers always marshal
	}
	return code, b
}
