package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Bug is a planted bug that some check must find.
type Bug struct {
	Name, About string
	Build       func(ctx context.Context, out string) error // the binary with the bug, crash points included
}

// hunters are the faults that should find a bug, the best one first. Whatever
// is not named here is hunted with the short list at the end.
var hunters = map[string][]string{
	"recipient_check_after_claim": {"banned-between"},
	"credit_before_verdict":       {"participant-points-delay", "success-after-refund", "partition-participant-shard"},
	"refund_lost_with_process":    {"die-at-verdict-refused-committed"},
	"rows_taken_for_a_commit":     {"gone-in-commit", "backends-terminated"},
	"gateway_clock_create":        {"die-at-try-committed", "same-key-100"},
	"plain_encoding_json":         {"odd-documents"},
	"synchronous_commit_off":      {"postgres-kill", "postgres-immediate-restart", "kill-everything"},
	"proof_ignores_transit":       {"tampered-ledger"},
	"try_without_barrier":         {"suspended-try"},
	"null_cancel_without_row":     {"suspended-try", "null-cancel"},
	"claim_without_status":        {"triggers-duplicated", "triggers-early", "confirm-after-cancel"},
	"cancel_ignores_unlock_at":    {"payment-unauthorized", "cancel-races"},
	"lost_update":                 {"kill-scheduler", "deadlock-storm"},
	"idempotency_outside":         {"same-key-100"},
	"credit_without_barrier":      {"die-at-recipient-credited"},
	"gateway_clock_claim":         {"shard-behind-early-triggers", "triggers-early"},
	"refund_on_timeout":           {"payment-error-after", "payment-hang"},
	"any_4xx_refuses":             {"payment-unauthorized"},
	"no_lookup_before_repeat":     {"key-forgotten"},
	"key_from_attempt":            {"payment-error-after", "payment-lost-response"},
	"breaker_counts_refusals":     {"banned-recipient"},
	"trusts_any_200":              {"payment-mixed-up", "payment-wrong-id"},
	"redis_is_the_truth":          {"redis-down", "triggers-stolen"},
	"zrem_before_commit":          {"die-at-zset-claimed"},
}

var anyHunters = []string{"cancel-races", "kill-coordinator", "payment-lost-response", "redis-flushall", "postgres-kill"}

// Catch is what became of one bug.
type Catch struct {
	Bug     string  `json:"bug"`
	About   string  `json:"about"`
	Fault   string  `json:"fault,omitempty"` // that found it; empty: it escaped
	Check   string  `json:"check,omitempty"` // the first one that turned red
	Seconds float64 `json:"seconds"`         // from the start of its cluster, tries that found nothing included
	Tried   int     `json:"tried"`           // faults
	Error   string  `json:"error,omitempty"` // the bug could not be planted
}

// Hunt plants each bug and tries faults until the first check is red. ok is
// false when a bug escaped or could not be planted.
func (r *Runner) Hunt(ctx context.Context, bugs []Bug, seed int64) (found []Catch, ok bool, err error) {
	ok = true
	for _, b := range bugs {
		c := r.hunt(ctx, b, seed)
		if ctx.Err() != nil {
			return found, false, ctx.Err()
		}
		found = append(found, c)
		ok = ok && c.Fault != ""
		switch {
		case c.Error != "":
			fmt.Fprintf(r.Out, "%-28s NOT PLANTED: %s\n", b.Name, c.Error)
		case c.Fault == "":
			fmt.Fprintf(r.Out, "%-28s ESCAPED %d faults in %.0f s\n", b.Name, c.Tried, c.Seconds)
		default:
			fmt.Fprintf(r.Out, "%-28s %-32s %5.0f s  %s\n", b.Name, c.Fault, c.Seconds, c.Check)
		}
	}
	return found, ok, nil
}

func (r *Runner) hunt(ctx context.Context, b Bug, seed int64) Catch {
	c := Catch{Bug: b.Name, About: b.About}
	dir, err := os.MkdirTemp(r.Dir, "bug-")
	if err != nil {
		c.Error = err.Error()
		return c
	}
	defer os.RemoveAll(dir)
	sick := *r
	sick.Dir, sick.Keep, sick.hasty, sick.Binary = dir, false, true, filepath.Join(dir, "holdfast")
	if err := errors.Join(os.Chmod(dir, 0o755), b.Build(ctx, sick.Binary)); err != nil {
		c.Error = err.Error()
		return c
	}
	names := hunters[b.Name]
	if names == nil {
		names = anyHunters
	}
	faults, err := Find(Faults(), names)
	if err != nil {
		c.Error = err.Error()
		return c
	}
	began := time.Now()
	s := &session{Runner: &sick, show: newDisplay(discard{}, len(faults))}
	defer func() { s.close(context.WithoutCancel(ctx), false) }()
	for i := range faults {
		c.Tried++
		x := s.try(ctx, &faults[i], seed)
		c.Seconds = time.Since(began).Seconds()
		if x.noStart {
			c.Error = firstLine(x.firstRed())
			continue
		}
		red := slices.ContainsFunc(x.Failed, func(why string) bool { return !strings.HasPrefix(why, strikeFailed) })
		if x.Skipped == "" && (red || len(x.Violations) > 0) {
			c.Error = ""
			c.Fault, c.Check = x.Fault, firstLine(x.firstRed())
			return c
		}
	}
	return c
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// firstRed is the check that a bug stumbled over first: a violation seen under
// load or at rest, else a demand that was not met.
func (r *Result) firstRed() string {
	if len(r.Violations) > 0 {
		v := r.Violations[0]
		return v.Invariant + " " + v.Check + ": " + v.Detail
	}
	for _, why := range r.Failed {
		if !strings.HasPrefix(why, strikeFailed) {
			return why
		}
	}
	return r.Reasons()[0]
}

// lineMost keeps a row of the table one line.
const lineMost = 160

func firstLine(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	if len(text) > lineMost {
		text = text[:lineMost] + "…"
	}
	return text
}

// CatchTable is the table of docs/reliability.md.
func CatchTable(catches []Catch) string {
	var out strings.Builder
	t := tabwriter.NewWriter(&out, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| bug\t| found by\t| first red check\t| seconds |")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---|")
	for _, c := range catches {
		fmt.Fprintf(t, "| `%s`\t| %s\t| %s\t| %.0f |\n", c.Bug, orDash(c.Fault), orDash(checkName(c.Check)), c.Seconds)
	}
	_ = t.Flush()
	return out.String()
}

// checkName is the invariant and the check without what was found.
func checkName(text string) string {
	name, _, _ := strings.Cut(text, ":")
	return name
}

func orDash(s string) string {
	if s == "" {
		return "escaped"
	}
	return s
}

// WriteCatches writes what was found as JSON.
func WriteCatches(path string, catches []Catch) error {
	return writeFile(path, func(w io.Writer) error { return json.NewEncoder(w).Encode(catches) })
}
