package shards

import "github.com/holdfast-escrow/holdfast/internal/failpoint"

// The crash points of the upkeep of a shard. The action error stands for a
// connection to the shard that broke there.
const (
	// Some partitions are made, whole and attached; the rest is missing: the
	// next maintenance makes it.
	pointPartitionCreated failpoint.Point = "partition_created"
	// Inside a migration, before its commit: the shard has the one before it,
	// and the next migrate does this one again.
	pointMigrationUncommitted failpoint.Point = "migration_uncommitted"
	// Between two migrations: the shard has the first and remembers it, the next
	// migrate goes on with the second.
	pointMigrationCommitted failpoint.Point = "migration_committed"
)

// FailPoints lists the crash points of this package.
func FailPoints() []failpoint.Point {
	return []failpoint.Point{pointPartitionCreated, pointMigrationUncommitted, pointMigrationCommitted}
}
