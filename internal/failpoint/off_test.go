//go:build !failpoints

package failpoint

import (
	"strings"
	"testing"
)

// TestAbsent: nothing strikes, nothing is said and nothing is read. It counts
// allocations and so runs alone.
func TestAbsent(t *testing.T) {
	var out strings.Builder
	if err := Arm("no plan at all", known, &out); err != nil || Enabled || Armed("hold_made") {
		t.Errorf("a binary without points arms some: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if err := Hit("hold_made"); err != nil {
			t.Error(err)
		}
	}); n != 0 || out.Len() > 0 {
		t.Errorf("a point that is not there allocates %v times and says %q", n, out.String())
	}
}
