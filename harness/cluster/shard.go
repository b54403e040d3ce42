package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// FakeTimeLib is where Debian's package libfaketime puts the library that
// changes a program's clock.
const FakeTimeLib = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"

// ErrNoFakeTime means that a shard's clock cannot be changed on this machine.
var ErrNoFakeTime = errors.New("libfaketime is not installed (apt-get install faketime): a shard's clock cannot be changed")

// ErrNoMount means that this process may not mount file systems.
var ErrNoMount = errors.New("mounting a tmpfs is refused here: a full disk cannot be made")

func (c *Cluster) clockFile(i int) string {
	return filepath.Join(c.cfg.Dir, fmt.Sprintf("clock%d", i))
}

// ShardClock sets the clock of a shard's server off by d. The first call
// restarts the server under libfaketime, later ones change the clock while it
// runs; Mend takes it back with another restart. ErrNoFakeTime where that
// library is missing.
func (c *Cluster) ShardClock(ctx context.Context, i int, d time.Duration) error {
	if _, err := os.Stat(FakeTimeLib); err != nil {
		return ErrNoFakeTime
	}
	// Replaced in one step: the server reads it at any moment.
	file := c.clockFile(i)
	if err := os.WriteFile(file+".new", fmt.Appendf(nil, "%+.3f\n", d.Seconds()), 0o644); err != nil {
		return fmt.Errorf("clock of shard %d: %w", i, err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("clock of shard %d: %w", i, err)
	}
	p := c.Shard(i)
	if slices.Contains(p.Env(), "LD_PRELOAD="+FakeTimeLib) && p.Pid() != 0 {
		return nil
	}
	// Time spans must stay true, or every wait in the server would be wrong.
	p.SetEnv("LD_PRELOAD="+FakeTimeLib, "FAKETIME_TIMESTAMP_FILE="+file, "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DONT_RESET=1")
	return p.Restart(ctx)
}

func (c *Cluster) mendShard(ctx context.Context, i int) error {
	p := c.Shard(i)
	if err := c.mendDisk(ctx, i); err != nil {
		return err
	}
	if p.Pid() != 0 {
		if err := p.Resume(); err != nil {
			return err
		}
	}
	if len(p.Env()) > 0 {
		p.SetEnv()
		return p.Restart(ctx)
	}
	return p.StartAgain(ctx)
}

// Disk is a small file system that a shard's data lives on.
type Disk struct {
	data    string // where the server looks for its data; the mount is here
	kept    string // where the data was before
	ballast string
}

// SmallDisk restarts a shard on a file system in memory of this many bytes,
// with its data. Mend brings the data back. ErrNoMount where mounts are refused.
func (c *Cluster) SmallDisk(ctx context.Context, i int, bytes int64) (*Disk, error) {
	p := c.Shard(i)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.disks[i] != nil {
		return nil, fmt.Errorf("shard %d is on a small disk already", i)
	}
	if err := p.Stop(ctx); err != nil {
		return nil, err
	}
	d := &Disk{data: p.DataDir(), kept: p.DataDir() + ".kept", ballast: filepath.Join(p.DataDir(), "ballast")}
	uid, gid := p.Owner()
	err := d.mount(ctx, bytes, uid, gid)
	if err == nil {
		c.disks[i] = d
	}
	if err := errors.Join(err, p.StartAgain(ctx)); err != nil {
		return nil, fmt.Errorf("small disk of shard %d: %w", i, err)
	}
	return d, nil
}

// mount puts the file system in the place of the data; when it cannot, all is
// as before.
func (d *Disk) mount(ctx context.Context, bytes int64, uid, gid int) error {
	if err := os.Rename(d.data, d.kept); err != nil {
		return err
	}
	undo := func(err error) error { return errors.Join(err, os.Remove(d.data), os.Rename(d.kept, d.data)) }
	if err := os.Mkdir(d.data, 0o700); err != nil {
		return errors.Join(err, os.Rename(d.kept, d.data))
	}
	if err := mountTmpfs(d.data, fmt.Sprintf("size=%d,mode=0700,uid=%d,gid=%d", bytes, uid, gid)); err != nil {
		return undo(fmt.Errorf("%w (%w)", ErrNoMount, err))
	}
	if err := copyTree(ctx, d.kept, d.data); err != nil {
		return undo(errors.Join(err, unmount(d.data)))
	}
	return nil
}

// Fill takes every free byte, but leaves the given number.
func (d *Disk) Fill(leave int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.data, &st); err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	free := int64(st.Bavail)*int64(st.Bsize) - leave
	f, err := os.OpenFile(d.ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for ; free > 0; free -= int64(len(chunk)) {
		if _, err := f.Write(chunk[:min(free, int64(len(chunk)))]); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return fmt.Errorf("fill the disk: %w", err)
		}
	}
	return nil
}

// Drain gives back what Fill took.
func (d *Disk) Drain() error {
	if err := os.Remove(d.ballast); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drain the disk: %w", err)
	}
	return nil
}

// unmount drops the small disk with what is on it.
func (d *Disk) unmount() error { return unmount(d.data) }

// mendDisk moves the data back to where it was, with what was written since.
func (c *Cluster) mendDisk(ctx context.Context, i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.disks[i]
	if d == nil {
		return nil
	}
	if err := d.Drain(); err != nil {
		return err
	}
	if err := c.Shard(i).Stop(ctx); err != nil {
		return err
	}
	fresh := d.data + ".back"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	uid, gid := c.Shard(i).Owner()
	err := errors.Join(os.Chown(fresh, uid, gid), copyTree(ctx, d.data, fresh), unmount(d.data), os.Remove(d.data),
		os.Rename(fresh, d.data), os.RemoveAll(d.kept))
	if err != nil {
		return fmt.Errorf("bring the data of shard %d back: %w", i, err)
	}
	c.disks[i] = nil
	return nil
}

// copyTree copies what is in a directory with owners, modes and times.
func copyTree(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}
