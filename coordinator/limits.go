package coordinator

import (
	"context"
	"fmt"
	"hash/maphash"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/problem"
)

// keyWait is how long a request waits for another one with the same key.
const keyWait = time.Second

const flightShards = 64

// flightKey is what makes two requests the same: who, what kind, which key.
type flightKey struct {
	user holdfast.UserID
	kind byte // 'h'old, 'd'eposit, 'w'ithdrawal
	key  string
}

// flights knows the keyed requests that are being answered by this process.
// The shard decides about duplicates; this only bounds how long a client waits
// behind its own earlier request.
type flights struct {
	seed   maphash.Seed
	shards *[flightShards]flightShard
}

type flightShard struct {
	mu sync.Mutex
	m  map[flightKey]*flight
}

// flight's done is made by the first one who waits.
type flight struct{ done chan struct{} }

func newFlights() flights {
	f := flights{seed: maphash.MakeSeed(), shards: new([flightShards]flightShard)}
	for i := range f.shards {
		f.shards[i].m = map[flightKey]*flight{}
	}
	return f
}

func (f flights) shard(k flightKey) *flightShard {
	return &f.shards[maphash.Comparable(f.seed, k)%flightShards]
}

// enter waits until no other request with the key is running, for keyWait at
// most, and says whether the caller may go on. If so, it must leave.
func (f flights) enter(ctx context.Context, k flightKey) bool {
	s := f.shard(k)
	var timeout <-chan time.Time
	for {
		s.mu.Lock()
		other := s.m[k]
		if other == nil {
			s.m[k] = &flight{}
			s.mu.Unlock()
			return true
		}
		if other.done == nil {
			other.done = make(chan struct{})
		}
		done := other.done
		s.mu.Unlock()
		if timeout == nil {
			timer := time.NewTimer(keyWait)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-done:
		case <-timeout:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (f flights) leave(k flightKey) {
	s := f.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if own := s.m[k]; own.done != nil {
		close(own.done)
	}
	delete(s.m, k)
}

const (
	maxSubjects = 65536 // subjects whose rate is remembered
	maxDebt     = 1000  // tokens that a batch may take in advance
)

// limiter gives each subject a token bucket that holds one second's worth.
type limiter struct {
	perSecond float64
	burst     float64
	now       func() time.Time
	state     *limiterState
}

type limiterState struct {
	mu      sync.Mutex
	buckets map[string]*tokens
}

type tokens struct {
	left float64
	at   time.Time
}

func newLimiter(perSecond float64, now func() time.Time) limiter {
	return limiter{perSecond: perSecond, burst: math.Max(1, math.Ceil(perSecond)), now: now,
		state: &limiterState{buckets: map[string]*tokens{}}}
}

// take takes one token, or answers 429. The headers follow the IETF draft
// "RateLimit header fields for HTTP" in its widely read early form.
func (l limiter) take(h http.Header, subject string) error {
	if l.perSecond <= 0 {
		return nil
	}
	left, ok := l.spend(subject, 1, 0)
	reset := int(math.Ceil((l.burst - left) / l.perSecond))
	h.Set("RateLimit-Limit", strconv.Itoa(int(l.burst)))
	h.Set("RateLimit-Remaining", strconv.Itoa(max(0, int(left))))
	h.Set("RateLimit-Reset", strconv.Itoa(reset))
	if ok {
		return nil
	}
	p := problem.New(problem.RateLimited, fmt.Sprintf("at most %g requests per second are served for one token subject", l.perSecond))
	p.RetryAfter = max(1, int(math.Ceil((1-left)/l.perSecond)))
	return p
}

// charge takes n tokens that may not be there: a batch was let in with one
// token and the next requests wait for the rest.
func (l limiter) charge(subject string, n int) {
	if l.perSecond > 0 && n > 0 {
		l.spend(subject, float64(n), maxDebt)
	}
}

// spend takes n tokens when afterwards at least -debt are left, and returns
// what is left.
func (l limiter) spend(subject string, n, debt float64) (left float64, ok bool) {
	s := l.state
	now := l.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[subject]
	if b == nil {
		if len(s.buckets) >= maxSubjects {
			l.forget(now)
		}
		b = &tokens{left: l.burst, at: now}
		s.buckets[subject] = b
	}
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.left, b.at = math.Min(l.burst, b.left+passed*l.perSecond), now
	}
	if b.left-n < -debt {
		return b.left, false
	}
	b.left -= n
	return b.left, true
}

// forget drops the buckets that are full again; when all are in use, it drops
// all of them, because memory must not grow with the number of subjects.
func (l limiter) forget(now time.Time) {
	s := l.state
	for subject, b := range s.buckets {
		if b.left+now.Sub(b.at).Seconds()*l.perSecond >= l.burst {
			delete(s.buckets, subject)
		}
	}
	if len(s.buckets) >= maxSubjects {
		clear(s.buckets)
	}
}
