package embed

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// dirLock is the exclusive right to a directory. The kernel takes it back when
// the process dies, however it dies, so it is never stale.
type dirLock struct{ file *os.File }

// lockPatience covers a holder that was killed in the moment when it forked: the
// child has the lock until it runs its program.
const lockPatience = 500 * time.Millisecond

func takeLock(dir string) (*dirLock, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the directory of the private servers: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	for deadline := time.Now().Add(lockPatience); errors.Is(err, syscall.EWOULDBLOCK) && time.Now().Before(deadline); {
		<-time.After(pollEvery)
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		raw, _ := os.ReadFile(path)
		holder := "another process"
		if pid := strings.TrimSpace(string(raw)); pid != "" {
			holder = "process " + pid
		}
		return nil, fmt.Errorf("%w: %s is held by %s; stop that one first or use another directory", ErrInUse, dir, holder)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return &dirLock{file: f}, nil
}

func (l *dirLock) release() error {
	// The name stays: to remove it would let two processes lock two files of
	// one name. Only the pid goes, so that nobody is blamed by mistake.
	// Unlocked by name, because a child that is just being forked shares it.
	return errors.Join(l.file.Truncate(0), syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN), l.file.Close())
}

// state is what a directory remembers between starts. It holds the passwords
// and is readable by its owner only.
type state struct {
	ID            string `json:"id"`
	Shards        int    `json:"shards"`
	Home          string `json:"home"`
	Password      string `json:"password"`
	RedisPassword string `json:"redis_password"`
	Ports         []int  `json:"ports"`
	RedisPort     int    `json:"redis_port"`
}

const stateFile = "servers.json"

// loadState reads the state, or makes a new one for a new directory. shards is
// what the caller asks for, 0 for no wish.
func loadState(dir string, shards int) (*state, error) {
	st, err := readState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "pg", shardName(0))); err == nil {
			return nil, fmt.Errorf("%s has data but %s is gone and the passwords with it; put it back or use another directory", dir, stateFile)
		}
		if shards == 0 {
			shards = DefaultShards
		}
		return &state{
			ID: secret(8), Shards: shards,
			Password: secret(16), RedisPassword: secret(16),
			Ports: make([]int, shards),
		}, nil
	}
	if err != nil {
		return nil, err
	}
	if shards != 0 && shards != st.Shards {
		return nil, fmt.Errorf("%s holds %d shards but %d were asked for; ask for %d or use another directory", dir, st.Shards, shards, st.Shards)
	}
	return st, nil
}

func readState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the state of the private servers: %w", err)
	}
	st := new(state)
	if err := json.Unmarshal(raw, st); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if st.Shards < 1 || st.Shards > maxShards || len(st.Ports) != st.Shards || st.Password == "" || st.ID == "" {
		return nil, fmt.Errorf("%s is damaged: %d shards, %d ports", path, st.Shards, len(st.Ports))
	}
	return st, nil
}

// save replaces the file in one step, so that a crash leaves the old or the new.
func (st *state) save(dir string) error {
	raw, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stateFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save the state of the private servers: %w", err)
	}
	_, err = f.Write(append(raw, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("save the state of the private servers: %w", err)
	}
	return nil
}

// Remove deletes a directory of Start with all its data, also what Start had to
// keep outside of it. It refuses while the servers run.
func Remove(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := takeLock(dir)
	if err != nil {
		return err
	}
	st, err := readState(dir)
	if err == nil && st.Home != "" && filepath.Base(st.Home) == st.ID {
		err = os.RemoveAll(st.Home)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(dir), lock.file.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// secret is n random bytes in hexadecimal, which needs no quoting anywhere.
func secret(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
