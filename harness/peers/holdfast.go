package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// benchReport are the fields that are read of what `holdfast bench -o json`
// prints.
type benchReport struct {
	Acknowledged int64   `json:"acknowledged"`
	Executed     int64   `json:"executed"`
	Open         int64   `json:"open"` // as last seen; means nothing once all is settled
	Settled      bool    `json:"settled"`
	CreatedPerS  float64 `json:"created_per_s"`
	ExecutedPerS float64 `json:"executed_per_s"`
	Early        int64   `json:"early"`
	// As the peers' workers: until the commit, which the bench sees from outside.
	LagP50   float64          `json:"lag_seen_p50_ms"`
	LagP99   float64          `json:"lag_seen_p99_ms"`
	LagMax   float64          `json:"lag_max_ms"`
	Errors   map[string]int64 `json:"errors"`
	LedgerOK bool             `json:"ledger_ok"`
}

func (r benchReport) figures(job string) figures {
	f := figures{PerS: r.ExecutedPerS, LagP50: r.LagP50, LagP99: r.LagP99, LagMax: r.LagMax,
		Acked: r.Acknowledged, Done: r.Executed, Open: r.Open}
	if r.Settled {
		f.Open = 0
	}
	if r.Executed > 0 {
		f.Early = float64(r.Early) / float64(r.Executed)
	}
	for _, n := range r.Errors {
		f.Failed += n
	}
	switch job {
	case "start":
		f = figures{PerS: r.CreatedPerS, Acked: r.Acknowledged, Failed: f.Failed, Open: r.Acknowledged}
	case "crash":
		f.PerS, f.LagP50, f.LagP99, f.LagMax = 0, 0, 0, 0
	}
	return f
}

// benchArgs are the arguments of bench that are the same in every job.
func (o *options) benchArgs(job string, rate float64) []string {
	l := o.load("holdfast", job, rate)
	scenario := "lifecycle"
	if job == "start" {
		scenario = "create"
	}
	return []string{"bench", "--scenario", scenario, "--rate", strconv.FormatFloat(l.rate, 'f', -1, 64),
		"--duration", l.duration.String(), "--warmup", l.warmup.String(), "--clients", strconv.Itoa(o.clients),
		"--senders", strconv.Itoa(o.senders), "--recipients", strconv.Itoa(o.recipients),
		"--delay", l.minWait.String() + ".." + l.maxWait.String(), "--yardstick", "0s", "-o", "json"}
}

// runHoldfast does one job once with Holdfast on fresh databases: all roles in
// one process, the load generator in another.
func (l *lab) runHoldfast(ctx context.Context, job string, rate float64) (f figures, err error) {
	dsns, drop, err := l.databases(ctx)
	if err != nil {
		return f, err
	}
	defer drop()
	if err := l.pay.reset(ctx); err != nil {
		return f, err
	}
	u, err := l.newUp(ctx, dsns[:l.o.shards])
	if err != nil {
		return f, err
	}
	if err := u.start(ctx); err != nil {
		return f, err
	}
	defer func() { u.proc.stop() }()
	settle := l.o.settle
	if job == "crash" {
		settle *= 4
	}
	loading := make(chan struct{})
	begun := sync.OnceFunc(func() { close(loading) })
	var out bytes.Buffer
	args := append(l.o.benchArgs(job, rate), "--settle", settle.String())
	bench, err := spawn("holdfast bench", l.binary, args, u.env, &out, func(line string) {
		if strings.HasPrefix(line, "lifecycle:") {
			begun()
		}
	})
	if err != nil {
		return f, err
	}
	var back time.Time
	if job == "crash" {
		select {
		case <-loading:
		case <-bench.done:
			return f, fmt.Errorf("holdfast bench has ended: %s", bench.said())
		}
		if back, err = u.crash(ctx); err != nil {
			return f, err
		}
	}
	if f, err = l.benchResult(ctx, bench, &out, job); job == "crash" {
		f.RecoveredS = time.Since(back).Seconds()
	}
	return f, err
}

// benchResult waits for the end of a bench and reads what it printed.
func (l *lab) benchResult(ctx context.Context, p *proc, out *bytes.Buffer, job string) (f figures, err error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.stop()
		return f, ctx.Err()
	}
	var r benchReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return f, fmt.Errorf("holdfast bench gave no report: %s", p.said())
	}
	f = r.figures(job)
	if !r.LedgerOK {
		return f, errors.New("Holdfast's ledger is NOT whole: these figures mean nothing")
	}
	if job == "start" {
		return f, nil
	}
	paid, err := l.pay.effects(ctx)
	f.Payments, f.Doubles = int64(paid.Payments), int64(paid.Doubles)
	f.Unpaid = f.Done - (f.Payments - f.Doubles)
	if err == nil && f.Open == 0 && f.Unpaid != 0 {
		err = fmt.Errorf("%d holds are executed, the simulator made %d payments: these figures are of something else", f.Done, f.Payments)
	}
	return f, err
}

// upProcess is a Holdfast on the lab's servers that can be killed without them.
type upProcess struct {
	l         *lab
	env, args []string
	admin     string
	proc      *proc
}

func (l *lab) newUp(ctx context.Context, dsns []string) (*upProcess, error) {
	u := &upProcess{l: l}
	redis, err := l.redis(ctx, "no")
	if err != nil {
		return nil, err
	}
	data := filepath.Join(l.dir, fmt.Sprintf("holdfast%d", l.runs))
	var addrs []string
	for range 3 {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", port))
	}
	u.admin = addrs[1]
	u.env = []string{"HOLDFAST_PAYMENT_URL=" + l.pay.url, "HOLDFAST_SHARDS=" + strings.Join(dsns, ","), "HOLDFAST_REDIS_URL=" + redis,
		"HOLDFAST_DATA=" + data, "HOLDFAST_PROOF_EVERY=0"} // a proof that nobody asked for must not fall into a measurement
	u.args = []string{"up", "--api-addr", addrs[0], "--admin-addr", addrs[1], "--sim-addr", addrs[2]}
	return u, os.MkdirAll(data, 0o755)
}

func (u *upProcess) start(ctx context.Context) (err error) {
	if u.proc, err = spawn("holdfast up", u.l.binary, u.args, u.env, nil, nil); err != nil {
		return err
	}
	return u.proc.until(ctx, func(ctx context.Context) bool { return answers(ctx, "http://"+u.admin+"/readyz") })
}

// crash kills the one process that has all roles, the public API too, in the
// middle of the load, and says when it was started again.
func (u *upProcess) crash(ctx context.Context) (back time.Time, err error) {
	wait(ctx, killAfter)
	u.proc.kill()
	wait(ctx, reviveAfter)
	back = time.Now()
	return back, u.start(ctx)
}
