//go:build failpoints

package failpoint

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// output is written by the points and read by a test.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// TestStrikes runs alone: there is one plan in a process.
func TestStrikes(t *testing.T) {
	arm := func(t *testing.T, plan string) *output {
		t.Helper()
		out := &output{}
		if err := Arm(plan, known, out); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { Arm("", nil, out) })
		return out
	}
	strikes := func(n int) (struck []int) {
		for i := range n {
			if err := Hit("hold_made"); errors.Is(err, ErrStruck) {
				struck = append(struck, i+1)
			}
		}
		return struck
	}
	for plan, want := range map[string]int{"hold_made:error": 1, "hold_made:error:3": 3} {
		t.Run("once/"+plan, func(t *testing.T) {
			out := arm(t, plan)
			if got := strikes(5); len(got) != 1 || got[0] != want {
				t.Errorf("it struck at %v, want only at %d", got, want)
			}
			if got := out.String(); got != "failpoint struck hold_made error\n" {
				t.Errorf("it says %q", got)
			}
		})
	}
	t.Run("from_a_passing_on", func(t *testing.T) {
		arm(t, "hold_made:error:2+")
		if got := strikes(4); len(got) != 3 || got[0] != 2 {
			t.Errorf("it struck at %v, want 2, 3 and 4", got)
		}
	})
	t.Run("other_points_and_no_plan", func(t *testing.T) {
		arm(t, "money_moved:error")
		if got := strikes(3); len(got) > 0 || Armed("hold_made") || !Armed("money_moved") {
			t.Errorf("a point without a plan struck at %v", got)
		}
		arm(t, "")
		if Armed("money_moved") {
			t.Error("an empty plan leaves a point armed")
		}
	})
	t.Run("delay_goes_on_without_an_error", func(t *testing.T) {
		out := arm(t, "hold_made:delay=20ms")
		began := time.Now()
		if err := Hit("hold_made"); err != nil || time.Since(began) < 20*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if got := out.String(); got != "failpoint struck hold_made delay=20ms\n" {
			t.Errorf("it says %q", got)
		}
	})
	t.Run("hang_does_not_come_back", func(t *testing.T) {
		out := arm(t, "hold_made:hang")
		back := make(chan error, 1)
		go func() { back <- Hit("hold_made") }() // hangs until the test binary ends
		for !strings.Contains(out.String(), "hang") {
			select {
			case <-time.After(time.Millisecond):
			case <-t.Context().Done():
				t.Fatal("it never struck")
			}
		}
		select {
		case err := <-back:
			t.Errorf("it came back with %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	})
}

const dies = "TEST_DIES_AT_A_POINT"

// TestExit: the process ends at once, with the line and without deferred work.
func TestExit(t *testing.T) {
	if os.Getenv(dies) != "" {
		defer os.Stderr.WriteString("deferred\n")
		if err := Arm("hold_made:exit", known, os.Stderr); err != nil {
			t.Fatal(err)
		}
		t.Fatal("it went on: ", Hit("hold_made"))
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestExit$")
	cmd.Env = append(os.Environ(), dies+"=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != ExitCode || string(out) != "failpoint struck hold_made exit\n" {
		t.Errorf("it ends with %v and says %q", err, out)
	}
}
