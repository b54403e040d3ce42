package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/workload"
)

// Recovery times that the product promises after the last fault is over.
const (
	recoverIn    = 10 * time.Second // nothing is overdue any more
	recoverShard = 60 * time.Second // … after a shard came back
)

// Fault is one way in which the world around Holdfast goes wrong.
type Fault struct {
	Name   string // kebab-case, unique
	Theme  string // kill, postgres, redis, clock, payment, network, races, protocol, rolling
	About  string // one sentence: what is broken, and what must hold all the same
	Covers string // where the promise stands: a section of the design or an invariant

	Heavy bool // takes longer than half a minute
	Quick bool // in the pool from which the short selection is drawn

	// Cluster names the cluster on which it runs; faults with one name share
	// it, and the first one's Settings are its own. Empty: the common one.
	Cluster  string
	Settings map[string]string

	// Alone: it compares times, so no other cluster is at work beside it.
	Alone bool
	// Can says why the fault cannot be tried on this machine; "" if it can.
	Can func() string
	// Load changes the workload that runs meanwhile.
	Load func(*workload.Config)
	// Within is how soon after the heal nothing may be overdue; 0: recoverIn.
	Within time.Duration
	// Clocks is how far the fault sets clocks of shards apart; see checker.Config.
	Clocks time.Duration
	// Strike injects the fault, counts with Run.Struck, and returns when the
	// heal may begin. What it breaks in the cluster the runner mends. An error
	// is a demand of the fault that was not met, or the fault that could not
	// be injected; it fails the run.
	Strike func(context.Context, *Run) error
	// Before does what must be done before everything can come to its end, and
	// after the load is over: what a person decides, for example.
	Before func(context.Context, *Run) error
	// After checks what is special to the fault once everything is at rest.
	After func(context.Context, *Run) error
}

func (f *Fault) within() time.Duration {
	if f.Within > 0 {
		return f.Within
	}
	return recoverIn
}

// Faults is every fault, by theme.
func Faults() []Fault {
	return slices.Concat(killFaults(), pointFaults(), postgresFaults(), redisFaults(), clockFaults(), paymentFaults(),
		answerFaults(), breakerFaults(), networkFaults(), raceFaults(), protocolFaults(), oddFaults(), rollingFaults())
}

// Find picks faults by name; a name may end in * . The order is that of the
// names.
func Find(all []Fault, names []string) (found []Fault, err error) {
	for _, name := range names {
		before := len(found)
		prefix, many := strings.CutSuffix(name, "*")
		for _, f := range all {
			if f.Name == name || many && strings.HasPrefix(f.Name, prefix) {
				found = append(found, f)
			}
		}
		if len(found) == before {
			return nil, fmt.Errorf("there is no fault %q; holdfast chaos list shows them all", name)
		}
	}
	return found, nil
}

// Table is every fault as rows of Markdown, for docs/reliability.md.
func Table(all []Fault) string {
	var b strings.Builder
	b.WriteString("| fault | theme | kind | what it tries |\n|---|---|---|---|\n")
	for _, f := range all {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, f.Theme, f.Kind(), f.About)
	}
	return b.String()
}

// Kind is one word: heavy, quick (in the short selection's pool), or own (on a
// cluster with settings of its own).
func (f *Fault) Kind() string {
	switch {
	case f.Heavy:
		return "heavy"
	case f.Cluster != "":
		return "own"
	}
	return "quick"
}
