package main

import (
	"context"
	"fmt"
	"time"
)

// figures are what one run of one system gave.
type figures struct {
	PerS       float64 `json:"per_s,omitempty"`
	LagP50     float64 `json:"lag_p50_ms,omitempty"`
	LagP99     float64 `json:"lag_p99_ms,omitempty"`
	LagMax     float64 `json:"lag_max_ms,omitempty"`
	Early      float64 `json:"early_share,omitempty"` // of the transfers: paid before their due time
	Acked      int64   `json:"acknowledged"`
	Failed     int64   `json:"failed,omitempty"` // creates with an error, their outcome unknown to the client
	Done       int64   `json:"done"`
	Open       int64   `json:"open"`                  // not finished when the wait was over
	Missing    int64   `json:"missing_money"`         // coins that are nowhere
	Payments   int64   `json:"payments"`              // made by the payment API
	Doubles    int64   `json:"double_payments"`       // second payments of one transfer
	Unpaid     int64   `json:"done_less_paid"`        // finished transfers less payments; below 0: paid and not finished
	RecoveredS float64 `json:"recovered_s,omitempty"` // from the new start until nothing was open
	Note       string  `json:"note,omitempty"`
}

// waits are the delays of a job's transfers.
func (o *options) waits(peer, job string) (low, high time.Duration) {
	switch {
	case job == "start":
		return 6 * time.Hour, 12 * time.Hour
	case job == "lifecycle" && peer == "dtm":
		return 0, 0
	}
	return o.minWait, o.maxWait
}

func (o *options) load(peer, job string, rate float64) load {
	l := load{clients: o.clients, rate: rate, warmup: o.warmup, duration: o.duration, senders: o.senders, recipients: o.recipients}
	l.minWait, l.maxWait = o.waits(peer, job)
	if job == "crash" {
		l.rate, l.warmup, l.duration = o.crashRate, 0, o.crashFor
	}
	return l
}

// runPeer does one job once with a peer, on fresh databases.
func (l *lab) runPeer(ctx context.Context, name, job string, rate float64) (f figures, err error) {
	dsns, drop, err := l.databases(ctx)
	if err != nil {
		return f, err
	}
	defer drop()
	s := site{lab: l, dsns: dsns, job: job}
	if s.redis, err = l.redis(ctx, l.o.redisFsync); err != nil {
		return f, err
	}
	port, err := freePort()
	if err != nil {
		return f, err
	}
	s.worker = fmt.Sprintf("http://127.0.0.1:%d", port)
	p := newPeer(name, s)
	defer p.close()
	if err := p.setup(ctx); err != nil {
		return f, fmt.Errorf("set up %s: %w", name, err)
	}
	if err := l.pay.reset(ctx); err != nil {
		return f, err
	}
	r := &peerRun{peer: p, site: s, name: name, waiting: l.o.settle}
	if job != "start" || name == "dtm" {
		if r.proc, err = s.startWorker(ctx, name); err != nil {
			return f, err
		}
		defer func() { r.proc.stop() }()
	}
	load := l.o.load(name, job, rate)
	if job == "lifecycle" && name != "dtm" { // a TCC's client waits for its end anyway
		load.finished = s.workerCount
	}
	load.create = func(ctx context.Context, t transfer) error { return p.create(ctx, &t) }
	if job == "crash" {
		r.waiting *= 4
		return r.crash(ctx, load)
	}
	return r.measure(ctx, load)
}

// peerRun is one run of one peer between its steps.
type peerRun struct {
	peer
	site
	name    string
	proc    *proc
	waiting time.Duration // how long after the load the last transfer may be open
}

func (r *peerRun) measure(ctx context.Context, l load) (f figures, err error) {
	seen := l.run(ctx)
	f.Acked, f.Failed = seen.acked, seen.failed
	if seen.firstError != nil {
		f.Note = "first error: " + short(seen.firstError)
	}
	if r.job == "start" {
		f.PerS = seen.perS
		b, err := r.books(ctx)
		f.Open, f.Missing = b.open, b.missing
		return f, err
	}
	if err := r.rest(ctx, l, &f); err != nil {
		return f, err
	}
	all, err := r.workerDone(ctx)
	if err != nil {
		return f, err
	}
	if f.Open > 0 {
		// The books of what still moves are not exact: let it stop first.
		r.proc.stop()
		r.kill()
		if err := r.read(ctx, &f); err != nil {
			return f, err
		}
	}
	// Before the longest delay has passed, due times arrive at less than the
	// full rate.
	w := overWindow(all, seen.measured.Add(l.maxWait), seen.end)
	f.PerS = w.perS
	if l.maxWait > 0 {
		f.LagP50, f.LagP99, f.LagMax, f.Early = w.p50, w.p99, w.max, w.earlyShare
	}
	return f, nil
}

// rest waits until nothing is open, or the time is over, and reads the books.
func (r *peerRun) rest(ctx context.Context, l load, f *figures) error {
	deadline := time.Now().Add(l.maxWait + r.waiting)
	for {
		if err := r.read(ctx, f); err != nil {
			return err
		}
		if f.Open == 0 || time.Now().After(deadline) || !wait(ctx, 250*time.Millisecond) {
			return nil
		}
	}
}

func (r *peerRun) read(ctx context.Context, f *figures) error {
	b, err := r.books(ctx)
	if err != nil {
		return err
	}
	f.Done, f.Open, f.Missing = b.done, b.open, b.missing
	paid, err := r.lab.pay.effects(ctx)
	f.Payments, f.Doubles = int64(paid.Payments), int64(paid.Doubles)
	f.Unpaid = f.Done - (f.Payments - f.Doubles)
	return err
}

// The worker is killed in the middle of the crash job and comes back a little
// later.
const (
	killAfter   = 4 * time.Second
	reviveAfter = 2 * time.Second
)

func (r *peerRun) crash(ctx context.Context, l load) (f figures, err error) {
	var back time.Time
	var outage error
	over := make(chan struct{})
	go func() {
		defer close(over)
		if !wait(ctx, killAfter) {
			return
		}
		r.proc.kill()
		r.kill()
		wait(ctx, reviveAfter)
		back = time.Now()
		if outage = r.revive(ctx); outage == nil {
			r.proc, outage = r.startWorker(ctx, r.name)
		}
	}()
	seen := l.run(ctx)
	<-over
	if outage != nil {
		return f, outage
	}
	f.Acked, f.Failed = seen.acked, seen.failed
	if seen.firstError != nil {
		f.Note = "first error: " + short(seen.firstError)
	}
	err = r.rest(ctx, l, &f)
	f.RecoveredS = time.Since(back).Seconds()
	return f, err
}

// short is an error in one line of a table's length.
func short(err error) string {
	s := []rune(err.Error())
	for i, c := range s {
		if c < ' ' {
			s[i] = ' '
		}
	}
	return string(s[:min(len(s), 160)])
}
