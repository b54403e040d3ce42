//go:build failpoints

package failpoint

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Enabled says whether the points are compiled in.
const Enabled = true

// armed is a point that may still strike.
type armed struct {
	strike
	passed atomic.Int64
}

// plan is what Arm was told. It is the one thing here that changes, because the
// places of the points have no object of their own that could carry it.
var plan struct {
	points atomic.Pointer[map[Point]*armed]
	out    sync.Mutex // one line at a time
	to     io.Writer
}

// Arm reads a plan for the points that exist; "" disarms all. Every strike
// writes a line "failpoint struck POINT ACTION" to out before it acts. To be
// called before the roles start.
func Arm(text string, known []Point, out io.Writer) error {
	points := map[Point]*armed{}
	if text != "" {
		strikes, err := parse(text, known)
		if err != nil {
			return err
		}
		for p, s := range strikes {
			points[p] = &armed{strike: s}
		}
	}
	plan.out.Lock()
	plan.to = out
	plan.out.Unlock()
	plan.points.Store(&points)
	return nil
}

func find(p Point) *armed {
	points := plan.points.Load()
	if points == nil {
		return nil
	}
	return (*points)[p]
}

// Armed reports whether a point is part of the plan.
func Armed(p Point) bool { return find(p) != nil }

// Hit passes a point. The error is ErrStruck and stands for a broken connection.
func Hit(p Point) error {
	a := find(p)
	if a == nil {
		return nil
	}
	if n := a.passed.Add(1); n != a.first && !(a.always && n > a.first) {
		return nil
	}
	plan.out.Lock()
	fmt.Fprintf(plan.to, "failpoint struck %s %s\n", p, a.strike)
	plan.out.Unlock()
	switch a.action {
	case actExit:
		// Nothing deferred runs and nothing is flushed, as with kill -9.
		os.Exit(ExitCode)
	case actHang:
		for {
			time.Sleep(time.Hour)
		}
	case actDelay:
		time.Sleep(a.delay)
		return nil
	}
	return fmt.Errorf("%w at %s", ErrStruck, p)
}
