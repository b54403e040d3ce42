package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is what a run measured; its JSON names are part of the contract. A
// figure that could not be measured is 0.
type Report struct {
	Scenario     string  `json:"scenario"`
	Rate         float64 `json:"rate"`
	Clients      int     `json:"clients"`
	Senders      int     `json:"senders"`
	Recipients   int     `json:"recipients"`
	DurationS    float64 `json:"duration_s"`
	StartedAt    string  `json:"started_at"`
	Acknowledged int64   `json:"acknowledged"` // in the whole run, warm-up included
	Created      int64   `json:"created"`      // in the measured window
	Cancelled    int64   `json:"cancelled"`
	Executed     int64   `json:"executed"`
	Open         int64   `json:"open"` // holds that had not ended when the wait was over
	Settled      bool    `json:"settled"`

	CreatedPerS   float64 `json:"created_per_s"`
	CancelledPerS float64 `json:"cancelled_per_s"`
	ExecutedPerS  float64 `json:"executed_per_s"`

	CreateP50 float64 `json:"create_p50_ms"`
	CreateP99 float64 `json:"create_p99_ms"`
	CreateMax float64 `json:"create_max_ms"`
	CancelP50 float64 `json:"cancel_p50_ms"`
	CancelP99 float64 `json:"cancel_p99_ms"`
	CancelMax float64 `json:"cancel_max_ms"`
	LagP50    float64 `json:"lag_p50_ms"`
	LagP99    float64 `json:"lag_p99_ms"`
	LagMax    float64 `json:"lag_max_ms"`
	// LagSampled: lag and executions are estimated from a sample of holds.
	LagSampled bool `json:"lag_sampled,omitempty"`

	Errors map[string]int64 `json:"errors"`

	YardstickPerS        float64 `json:"yardstick_per_s"`
	CreatedPerYardstick  float64 `json:"created_per_yardstick"`
	ExecutedPerYardstick float64 `json:"executed_per_yardstick"`

	CPUSeconds        map[string]float64 `json:"cpu_seconds"`
	CPUMSPerHold      float64            `json:"cpu_ms_per_hold"`
	CPUMSPerLifecycle float64            `json:"cpu_ms_per_lifecycle"`
	WALBytes          int64              `json:"wal_bytes"`
	WALBytesPerHold   float64            `json:"wal_bytes_per_hold"`
	LedgerOK          bool               `json:"ledger_ok"`

	PerSecond []int64 `json:"created_each_second"`

	create, lags *hdrhistogram.Histogram
}

func newReport(cfg *Config) *Report {
	return &Report{Scenario: cfg.Scenario, Rate: cfg.Rate, Clients: cfg.Clients, Senders: cfg.Senders, Recipients: cfg.Recipients,
		StartedAt: time.Now().UTC().Format(time.RFC3339), Errors: map[string]int64{}, CPUSeconds: map[string]float64{}}
}

// load takes over what the workers saw; elapsed is the measured window as it
// really was: an open loop that fell behind took longer than planned.
func (r *Report) load(seen *recorder, elapsed float64, g *generator) {
	r.Acknowledged, r.Created = seen.acked, seen.created
	r.DurationS = elapsed
	if elapsed > 0 {
		r.CreatedPerS = float64(seen.created) / elapsed
	}
	r.create = seen.create
	r.CreateP50, r.CreateP99, r.CreateMax = ms(seen.create, 50), ms(seen.create, 99), float64(seen.create.Max())/1000
	r.cancels(seen, elapsed)
	for i := range g.perS {
		r.PerSecond = append(r.PerSecond, g.perS[i].Load())
	}
	for len(r.PerSecond) > 0 && r.PerSecond[len(r.PerSecond)-1] == 0 {
		r.PerSecond = r.PerSecond[:len(r.PerSecond)-1]
	}
}

func (r *Report) cancels(seen *recorder, elapsed float64) {
	r.Cancelled = seen.cancelled
	if elapsed > 0 {
		r.CancelledPerS = float64(seen.cancelled) / elapsed
	}
	r.CancelP50, r.CancelP99, r.CancelMax = ms(seen.cancel, 50), ms(seen.cancel, 99), float64(seen.cancel.Max())/1000
	for code, n := range seen.errors {
		r.Errors[code] += n
	}
}

func (r *Report) lag(h *hdrhistogram.Histogram) {
	r.lags = h
	r.LagP50, r.LagP99, r.LagMax = ms(h, 50), ms(h, 99), float64(h.Max())/1000
}

func (r *Report) cpu(before, after map[string]float64) {
	for role, s := range after {
		// A product that was killed and started again has used less than before.
		r.CPUSeconds[role] = max(0, s-before[role])
	}
}

// derive computes the ratios from the figures.
func (r *Report) derive() {
	product := 0.0
	for role, s := range r.CPUSeconds {
		if role != "load" {
			product += s
		}
	}
	if r.Acknowledged > 0 {
		r.CPUMSPerHold = product * 1000 / float64(r.Acknowledged)
		r.WALBytesPerHold = float64(r.WALBytes) / float64(r.Acknowledged)
	}
	if r.Executed > 0 {
		r.CPUMSPerLifecycle = product * 1000 / float64(r.Executed)
	}
	if r.YardstickPerS > 0 {
		r.CreatedPerYardstick = r.CreatedPerS / r.YardstickPerS
		r.ExecutedPerYardstick = r.ExecutedPerS / r.YardstickPerS
	}
}

// OK reports whether the run kept its promises: the ledger is whole and, where
// the run waited for it, every hold has ended.
func (r *Report) OK() bool { return r.LedgerOK && r.Settled }

// Table writes the report for a person.
func (r *Report) Table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("scenario", "%s, %.1f s measured, %d clients, %d senders, %d recipients", r.Scenario, r.DurationS, r.Clients, r.Senders, r.Recipients)
	row("created", "%.0f/s (%d)", r.CreatedPerS, r.Created)
	row("create latency", "p50 %.1f  p99 %.1f  max %.1f ms", r.CreateP50, r.CreateP99, r.CreateMax)
	if r.Cancelled > 0 {
		row("cancelled", "%.0f/s (%d)", r.CancelledPerS, r.Cancelled)
		row("cancel latency", "p50 %.1f  p99 %.1f  max %.1f ms", r.CancelP50, r.CancelP99, r.CancelMax)
	}
	if r.Executed > 0 {
		estimated := ""
		if r.LagSampled {
			estimated = ", estimated from a sample"
		}
		row("executed", "%.0f/s (%d%s)", r.ExecutedPerS, r.Executed, estimated)
		row("execution lag", "p50 %.1f  p99 %.1f  max %.1f ms", r.LagP50, r.LagP99, r.LagMax)
	}
	if !r.Settled {
		row("not ended", "%d holds", r.Open)
	}
	if r.YardstickPerS > 0 {
		row("yardstick", "%.0f/s (pgbench, 64 clients, UPDATE + INSERT)", r.YardstickPerS)
		row("ratio to it", "created %.2f  executed %.2f", r.CreatedPerYardstick, r.ExecutedPerYardstick)
	}
	var cpu []string
	for _, role := range slices.Sorted(maps.Keys(r.CPUSeconds)) {
		cpu = append(cpu, fmt.Sprintf("%s %.1f s", role, r.CPUSeconds[role]))
	}
	row("CPU", "%s", strings.Join(cpu, "  "))
	if r.CPUMSPerHold > 0 {
		row("CPU without load", "%.3f ms per hold, %.3f ms per lifecycle", r.CPUMSPerHold, r.CPUMSPerLifecycle)
	}
	if r.WALBytes > 0 {
		row("WAL", "%.0f bytes per hold", r.WALBytesPerHold)
	}
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		row("error", "%s × %d", code, r.Errors[code])
	}
	proof := "ok"
	if !r.LedgerOK {
		proof = "NOT PROVEN"
	}
	row("ledger", "%s", proof)
	t.Flush()
}
