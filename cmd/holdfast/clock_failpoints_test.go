//go:build failpoints

package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestClockOffset(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{"": 0, "+5m": 5 * time.Minute, "-90s": -90 * time.Second} {
		rest, now, err := processClock([]string{"A=1", clockVariable + "=" + value})
		if err != nil || !slices.Equal(rest, []string{"A=1"}) {
			t.Fatalf("%q: %q, %v", value, rest, err)
		}
		if off := time.Until(now()).Round(time.Second); off != want {
			t.Errorf("%q sets the clock off by %s", value, off)
		}
	}
	r := command([]string{clockVariable + "=soon"}, "serve", "--role", "payment-sim")
	if r.code != exitUsage || !strings.Contains(r.errOut, `"soon" is not an offset`) {
		t.Errorf("exit code %d: %s", r.code, r.errOut)
	}
}
