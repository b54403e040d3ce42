package workload

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// lane does one operation at a time. Its randomness only paces retries and
// chooses addresses; it never touches the schedule of intents.
type lane struct {
	id     int
	r      *rand.Rand
	recent []seen
}

// seen is a hold that a client knows of.
type seen struct {
	id                holdfast.HoldID
	key               string
	sender, recipient holdfast.UserID
	amount            int64
}

func newLane(cfg *Config, id int) *lane {
	return &lane{id: id, r: stream(cfg.Seed, 1<<20+uint64(id+2))}
}

func (l *lane) remember(s seen) {
	if len(l.recent) == maxRecent {
		l.recent = append(l.recent[:0], l.recent[1:]...)
	}
	l.recent = append(l.recent, s)
}

// pursue repeats an attempt, each time at another address, until it says that
// it has its answer, patience is over or ctx ends. Patience (0: none needed)
// starts no further attempt but lets the last one have its own timeout. The
// first repetition comes almost at once, for a process that was just restarted;
// the later ones back off with full jitter.
func (w *World) pursue(ctx context.Context, l *lane, patience time.Duration, attempt func(ctx context.Context, base string) (again bool, after time.Duration)) {
	began, backoff := time.Now(), w.cfg.BackoffFirst
	for n := l.r.IntN(len(w.cfg.APIs)); ctx.Err() == nil; n++ {
		one, cancel := context.WithTimeout(ctx, w.cfg.RequestTimeout)
		again, after := attempt(one, w.cfg.APIs[n%len(w.cfg.APIs)])
		cancel()
		if !again {
			return
		}
		wait := max(time.Duration(l.r.Float64()*float64(backoff)), min(after, w.cfg.BackoffMost))
		backoff = min(2*backoff, w.cfg.BackoffMost)
		if patience > 0 && time.Since(began)+wait > patience || !pause(ctx, wait) {
			return
		}
	}
}

// pause waits, and says whether the time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// do carries out one operation and returns it as recorded. The end of a run does
// not cut it short: an operation that could be answered must not become unknown
// for that.
func (w *World) do(ctx context.Context, l *lane, op Op, q request, read func(*answer)) Op {
	op.Client = l.id
	op.ID = w.History.Begin(op)
	k := asking{op: op}
	w.pursue(context.WithoutCancel(ctx), l, w.cfg.GiveUp, func(ctx context.Context, base string) (bool, time.Duration) {
		a := w.send(ctx, base, q)
		read(&a)
		k.take(a)
		return !k.ended, a.retryAfter
	})
	return w.History.End(k.op)
}

// holdBody is a create as the contract writes it.
type holdBody struct {
	Sender    holdfast.UserID `json:"sender_id"`
	Recipient holdfast.UserID `json:"recipient_id"`
	Amount    int64           `json:"amount"`
	UnlockAt  string          `json:"unlock_at,omitempty"`
	UnlockIn  int64           `json:"unlock_in_seconds,omitempty"`
	Key       string          `json:"idempotency_key,omitempty"`
	Reference string          `json:"reference"`
}

// bodyOf is an item's create. The key is the reference too, so that a hold
// tells which create made it.
func (w *World) bodyOf(it Item, key string) holdBody {
	b := holdBody{Sender: w.Users[it.Sender], Recipient: w.Users[it.Recipient], Amount: it.Amount, Key: key, Reference: key}
	if it.Absolute {
		b.UnlockAt = time.Now().Add(it.Delay).UTC().Format("2006-01-02T15:04:05.000Z07:00")
	} else {
		b.UnlockIn = int64(it.Delay / time.Second)
	}
	return b
}

func opOf(kind string, b holdBody) Op {
	return Op{Kind: kind, Key: b.Reference, Sender: b.Sender, Recipient: b.Recipient, Amount: b.Amount, UnlockSec: b.UnlockIn}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only our own plain structs come here
	}
	return b
}

// create sends one create with all its retries.
func (w *World) create(ctx context.Context, l *lane, b holdBody, keyIn int) Op {
	op, q := opOf(KindCreate, b), request{method: http.MethodPost, path: "/v1/holds"}
	if keyIn > 0 {
		q.headers = []string{[...]string{"Idempotency-Key", "X-Idempotency-Key"}[keyIn-1], b.Key}
		b.Key = ""
	}
	q.body = encode(b)
	return w.do(ctx, l, op, q, (*answer).readHold)
}

// createBatch sends a batch; what is not answered item by item is sent again.
func (w *World) createBatch(ctx context.Context, l *lane, bodies []holdBody) []Op {
	items := make([]asking, len(bodies))
	for i, b := range bodies {
		op := opOf(KindBatchItem, b)
		op.Client = l.id
		op.ID = w.History.Begin(op)
		items[i].op = op
	}
	w.pursue(context.WithoutCancel(ctx), l, w.cfg.GiveUp, func(ctx context.Context, base string) (bool, time.Duration) {
		var left []int
		var send []holdBody
		for i := range items {
			if !items[i].ended {
				left, send = append(left, i), append(send, bodies[i])
			}
		}
		a := w.send(ctx, base, request{method: http.MethodPost, path: "/v1/holds:batchCreate",
			body: encode(map[string]any{"holds": send})})
		again := false
		for n, item := range a.readBatch(len(send)) {
			k := &items[left[n]]
			if k.take(item); k.ended {
				k.op = w.History.End(k.op)
			}
			again = again || !k.ended
		}
		return again, a.retryAfter
	})
	out := make([]Op, len(items))
	for i := range items {
		if !items[i].ended {
			items[i].op = w.History.End(items[i].op)
		}
		out[i] = items[i].op
	}
	return out
}

func opOn(kind string, s seen) Op {
	return Op{Kind: kind, Key: s.key, Hold: s.id, Sender: s.sender, Recipient: s.recipient, Amount: s.amount}
}

func (w *World) get(ctx context.Context, l *lane, s seen) Op {
	return w.do(ctx, l, opOn(KindGet, s), request{method: http.MethodGet, path: "/v1/holds/" + s.id.String()}, (*answer).readHold)
}

func (w *World) cancel(ctx context.Context, l *lane, s seen) Op {
	return w.do(ctx, l, opOn(KindCancel, s), request{method: http.MethodDelete, path: "/v1/holds/" + s.id.String()}, (*answer).readHold)
}

// list asks what became of a key. An ok list without a hold says that there is
// none yet.
func (w *World) list(ctx context.Context, l *lane, s seen) Op {
	op := Op{Kind: KindList, Key: s.key, Sender: s.sender}
	q := url.Values{"sender_id": {s.sender.String()}, "idempotency_key": {s.key}}
	return w.do(ctx, l, op, request{method: http.MethodGet, path: "/v1/holds?" + q.Encode()}, func(a *answer) {
		var p holdPage
		if p.read(a); a.class != done || len(p.Holds) == 0 {
			return
		}
		if a.hold = &p.Holds[0]; len(p.Holds) > 1 {
			a.code, a.hold = CodeMismatch, &p.Holds[1] // one key, two holds
		}
	})
}

// cash sends a deposit or a withdrawal.
func (w *World) cash(ctx context.Context, l *lane, kind, key string, user holdfast.UserID, amount int64) Op {
	op, what := Op{Kind: kind, Key: key, Amount: amount, Recipient: user}, "deposits"
	if kind == KindWithdraw {
		op.Sender, op.Recipient, what = user, holdfast.UserID{}, "withdrawals"
	}
	return w.do(ctx, l, op, request{method: http.MethodPost, path: "/v1/accounts/" + user.String() + "/" + what,
		body: encode(map[string]any{"amount": amount, "idempotency_key": key})}, (*answer).readMovement)
}

// holdPage is one page of a sender's list.
type holdPage struct {
	Holds []holdfast.Hold `json:"holds"`
	Next  string          `json:"next_page_token"`
}

func (p *holdPage) read(a *answer) {
	if a.class == done && (json.Unmarshal(a.body, p) != nil || p.Holds == nil) {
		a.garbled("a page of holds")
	}
}
