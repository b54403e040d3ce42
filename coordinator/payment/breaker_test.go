package payment

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	failed    = Answer{Err: errors.New("payment API answered 500")}
	succeeded = Answer{Outcome: Succeeded}
)

// inBubble runs with a breaker of the defaults on a clock of its own.
func inBubble(t *testing.T, f func(t *testing.T, b *breaker)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
		cfg.defaults()
		b := newBreaker(cfg)
		defer b.close()
		f(t, b)
	})
}

func report(t *testing.T, b *breaker, n int, a Answer) {
	t.Helper()
	for range n {
		p, err := b.allow()
		if err != nil {
			t.Fatalf("no permit while %s: %v", b.state(), err)
		}
		p.Done(a)
	}
}

func trip(t *testing.T, b *breaker) {
	t.Helper()
	report(t, b, 20, failed)
	wantState(t, b, Open)
}

func wantState(t *testing.T, b *breaker, want string) {
	t.Helper()
	if got := b.state(); got != want {
		t.Fatalf("state %s, want %s: %+v", got, want, b.counts())
	}
}

func TestBreakerThreshold(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]string{9: Closed, 10: Closed, 11: Open} {
		t.Run(fmt.Sprintf("%d of 100", failures), func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *breaker) {
				var out []Permit // all permits first: the calls run side by side
				for range 100 {
					p, err := b.allow()
					if err != nil {
						t.Fatal(err)
					}
					out = append(out, p)
				}
				for n, p := range out {
					if n < 100-failures {
						p.Done(succeeded)
					} else {
						p.Done(failed)
					}
				}
				wantState(t, b, want)
			})
		})
	}
}

func TestBreakerNeedsTwentyFinishedCalls(t *testing.T) {
	inBubble(t, func(t *testing.T, b *breaker) {
		var out []Permit
		for range 500 { // in flight: they neither make up the twenty nor thin out the errors
			p, err := b.allow()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, p)
		}
		for _, p := range out[:19] {
			p.Done(failed)
		}
		wantState(t, b, Closed)
		out[19].Done(failed)
		wantState(t, b, Open)
		if _, err := b.allow(); !errors.Is(err, ErrOpen) {
			t.Errorf("a permit while open: %v", err)
		}
		for _, p := range out[20:] { // late news from before it opened
			p.Done(succeeded)
		}
		wantState(t, b, Open)
	})
}

func TestBreakerOutcomes(t *testing.T) {
	inBubble(t, func(t *testing.T, b *breaker) {
		report(t, b, 50, Answer{Outcome: Refused, Code: "recipient_banned"})
		report(t, b, 50, Answer{Outcome: NeverSeen})
		report(t, b, 500, Answer{Err: ErrAbandoned, SureNotSent: true})
		report(t, b, 500, Answer{Err: ErrPending})
		for range 500 {
			p, _ := b.allow()
			p.Cancel()
			p.Done(failed) // only the first end counts
		}
		Permit{}.Done(failed)
		if got, want := b.counts(), (Counts{Permits: 1600, Successes: 100, Excluded: 1500}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
		wantState(t, b, Closed)
		report(t, b, 12, failed) // 12 of 112; of 1,612 it would be nothing
		wantState(t, b, Open)
	})
}

func TestBreakerWindowRolls(t *testing.T) {
	inBubble(t, func(t *testing.T, b *breaker) {
		report(t, b, 19, failed)
		time.Sleep(31 * time.Second)
		report(t, b, 19, failed) // the earlier ones have left the window
		wantState(t, b, Closed)
		time.Sleep(20 * time.Second)
		report(t, b, 1, failed) // these have not
		wantState(t, b, Open)
	})
}

func TestBreakerHalfOpen(t *testing.T) {
	inBubble(t, func(t *testing.T, b *breaker) {
		trip(t, b)
		time.Sleep(4900 * time.Millisecond)
		wantState(t, b, Open)
		time.Sleep(200 * time.Millisecond)
		wantState(t, b, HalfOpen)
		var out []Permit
		for range 3 {
			p, err := b.allow()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, p)
		}
		if _, err := b.allow(); !errors.Is(err, ErrOpen) {
			t.Errorf("a fourth permit while half-open: %v", err)
		}
		out[0].Done(succeeded)
		if _, err := b.allow(); !errors.Is(err, ErrOpen) {
			t.Errorf("a permit for one that did well: %v", err)
		}
		out[1].Cancel() // gives its place to another
		p, err := b.allow()
		if err != nil {
			t.Fatalf("the permit given back is lost: %v", err)
		}
		p.Done(succeeded)
		wantState(t, b, HalfOpen)
		out[2].Done(succeeded)
		wantState(t, b, Closed)
		report(t, b, 19, failed)
		wantState(t, b, Closed)

		report(t, b, 1, failed)
		time.Sleep(5100 * time.Millisecond)
		wantState(t, b, HalfOpen)
		report(t, b, 1, failed)
		wantState(t, b, Open)
	})
}

func TestBreakerTellsChanges(t *testing.T) {
	inBubble(t, func(t *testing.T, b *breaker) {
		var mu sync.Mutex
		var told []string
		b.onChange(func(state string) {
			_ = b.state() // a listener may ask
			mu.Lock()
			told = append(told, state)
			mu.Unlock()
		})
		want := func(states ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(told) != len(states) {
				t.Fatalf("told %v, want %v", told, states)
			}
			for i := range states {
				if told[i] != states[i] {
					t.Fatalf("told %v, want %v", told, states)
				}
			}
		}
		trip(t, b)
		want(Open)
		time.Sleep(5100 * time.Millisecond) // nobody asks, still it is told
		want(Open, HalfOpen)
		report(t, b, 1, failed)
		want(Open, HalfOpen, Open)
		time.Sleep(5100 * time.Millisecond)
		want(Open, HalfOpen, Open, HalfOpen)
		report(t, b, 3, succeeded)
		want(Open, HalfOpen, Open, HalfOpen, Closed)
	})
}
