package scheduler

import "github.com/holdfast-escrow/holdfast/internal/failpoint"

// The crash points on the way of a trigger. The action error stands for a
// connection to Redis that broke there. The first two are passed by coordinators
// too, which add the triggers of the holds they make.
const (
	// The hold is PENDING, Redis knows nothing of it: the sweeper or the
	// overdue dispatch finds it.
	pointBeforeAdd failpoint.Point = "zadd_before"
	// The trigger is in Redis, nobody was told: a repeated add changes nothing.
	pointAfterAdd failpoint.Point = "zadd_after"
	// The triggers are in flight under a lease, the coordinator was not asked:
	// the lease runs out, or the overdue dispatch is first.
	pointZsetClaimed failpoint.Point = "zset_claimed"
	// The sweep's watermark is moved in Redis, this process does not know: the
	// next sweep begins there and loses nothing.
	pointSweepMoved failpoint.Point = "sweep_moved"
)

// FailPoints lists the crash points of this package.
func FailPoints() []failpoint.Point {
	return []failpoint.Point{pointBeforeAdd, pointAfterAdd, pointZsetClaimed, pointSweepMoved}
}
