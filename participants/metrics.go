package participants

import (
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the participant's own figures; names are part of the contract.
type metrics struct {
	branches     *prometheus.CounterVec // op, outcome
	nullCancel   prometheus.Counter
	suspendedTry prometheus.Counter
	batchSize    *prometheus.HistogramVec // op
}

func newMetrics(r prometheus.Registerer, _ *shards.Set) *metrics {
	m := &metrics{
		branches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_branch_total",
			Help: "Branch steps by what became of them."}, []string{"op", "outcome"}),
		nullCancel: prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_barrier_null_cancel_total",
			Help: "Cancels of a gid whose Try was never seen."}),
		suspendedTry: prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_barrier_suspended_try_total",
			Help: "Tries refused because the Cancel of their gid came first."}),
		batchSize: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "holdfast_batch_size",
			Help: "Items per batch.", Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500}}, []string{"op"}),
	}
	r.MustRegister(m.branches, m.nullCancel, m.suspendedTry, m.batchSize)
	return m
}
