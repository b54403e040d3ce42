package embed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// prepare takes the directory and finds everything that the servers need; it
// starts none of them.
func prepare(ctx context.Context, cfg *Config) (_ *environment, _ *dirLock, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	if cfg.Shards < 0 || cfg.Shards > maxShards {
		return nil, nil, fmt.Errorf("%d shards asked for; 1 to %d are possible", cfg.Shards, maxShards)
	}
	dir, err := makeDir(cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	lock, err := takeLock(dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.release())
		}
	}()
	st, err := loadState(dir, cfg.Shards)
	if err != nil {
		return nil, nil, err
	}
	e := &environment{
		dir: dir, state: st, fast: cfg.FastTests,
		log: cfg.Log, progress: cfg.Progress,
	}
	if e.programs, err = e.findPrograms(ctx, cfg); err != nil {
		return nil, nil, err
	}
	if err := e.chooseHome(ctx, cfg.outside); err != nil {
		return nil, nil, err
	}
	// The passwords must be on disk before any server is made with them.
	if err := st.save(dir); err != nil {
		return nil, nil, err
	}
	e.spawner = newSpawner()
	return e, lock, nil
}

func makeDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("no directory named for the private servers")
	}
	for _, d := range []string{dir, filepath.Join(dir, "log")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", fmt.Errorf("make the directory of the private servers: %w", err)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// PostgreSQL resolves links itself; with the resolved name we recognise it later.
	return filepath.EvalSymlinks(dir)
}

func (e *environment) findPrograms(ctx context.Context, cfg *Config) (programs, error) {
	where := cfg.search
	if where == nil {
		where = usualPlaces()
	}
	want := want{pgBin: cfg.PGBin, redisBin: cfg.RedisBin, pgMajor: e.dataMajor()}
	found, missing := where.find(ctx, want)
	if len(missing) > 0 && cfg.Install && where.canInstall() {
		e.say("Installing %s with apt-get (log: %s) …", names(missing), e.logPath("apt"))
		if err := where.install(ctx, missing, e.logPath("apt")); err != nil {
			return programs{}, err
		}
		found, missing = where.find(ctx, want)
	}
	if len(missing) == 0 {
		return found, nil
	}
	var hints []string
	for _, m := range missing {
		hints = append(hints, m.why)
	}
	return programs{}, fmt.Errorf("%s; install with: %s (or, on macOS, brew install), or name servers of your own",
		strings.Join(hints, "; "), "apt-get install "+packages(missing))
}

// dataMajor is the major version that made the data, or 0: PostgreSQL can only
// be started on data of its own major version.
func (e *environment) dataMajor() int {
	home := filepath.Join(e.dir, "pg")
	if filepath.Base(e.state.Home) == e.state.ID {
		home = e.state.Home // root had to keep it outside
	}
	for i := range e.state.Shards {
		raw, err := os.ReadFile(filepath.Join(home, shardName(i), "PG_VERSION"))
		if err == nil {
			return leadingNumber(string(raw))
		}
	}
	return 0
}

func shardName(i int) string { return fmt.Sprintf("shard%d", i) }
