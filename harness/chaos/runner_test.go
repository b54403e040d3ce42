package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/checker"
)

// script is a stage that only notes what is asked of it.
type script struct {
	calls   []string
	spent   bool
	healErr error
	broken  []checker.Violation
}

func (s *script) Begin(context.Context, *Run) error { s.calls = append(s.calls, "begin"); return nil }
func (s *script) Heal(context.Context, *Run) error {
	s.calls = append(s.calls, "heal")
	return s.healErr
}
func (s *script) Rest(_ context.Context, r *Run) error {
	s.calls = append(s.calls, "rest")
	r.Violate(s.broken...)
	return nil
}
func (s *script) Spent() bool  { return s.spent }
func (s *script) Abandon(*Run) { s.calls = append(s.calls, "abandon") }
func (s *script) Close(_ context.Context, keep bool) (string, error) {
	if keep {
		s.calls = append(s.calls, "keep")
		return "kept-here", nil
	}
	s.calls = append(s.calls, "close")
	return "", nil
}

// strikes is a fault that strikes n times.
func strikes(name string, n int) Fault {
	return Fault{Name: name, Theme: "test", Strike: func(_ context.Context, r *Run) error { r.Struck(n); return nil }}
}

// play runs faults on scripted stages and returns what was shown and called.
func play(t *testing.T, change func(*script), budget time.Duration, seeds []int64, faults ...Fault) (*Report, string, []string) {
	t.Helper()
	var out strings.Builder
	var all []*script
	r := &Runner{Out: &out, Program: "holdfast", Command: "holdfast chaos run --all", Budget: budget, newStage: func(context.Context, *Fault, int64) (stage, error) {
		s := &script{}
		if change != nil {
			change(s)
		}
		all = append(all, s)
		return s, nil
	}}
	report, err := r.Run(t.Context(), faults, seeds)
	if err != nil {
		t.Fatal(err)
	}
	if report.Command != r.Command {
		t.Errorf("the report is made again with %q", report.Command)
	}
	for _, x := range report.Results {
		if want := fmt.Sprintf("holdfast chaos run %s --seed %d", x.Fault, x.Seed); x.Replay != want {
			t.Errorf("replay %q, want %q", x.Replay, want)
		}
	}
	var calls []string
	for _, s := range all {
		calls = append(calls, strings.Join(s.calls, " "))
	}
	return report, out.String(), calls
}

func TestRunner(t *testing.T) {
	t.Parallel()
	failing := strikes("b", 1)
	failing.Strike = func(_ context.Context, r *Run) error { r.Struck(1); return errors.New("not injected") }
	other := strikes("c", 1)
	other.Cluster = "other"
	late := strikes("d", 1)
	late.After = func(context.Context, *Run) error { return errors.New("not as it was") }
	cannot := strikes("e", 1)
	cannot.Can = func() string { return "no such thing here" }
	violated := func(s *script) {
		s.broken = []checker.Violation{{Invariant: "I1", Check: "sum", Detail: "5 is not 4\nstory"}}
	}
	for _, c := range []struct {
		name    string
		change  func(*script)
		seeds   []int64
		faults  []Fault
		verdict string // of the last result
		calls   string // of all stages, | between them
		shown   string
		ok      bool
	}{
		{"passes", nil, []int64{1}, []Fault{strikes("a", 2)}, "ok", "begin heal rest close", "1 runs passed", true},
		{"no strike is no pass", nil, []int64{1}, []Fault{strikes("a", 0)}, "DID NOT STRIKE", "begin heal rest close", "nothing was tried", false},
		{"a violation keeps the cluster", violated, []int64{7}, []Fault{strikes("a", 1)}, "VIOLATED", "begin heal rest keep",
			"again with: holdfast chaos run a --seed 7\n    kept: kept-here", false},
		{"the next run after a violation has a fresh cluster", violated, []int64{1, 2}, []Fault{strikes("a", 1)}, "VIOLATED",
			"begin heal rest keep|begin heal rest keep", "I1 sum: 5 is not 4 …", false},
		{"a strike that fails is healed and checked all the same", nil, []int64{1}, []Fault{failing}, "FAILED", "begin heal rest keep", "strike: not injected", false},
		{"a demand after rest", nil, []int64{1}, []Fault{late}, "FAILED", "begin heal rest abandon keep", "not as it was", false},
		{"a heal that fails", func(s *script) { s.healErr = errors.New("stays broken") }, []int64{1}, []Fault{strikes("a", 1)}, "FAILED",
			"begin heal abandon keep", "heal: stays broken", false},
		{"clusters are shared by name", nil, []int64{1}, []Fault{strikes("a", 1), other, strikes("b", 1)}, "ok",
			"begin heal rest begin heal rest close|begin heal rest close", "3 runs passed", true},
		{"a spent cluster is replaced", func(s *script) { s.spent = true }, []int64{1, 2}, []Fault{strikes("a", 1)}, "ok",
			"begin heal rest close|begin heal rest close", "2 runs passed", true},
		{"a skipped fault is loud", nil, []int64{1}, []Fault{strikes("a", 1), cannot}, "SKIPPED", "begin heal rest close", "NOT TRIED", true},
		{"nothing but skipped is no pass", nil, []int64{1}, []Fault{cannot}, "SKIPPED", "", "no such thing here", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			report, shown, calls := play(t, c.change, 0, c.seeds, c.faults...)
			last := report.Results[len(report.Results)-1]
			if got := last.Verdict(); got != c.verdict {
				t.Errorf("the verdict is %s, want %s: %v", got, c.verdict, last.Reasons())
			}
			if got := strings.Join(calls, "|"); got != c.calls {
				t.Errorf("the stages saw %q, want %q", got, c.calls)
			}
			if !strings.Contains(shown, c.shown) {
				t.Errorf("shown was\n%s\nwant %q in it", shown, c.shown)
			}
			if report.OK() != c.ok {
				t.Errorf("the report is ok: %t, want %t", report.OK(), c.ok)
			}
		})
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	report, shown, _ := play(t, nil, time.Nanosecond, []int64{1}, strikes("a", 1))
	if report.OK() || len(report.NotTried) != 1 || !strings.Contains(shown, "NOT TRIED") {
		t.Errorf("without time left: %+v\n%s", report, shown)
	}
}

// TestSideBySide has two clusters at once: each fault meets every seed on one of
// them, and a strike that waits for the other proves that both are at work.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	meet := make(chan struct{})
	waits := func(name string) Fault {
		return Fault{Name: name, Theme: "test", Strike: func(ctx context.Context, r *Run) error {
			r.Struck(1)
			if r.Seed > 1 {
				return nil
			}
			select {
			case meet <- struct{}{}:
			case <-meet:
			case <-ctx.Done():
			}
			return ctx.Err()
		}}
	}
	other := strikes("c", 1)
	other.Cluster = "other"
	tried := map[string]int{}
	alone := Fault{Name: "d", Theme: "test", Alone: true, Strike: func(_ context.Context, r *Run) error {
		r.Struck(1)
		tried["d"]++ // the race detector finds whoever runs beside it
		return nil
	}}
	r := &Runner{Out: io.Discard, Side: 2, newStage: func(context.Context, *Fault, int64) (stage, error) { return &script{}, nil }}
	report, err := r.Run(t.Context(), []Fault{alone, waits("a"), waits("b"), other}, []int64{1, 2, 3})
	if err != nil || !report.OK() {
		t.Fatalf("%+v, %v", report, err)
	}
	for i, x := range report.Results {
		tried[fmt.Sprint(x.Fault, x.Seed)]++
		if (x.Fault == "d") != (i >= 9) {
			t.Errorf("%s came as number %d: what runs alone comes last", x.Fault, i)
		}
	}
	if len(tried) != 1+12 || len(report.Results) != 12 {
		t.Errorf("%d runs of 12 pairs: %v", len(report.Results), tried)
	}
}

// TestFaults keeps the table of faults in order: names, words and promises.
func TestFaults(t *testing.T) {
	t.Parallel()
	all := Faults()
	seen, settings := map[string]bool{}, map[string]string{}
	for _, f := range all {
		if f.Name == "" || seen[f.Name] || strings.ToLower(f.Name) != f.Name || strings.ContainsAny(f.Name, " _") {
			t.Errorf("the name %q is empty, twice, or not in words with dashes", f.Name)
		}
		seen[f.Name] = true
		if f.About == "" || !strings.HasSuffix(f.About, ".") || f.Covers == "" || f.Theme == "" || f.Strike == nil {
			t.Errorf("%s: what it is about (a sentence), what it covers, its theme or its strike is missing", f.Name)
		}
		if f.Cluster == "" && len(f.Settings) > 0 {
			t.Errorf("%s changes settings of the common cluster", f.Name)
		}
		text := strings.Join(mapText(f.Settings), " ")
		if was, ok := settings[f.Cluster]; ok && was != text {
			t.Errorf("%s wants %q of cluster %q, another fault %q", f.Name, text, f.Cluster, was)
		}
		settings[f.Cluster] = text
		if f.Heavy && f.Quick {
			t.Errorf("%s is heavy and quick", f.Name)
		}
	}
	if len(all) < 42 {
		t.Errorf("%d faults, at least 42 are promised", len(all))
	}
	for bug, names := range hunters {
		if _, err := Find(all, names); err != nil {
			t.Errorf("hunters of %s: %v", bug, err)
		}
	}
}

func TestPick(t *testing.T) {
	t.Parallel()
	all := Faults()
	tried := map[string]bool{}
	for seed := range int64(60) {
		themes := map[string]bool{}
		got := Pick(all, seed)
		if len(got) != dozen {
			t.Fatalf("seed %d draws %d faults", seed, len(got))
		}
		for i, f := range got {
			if again := Pick(all, seed); again[i].Name != f.Name {
				t.Fatalf("seed %d draws %s and then %s", seed, f.Name, again[i].Name)
			}
			if f.Heavy || !f.Quick || f.Cluster != "" {
				t.Errorf("seed %d draws %s, which is not quick", seed, f.Name)
			}
			themes[f.Theme], tried[f.Name] = true, true
		}
		if len(themes) < 8 {
			t.Errorf("seed %d draws from %d themes only: %v", seed, len(themes), themes)
		}
	}
	if len(tried) < 80 {
		t.Errorf("sixty days try %d faults only", len(tried))
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	all := Faults()
	if got, err := Find(all, []string{"kill-participant", "breaker-at-*"}); err != nil || len(got) != 4 {
		t.Errorf("found %d, %v", len(got), err)
	}
	if _, err := Find(all, []string{"kill-participant", "nonsense*"}); err == nil || !strings.Contains(err.Error(), "nonsense*") {
		t.Errorf("a name that does not exist: %v", err)
	}
}

// TestPage: the table of docs/reliability.md is the table of the faults.
func TestPage(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, begun := strings.Cut(string(raw), "<!-- faults: begin")
	_, rest, _ = strings.Cut(rest, "-->\n")
	got, _, ended := strings.Cut(rest, "<!-- faults: end -->")
	if !begun || !ended || strings.TrimSpace(got) != strings.TrimSpace(Table(Faults())) {
		t.Error("the table of faults is another one: put the output of holdfast chaos list --markdown between its marks")
	}
}
