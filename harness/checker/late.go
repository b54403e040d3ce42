package checker

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Lateness says how long after maturity holds were executed, or refused and
// refunded. Cancelled ones do not count.
type Lateness struct {
	N         int           `json:"n"`
	P50       time.Duration `json:"p50"`
	P99       time.Duration `json:"p99"`
	Worst     time.Duration `json:"worst"`
	WorstHold string        `json:"worst_hold,omitempty"`
	// AfterFault is the longest time from the end of the fault to the end of a
	// hold that had matured before it; 0 if none had or no fault was told of.
	AfterFault time.Duration `json:"after_fault"`
}

// lateness: a hold ends within the bound after its maturity, or after the fault
// is over (I8, I12). One that a person had to decide is not judged.
func (r *restCheck) lateness() {
	var all []time.Duration
	l := &r.report.Lateness
	over := r.c.faultOver
	for _, s := range r.w.shards {
		for _, h := range s.holds {
			if !h.ended() || h.status == holdfast.Cancelled {
				continue
			}
			end := h.endedAt()
			late := end.Sub(h.unlockAt)
			all = append(all, late)
			if late > l.Worst {
				l.Worst, l.WorstHold = late, h.id.String()
			}
			from := h.unlockAt
			if from.Before(over) {
				from = over
				l.AfterFault = max(l.AfterFault, end.Sub(over))
			}
			_, given := s.letterOf(h.id, "outcome_unknown")
			if bound := r.c.cfg.Bound; bound > 0 && end.Sub(from) > bound && !given {
				r.add("I12", "late", h.id, "ended %s after its maturity and %s after %s, the bound is %s", late, end.Sub(from), clock(from), bound)
			}
		}
	}
	slices.Sort(all)
	if l.N = len(all); l.N > 0 {
		l.P50, l.P99 = all[l.N/2], all[l.N*99/100]
	}
}

// Usage is what one process holds at a moment.
type Usage struct {
	Process         string
	FDs, Goroutines int
	RSS             int64 // bytes
}

// Leaks compares the same processes at rest before and after a run (I15): more
// of a kind than before, beyond the growth that is allowed, is a leak. A process
// that was restarted compares all the better.
func Leaks(before, after []Usage, allowed Usage) (found []Violation) {
	f := &finder{}
	for _, a := range after {
		i := slices.IndexFunc(before, func(b Usage) bool { return b.Process == a.Process })
		if i < 0 {
			continue
		}
		b := before[i]
		for _, k := range []struct {
			what             string
			was, is, allowed int64
		}{
			{"file descriptors", int64(b.FDs), int64(a.FDs), int64(allowed.FDs)},
			{"goroutines", int64(b.Goroutines), int64(a.Goroutines), int64(allowed.Goroutines)},
			{"bytes of memory", b.RSS, a.RSS, allowed.RSS},
		} {
			if k.is > k.was+k.allowed {
				f.add("I15", "leak", holdfast.HoldID{}, "%s", fmt.Sprintf("%s had %d %s at rest before and has %d after, allowed are %d more",
					a.Process, k.was, k.what, k.is, k.allowed))
			}
		}
	}
	return f.list(nil, nil)
}
