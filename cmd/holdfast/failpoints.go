package main

import (
	"log/slog"
	"slices"
	"strings"

	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
	"github.com/holdfast-escrow/holdfast/participants"
	"github.com/holdfast-escrow/holdfast/scheduler"
	"github.com/holdfast-escrow/holdfast/shards"
)

// failPoints lists the crash points of the whole product.
func failPoints() []failpoint.Point {
	return slices.Concat(participants.FailPoints(), coordinator.FailPoints(), scheduler.FailPoints(), shards.FailPoints())
}

// armFailpoints takes the plan of crash points out of the environment: it is no
// setting, and a binary without crash points must start with it all the same,
// after it has said so (warnUnarmed).
func (a *app) armFailpoints() error {
	a.environ = slices.DeleteFunc(slices.Clone(a.environ), func(kv string) bool {
		plan, ours := strings.CutPrefix(kv, failpoint.Variable+"=")
		if ours {
			a.failpoints = plan
		}
		return ours
	})
	if a.failpoints == "" {
		return nil
	}
	if err := failpoint.Arm(a.failpoints, failPoints(), a.stderr); err != nil {
		return &usageError{err: err}
	}
	return nil
}

// warnUnarmed says that somebody expects crash points of a binary without them.
func (a *app) warnUnarmed(log *slog.Logger) {
	if a.failpoints != "" && !failpoint.Enabled {
		log.Warn(failpoint.Variable+" is set, but this binary has no crash points compiled in: nothing will be struck",
			"build_tag", "failpoints")
	}
}
