//go:build !failpoints

package main

import (
	"strings"
	"testing"
)

func TestClockOffset_is_no_setting_of_an_ordinary_binary(t *testing.T) {
	t.Parallel()
	r := command([]string{"HOLDFAST_CLOCK_OFFSET=+5m"}, "serve", "--role", "payment-sim")
	if r.code != exitUsage || !strings.Contains(r.errOut, "HOLDFAST_CLOCK_OFFSET is not a setting") {
		t.Errorf("exit code %d: %s", r.code, r.errOut)
	}
}
