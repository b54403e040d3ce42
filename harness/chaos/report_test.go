package chaos

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/checker"
)

func mapText(m map[string]string) (out []string) {
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// TestReport: both files tell everything, and the page stands alone.
func TestReport(t *testing.T) {
	t.Parallel()
	r := &Report{Began: time.Now(), Command: "holdfast chaos run --all", Results: []Result{
		{Fault: "good", Struck: 3, Ops: Ops{5, 2, 1}, WorstLagMS: 1234, RecoverMS: 80, Replay: "holdfast chaos run good --seed 1", Violations: []checker.Violation{}},
		{Fault: "bad", Seed: 2, Struck: 1, Replay: "holdfast chaos run bad --seed 2",
			Violations: []checker.Violation{{Invariant: "I6", Check: "cancel_undone", Detail: "<script>alert(1)</script>"}}},
		{Fault: "away", Skipped: "no mounts here"},
	}, NotTried: []string{"later"}}
	dir := t.TempDir()
	page, object := filepath.Join(dir, "r.html"), filepath.Join(dir, "r.json")
	if err := r.WriteHTML(page); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteJSON(object); err != nil {
		t.Fatal(err)
	}
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"good", "1.23s", "I6 cancel_undone", "holdfast chaos run bad --seed 2", "no mounts here", "VIOLATED", "SKIPPED",
		"1 runs passed, 1 were skipped, 1 failed", "Not tried", "prefers-color-scheme:dark", "&lt;script&gt;"} {
		if !strings.Contains(string(html), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, never := range []string{"<script", "src=", "href=", "@import"} {
		if strings.Contains(string(html), never) {
			t.Errorf("the page wants something from outside: %q", never)
		}
	}
	raw, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(raw, &back); err != nil || len(back.Results) != 3 || back.Results[1].Violations[0].Check != "cancel_undone" {
		t.Errorf("read back: %+v, %v", back, err)
	}
}

func TestViolationsAreBounded(t *testing.T) {
	t.Parallel()
	r := &Run{result: &Result{}}
	for range 3 * maxViolations {
		r.Violate(checker.Violation{Check: "x"})
	}
	if n := len(r.result.Violations); n != maxViolations {
		t.Errorf("%d violations are kept", n)
	}
}
