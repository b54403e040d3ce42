package bench

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies are kept in microseconds with three significant digits, up to ten
// minutes; what is above is counted as ten minutes.
const maxLatency = 10 * time.Minute

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, maxLatency.Microseconds(), 3)
}

// recorder collects the results of some workers. Several of them, each with a
// few workers, keep the lock uncontended without a histogram per worker.
type recorder struct {
	mu        sync.Mutex
	create    *hdrhistogram.Histogram
	cancel    *hdrhistogram.Histogram
	created   int64 // inside the measured window
	cancelled int64
	acked     int64 // in the whole run
	errors    map[string]int64
	sample    []string // hold ids
}

// sampleSize is how many holds of a run each recorder remembers, to follow them
// through the API when the shards cannot be read.
const sampleSize = 64

func newRecorder() *recorder {
	return &recorder{create: newHistogram(), cancel: newHistogram(), errors: map[string]int64{}}
}

func (r *recorder) addCreate(took time.Duration, n int64, measured bool) {
	r.mu.Lock()
	r.acked += n
	if measured {
		r.created += n
		record(r.create, took)
	}
	r.mu.Unlock()
}

func (r *recorder) addCancel(took time.Duration, measured bool) {
	r.mu.Lock()
	if measured {
		r.cancelled++
		record(r.cancel, took)
	}
	r.mu.Unlock()
}

func (r *recorder) addError(code string) {
	r.mu.Lock()
	r.errors[code]++
	r.mu.Unlock()
}

// addSample keeps the n-th of all ids with falling probability, so that each id
// of the run is as likely to be kept as any other.
func (r *recorder) addSample(id string, random func(int) int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sample) < sampleSize {
		r.sample = append(r.sample, id)
	} else if at := random(int(r.acked) + 1); at < sampleSize {
		r.sample[at] = id
	}
}

func record(h *hdrhistogram.Histogram, took time.Duration) {
	us := took.Microseconds()
	us = max(1, min(us, h.HighestTrackableValue()))
	h.RecordValue(us)
}

// merge adds other to r.
func (r *recorder) merge(other *recorder) {
	other.mu.Lock()
	defer other.mu.Unlock()
	r.create.Merge(other.create)
	r.cancel.Merge(other.cancel)
	r.created += other.created
	r.cancelled += other.cancelled
	r.acked += other.acked
	r.sample = append(r.sample, other.sample...)
	for code, n := range other.errors {
		r.errors[code] += n
	}
}

// schedule hands out the intended starts of an open loop: the n-th request is
// due at start + n/rate however long earlier ones take. Latency is counted from
// there, so that a server that stalls cannot hide the requests that it kept
// waiting (coordinated omission).
type schedule struct {
	start time.Time
	rate  float64 // 0: closed loop, each request starts when its worker is free
}

func (s schedule) intended(n int64) time.Time {
	return s.start.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
}
