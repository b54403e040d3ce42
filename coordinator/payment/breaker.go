package payment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// States of the breaker as State and OnChange name them.
const (
	Closed   = "closed"
	HalfOpen = "half-open"
	Open     = "open"
)

var (
	errHalfOpen = fmt.Errorf("%w: it is half-open and its trial calls are out", ErrOpen)
	errFailed   = errors.New("the call counts against the payment API")
	errExcluded = errors.New("the call says nothing about the payment API")
)

// Counts are the calls of the breaker's current window; a change of state
// starts a new one. Permits are all permits given, including those still out.
type Counts struct {
	Permits   uint32 `json:"permits"`
	Successes uint32 `json:"successes"`
	Failures  uint32 `json:"failures"`
	Excluded  uint32 `json:"excluded"`
}

// Permit is the right to make one call. It must be ended, by Done or Cancel:
// a half-open breaker waits for its few permits and would wait for ever. Only
// the first end counts. The zero Permit is ended already.
type Permit struct{ p *permit }

type permit struct {
	done  func(error)
	ended atomic.Bool
}

// Done reports what came of the call. Succeeded, Refused and NeverSeen show an
// API that does its work. Unknown counts against it, except when we gave the
// call up ourselves (ErrAbandoned) or the API is still deciding (ErrPending):
// those count neither way.
func (p Permit) Done(a Answer) {
	switch {
	case a.Outcome != Unknown:
		p.end(nil)
	case errors.Is(a.Err, ErrAbandoned) || errors.Is(a.Err, ErrPending):
		p.end(errExcluded)
	default:
		p.end(errFailed)
	}
}

// Cancel gives the permit back without a call having been made.
func (p Permit) Cancel() { p.end(errExcluded) }

func (p Permit) end(err error) {
	if p.p != nil && !p.p.ended.Swap(true) {
		p.p.done(err)
	}
}

// breaker wraps the two-step breaker: the permit is taken before a hold is
// claimed, long before there is a call to wrap. One goroutine tells listeners
// of changes, because the library reports them while it holds its own lock and
// leaves "open" only when somebody asks.
type breaker struct {
	steps   *gobreaker.TwoStepCircuitBreaker[struct{}]
	openFor time.Duration
	log     *slog.Logger

	changed chan struct{} // capacity 1: "look at the state"
	stop    chan struct{}
	stopped chan struct{}
	once    sync.Once

	mu        sync.Mutex
	listeners []func(string)
}

func newBreaker(cfg Config) *breaker {
	b := &breaker{
		openFor: cfg.OpenFor,
		log:     cfg.Log,
		changed: make(chan struct{}, 1),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	b.steps = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         "payment",
		MaxRequests:  uint32(cfg.HalfOpenCalls),
		Interval:     cfg.Window,
		BucketPeriod: max(cfg.Window/windowBuckets, 1),
		Timeout:      cfg.OpenFor,
		IsExcluded:   func(err error) bool { return errors.Is(err, errExcluded) },
		ReadyToTrip: func(c gobreaker.Counts) bool {
			// Finished calls, not permits given: thousands that are in flight
			// would otherwise hide an API that has just gone down.
			finished := c.TotalSuccesses + c.TotalFailures
			return finished >= uint32(cfg.MinCalls) &&
				float64(c.TotalFailures)/float64(finished) > cfg.ErrorRatio
		},
		OnStateChange: func(string, gobreaker.State, gobreaker.State) {
			select {
			case b.changed <- struct{}{}:
			default:
			}
		},
	})
	go b.watch()
	return b
}

func (b *breaker) allow() (Permit, error) {
	done, err := b.steps.Allow()
	switch {
	case err == nil:
		return Permit{&permit{done: done}}, nil
	case errors.Is(err, gobreaker.ErrTooManyRequests):
		return Permit{}, errHalfOpen
	default:
		return Permit{}, ErrOpen
	}
}

func (b *breaker) state() string { return b.steps.State().String() }

func (b *breaker) stateNumber() float64 {
	switch b.steps.State() {
	case gobreaker.StateClosed:
		return 0
	case gobreaker.StateHalfOpen:
		return 1
	default:
		return 2
	}
}

func (b *breaker) counts() Counts {
	b.steps.State() // moves the window up to now
	c := b.steps.Counts()
	return Counts{Permits: c.Requests, Successes: c.TotalSuccesses, Failures: c.TotalFailures, Excluded: c.TotalExclusions}
}

func (b *breaker) onChange(f func(string)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listeners = append(b.listeners, f)
}

// watch tells listeners the state whenever it is another than the last one
// told, and asks an open breaker again when it should be half-open.
func (b *breaker) watch() {
	defer close(b.stopped)
	const again = 10 * time.Millisecond
	wake := time.NewTimer(b.openFor)
	wake.Stop()
	defer wake.Stop()
	last := Closed
	for {
		wait := again
		select {
		case <-b.stop:
			return
		case <-b.changed:
			wait = b.openFor + time.Millisecond
		case <-wake.C:
		}
		state := b.state()
		if state == Open {
			wake.Reset(wait)
		}
		if state != last {
			b.tell(last, state)
			last = state
		}
	}
}

func (b *breaker) tell(from, to string) {
	level := slog.LevelInfo
	if to == Open {
		level = slog.LevelWarn
	}
	b.log.Log(context.Background(), level, "payment breaker changed", "from", from, "to", to)
	b.mu.Lock()
	listeners := b.listeners
	b.mu.Unlock()
	for _, f := range listeners {
		f(to)
	}
}

func (b *breaker) close() {
	b.once.Do(func() { close(b.stop) })
	<-b.stopped
}
