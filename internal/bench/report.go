package bench

import (
	"time"
)

// Report is what a run measured; its JSON names are part of the contract. A
// figure that could not be measured is 0.
type Report struct {
	Scenario     string  `json:"scenario"`
	Rate         float64 `json:"rate"`
	Clients      int     `json:"clients"`
	Processes    int     `json:"processes"`
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
	// Of a few holds: the lag until others could see that they are executed,
	// which is after the commit and its flush, and the part after executed_at.
	SeenP50   float64 `json:"lag_seen_p50_ms"`
	SeenP99   float64 `json:"lag_seen_p99_ms"`
	CommitP50 float64 `json:"lag_commit_p50_ms"`
	CommitP99 float64 `json:"lag_commit_p99_ms"`
	Seen      int64   `json:"lag_seen_holds"`
	Early     int64   `json:"early"` // executed before their time; must be 0
	// LagSampled: lag and executions are estimated from a sample of holds.
	LagSampled bool `json:"lag_sampled,omitempty"`

	Errors map[string]int64 `json:"errors"`

	YardstickPerS         float64 `json:"yardstick_per_s"`
	CreatedPerYardstick   float64 `json:"created_per_yardstick"`
	CancelledPerYardstick float64 `json:"cancelled_per_yardstick"`
	ExecutedPerYardstick  float64 `json:"executed_per_yardstick"`

	// CPU of the product leaves out the load generator and, where it is a
	// process of its own, the payment simulator.
	CPUSeconds           map[string]float64 `json:"cpu_seconds"`
	CPUMSPerHoldByRole   map[string]float64 `json:"cpu_ms_per_hold_by_role"`
	CPUMSPerHold         float64            `json:"cpu_ms_per_hold"`
	CPUMSPerLifecycle    float64            `json:"cpu_ms_per_lifecycle"`
	WALBytes             int64              `json:"wal_bytes"`
	WALBytesPerHold      float64            `json:"wal_bytes_per_hold"`
	Checkpoints          int64              `json:"checkpoints"`
	DiskBytesPerHold     float64            `json:"disk_bytes_per_hold"`
	Triggers             int64              `json:"redis_triggers"`
	RedisBytesPerTrigger float64            `json:"redis_bytes_per_trigger"`
	RSSBytes             int64              `json:"rss_bytes"`
	LedgerOK             bool               `json:"ledger_ok"`

	// Figures are those of the scenario alone, with their unit in the name.
	Figures map[string]float64 `json:"figures,omitempty"`

	PerSecond []int64  `json:"created_each_second"`
	Line      []Second `json:"seconds"`

	diskBytes            int64
	create, cancel, lags *histogram
	lagSeries            series
}

// Second is one second of the time line, counted from the first request.
type Second struct {
	At       int64   `json:"at_s"`
	Answered int64   `json:"answered"` // creates, or cancels in their phase
	P99      float64 `json:"p99_ms"`
	Executed int64   `json:"executed"`
	LagP99   float64 `json:"lag_p99_ms"`
}

func newReport(cfg *Config) *Report {
	return &Report{Scenario: cfg.Scenario, Rate: cfg.Rate, Clients: cfg.Clients, Processes: cfg.Processes,
		Senders: cfg.Senders, Recipients: cfg.Recipients, StartedAt: time.Now().UTC().Format(time.RFC3339),
		Errors: map[string]int64{}, CPUSeconds: map[string]float64{}, CPUMSPerHoldByRole: map[string]float64{},
		Figures: map[string]float64{}, create: newHistogram(), cancel: newHistogram(), lags: newHistogram(), lagSeries: series{}}
}

// creates takes over what the clients saw in the measured window.
func (r *Report) creates(s *seen, elapsed float64) {
	r.Created, r.DurationS = s.Created, elapsed
	r.CreatedPerS = ratio(float64(s.Created), elapsed)
	r.create = s.Create
	r.CreateP50, r.CreateP99, r.CreateMax = s.Create.ms(50), s.Create.ms(99), s.Create.maxMS()
}

func (r *Report) cancels(s *seen, elapsed float64) {
	r.Cancelled = s.Cancelled
	r.CancelledPerS = ratio(float64(s.Cancelled), elapsed)
	r.cancel = s.Cancel
	r.CancelP50, r.CancelP99, r.CancelMax = s.Cancel.ms(50), s.Cancel.ms(99), s.Cancel.maxMS()
}

// executions takes over what became of the holds.
func (r *Report) executions(n int64, lag *histogram, lags series, first, last time.Time) {
	r.Executed, r.lags, r.lagSeries = n, lag, lags
	r.ExecutedPerS = ratio(float64(n), last.Sub(first).Seconds())
	r.LagP50, r.LagP99, r.LagMax = lag.ms(50), lag.ms(99), lag.maxMS()
}

// witnessed takes over what was seen from outside.
func (r *Report) witnessed(lag, commit *histogram) {
	r.Seen = lag.TotalCount()
	r.SeenP50, r.SeenP99 = lag.ms(50), lag.ms(99)
	r.CommitP50, r.CommitP99 = commit.ms(50), commit.ms(99)
}

// used charges the run with the difference of the counters. A product that was
// killed and started again has used less than before.
func (r *Report) used(before, after counters) {
	for role, s := range after.cpu {
		r.CPUSeconds[role] = max(0, s-before.cpu[role])
	}
	r.WALBytes = grown(before.walBytes, after.walBytes)
	r.diskBytes = grown(before.diskBytes, after.diskBytes)
	r.Checkpoints = grown(before.checkpoints, after.checkpoints)
}

func grown(before, after int64) int64 {
	if before == 0 || after < before {
		return 0
	}
	return after - before
}

// derive computes the ratios from the figures.
func (r *Report) derive() {
	product, holds := 0.0, float64(r.Acknowledged)
	for role, s := range r.CPUSeconds {
		r.CPUMSPerHoldByRole[role] = ratio(s*1000, holds)
		if role != roleLoad && role != roleSim {
			product += s
		}
	}
	r.CPUMSPerHold = ratio(product*1000, holds)
	r.CPUMSPerLifecycle = ratio(product*1000, float64(r.Executed))
	r.WALBytesPerHold = ratio(float64(r.WALBytes), holds)
	r.DiskBytesPerHold = ratio(float64(r.diskBytes), holds)
	r.CreatedPerYardstick = ratio(r.CreatedPerS, r.YardstickPerS)
	r.CancelledPerYardstick = ratio(r.CancelledPerS, r.YardstickPerS)
	r.ExecutedPerYardstick = ratio(r.ExecutedPerS, r.YardstickPerS)
}

// line puts the seconds of the load and of the executions on one scale.
func (r *Report) line(start time.Time, answered series) {
	first, last := start.Unix(), int64(0)
	for _, s := range []series{answered, r.lagSeries} {
		for unix := range s {
			last = max(last, unix)
		}
	}
	r.Line, r.PerSecond = nil, nil
	for unix := first; unix <= last; unix++ {
		one := Second{At: unix - first}
		if a := answered[unix]; a != nil {
			one.Answered, one.P99 = a.N, a.Latency.ms(99)
		}
		if l := r.lagSeries[unix]; l != nil {
			one.Executed, one.LagP99 = l.N, l.Latency.ms(99)
		}
		r.Line = append(r.Line, one)
		r.PerSecond = append(r.PerSecond, one.Answered)
	}
}

// figure notes one number of the scenario.
func (r *Report) figure(name string, value float64) { r.Figures[name] = value }

// during notes the creates' latency before something happened and meanwhile.
func (r *Report) during(s *seen, from, to time.Time) {
	if s == nil || s.Acked == 0 {
		return
	}
	r.figure("create_p99_before_ms", s.Series.between(from.Add(-calm), from).ms(99))
	r.figure("create_p99_during_ms", s.Series.between(from, to.Add(time.Second)).ms(99))
}

// OK reports whether the run kept its promises: the ledger is whole, nothing was
// executed early and, where the run waited for it, every hold has ended.
func (r *Report) OK() bool { return r.LedgerOK && r.Settled && r.Early == 0 }
