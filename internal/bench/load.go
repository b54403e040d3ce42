package bench

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// generator is the load of one phase in this process.
type generator struct {
	p        phase
	schedule schedule
	measure  time.Time // requests intended before it warm up and are not counted
	end      time.Time
	next     atomic.Int64
	step     func(w *worker, intended time.Time)

	recorders [16]*recorder
	secondsMu sync.Mutex
	seconds   series
	idsMu     sync.Mutex
	ids       []holdfast.HoldID
	ackedMu   sync.Mutex
	acked     io.Writer // nil: not wanted
}

func newGenerator(p phase, acked io.Writer) *generator {
	g := &generator{p: p, schedule: schedule{start: p.Start, rate: p.requestRate()}, measure: p.Start.Add(p.Warmup),
		end: p.Start.Add(p.Warmup + p.Duration), step: (*worker).create, seconds: series{}, acked: acked}
	switch p.Step {
	case stepBatch:
		g.step = (*worker).createBatch
	case stepCancel:
		g.step = (*worker).cancelKept
		g.p.Most = int64(len(p.Cancel))
	}
	for i := range g.recorders {
		g.recorders[i] = newRecorder()
	}
	return g
}

// run keeps the phase's clients busy until it is over or ctx is done, and
// returns what they saw.
func (g *generator) run(ctx context.Context) (*seen, error) {
	sum := newSeen()
	if g.p.Step == stepCancel && len(g.p.Cancel) == 0 {
		return sum, nil
	}
	var wg sync.WaitGroup
	for i := range g.p.Clients {
		c, err := newConn(g.p.API, g.p.Token, g.p.RequestTimeout)
		if err != nil {
			return nil, err
		}
		rng := rand.New(rand.NewPCG(g.p.Nonce, uint64(i)))
		w := &worker{g: g, c: c, rng: rng, rec: g.recorders[i%len(g.recorders)],
			senders: newPicker(rng, g.p.Senders, g.p.Zipf), recipients: newPicker(rng, g.p.Recipients, g.p.Zipf)}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer w.c.close()
			w.loop(ctx, g.step)
		}()
	}
	wg.Wait()
	for _, r := range g.recorders {
		sum.merge(r.seen)
	}
	sum.IDs = g.ids
	sum.Series = g.seconds
	return sum, nil
}

// worker is one client: one connection, one request at a time.
type worker struct {
	g                   *generator
	c                   *conn
	rng                 *rand.Rand
	rec                 *recorder
	senders, recipients picker
	body                []byte
	path                []byte
	ticket              int64
	failures            int
}

func (w *worker) loop(ctx context.Context, step func(*worker, time.Time)) {
	timer := time.NewTimer(0)
	<-timer.C
	for ctx.Err() == nil {
		n := w.g.next.Add(1) - 1
		if most := w.g.p.Most; most > 0 && n >= most {
			return
		}
		w.ticket = n
		intended := time.Now()
		if w.g.schedule.rate > 0 {
			intended = w.g.schedule.intended(n)
			if wait := time.Until(intended); wait > 0 && intended.Before(w.g.end) {
				timer.Reset(wait)
				select {
				case <-timer.C:
				case <-ctx.Done():
					return
				}
			}
		}
		if !intended.Before(w.g.end) {
			return
		}
		step(w, intended)
		w.pause(ctx, timer)
	}
}

// pause slows a worker down whose connection fails: a server that is down shall
// be asked again, not stormed.
func (w *worker) pause(ctx context.Context, timer *time.Timer) {
	if w.failures == 0 {
		return
	}
	timer.Reset(min(time.Duration(w.failures)*20*time.Millisecond, 500*time.Millisecond))
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// call does one exchange and counts its error, if any.
func (w *worker) call(method, path string, body []byte, want int) ([]byte, bool) {
	status, answer, err := w.c.do(method, path, body)
	if err != nil {
		w.failures++
		w.rec.addError(errorCode(err))
		return nil, false
	}
	w.failures = 0
	if status != want {
		code := field(answer, "code")
		if code == "" {
			code = "status_" + strconv.Itoa(status)
		}
		w.rec.addError(code)
		return answer, false
	}
	return answer, true
}

// create reserves one hold and cancels it again with the configured chance.
func (w *worker) create(intended time.Time) {
	w.body = w.appendHold(w.body[:0], 0)
	answer, ok := w.call("POST", "/v1/holds", w.body, 201)
	if !ok {
		return
	}
	now := time.Now()
	measured := w.g.counts(intended, now)
	w.rec.addCreate(now.Sub(intended), 1, measured)
	w.g.tick(now, 1, now.Sub(intended))
	id := field(answer, "hold_id")
	w.took(id)
	if w.g.p.CancelRatio > 0 && w.rng.Float64() < w.g.p.CancelRatio {
		w.cancel(id, now)
	}
}

// createBatch reserves Batch holds with one request.
func (w *worker) createBatch(intended time.Time) {
	w.body = append(w.body[:0], `{"holds":[`...)
	for i := range w.g.p.Batch {
		if i > 0 {
			w.body = append(w.body, ',')
		}
		w.body = w.appendHold(w.body, i)
	}
	w.body = append(w.body, `]}`...)
	answer, ok := w.call("POST", "/v1/holds:batchCreate", w.body, 200)
	if !ok {
		return
	}
	now := time.Now()
	made := int64(bytes.Count(answer, []byte(`"hold_id":"`)))
	w.rec.addCreate(now.Sub(intended), made, w.g.counts(intended, now))
	w.g.tick(now, made, now.Sub(intended))
	for range int64(w.g.p.Batch) - made {
		w.rec.addError("batch_item_refused")
	}
	w.took(field(answer, "hold_id"))
}

// cancelKept cancels the hold whose number is the ticket.
func (w *worker) cancelKept(intended time.Time) { w.cancel(w.g.p.Cancel[w.ticket].String(), intended) }

func (w *worker) cancel(id string, intended time.Time) {
	w.path = append(append(w.path[:0], "/v1/holds/"...), id...)
	if _, ok := w.call("DELETE", string(w.path), nil, 200); ok {
		now := time.Now()
		w.rec.addCancel(now.Sub(intended), w.g.counts(intended, now))
		if w.g.p.Step == stepCancel {
			w.g.tick(now, 1, now.Sub(intended))
		}
	}
}

// took remembers an acknowledged hold where the run asks for it.
func (w *worker) took(id string) {
	w.rec.addSample(id, w.rng.IntN)
	if w.g.acked != nil {
		w.g.ackedMu.Lock()
		io.WriteString(w.g.acked, id+"\n")
		w.g.ackedMu.Unlock()
	}
	if w.g.p.Keep {
		if h, err := holdfast.ParseHoldID(id); err == nil {
			w.g.idsMu.Lock()
			w.g.ids = append(w.g.ids, h)
			w.g.idsMu.Unlock()
		}
	}
}

// appendHold writes the body of one create; item numbers those of one batch.
func (w *worker) appendHold(b []byte, item int) []byte {
	g := w.g
	b = append(b, `{"sender_id":"`...)
	b = append(b, w.user(kindSender, &w.senders).String()...)
	b = append(b, `","recipient_id":"`...)
	b = append(b, w.user(kindRecipient, &w.recipients).String()...)
	b = append(b, `","amount":1,"unlock_at":"`...)
	unlock, spread := g.p.UnlockAt, g.p.UnlockSpread
	if unlock.IsZero() {
		unlock, spread = time.Now().Add(g.p.DelayMin), g.p.DelayMax-g.p.DelayMin
	}
	if spread > 0 {
		unlock = unlock.Add(time.Duration(w.rng.Int64N(int64(spread))))
	}
	b = unlock.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","idempotency_key":"bench-`...)
	b = strconv.AppendUint(b, g.p.Nonce, 36)
	b = append(b, '-')
	b = strconv.AppendInt(b, w.ticket, 36)
	if item > 0 {
		b = append(b, '-')
		b = strconv.AppendInt(b, int64(item), 36)
	}
	return append(b, `"}`...)
}

// counts reports whether a request belongs to the measured window. In a closed
// loop that is decided by its end, so that the window holds as many ends as
// time; in an open loop by its intended start.
func (g *generator) counts(intended, now time.Time) bool {
	if g.schedule.rate > 0 {
		return !intended.Before(g.measure)
	}
	return !now.Before(g.measure) && now.Before(g.end)
}

// tick counts n answers of one request into their second of the clock.
func (g *generator) tick(now time.Time, n int64, took time.Duration) {
	g.secondsMu.Lock()
	one := g.seconds.at(now.Unix())
	one.N += n
	one.Latency.record(took)
	g.secondsMu.Unlock()
}

// user draws a user of a kind, where the phase asks for it of certain shards.
func (w *worker) user(kind int, from *picker) holdfast.UserID {
	p := &w.g.p
	for {
		u := userAt(p.Seed, kind, from.next())
		if p.Owner == nil {
			return u
		}
		shard := int(p.Owner[u.Bucket()])
		if shard != p.AvoidShard && (p.OnlyShard < 0 || shard == p.OnlyShard) {
			return u
		}
	}
}
