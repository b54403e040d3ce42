package payment

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// outcomeNotSent is the label of an Unknown of which no byte was sent.
const outcomeNotSent = "not_sent"

type metrics struct {
	attempts map[string]prometheus.Counter // by outcome label
	duration map[operation]prometheus.Observer
}

func newMetrics(r prometheus.Registerer, state func() float64) (*metrics, error) {
	attempts := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_payment_attempts_total",
		Help: "Calls to the payment API, payments and look-ups, by what they told us."}, []string{"outcome"})
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "holdfast_payment_duration_seconds",
		Help:    "Time of one call to the payment API, from waiting for a connection to the last byte, in seconds.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}, []string{"op"})
	breaker := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "holdfast_payment_breaker_state",
		Help: "State of the payment breaker: 0 closed, 1 half-open, 2 open."}, state)
	for _, c := range []prometheus.Collector{attempts, duration, breaker} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the payment metrics: %w", err)
		}
	}
	m := &metrics{attempts: map[string]prometheus.Counter{}, duration: map[operation]prometheus.Observer{}}
	for _, o := range []string{Unknown.String(), Succeeded.String(), Refused.String(), NeverSeen.String(), outcomeNotSent} {
		m.attempts[o] = attempts.WithLabelValues(o)
	}
	for _, op := range []operation{opPay, opLookup} {
		m.duration[op] = duration.WithLabelValues(string(op))
	}
	return m, nil
}

func (m *metrics) observe(op operation, a Answer, took time.Duration) {
	label := a.Outcome.String()
	if a.SureNotSent {
		label = outcomeNotSent
	}
	m.attempts[label].Inc()
	m.duration[op].Observe(took.Seconds())
}
