package participants

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/branch"
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

// letters counts the open dead letters of all shards at each scrape. A shard that
// is away is left out: the figure then is a lower bound.
type letters struct {
	set  *shards.Set
	desc *prometheus.Desc
}

// scrapeTimeout bounds the look at one shard.
const scrapeTimeout = 2 * time.Second

// Describe implements prometheus.Collector.
func (l *letters) Describe(out chan<- *prometheus.Desc) { out <- l.desc }

// Collect implements prometheus.Collector.
func (l *letters) Collect(out chan<- prometheus.Metric) {
	found := make([]map[string]int64, l.set.N())
	var all sync.WaitGroup
	for i := range found {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
			defer cancel()
			s := branch.ShardStatus{OpenDeadLetters: map[string]int64{}}
			if openLetters(ctx, l.set.Reads(i), &s) == nil {
				found[i] = s.OpenDeadLetters
			}
		})
	}
	all.Wait()
	// The codes that page somebody are there from the start, as zeros.
	sums := map[string]int64{branch.DeadOutcomeUnknown: 0, branch.DeadLateSuccess: 0, branch.DeadImpossible: 0}
	for _, f := range found {
		for code, n := range f {
			sums[code] += n
		}
	}
	for code, n := range sums {
		out <- prometheus.MustNewConstMetric(l.desc, prometheus.GaugeValue, float64(n), code)
	}
}

func newMetrics(r prometheus.Registerer, set *shards.Set) *metrics {
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
	r.MustRegister(&letters{set: set, desc: prometheus.NewDesc("holdfast_dead_letters",
		"Dead letters that nobody has closed, by code.", []string{"code"}, nil)})
	r.MustRegister(m.branches, m.nullCancel, m.suspendedTry, m.batchSize)
	return m
}
