package embed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// PostgreSQL refuses to run as root; root lends it this user of the system.
const serverUser = "postgres"

// outsideDir takes the data when root's directory lies where that user cannot
// go, for example below /root.
const outsideDir = "/var/lib/holdfast"

// osUser is the user that the servers run as when we are root.
type osUser struct{ uid, gid uint32 }

func (u *osUser) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	return &syscall.Credential{Uid: u.uid, Gid: u.gid}
}

func lookupServerUser() (*osUser, error) {
	u, err := user.Lookup(serverUser)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root and there is no user %q to lend it: run as an ordinary user or create one (useradd --system %s)", serverUser, serverUser)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("user %s: %w", serverUser, err)
	}
	return &osUser{uid: uint32(uid), gid: uint32(gid)}, nil
}

// chooseHome settles where the data lives and whose it is.
func (e *environment) chooseHome(ctx context.Context, outside string) (err error) {
	inside := filepath.Join(e.dir, "pg")
	if os.Geteuid() != 0 {
		e.home = inside
		e.state.Home = inside
		return e.makeHome(os.Geteuid(), os.Getegid())
	}
	if e.user, err = lookupServerUser(); err != nil {
		return err
	}
	uid, gid := int(e.user.uid), int(e.user.gid)
	if outside == "" {
		outside = outsideDir
	}
	candidates := []string{inside, filepath.Join(outside, e.state.ID)}
	if filepath.Base(e.state.Home) == e.state.ID {
		candidates = []string{e.state.Home} // data is there already
	} else if _, err := os.Stat(filepath.Join(inside, shardName(0))); err == nil {
		candidates = candidates[:1] // never start anew beside existing data
	}
	// Only the directory that is ours to open is opened, never a parent of it.
	if info, err := os.Stat(e.dir); err == nil && info.Mode().Perm()&0o001 == 0 {
		if err := os.Chmod(e.dir, info.Mode().Perm()|0o001); err != nil {
			return fmt.Errorf("let user %s pass through %s: %w", serverUser, e.dir, err)
		}
	}
	for _, home := range candidates {
		e.home = home
		if err := e.makeHome(uid, gid); err != nil {
			return err
		}
		err := e.reachable(ctx)
		if err == nil {
			if home != inside {
				e.say("User %s cannot enter %s; the data is in %s", serverUser, e.dir, home)
			}
			e.state.Home = home
			return nil
		}
		if !errors.Is(err, fs.ErrPermission) {
			return err
		}
		os.Remove(home) // an empty directory that nobody can use
	}
	return fmt.Errorf("user %s cannot enter %s, or may not run %s; use a directory that every user can reach",
		serverUser, strings.Join(candidates, " or "), e.programs.postgres)
}

func (e *environment) makeHome(uid, gid int) error {
	if err := os.MkdirAll(filepath.Dir(e.home), 0o755); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	err := os.Mkdir(e.home, 0o700)
	if err == nil {
		return os.Chown(e.home, uid, gid)
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the data directory: %w", err)
	}
	info, err := os.Stat(e.home)
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != uid {
		return fmt.Errorf("%s belongs to user number %d, the servers would run as number %d; run as the user who made it or use another directory", e.home, st.Uid, uid)
	}
	return nil
}

// reachable tries, as the servers' user and from the data directory, to run the
// server: no reading of permission bits can be as sure.
func (e *environment) reachable(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, e.programs.postgres, "--version")
	cmd.Dir = e.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: e.user.credential()}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run PostgreSQL as user %s: %w", serverUser, err)
	}
	return nil
}
