package testkit

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/embed"
)

const redisTimeout = 30 * time.Second

// freeRedis has the numbers of the databases that no test uses.
var freeRedis = func() chan int {
	free := make(chan int, embed.RedisDatabases)
	for db := range embed.RedisDatabases {
		free <- db
	}
	return free
}()

// Redis is the URL of a numbered Redis database that is empty and this test's
// alone. FLUSHDB is the test's to use; FLUSHALL, CONFIG and SHUTDOWN are not:
// tests that need them start a Stack.
func Redis(t testing.TB) string {
	t.Helper()
	redis := servers(t).Redis
	ctx, cancel := context.WithTimeout(context.Background(), redisTimeout)
	defer cancel()
	var db int
	select {
	case db = <-freeRedis:
	case <-ctx.Done():
		t.Fatal("no free Redis database: too many tests at once")
	}
	t.Cleanup(func() {
		// Whatever the test left running may still write: the database is
		// emptied before the next use, not after this one.
		freeRedis <- db
	})
	if _, err := redis.Command(ctx, db, "FLUSHDB"); err != nil {
		t.Fatalf("empty Redis database %d: %v", db, err)
	}
	return redis.URL(db)
}
