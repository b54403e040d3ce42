package participants

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

// The commit of an operator's act that stopped waiting for its standby comes
// back as success, and is not one: nobody knows whether the standby has it.
func TestWriteWithoutItsStandby(t *testing.T) {
	t.Parallel()
	stack := testkit.Stack(t, 1) // the setting is of a whole server
	if err := shards.Migrate(t.Context(), stack.DSNs, nil, nil); err != nil {
		t.Fatal(err)
	}
	set, err := shards.Open(t.Context(), shards.Config{DSNs: stack.DSNs, Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	admin, err := pgx.Connect(t.Context(), stack.DSNs[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A commit that still waits would keep the pool from closing.
		ctx := context.Background()
		_, err := admin.Exec(ctx, `ALTER SYSTEM RESET synchronous_standby_names`)
		_, again := admin.Exec(ctx, `SELECT pg_reload_conf()`)
		if err := errors.Join(err, again, admin.Close(ctx)); err != nil {
			t.Error(err)
		}
	})
	// A session that does not wait, in a database that would have the money pool
	// not wait either: the pool must not take it over.
	for _, sql := range []string{"SET synchronous_commit = local",
		"ALTER DATABASE " + admin.Config().Database + " SET synchronous_commit = local",
		"ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"} {
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	b := &books{t: t, set: set}
	node, err := New(Config{Shards: set, Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close(t.Context()) })
	client := branch.Client{T: node}
	// A backend that has not read the new setting yet commits at once.
	failed := make(chan error, 1)
	go func() {
		for {
			if _, err := client.Open(t.Context(), 0, branch.AccountRequest{User: b.user(0), Currency: "RBX"}); err != nil {
				failed <- err
				return
			}
		}
	}()
	testkit.Eventually(t, 30*time.Second, func() (bool, string) {
		var n int
		err := admin.QueryRow(t.Context(), `SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&n)
		return err == nil && n > 0, "no commit waits for a standby"
	})
	select {
	case err := <-failed:
		if !errors.Is(err, holdfast.ErrOutcomeUnknown) {
			t.Errorf("the commit came back as %v, want an unknown outcome", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("a commit whose wait was cancelled counts as done")
	}
}
