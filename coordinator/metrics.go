package coordinator

import "github.com/prometheus/client_golang/prometheus"

// metrics are the coordinator's own figures; names are part of the contract.
type metrics struct {
	requests    *prometheus.CounterVec   // route, method, code
	duration    *prometheus.HistogramVec // route
	transitions *prometheus.CounterVec   // to
	lag         prometheus.Histogram     // executed_at − unlock_at
	imbalance   *prometheus.GaugeVec     // shard; set by every ledger proof
	proved      *prometheus.GaugeVec     // no label; not there before it is set
}

func newMetrics(r prometheus.Registerer) *metrics {
	buckets := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 3600}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_http_requests_total",
			Help: "Requests of the public and admin API by route, method and status code."},
			[]string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "holdfast_http_request_duration_seconds",
			Help: "Time from the first byte read to the answer, in seconds.", Buckets: buckets[:11]}, []string{"route"}),
		transitions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_hold_transitions_total",
			Help: "Status changes committed through this coordinator."}, []string{"to"}),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "holdfast_hold_execution_lag_seconds",
			Help: "executed_at minus unlock_at, in seconds.", Buckets: buckets}),
	}
	m.imbalance = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_ledger_imbalance",
		Help: "Offenders that the last ledger proof found on a shard; 0 means that its books are whole."}, []string{"shard"})
	m.proved = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_ledger_proved_at_seconds",
		Help: "When this process last ended a proof of the whole ledger, whatever it found, in Unix seconds; " +
			"0 before the first, absent while HOLDFAST_PROOF_EVERY is 0."}, nil)
	r.MustRegister(m.requests, m.duration, m.transitions, m.lag, m.imbalance, m.proved)
	return m
}
