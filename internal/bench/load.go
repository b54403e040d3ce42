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

// generator is the load of one phase.
type generator struct {
	cfg      *Config
	seed     uint64
	schedule schedule
	measure  time.Time // requests intended before it warm up and are not counted
	end      time.Time
	unlockAt time.Time // cliff: all holds mature then
	next     atomic.Int64
	stopAt   atomic.Int64 // number of tickets; 0: none
	perS     []atomic.Int64

	recorders [16]*recorder
	keep      bool // keep the ids for a phase of cancels
	idsMu     sync.Mutex
	ids       []holdfast.HoldID
	ackedMu   sync.Mutex
}

func newGenerator(cfg *Config, seed uint64, start time.Time, warmup, duration time.Duration) *generator {
	g := &generator{cfg: cfg, seed: seed, schedule: schedule{start: start, rate: cfg.Rate},
		measure: start.Add(warmup), end: start.Add(warmup + duration)}
	if cfg.Scenario == "batch" && cfg.Rate > 0 {
		g.schedule.rate = cfg.Rate / float64(cfg.Batch)
	}
	g.perS = make([]atomic.Int64, int((warmup+duration)/time.Second)+2)
	for i := range g.recorders {
		g.recorders[i] = newRecorder()
	}
	return g
}

// run keeps the configured number of clients busy with step until the phase is
// over or ctx is done, and returns what they saw.
func (g *generator) run(ctx context.Context, step func(w *worker, intended time.Time)) (*recorder, error) {
	var wg sync.WaitGroup
	for i := range g.cfg.Clients {
		c, err := newConn(g.cfg.API, g.cfg.Token, g.cfg.RequestTimeout)
		if err != nil {
			return nil, err
		}
		rng := rand.New(rand.NewPCG(g.seed, uint64(i)))
		w := &worker{g: g, c: c, rng: rng, rec: g.recorders[i%len(g.recorders)],
			senders: newPicker(rng, g.cfg.Senders, g.cfg.Zipf), recipients: newPicker(rng, g.cfg.Recipients, g.cfg.Zipf)}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer w.c.close()
			w.loop(ctx, step)
		}()
	}
	wg.Wait()
	sum := newRecorder()
	for _, r := range g.recorders {
		sum.merge(r)
	}
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
		if most := w.g.stopAt.Load(); most > 0 && n >= most {
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
	w.g.tick(now, 1)
	id := field(answer, "hold_id")
	w.took(id)
	if w.g.cfg.CancelRatio > 0 && w.rng.Float64() < w.g.cfg.CancelRatio {
		w.cancel(id, now)
	}
}

// createBatch reserves Batch holds with one request.
func (w *worker) createBatch(intended time.Time) {
	w.body = append(w.body[:0], `{"holds":[`...)
	for i := range w.g.cfg.Batch {
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
	w.g.tick(now, made)
	for range int64(w.g.cfg.Batch) - made {
		w.rec.addError("batch_item_refused")
	}
	w.took(field(answer, "hold_id"))
}

// cancelKept makes a step that cancels the hold whose number is the ticket.
func cancelKept(ids []holdfast.HoldID) func(*worker, time.Time) {
	return func(w *worker, intended time.Time) { w.cancel(ids[w.ticket].String(), intended) }
}

func (w *worker) cancel(id string, intended time.Time) {
	w.path = append(append(w.path[:0], "/v1/holds/"...), id...)
	if _, ok := w.call("DELETE", string(w.path), nil, 200); ok {
		now := time.Now()
		w.rec.addCancel(now.Sub(intended), w.g.counts(intended, now))
	}
}

// took remembers an acknowledged hold where the run asks for it.
func (w *worker) took(id string) {
	w.rec.addSample(id, w.rng.IntN)
	if w.g.cfg.Acked != nil {
		w.g.ackedMu.Lock()
		io.WriteString(w.g.cfg.Acked, id+"\n")
		w.g.ackedMu.Unlock()
	}
	if w.g.keep {
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
	b = append(b, userAt(g.seed, kindSender, w.senders.next()).String()...)
	b = append(b, `","recipient_id":"`...)
	b = append(b, userAt(g.seed, kindRecipient, w.recipients.next()).String()...)
	b = append(b, `","amount":1,"unlock_at":"`...)
	unlock := g.unlockAt
	if unlock.IsZero() {
		delay := g.cfg.DelayMin
		if spread := g.cfg.DelayMax - g.cfg.DelayMin; spread > 0 {
			delay += time.Duration(w.rng.Int64N(int64(spread)))
		}
		unlock = time.Now().Add(delay)
	}
	b = unlock.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","idempotency_key":"bench-`...)
	b = strconv.AppendUint(b, g.seed, 36)
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

func (g *generator) tick(now time.Time, n int64) {
	if s := int(now.Sub(g.schedule.start) / time.Second); s >= 0 && s < len(g.perS) {
		g.perS[s].Add(n)
	}
}
