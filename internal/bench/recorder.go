package bench

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies are kept in microseconds with three significant digits, up to ten
// minutes; what is above is counted as ten minutes.
const maxLatency = 10 * time.Minute

func newHistogram() *histogram { return &histogram{hdrhistogram.New(1, maxLatency.Microseconds(), 3)} }

// newSmallHistogram has two digits: there is one for every second.
func newSmallHistogram() *histogram {
	return &histogram{hdrhistogram.New(1, maxLatency.Microseconds(), 2)}
}

// histogram travels between processes as its bars that are not empty. What
// comes back has the same bars: their values are the lowest of each.
type histogram struct{ *hdrhistogram.Histogram }

func (h *histogram) MarshalJSON() ([]byte, error) {
	bars := [][2]int64{{h.SignificantFigures(), 0}}
	for _, b := range h.Distribution() {
		if b.Count > 0 {
			bars = append(bars, [2]int64{b.From, b.Count})
		}
	}
	return json.Marshal(bars)
}

func (h *histogram) UnmarshalJSON(b []byte) error {
	var bars [][2]int64
	if err := json.Unmarshal(b, &bars); err != nil {
		return err
	}
	if len(bars) == 0 || bars[0][0] < 1 || bars[0][0] > 5 {
		return fmt.Errorf("a histogram without its digits")
	}
	h.Histogram = hdrhistogram.New(1, maxLatency.Microseconds(), int(bars[0][0]))
	for _, bar := range bars[1:] {
		if err := h.RecordValues(bar[0], bar[1]); err != nil {
			return err
		}
	}
	return nil
}

func (h *histogram) record(took time.Duration) { h.recordN(took, 1) }

func (h *histogram) recordN(took time.Duration, n int64) {
	h.RecordValues(max(1, min(took.Microseconds(), h.HighestTrackableValue())), n)
}

// ms is the latency in milliseconds below which quantile percent lie.
func (h *histogram) ms(quantile float64) float64 {
	return float64(h.ValueAtQuantile(quantile)) / 1000
}

func (h *histogram) maxMS() float64 { return float64(h.Max()) / 1000 }

// seen is what clients saw, of one worker up to all processes; the JSON form is
// what a child process reports.
type seen struct {
	Create    *histogram       `json:"create"`
	Cancel    *histogram       `json:"cancel"`
	Created   int64            `json:"created"` // inside the measured window
	Cancelled int64            `json:"cancelled"`
	Acked     int64            `json:"acked"` // in the whole phase
	Errors    map[string]int64 `json:"errors"`
	Sample    []string         `json:"sample"` // hold ids
	IDs       []holdID         `json:"ids,omitempty"`
	Series    series           `json:"series"`
}

// sampleSize is how many holds of a run each recorder remembers, to follow them
// through the API when the shards cannot be read.
const sampleSize = 64

func newSeen() *seen {
	return &seen{Create: newHistogram(), Cancel: newHistogram(), Errors: map[string]int64{}, Series: series{}}
}

// merge adds other to s.
func (s *seen) merge(other *seen) {
	s.Create.Merge(other.Create.Histogram)
	s.Cancel.Merge(other.Cancel.Histogram)
	s.Created += other.Created
	s.Cancelled += other.Cancelled
	s.Acked += other.Acked
	s.Sample = append(s.Sample, other.Sample...)
	s.IDs = append(s.IDs, other.IDs...)
	for code, n := range other.Errors {
		s.Errors[code] += n
	}
	s.Series.merge(other.Series)
}

// series is what happened in each second of the clock. It counts everything,
// the warm-up too, and every second that any process or phase saw.
type series map[int64]*second

// second is one of them; latencies are those of what ended in it.
type second struct {
	N       int64      `json:"n"`
	Latency *histogram `json:"latency"`
}

func (s series) at(unix int64) *second {
	one := s[unix]
	if one == nil {
		one = &second{Latency: newSmallHistogram()}
		s[unix] = one
	}
	return one
}

func (s series) merge(other series) {
	for unix, o := range other {
		one := s.at(unix)
		one.N += o.N
		one.Latency.Merge(o.Latency.Histogram)
	}
}

// between is the latency of all seconds from one to before another.
func (s series) between(from, to time.Time) *histogram {
	sum := newSmallHistogram()
	for unix, one := range s {
		if unix >= from.Unix() && unix < to.Unix() {
			sum.Merge(one.Latency.Histogram)
		}
	}
	return sum
}

// recorder collects the results of some workers. Several of them, each with a
// few workers, keep the lock uncontended without a histogram per worker.
type recorder struct {
	mu sync.Mutex
	*seen
}

func newRecorder() *recorder { return &recorder{seen: newSeen()} }

func (r *recorder) addCreate(took time.Duration, n int64, measured bool) {
	r.mu.Lock()
	r.Acked += n
	if measured {
		r.Created += n
		r.Create.record(took)
	}
	r.mu.Unlock()
}

func (r *recorder) addCancel(took time.Duration, measured bool) {
	r.mu.Lock()
	if measured {
		r.Cancelled++
		r.Cancel.record(took)
	}
	r.mu.Unlock()
}

func (r *recorder) addError(code string) {
	r.mu.Lock()
	r.Errors[code]++
	r.mu.Unlock()
}

// addSample keeps the n-th of all ids with falling probability, so that each id
// of the run is as likely to be kept as any other.
func (r *recorder) addSample(id string, random func(int) int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.Sample) < sampleSize {
		r.Sample = append(r.Sample, id)
	} else if at := random(int(r.Acked) + 1); at < sampleSize {
		r.Sample[at] = id
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
