package chaos

import (
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/checker"
)

// Result is what became of one fault with one seed.
type Result struct {
	Fault  string `json:"fault"`
	Theme  string `json:"theme"`
	About  string `json:"about"`
	Covers string `json:"covers"`
	Seed   int64  `json:"seed"`

	Skipped string `json:"skipped,omitempty"` // why it cannot be tried here
	Struck  int    `json:"struck"`
	Ops     Ops    `json:"operations"`
	Holds   int    `json:"holds"` // of this run, at rest

	Cuts       int                 `json:"cuts"`        // consistent cuts checked under load
	CutsMissed int                 `json:"cuts_missed"` // shards, or the simulator, that were away in one
	Undecided  int                 `json:"undecided"`   // holds whose linearizability took too long to decide
	Violations []checker.Violation `json:"violations"`
	Failed     []string            `json:"failed"` // demands of the fault or of the harness that were not met
	Notes      []string            `json:"notes,omitempty"`

	WorstLagMS int64     `json:"worst_lag_ms"` // executed_at − unlock_at over all holds of the run
	RecoverMS  int64     `json:"recover_ms"`   // from the heal until nothing was overdue
	TookMS     int64     `json:"took_ms"`
	Began      time.Time `json:"began"`

	Replay string `json:"replay"`         // the command that runs it again
	Kept   string `json:"kept,omitempty"` // where history and logs of a failure lie

	noStart bool // there was no cluster to strike
}

// Ops counts the operations of the clients by outcome.
type Ops struct {
	OK      int `json:"ok"`
	Refused int `json:"refused"` // a definite no
	Unknown int `json:"unknown"` // not answered: may have taken effect or not
}

// Passed reports whether the fault struck and nothing else is wrong. A skipped
// one has neither passed nor failed.
func (r *Result) Passed() bool {
	return r.Skipped == "" && r.Struck > 0 && len(r.Violations) == 0 && len(r.Failed) == 0
}

// Verdict is one word for tables.
func (r *Result) Verdict() string {
	switch {
	case r.Skipped != "":
		return "SKIPPED"
	case len(r.Violations) > 0:
		return "VIOLATED"
	case len(r.Failed) > 0:
		return "FAILED"
	case r.Struck == 0:
		return "DID NOT STRIKE"
	}
	return "ok"
}

// Reasons are the lines behind a verdict other than ok.
func (r *Result) Reasons() (lines []string) {
	if r.Skipped != "" {
		return []string{r.Skipped}
	}
	for _, v := range r.Violations {
		line := fmt.Sprintf("%s %s: %s", v.Invariant, v.Check, v.Detail)
		if v.Hold != "" {
			line += " (hold " + v.Hold + ")"
		}
		lines = append(lines, line)
	}
	lines = append(lines, r.Failed...)
	if r.Struck == 0 && len(lines) == 0 {
		lines = append(lines, "the fault did not strike: nothing was tried")
	}
	return lines
}

// Report is everything that one call of Runner.Run did.
type Report struct {
	Version  string    `json:"version"`
	Machine  string    `json:"machine"`
	Began    time.Time `json:"began"`
	TookMS   int64     `json:"took_ms"`
	Command  string    `json:"command"`
	Results  []Result  `json:"results"`
	NotTried []string  `json:"not_tried,omitempty"` // the time was over before
}

// OK reports whether at least one fault was tried, and all that were passed.
func (r *Report) OK() bool {
	passed, skipped, failed := r.Count()
	return passed > 0 && failed == 0 && passed+skipped == len(r.Results)
}

// Count counts results by verdict.
func (r *Report) Count() (passed, skipped, failed int) {
	for i := range r.Results {
		switch x := &r.Results[i]; {
		case x.Skipped != "":
			skipped++
		case x.Passed():
			passed++
		default:
			failed++
		}
	}
	return passed, skipped, failed
}
