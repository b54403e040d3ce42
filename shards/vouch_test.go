package shards

import (
	"testing"
	"time"
)

// With a synchronous standby, a step that answers for an earlier one waits as that
// one had to: what can be read may be lost in a failover still.
func TestAnswerForAnEarlierCommitWaits(t *testing.T) {
	t.Parallel()
	dsn := databasesOn(t, 2, 1)[0]
	if err := Migrate(testContext(t), []string{dsn}, nil, nil); err != nil {
		t.Fatal(err)
	}
	set := open(t, dsn)
	money, err := set.Money(0).Acquire(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer money.Release()
	admin := connect(t, stack.DSNs[2])
	owner := connect(t, dsn)
	gid := read[string](t, owner, `SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '80000000000000000001')::uuid::text`)
	exec(t, owner, `INSERT INTO barrier (gid, created_at, branch, op, owner_bucket) VALUES ($1, now(), 2, 2, 0)`, gid)

	standby := func(name string) {
		exec(t, admin, `SET synchronous_commit = local`)
		exec(t, admin, `ALTER SYSTEM SET synchronous_standby_names = '`+name+`'`)
		exec(t, admin, `SELECT pg_reload_conf()`)
		for read[string](t, money.Conn(), `SHOW synchronous_standby_names`) != name {
		}
	}
	standby("nobody")
	defer standby("")
	pid := money.Conn().PgConn().PID()
	answered := make(chan string, 1)
	go func() {
		var code string
		if err := money.QueryRow(testContext(t), `SELECT code FROM holdfast_credit((SELECT epoch FROM shard_self), ARRAY[$1::uuid],
			ARRAY['00000000-0000-4000-8000-000000000001'::uuid], ARRAY['RBX'], ARRAY[1::bigint], ARRAY[0::smallint])`, gid).Scan(&code); err != nil {
			code = err.Error()
		}
		answered <- code
	}()
	for !read[bool](t, admin, `SELECT coalesce((SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1), false)`, pid) {
		select {
		case code := <-answered:
			t.Fatalf("answered %q without waiting for the standby", code)
		case <-time.After(10 * time.Millisecond):
		}
	}
	exec(t, admin, `SELECT pg_cancel_backend($1::int)`, pid)
	if code := <-answered; code != "already" {
		t.Errorf("a credit that was done before answers %q", code)
	}
}
