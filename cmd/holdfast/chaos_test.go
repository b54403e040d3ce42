package main

import (
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

func TestChaosCommand(t *testing.T) {
	t.Parallel()
	if !failpoint.Enabled {
		r := command(nil, "chaos", "run", "kill-coordinator", "--seed", "1")
		if r.code != exitUsage || !strings.Contains(r.errOut, "-tags failpoints") || strings.Count(r.errOut, "\n") != 1 {
			t.Errorf("a binary without crash points: exit code %d, %q", r.code, r.errOut)
		}
		if r := command(nil, "chaos", "--help"); r.code != exitOK || !strings.Contains(r.out, "make chaos") {
			t.Errorf("its help: exit code %d, %q", r.code, r.out)
		}
		return
	}
	if r := command(nil, "chaos", "list"); r.code != exitOK || strings.Count(r.out, "\n") < 43 || !strings.Contains(r.out, "die-at-try-committed") {
		t.Errorf("the list: exit code %d, %d lines, %s", r.code, strings.Count(r.out, "\n"), r.errOut)
	}
	for _, c := range []struct{ args, want string }{
		{"run no-such-fault", `no fault "no-such-fault"`},
		{"run --all kill-coordinator", "exclude each other"},
		{"run --seeds 0", "--seeds"},
		{"run --time soon", "--time"},
	} {
		r := command(nil, append([]string{"chaos"}, strings.Fields(c.args)...)...)
		if r.code != exitUsage || !strings.Contains(r.errOut, c.want) {
			t.Errorf("chaos %s: exit code %d, %q", c.args, r.code, r.errOut)
		}
	}
}
