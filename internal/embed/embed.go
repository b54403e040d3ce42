// Package embed starts private PostgreSQL shards and one Redis for people who
// have none, for the tests and for the harness. The servers listen on loopback
// only, keep everything in one directory, and die with the process that
// started them; what was committed is still there at the next start. The
// package knows nothing of holds, tables or migrations.
package embed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// DefaultShards is the number of PostgreSQL servers of a new directory.
const DefaultShards = 4

// maxShards bounds how many servers one machine is asked to run.
const maxShards = 64

// stopTimeout is how long one server may take for each step of its stop, from
// the polite signal to the next harder one.
const stopTimeout = 30 * time.Second

// ErrInUse is returned by Start when another live process holds the directory.
var ErrInUse = errors.New("directory is in use")

// Config says where the servers live and how they run. Only Dir is required.
type Config struct {
	Dir      string       // holds data, logs, passwords and the lock; made if missing
	Shards   int          // PostgreSQL servers; 0 means as many as Dir has, or DefaultShards
	PGBin    string       // directory of postgres and initdb; empty means search
	RedisBin string       // the redis-server program; empty means search
	Install  bool         // missing programs may be installed with apt-get
	Log      *slog.Logger // nil means discard
	Progress io.Writer    // one line per step for a terminal; nil means discard

	// FastTests trades the safety against a crash of the operating system for
	// speed and allows more connections. Never set it outside tests.
	FastTests bool

	search  *search // nil means the usual places
	outside string  // where data goes when root's Dir is closed to the servers' user; empty means outsideDir
}

// Stack is the running servers. The exported fields do not change after Start.
type Stack struct {
	// DSNs has one connection string per shard, for the owner (a superuser) of
	// the database `holdfast`.
	DSNs     []string
	RedisURL string // database 0 of 256
	Redis    *Redis

	env      *environment
	postgres []*Postgres
	lock     *dirLock

	stopLogs context.CancelFunc
	logsDone chan struct{}
	stopOnce sync.Once
	stopErr  error
}

// Start brings the servers up and returns when all accept connections. It
// takes over a directory whose last owner was killed: servers that are still
// running there are stopped first. The context bounds the start only. Errors
// are one line and say what to do.
func Start(ctx context.Context, cfg Config) (*Stack, error) {
	env, lock, err := prepare(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	s := &Stack{env: env, lock: lock, logsDone: make(chan struct{})}
	for i := range env.state.Shards {
		s.postgres = append(s.postgres, newPostgres(env, i))
	}
	s.Redis = newRedis(env)

	logsCtx, stopLogs := context.WithCancel(context.WithoutCancel(ctx))
	s.stopLogs = stopLogs
	go s.trimLogs(logsCtx)

	if err := s.startAll(ctx); err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*stopTimeout)
		defer cancel()
		return nil, errors.Join(err, s.Stop(stopCtx))
	}
	for _, p := range s.postgres {
		s.DSNs = append(s.DSNs, p.DSN("holdfast"))
	}
	s.RedisURL = s.Redis.URL(0)
	return s, nil
}

func (s *Stack) startAll(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range s.postgres {
		group.Go(func() error { return p.first(ctx) })
	}
	group.Go(func() error { return s.Redis.first(ctx) })
	if err := group.Wait(); err != nil {
		return err
	}
	for i, p := range s.postgres {
		s.env.state.Ports[i] = p.port
	}
	s.env.state.RedisPort = s.Redis.port
	return s.env.state.save(s.env.dir)
}

// Shards is the number of PostgreSQL servers.
func (s *Stack) Shards() int { return len(s.postgres) }

// Postgres is the server of shard i.
func (s *Stack) Postgres(i int) *Postgres { return s.postgres[i] }

// Stop shuts the servers down cleanly, all at once, and gives the directory
// free. Servers that do not stop in time are stopped the hard way; PostgreSQL
// recovers from that at the next start. Further calls return the first result.
func (s *Stack) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() {
		errs := make([]error, len(s.postgres)+1)
		var wg sync.WaitGroup
		for i, p := range s.postgres {
			wg.Go(func() { errs[i] = p.Stop(ctx) })
		}
		wg.Go(func() { errs[len(errs)-1] = s.Redis.Stop(ctx) })
		wg.Wait()
		s.stopLogs()
		<-s.logsDone
		s.env.spawner.close()
		s.stopErr = errors.Join(append(errs, s.lock.release())...)
	})
	return s.stopErr
}

// CPUSeconds is the processor time that the running servers have used since
// their start, user and system, by role ("postgres", "redis"). It is best
// effort: zero where the operating system does not tell.
func (s *Stack) CPUSeconds() map[string]float64 {
	used := map[string]float64{"postgres": 0, "redis": cpuSeconds(s.Redis.Pid())}
	for _, p := range s.postgres {
		used["postgres"] += cpuSeconds(p.Pid())
	}
	return used
}

// environment is what all servers of one stack share.
type environment struct {
	dir      string // Config.Dir, absolute, without symbolic links
	home     string // where the servers' data lives; owned by their user
	state    *state
	programs programs
	user     *osUser // nil means our own
	fast     bool
	spawner  *spawner
	log      *slog.Logger

	progressMu sync.Mutex
	progress   io.Writer
}

func (e *environment) say(format string, args ...any) {
	e.progressMu.Lock()
	defer e.progressMu.Unlock()
	fmt.Fprintf(e.progress, format+"\n", args...)
}

func (e *environment) logPath(name string) string {
	return filepath.Join(e.dir, "log", name+".log")
}
