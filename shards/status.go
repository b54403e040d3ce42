package shards

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// What a migration is on one shard.
const (
	MigrationApplied = "applied"
	MigrationPending = "pending"
	MigrationChanged = "changed" // applied, but the file is another now
	MigrationUnknown = "unknown" // applied by a newer binary
	ShardDown        = "unreachable"
)

// MigrationStatus is one migration on one shard. For a shard that cannot be
// asked there is one row with State unreachable and the reason in Error.
type MigrationStatus struct {
	Shard     int       `json:"shard"`
	Version   int       `json:"version,omitzero"`
	Name      string    `json:"name,omitempty"`
	State     string    `json:"state"`
	AppliedAt time.Time `json:"applied_at,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// Status lists every migration of every shard, in order, and changes nothing.
// It fails only for DSNs that can never work.
func Status(ctx context.Context, dsns []string) ([]MigrationStatus, error) {
	list, err := readMigrations(embedded)
	if err != nil {
		return nil, err
	}
	var all []MigrationStatus
	for shard, dsn := range dsns {
		rows, err := shardStatus(ctx, shard, dsn, list)
		if err != nil && refusedForGood(err) {
			return nil, err
		}
		if err != nil {
			rows = []MigrationStatus{{Shard: shard, State: ShardDown, Error: err.Error()}}
		}
		all = append(all, rows...)
	}
	return all, nil
}

func shardStatus(ctx context.Context, shard int, dsn string, list []migration) ([]MigrationStatus, error) {
	cfg, err := connConfig(shard, dsn, "owner")
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("DSN %d: %w", shard, err)
	}
	defer closeAll([]*pgx.Conn{conn})
	done, err := applied(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("DSN %d: read applied migrations: %w", shard, err)
	}
	var rows []MigrationStatus
	for _, f := range list {
		row := MigrationStatus{Shard: shard, Version: f.version, Name: f.name, State: MigrationPending}
		if was, ok := done[f.version]; ok {
			row.AppliedAt, row.State = was.at.UTC(), MigrationApplied
			if was.checksum != f.checksum {
				row.State = MigrationChanged
			}
			delete(done, f.version)
		}
		rows = append(rows, row)
	}
	for version, was := range done {
		rows = append(rows, MigrationStatus{Shard: shard, Version: version, Name: was.name, State: MigrationUnknown, AppliedAt: was.at.UTC()})
	}
	slices.SortFunc(rows, func(a, b MigrationStatus) int { return cmp.Compare(a.Version, b.Version) })
	return rows, nil
}
