package testkit

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/holdfast-escrow/holdfast/shards"
)

const (
	databaseTimeout = 2 * time.Minute
	// clonesAtOnce bounds how many CREATE and DROP DATABASE run together; they
	// copy files and gain nothing from more.
	clonesAtOnce = 8
)

var (
	lastDatabase atomic.Int64
	cloneSlots   = make(chan struct{}, clonesAtOnce)

	// templates has, per number of shards, the databases that a cluster of that
	// size is cloned from.
	templatesMu sync.Mutex
	templates   = map[int]*template{}
)

type template struct {
	once  sync.Once
	names []string
	err   error
}

// Databases makes n fresh databases, migrated as the shards 0 … n-1 of one
// cluster with holdfast.EvenShardMap(n), and returns the owner's connection
// strings. They are dropped when the test ends.
func Databases(t testing.TB, n int) []string {
	t.Helper()
	return create(t, n, templateOf(t, n))
}

// EmptyDatabases makes n fresh databases without any table, for tests of the
// migrations themselves. They are dropped when the test ends.
func EmptyDatabases(t testing.TB, n int) []string {
	t.Helper()
	return create(t, n, nil)
}

func create(t testing.TB, n int, from []string) []string {
	t.Helper()
	server := servers(t).Postgres(0)
	var names []string
	for range n {
		names = append(names, fmt.Sprintf("test_%d", lastDatabase.Add(1)))
	}
	t.Cleanup(func() {
		err := each(names, func(ctx context.Context, _ int, name string) error {
			return run(ctx, server, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
		})
		if err != nil {
			t.Errorf("drop the databases of this test: %v", err)
		}
	})
	err := each(names, func(ctx context.Context, i int, name string) error {
		if from == nil {
			return run(ctx, server, "CREATE DATABASE "+name)
		}
		return run(ctx, server, "CREATE DATABASE "+name+" TEMPLATE "+from[i])
	})
	if err != nil {
		t.Fatalf("make databases for this test: %v", err)
	}
	return dsns(server, names)
}

// templateOf migrates a set of databases once per number of shards. Nobody
// connects to them afterwards: PostgreSQL does not clone a database in use.
func templateOf(t testing.TB, n int) []string {
	t.Helper()
	server := servers(t).Postgres(0)
	templatesMu.Lock()
	tmpl := templates[n]
	if tmpl == nil {
		tmpl = new(template)
		templates[n] = tmpl
	}
	templatesMu.Unlock()
	tmpl.once.Do(func() { tmpl.names, tmpl.err = makeTemplate(server, n) })
	if tmpl.err != nil {
		t.Fatalf("migrate the template of %d shards: %v", n, tmpl.err)
	}
	return tmpl.names
}

func makeTemplate(server *embed.Postgres, n int) ([]string, error) {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("template_%d_%d", n, i))
	}
	err := each(names, func(ctx context.Context, _ int, name string) error {
		return run(ctx, server, "CREATE DATABASE "+name)
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	err = shards.Migrate(ctx, dsns(server, names), holdfast.EvenShardMap(n), slog.New(slog.DiscardHandler))
	return names, err
}

func dsns(server *embed.Postgres, names []string) []string {
	var out []string
	for _, name := range names {
		out = append(out, server.DSN(name))
	}
	return out
}

// each runs do for all names at once, within the bound of all tests together.
func each(names []string, do func(ctx context.Context, i int, name string) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		group.Go(func() error {
			cloneSlots <- struct{}{}
			defer func() { <-cloneSlots }()
			return do(ctx, i, name)
		})
	}
	return group.Wait()
}

func run(ctx context.Context, server *embed.Postgres, statement string) error {
	conn, err := pgx.Connect(ctx, server.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}
