package chaos

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// display tells a person how the run goes: on a terminal a table whose last
// line moves, elsewhere one plain line per result.
type display struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	total    int
	done     int
	began    time.Time
	shown    bool // a moving line stands on the terminal
}

// newDisplay looks whether out is a terminal by itself.
func newDisplay(out io.Writer, total int) *display {
	d := &display{out: out, total: total, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		d.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return d
}

// shownReasons are told here; the report has all of them.
const shownReasons = 6

const rowFormat = "%-34s %8s %7s %7s %7s %8s %9s %9s  %s"

func (d *display) head() {
	d.line(fmt.Sprintf(rowFormat, "FAULT", "SEED", "STRUCK", "OK", "REFUSED", "UNKNOWN", "LAG", "RECOVERED", "VERDICT"))
}

// row is one result as a line of a table.
func row(r *Result) string {
	if r.Skipped != "" {
		return fmt.Sprintf("%-34s %8d %s: %s", r.Fault, r.Seed, "SKIPPED", r.Skipped)
	}
	return fmt.Sprintf(rowFormat, r.Fault, fmt.Sprint(r.Seed), fmt.Sprint(r.Struck), fmt.Sprint(r.Ops.OK), fmt.Sprint(r.Ops.Refused),
		fmt.Sprint(r.Ops.Unknown), ms(r.WorstLagMS), ms(r.RecoverMS), r.Verdict())
}

func ms(n int64) string {
	return (time.Duration(n) * time.Millisecond).Round(10 * time.Millisecond).String()
}

// now shows what is going on; only a terminal has a place for that.
func (d *display) now(r *Result, state string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.terminal {
		return
	}
	d.wipe()
	fmt.Fprintf(d.out, "%-34s %8d %s … %d of %d, %s", r.Fault, r.Seed, state, d.done+1, d.total, time.Since(d.began).Round(time.Second))
	d.shown = true
}

// result is said for good, with its reasons below it.
func (d *display) result(r *Result) {
	d.mu.Lock()
	d.done++
	d.mu.Unlock()
	text := row(r)
	if d.terminal && !r.Passed() {
		text = "\x1b[31m" + text + "\x1b[0m"
	}
	d.line(text)
	if r.Passed() {
		return
	}
	if r.Skipped == "" {
		reasons := r.Reasons()
		for _, reason := range reasons[:min(shownReasons, len(reasons))] {
			first, rest, more := strings.Cut(reason, "\n")
			if more {
				first += fmt.Sprintf(" … (%d lines in the report)", 1+strings.Count(rest, "\n"))
			}
			d.line("    " + first)
		}
		if n := len(reasons) - shownReasons; n > 0 {
			d.line(fmt.Sprintf("    and %d more in the report", n))
		}
	}
	d.line("    again with: " + r.Replay)
	if r.Kept != "" {
		d.line("    kept: " + r.Kept)
	}
}

// line writes one line above the moving one.
func (d *display) line(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wipe()
	fmt.Fprintln(d.out, strings.TrimRight(text, " "))
}

func (d *display) wipe() {
	if d.shown {
		fmt.Fprint(d.out, "\r\x1b[K")
		d.shown = false
	}
}

// summary is the end of a run.
func (d *display) summary(r *Report) {
	passed, skipped, failed := r.Count()
	var strikes, ops int
	var lag, recover int64
	for i := range r.Results {
		x := &r.Results[i]
		strikes += x.Struck
		ops += x.Ops.OK + x.Ops.Refused + x.Ops.Unknown
		lag, recover = max(lag, x.WorstLagMS), max(recover, x.RecoverMS)
	}
	d.line("")
	d.line(fmt.Sprintf("%d runs passed, %d skipped, %d failed in %s: %d strikes, %d operations, worst lag %s, slowest recovery %s",
		passed, skipped, failed, ms(r.TookMS), strikes, ops, ms(lag), ms(recover)))
	if skipped > 0 {
		d.line("SKIPPED FAULTS WERE NOT TRIED: what they cover is not covered by this run")
	}
	if len(r.NotTried) > 0 {
		d.line(fmt.Sprintf("NOT TRIED, the time was over: %s", strings.Join(r.NotTried, ", ")))
	}
}
