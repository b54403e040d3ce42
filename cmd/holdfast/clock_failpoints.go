//go:build failpoints

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// clockVariable sets every clock of the process off, like +5m or -90s.
const clockVariable = "HOLDFAST_CLOCK_OFFSET"

// processClock is the clock of the process, and the environment without the variable
// that sets it off. Spans of time stay true: only what the process takes for
// the date is wrong, as on a machine that lost its time server.
func processClock(environ []string) ([]string, func() time.Time, error) {
	offset := time.Duration(0)
	var err error
	rest := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		value, ours := strings.CutPrefix(kv, clockVariable+"=")
		if ours && value != "" && err == nil {
			if offset, err = time.ParseDuration(value); err != nil {
				err = fmt.Errorf("%s: %q is not an offset: write one like +5m or -90s", clockVariable, value)
			}
		}
		return ours
	})
	if err != nil {
		return nil, nil, err
	}
	if offset == 0 {
		return rest, time.Now, nil
	}
	return rest, func() time.Time { return time.Now().Add(offset) }, nil
}
