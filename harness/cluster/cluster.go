// Package cluster runs Holdfast as it is run in earnest: the real binary, a
// process per role and replica, every shard its own PostgreSQL server, Redis,
// and a payment simulator, with a proxy on every link between any two of them.
// Each process can be killed, stopped and started again at its addresses, each
// link cut, slowed and reset by itself, and Mend brings everything back. It
// knows what runs where and nothing of holds: what is broken when, and what
// must be true afterwards, is decided elsewhere. Nothing outlives the process
// that called Start.
package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/embed"
)

// Config says what runs. Only Binary is required; a count of 0 means the one
// named.
type Config struct {
	Binary string // built with -tags failpoints where failpoints are to strike
	// Dir takes data and logs and must be empty or missing; empty: a temporary
	// directory that Stop removes.
	Dir string

	Shards       int // 3
	Coordinators int // 2
	Participants int // 2
	Schedulers   int // 2

	Env  map[string]string // settings of every process, over those made here
	Seed int64             // of the links' jitter and resets
	Log  io.Writer         // what the cluster does, a line each; nil: nobody
}

// Cluster is everything that runs. Its methods may be called from several
// goroutines.
type Cluster struct {
	Redis *embed.Redis

	cfg     Config
	ownDir  bool
	log     *slog.Logger
	spawner *spawner
	servers *embed.Stack
	http    *http.Client
	secret  string // of the tokens
	branch  string // of the requests between processes

	processes []*Process
	links     map[string]*Link
	disks     []*Disk // per shard; nil: where it always was

	watching chan struct{} // closed to end watch
	watchers sync.WaitGroup

	mu       sync.Mutex
	stopOnce sync.Once
	stopErr  error
}

// Start brings everything up and returns when every process is ready. There
// are no accounts yet.
func Start(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	c, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
		}
	}()
	began := time.Now()
	if err := c.startServers(ctx); err != nil {
		return nil, err
	}
	c.log.Info("servers are up", "took_ms", time.Since(began).Milliseconds())
	if err := c.wire(); err != nil {
		return nil, err
	}
	c.watchers.Go(c.watch)
	if err := c.startProcesses(ctx); err != nil {
		return nil, err
	}
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	c.log.Info("the cluster is ready", "took_ms", time.Since(began).Milliseconds(), "dir", c.cfg.Dir)
	return c, nil
}

func prepare(cfg Config) (*Cluster, error) {
	if cfg.Binary == "" {
		return nil, errors.New("cluster: Binary must be set")
	}
	for n, standard := range map[*int]int{&cfg.Shards: 3, &cfg.Coordinators: 2, &cfg.Participants: 2, &cfg.Schedulers: 2} {
		if *n == 0 {
			*n = standard
		}
	}
	c := &Cluster{cfg: cfg, log: slog.New(slog.DiscardHandler), spawner: newSpawner(), links: map[string]*Link{},
		disks: make([]*Disk, cfg.Shards), watching: make(chan struct{}),
		secret: secret(), branch: secret(), http: &http.Client{Timeout: 5 * time.Second,
			Transport: &http.Transport{DisableKeepAlives: true}}}
	if cfg.Log != nil {
		c.log = slog.New(slog.NewTextHandler(cfg.Log, nil))
	}
	if cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "holdfast-cluster-")
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		// The servers may run as another user than root.
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		c.cfg.Dir, c.ownDir = dir, true
	}
	if err := os.MkdirAll(filepath.Join(c.cfg.Dir, "log"), 0o755); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return c, nil
}

func secret() string {
	b := make([]byte, 20)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// startServers starts PostgreSQL and Redis and migrates the shards.
func (c *Cluster) startServers(ctx context.Context) (err error) {
	c.servers, err = startEmbedded(ctx, c)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	c.Redis = c.servers.Redis
	return nil
}

func (c *Cluster) startProcesses(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range c.processes {
		group.Go(func() error { return p.Start(ctx) })
	}
	return group.Wait()
}

// Ready waits until every process is.
func (c *Cluster) Ready(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range c.processes {
		group.Go(func() error { return p.Ready(ctx) })
	}
	return group.Wait()
}

// Mend ends every fault: servers and processes that are paused, dead or run
// with variables of their own are brought back to an ordinary run, every link
// is healed, the payment simulator's faults are taken back. It returns when
// every process is ready again; ctx bounds the wait.
func (c *Cluster) Mend(ctx context.Context) error {
	// Who stands still does not read, and a link to it might wait.
	for _, p := range c.processes {
		if p.Alive() {
			if err := p.Resume(); err != nil && p.Alive() {
				return err
			}
		}
	}
	for _, l := range c.Links() {
		if err := l.Heal(); err != nil {
			return err
		}
	}
	group, servers := errgroup.WithContext(ctx)
	for i := range c.cfg.Shards {
		group.Go(func() error { return c.mendShard(servers, i) })
	}
	group.Go(func() error { return c.mendRedis(servers) })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	group, processes := errgroup.WithContext(ctx)
	for _, p := range c.processes {
		group.Go(func() error { return p.mend(processes) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	if err := c.calmPayments(ctx); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	if err := c.Ready(ctx); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	return nil
}

func (c *Cluster) mendRedis(ctx context.Context) error {
	if c.Redis.Pid() != 0 {
		return c.Redis.Resume()
	}
	return c.Redis.StartAgain(ctx)
}

// Stop ends everything, processes in order, and removes a temporary directory.
// What does not stop gracefully is killed and reported. Further calls return
// the first result.
func (c *Cluster) Stop(ctx context.Context) error {
	c.stopOnce.Do(func() {
		errs := make([]error, len(c.processes))
		var all sync.WaitGroup
		for i, p := range c.processes {
			all.Go(func() { errs[i] = p.StopGracefully(ctx) })
		}
		all.Wait()
		close(c.watching)
		c.watchers.Wait()
		for _, l := range c.links {
			l.close()
		}
		c.spawner.close()
		if c.servers != nil {
			errs = append(errs, c.servers.Stop(ctx))
			for _, d := range c.disks {
				if d != nil {
					errs = append(errs, d.unmount())
				}
			}
		}
		if c.ownDir {
			errs = append(errs, embed.Remove(c.embedDir()), os.RemoveAll(c.cfg.Dir))
		}
		c.stopErr = errors.Join(errs...)
	})
	return c.stopErr
}

// Process is replica i of a role; nil when there is none.
func (c *Cluster) Process(role Role, i int) *Process {
	for _, p := range c.processes {
		if p.Role == role && p.Index == i {
			return p
		}
	}
	return nil
}

// Processes is every replica of a role, or of every role when none is named.
func (c *Cluster) Processes(roles ...Role) []*Process {
	var out []*Process
	for _, p := range c.processes {
		if len(roles) == 0 || slices.Contains(roles, p.Role) {
			out = append(out, p)
		}
	}
	return out
}

// Link is the way from one part to another: Link("coordinator0", "participant1"),
// ("participant0", "shard2"), ("scheduler0", "redis"), ("coordinator0",
// "payment"), ("client", "coordinator1"). It panics when there is none: a fault
// that is never struck would pass.
func (c *Cluster) Link(from, to string) *Link {
	l := c.links[from+"→"+to]
	if l == nil {
		panic(fmt.Sprintf("cluster: there is no link from %q to %q", from, to))
	}
	return l
}

// Links is every link whose ends start with these names ("" for any), in order
// of their names: Links("", "shard1"), Links("coordinator", "payment").
func (c *Cluster) Links(ends ...string) []*Link {
	from, to := "", ""
	if len(ends) > 0 {
		from = ends[0]
	}
	if len(ends) > 1 {
		to = ends[1]
	}
	var out []*Link
	for _, name := range slices.Sorted(maps.Keys(c.links)) {
		if l := c.links[name]; strings.HasPrefix(l.From, from) && strings.HasPrefix(l.To, to) {
			out = append(out, l)
		}
	}
	return out
}

// Shards is how many there are.
func (c *Cluster) Shards() int { return c.cfg.Shards }

// Shard is the server of a shard.
func (c *Cluster) Shard(i int) *embed.Postgres { return c.servers.Postgres(i) }

// Map says which shard a user is on.
func (c *Cluster) Map() *holdfast.ShardMap { return holdfast.EvenShardMap(c.cfg.Shards) }

// Dir is where data and logs are.
func (c *Cluster) Dir() string { return c.cfg.Dir }

// DSN is the owner's way to a shard, past every link.
func (c *Cluster) DSN(i int) string { return c.servers.DSNs[i] }

// DSNs is that of every shard.
func (c *Cluster) DSNs() []string { return slices.Clone(c.servers.DSNs) }

// RedisURL is the way to Redis past every link.
func (c *Cluster) RedisURL() string { return c.servers.RedisURL }

// RedisAddr is host:port of Redis; its password is in RedisURL.
func (c *Cluster) RedisAddr() string { return c.Redis.Addr() }

// APIs is the public API of each coordinator, over the client's links.
func (c *Cluster) APIs() []string {
	var out []string
	for _, p := range c.Processes(Coordinator) {
		out = append(out, "http://"+c.Link("client", p.Name).Addr)
	}
	return out
}

// Admins is the admin API of each coordinator, past every link.
func (c *Cluster) Admins() []string {
	var out []string
	for _, p := range c.Processes(Coordinator) {
		out = append(out, "http://"+p.Admin)
	}
	return out
}

// PaymentAdmin is the simulator's own address, past every link: its faults and
// its effects.
func (c *Cluster) PaymentAdmin() string { return "http://" + c.Process(PaymentSim, 0).Sim }

// Token is a service's token for one hour; without a scope it has all of them.
// It panics at a scope that does not exist.
func (c *Cluster) Token(scopes ...string) string {
	if len(scopes) == 0 {
		scopes = auth.AllScopes()
	}
	token, err := auth.Mint([]byte(c.secret), auth.MintOptions{Service: "harness", Scopes: scopes,
		Issuer: "holdfast", Audience: "holdfast"})
	if err != nil {
		panic(fmt.Sprintf("cluster: %v", err))
	}
	return token
}
