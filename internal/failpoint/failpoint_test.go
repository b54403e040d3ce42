package failpoint

import (
	"strings"
	"testing"
	"time"
)

var known = []Point{"money_moved", "hold_made"}

func TestPlan(t *testing.T) {
	t.Parallel()
	t.Run("what_is_well_formed_is_read", func(t *testing.T) {
		t.Parallel()
		got, err := parse("hold_made:exit, money_moved:delay=250ms:3+", known)
		if err != nil {
			t.Fatal(err)
		}
		want := map[Point]strike{"hold_made": {action: actExit, first: 1},
			"money_moved": {action: actDelay, delay: 250 * time.Millisecond, first: 3, always: true}}
		for p, w := range want {
			if got[p] != w || len(got) != len(want) {
				t.Errorf("%s: %+v, want %+v of %d", p, got[p], w, len(got))
			}
		}
		if s := got["money_moved"].String(); s != "delay=250ms" {
			t.Errorf("the line of a strike says %q", s)
		}
	})
	for plan, want := range map[string]string{
		"":                              "no point \"\"",
		"nonsense:exit":                 "no point \"nonsense\"",
		"hold_made":                     "no action \"\"",
		"hold_made:explode":             "no action \"explode\"",
		"hold_made:exit=3":              "no action \"exit=3\"",
		"hold_made:delay":               "not a delay",
		"hold_made:delay=-1s":           "not a delay",
		"hold_made:delay=5":             "not a delay",
		"hold_made:exit:0":              "not a passing",
		"hold_made:exit:x":              "not a passing",
		"hold_made:exit:2:3":            "not a passing",
		"hold_made:exit,":               "no point \"\"",
		"hold_made:exit,money_moved:up": "no action \"up\"",
		"hold_made:exit,hold_made:hang": "named twice",
	} {
		t.Run("refused/"+plan, func(t *testing.T) {
			t.Parallel()
			_, err := parse(plan, known)
			if err == nil {
				t.Fatal("it is accepted")
			}
			for _, part := range []string{want, Variable, "hold_made, money_moved"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %q: %v", part, err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is not one line: %v", err)
			}
		})
	}
}
