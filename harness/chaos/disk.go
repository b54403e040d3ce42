package chaos

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
)

// canMount tries to mount a small tmpfs.
func canMount() string {
	dir, err := os.MkdirTemp("", "holdfast-mount-")
	if err != nil {
		return err.Error()
	}
	defer os.Remove(dir)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return cluster.ErrNoMount.Error()
	}
	_ = syscall.Unmount(dir, 0)
	return ""
}

// smallDisk is above what a young shard needs, its log included.
const smallDisk = 700 << 20

// diskFull fills the disk, waits until the server fails, and empties it.
func diskFull(ctx context.Context, r *Run) error {
	shard := r.anyShard()
	p := r.Cluster.Shard(shard)
	disk, err := r.Cluster.SmallDisk(ctx, shard, smallDisk)
	if err != nil {
		return err
	}
	if err := r.Wait(ctx, time.Second); err != nil {
		return err
	}
	if err := disk.Fill(0); err != nil {
		return err
	}
	// A log segment that is there already is written to its end first, so the
	// log is made to move on.
	full := func() bool {
		err := r.exec(ctx, shard, `CREATE TABLE chaos_ballast AS SELECT generate_series(1, 200000) AS n; DROP TABLE chaos_ballast; SELECT pg_switch_wal()`)
		return err != nil && strings.Contains(err.Error(), "No space left") || r.row(ctx, shard, "SELECT 1", new(int64)) != nil
	}
	if err := r.Until(ctx, 15*time.Second, "a server without room", full); err != nil {
		return err
	}
	r.Struck(1)
	if err := r.Wait(ctx, 3*time.Second); err != nil {
		return err
	}
	if err := disk.Drain(); err != nil {
		return err
	}
	if err := p.StartAgain(ctx); err != nil {
		return err
	}
	err = r.exec(ctx, shard, `DROP TABLE IF EXISTS chaos_ballast`)
	return errors.Join(err, r.Wait(ctx, time.Second))
}
