package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5/pgxpool"
)

// asynqPeer: the debit is a transaction of PostgreSQL, the task is in Redis.
// Nothing joins the two: a client that dies between them leaves a debit that
// nobody will finish. The row of transfers makes the credit happen once.
type asynqPeer struct {
	site
	db     *pgxpool.Pool
	client *asynq.Client
}

const (
	taskType     = "transfer"
	transfersSQL = `CREATE TABLE transfers (
		id uuid PRIMARY KEY, sender integer NOT NULL, recipient integer NOT NULL, amount bigint NOT NULL,
		due timestamptz NOT NULL, done_at timestamptz) WITH (fillfactor = 80)`
	// One statement and so one round trip: the debit, and the row if there was one.
	beginSQL = `WITH d AS (UPDATE senders SET balance = balance - $4 WHERE id = $2 AND balance >= $4 RETURNING id)
		INSERT INTO transfers (id, sender, recipient, amount, due) SELECT $1, d.id, $3, $4, $5 FROM d`
	endSQL = `WITH t AS (UPDATE transfers SET done_at = clock_timestamp() WHERE id = $1 AND done_at IS NULL RETURNING recipient, amount)
		UPDATE recipients SET balance = balance + t.amount FROM t WHERE recipients.id = t.recipient`
)

func (p *asynqPeer) setup(ctx context.Context) (err error) {
	if p.db, err = openPool(ctx, p.dsns[0]); err != nil {
		return err
	}
	opt, err := asynqRedis(p.redis, p.lab.o.clients)
	if err != nil {
		return err
	}
	p.client = asynq.NewClient(opt)
	if _, err := p.db.Exec(ctx, transfersSQL); err != nil {
		return err
	}
	return createAccounts(ctx, p.db, p.lab.o.senders, p.lab.o.recipients)
}

func asynqRedis(url string, pool int) (asynq.RedisConnOpt, error) {
	opt, err := asynq.ParseRedisURI(url)
	if err != nil {
		return nil, err
	}
	c, ok := opt.(asynq.RedisClientOpt)
	if !ok {
		return nil, fmt.Errorf("not one Redis: %T", opt)
	}
	c.PoolSize = pool
	return c, nil
}

// create moves the due time to the next whole second: asynq keeps no others, and
// would do a transfer that is due in between up to a second too early.
func (p *asynqPeer) create(ctx context.Context, t *transfer) error {
	t.DueUS = t.due().Add(time.Second - 1).Truncate(time.Second).UnixMicro()
	tag, err := p.db.Exec(ctx, beginSQL, t.ID, t.Sender, t.Recipient, amount, t.due())
	if err := one(tag.RowsAffected(), err, "debit"); err != nil {
		return err
	}
	body, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = p.client.EnqueueContext(ctx, asynq.NewTask(taskType, body), asynq.ProcessAt(t.due()), asynq.TaskID(t.ID))
	return err
}

func (p *asynqPeer) books(ctx context.Context) (b books, err error) {
	var sum int64
	err = p.db.QueryRow(ctx, `SELECT count(done_at), count(*) - count(done_at), `+moneySQL+` FROM transfers`).
		Scan(&b.done, &b.open, &sum)
	b.missing = int64(p.lab.o.senders)*senderFunds - sum - b.open*amount
	return b, err
}

func (p *asynqPeer) kill()                        {}
func (p *asynqPeer) revive(context.Context) error { return nil }

func (p *asynqPeer) close() {
	if p.client != nil {
		p.client.Close()
	}
	if p.db != nil {
		p.db.Close()
	}
}

// startAsynq tunes asynq for little lag: it looks for due tasks every 20 ms
// instead of every 5 s.
func startAsynq(ctx context.Context, w *worker) (func(), error) {
	db, err := openPool(ctx, w.cfg.DSNs[0])
	if err != nil {
		return nil, err
	}
	const concurrency = 200
	opt, err := asynqRedis(w.cfg.Redis, concurrency)
	if err != nil {
		return nil, err
	}
	srv := asynq.NewServer(opt, asynq.Config{Concurrency: concurrency, LogLevel: asynq.FatalLevel,
		TaskCheckInterval: 10 * time.Millisecond, DelayedTaskCheckInterval: 20 * time.Millisecond})
	handler := func(ctx context.Context, task *asynq.Task) error {
		var t transfer
		if err := json.Unmarshal(task.Payload(), &t); err != nil {
			return err
		}
		if err := w.pay.pay(ctx, t); err != nil {
			return err
		}
		// No row means that an earlier run of this task did it.
		tag, err := db.Exec(ctx, endSQL, t.ID)
		if err == nil && tag.RowsAffected() == 1 {
			w.finished(t)
		}
		return err
	}
	if err := srv.Start(asynq.HandlerFunc(handler)); err != nil {
		return nil, err
	}
	return func() {
		srv.Shutdown()
		db.Close()
	}, nil
}
