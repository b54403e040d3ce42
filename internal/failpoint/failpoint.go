// Package failpoint holds the named crash points of the product: places between
// two durable effects where a test may kill, hang, slow or cut off the process.
// They exist only under the build tag failpoints; without it Enabled is false
// and Hit is an empty function that the compiler takes away. It knows no point
// by name: each package of the product lists its own in failpoints.go, and cmd
// reads the environment and calls Arm.
package failpoint

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// Variable is where the plan comes from: point:action[:n], several with
	// commas.
	Variable = "HOLDFAST_FAILPOINT"
	// ExitCode is how a process ends that was struck with the action exit.
	ExitCode = 86
)

// Point is the name of one crash point, in words with underscores.
type Point string

// ErrStruck is what Hit returns for the action error. It stands for a connection
// that broke at this place: whoever meets it knows nothing about what the other
// side did with the request, and must never take it for a failure.
var ErrStruck = errors.New("the connection was cut by a failpoint")

// What a struck point does.
const (
	actExit  = "exit"
	actError = "error"
	actHang  = "hang"
	actDelay = "delay"
)

// strike is one item of a plan.
type strike struct {
	action string
	delay  time.Duration
	first  int64 // the passing at which it strikes
	always bool  // and at every later one
}

func (s strike) String() string {
	if s.action == actDelay {
		return actDelay + "=" + s.delay.String()
	}
	return s.action
}

// parse reads a plan. Its error names what is wrong and every known point.
func parse(plan string, known []Point) (map[Point]strike, error) {
	strikes := map[Point]strike{}
	for item := range strings.SplitSeq(plan, ",") {
		name, rest, _ := strings.Cut(strings.TrimSpace(item), ":")
		p := Point(name)
		s, err := parseStrike(rest)
		switch {
		case !slices.Contains(known, p):
			err = fmt.Errorf("there is no point %q", name)
		case strikes[p].action != "":
			err = fmt.Errorf("the point %s is named twice", p)
		}
		if err != nil {
			return nil, fmt.Errorf("%s is %q: %w; write point:action[:n] with exit, error, hang or delay=DURATION, n like 3 (the third passing) or 3+ (from it on); points: %s",
				Variable, plan, err, list(known))
		}
		strikes[p] = s
	}
	return strikes, nil
}

func parseStrike(text string) (s strike, err error) {
	action, times, counted := strings.Cut(text, ":")
	s.first = 1
	if counted {
		times, s.always = strings.CutSuffix(times, "+")
		if s.first, err = strconv.ParseInt(times, 10, 64); err != nil || s.first < 1 {
			return s, fmt.Errorf("%q is not a passing, the first is 1", times)
		}
	}
	name, value, hasValue := strings.Cut(action, "=")
	s.action = name
	switch name {
	case actDelay:
		if s.delay, err = time.ParseDuration(value); err != nil || s.delay <= 0 {
			return s, fmt.Errorf("%q is not a delay, write one like delay=200ms", action)
		}
		return s, nil
	case actExit, actError, actHang:
		if !hasValue {
			return s, nil
		}
	}
	return s, fmt.Errorf("there is no action %q", action)
}

func list(points []Point) string {
	names := make([]string, len(points))
	for i, p := range points {
		names[i] = string(p)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
