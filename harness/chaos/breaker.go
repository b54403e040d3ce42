package chaos

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

func breakerFaults() []Fault {
	var out []Fault
	for _, share := range []int{9, 10, 11} {
		out = append(out, Fault{Name: fmt.Sprintf("breaker-at-%d-percent", share), Theme: "payment", Cluster: "breaker", Alone: true,
			Settings: map[string]string{"HOLDFAST_BREAKER_OPEN_FOR": "2s"}, Covers: "2", Load: refuseNobody,
			About:  fmt.Sprintf("%d %% of the payment calls fail; the breaker opens above ten and not at ten.", share),
			Strike: breakerAt(share)})
	}
	return append(out, Fault{Name: "breaker-hanging-probe", Theme: "payment", Quick: true, Covers: "2, I12",
		About: "The breaker is half-open and its trial calls hang: it opens again, a few calls at a time, and closes when they do well.", Strike: hangingProbe})
}

// breakerDelay is how far ahead the load's holds mature at most.
const breakerDelay = 2 * time.Second

// refuseNobody keeps the share of failures what the fault says.
func refuseNobody(c *workload.Config) { c.RefusableShare, c.MaxDelay, c.Rate = -1, breakerDelay, 120 }

// breaker is what a coordinator says of its own.
type breaker struct {
	State  string `json:"state"`
	Counts struct {
		Successes int `json:"successes"`
		Failures  int `json:"failures"`
	} `json:"counts"`
}

func (r *Run) breaker(ctx context.Context, i int) (b breaker, err error) {
	_, err = r.API(i).AdminCall(ctx, "GET", "/admin/v1/breaker", nil, &b)
	return b, err
}

// minSuccesses make a percentage something that one call does not change.
const minSuccesses = 150

// breakerAt collects successes with one coordinator alone, ends the load, and
// lets exactly so many calls fail at once that they are the wanted share of all.
func breakerAt(percent int) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		// A fresh breaker that has seen nothing.
		if err := r.restartWith(ctx, r.Cluster.Process(cluster.Coordinator, 0)); err != nil {
			return err
		}
		if err := r.Cluster.Process(cluster.Coordinator, 1).Kill(); err != nil {
			return err
		}
		var seen breaker
		err := r.Until(ctx, 20*time.Second, fmt.Sprintf("%d payments in the breaker's window", minSuccesses), func() bool {
			var err error
			seen, err = r.breaker(ctx, 0)
			return err == nil && seen.Counts.Successes >= minSuccesses
		})
		if err != nil {
			return err
		}
		r.endLoad()
		s, err := r.lastSuccess(ctx)
		if err != nil {
			return err
		}
		// k of s+k calls fail: k = s·p/(100−p), rounded to the side in question.
		k := s * percent / (100 - percent)
		if percent > 10 {
			k++
		}
		if err := r.Payments(ctx, paysim.Faults{Rules: []paysim.Rule{{Mode: paysim.ModeError, Next: k}}}); err != nil {
			return err
		}
		return r.judgeBreaker(ctx, percent, k)
	}
}

// lastSuccess waits until the holds of the load that has ended are paid, and says
// how many successes are in the breaker's window then. One that came later would
// make the share of failures less than the wanted one.
func (r *Run) lastSuccess(ctx context.Context) (successes int, err error) {
	since := time.Now()
	err = r.Until(ctx, 20*time.Second, "the end of the load's payments", func() bool {
		b, err := r.breaker(ctx, 0)
		if err != nil || b.Counts.Successes != successes {
			successes, since = b.Counts.Successes, time.Now()
		}
		return time.Since(since) > breakerDelay+500*time.Millisecond
	})
	return successes, err
}

// judgeBreaker brings the failures about with fresh holds and looks what the
// breaker says, until it has been told of all of them.
func (r *Run) judgeBreaker(ctx context.Context, percent, k int) error {
	before, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	if err := r.holdsDue(ctx, k); err != nil {
		return err
	}
	opened, most := false, 0.0
	err = r.Until(ctx, 10*time.Second, "all the failures", func() bool {
		b, err := r.breaker(ctx, 0)
		if err != nil {
			return false
		}
		if all := b.Counts.Successes + b.Counts.Failures; all > 0 {
			most = max(most, float64(b.Counts.Failures)/float64(all))
		}
		opened = opened || b.State != "closed"
		after, err := r.PayStats(ctx)
		return err == nil && (opened || after.Struck["error"]-before.Struck["error"] >= k && b.Counts.Failures >= k)
	})
	after, statsErr := r.PayStats(ctx)
	if statsErr != nil {
		return statsErr
	}
	r.Struck(after.Struck["error"] - before.Struck["error"])
	r.Note("%d failures, at most %.1f %% of the calls in the window; opened: %t", k, 100*most, opened)
	switch {
	case percent <= 10 && opened && most <= 0.10:
		r.Fail("the breaker opened at %.1f %%", 100*most)
	case percent > 10 && !opened:
		r.Fail("the breaker stayed closed at %.1f %%", 100*most)
	}
	return err
}

// hangingProbe opens the breaker, and lets the trial calls hang.
func hangingProbe(ctx context.Context, r *Run) error {
	if err := r.Payments(ctx, paysim.Faults{Mode: paysim.ModeDown}); err != nil {
		return err
	}
	if err := r.Until(ctx, 15*time.Second, "an open breaker", func() bool {
		b0, err0 := r.breaker(ctx, 0)
		b1, err1 := r.breaker(ctx, 1)
		return err0 == nil && b0.State == "open" || err1 == nil && b1.State == "open"
	}); err != nil {
		return err
	}
	if err := r.Payments(ctx, paysim.Faults{Mode: paysim.ModeHang}); err != nil {
		return err
	}
	// A breaker that was closed still learns it from its own calls.
	const d = 5 * time.Second
	if err := r.Wait(ctx, d/2); err != nil {
		return err
	}
	before, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	if err := r.Wait(ctx, d); err != nil {
		return err
	}
	after, err := r.PayStats(ctx)
	if err != nil {
		return err
	}
	hung := after.Struck["hang"] - before.Struck["hang"]
	r.Struck(hung)
	// A second open, a second until the trial calls time out: three calls of
	// each coordinator in two seconds.
	if most := 30; hung > most {
		r.Fail("%d trial calls hung in %s, want at most %d", hung, d, most)
	}
	return nil
}

// holdsDue creates n holds at once that mature together, of a size that no
// sender feels.
func (r *Run) holdsDue(ctx context.Context, n int) error {
	at := time.Now().Add(2 * time.Second)
	var all errgroup.Group
	for i := range n {
		all.Go(func() error {
			sender, recipient := r.World.Senders[i%len(r.World.Senders)], r.World.Recipients[i%len(r.World.Recipients)]
			op := r.World.Hand(i).Create(ctx, r.World.Key("due-%d", i), sender, recipient, 1, at)
			if op.Outcome != workload.OK {
				return fmt.Errorf("create a hold: %d %s %s", op.HTTP, op.Code, op.Error)
			}
			return nil
		})
	}
	return all.Wait()
}

// dashed is a name in words with dashes.
func dashed(name string) string { return strings.ReplaceAll(name, "_", "-") }
