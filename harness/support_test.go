package harness

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/redis/go-redis/v9"
)

// redisFaults disturbs a Redis server of the test's own.
type redisFaults struct {
	t     *testing.T
	stack *embed.Stack
	url   string
}

func (f redisFaults) do(args ...any) {
	f.t.Helper()
	o, err := redis.ParseURL(f.url)
	if err != nil {
		f.t.Fatal(err)
	}
	c := redis.NewClient(o)
	defer c.Close()
	if err := c.Do(context.Background(), args...).Err(); err != nil {
		f.t.Fatal(err)
	}
}

func (f redisFaults) kill() {
	f.t.Helper()
	if err := f.stack.Redis.Kill(); err != nil {
		f.t.Fatal(err)
	}
}

func (f redisFaults) again() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := f.stack.Redis.StartAgain(ctx); err != nil {
		f.t.Fatal(err)
	}
}

func migrateAll(t *testing.T, dsns []string) {
	t.Helper()
	if err := shards.Migrate(context.Background(), dsns, holdfast.EvenShardMap(len(dsns)), testkit.Logger(t)); err != nil {
		t.Fatal(err)
	}
}

func deadLetters(code string) branch.AdminListRequest {
	return branch.AdminListRequest{Code: code, Limit: 100}
}
