package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// riverPeer: the debit and the insert of a scheduled job are one transaction;
// so are the credit and the completion of the job.
type riverPeer struct {
	site
	db     *pgxpool.Pool
	client *river.Client[pgx.Tx]
}

type riverArgs struct{ transfer }

func (riverArgs) Kind() string { return "transfer" }

func (p *riverPeer) setup(ctx context.Context) (err error) {
	if p.db, err = openPool(ctx, p.dsns[0]); err != nil {
		return err
	}
	migrator, err := rivermigrate.New(riverpgxv5.New(p.db), nil)
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	if p.client, err = river.NewClient(riverpgxv5.New(p.db), &river.Config{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		return err
	}
	return createAccounts(ctx, p.db, p.lab.o.senders, p.lab.o.recipients)
}

func (p *riverPeer) create(ctx context.Context, t *transfer) error {
	return pgx.BeginFunc(ctx, p.db, func(tx pgx.Tx) error {
		if err := debit(ctx, tx, *t); err != nil {
			return err
		}
		_, err := p.client.InsertTx(ctx, tx, riverArgs{*t}, &river.InsertOpts{ScheduledAt: t.due()})
		return err
	})
}

func (p *riverPeer) books(ctx context.Context) (b books, err error) {
	var sum int64
	err = p.db.QueryRow(ctx, `SELECT count(*) FILTER (WHERE state = 'completed'), count(*) FILTER (WHERE state <> 'completed'), `+
		moneySQL+` FROM river_job`).Scan(&b.done, &b.open, &sum)
	b.missing = int64(p.lab.o.senders)*senderFunds - sum - b.open*amount
	return b, err
}

func (p *riverPeer) kill()                        {}
func (p *riverPeer) revive(context.Context) error { return nil }

func (p *riverPeer) close() {
	if p.db != nil {
		p.db.Close()
	}
}

type riverWorker struct {
	river.WorkerDefaults[riverArgs]
	w  *worker
	db *pgxpool.Pool
}

func (r *riverWorker) Work(ctx context.Context, job *river.Job[riverArgs]) error {
	t := job.Args.transfer
	if err := r.w.pay.pay(ctx, t); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, r.db, func(tx pgx.Tx) error {
		if err := credit(ctx, tx, t); err != nil {
			return err
		}
		_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
	if err == nil {
		r.w.finished(t)
	}
	return err
}

// startRiver tunes River for little lag: it polls every 20 ms instead of every
// second. A job of a killed worker is given back after RescueStuckJobsAfter, an
// hour unless it is set; it must be longer than any job may take.
func startRiver(ctx context.Context, w *worker) (func(), error) {
	db, err := openPool(ctx, w.cfg.DSNs[0])
	if err != nil {
		return nil, err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &riverWorker{w: w, db: db})
	client, err := river.NewClient(riverpgxv5.New(db), &river.Config{
		Queues:               map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 200}},
		Workers:              workers,
		FetchCooldown:        20 * time.Millisecond,
		FetchPollInterval:    20 * time.Millisecond,
		JobTimeout:           10 * time.Second,
		RescueStuckJobsAfter: 15 * time.Second,
		Logger:               slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	return func() {
		stop, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Stop(stop) // the run is over: what it leaves is dropped
	}, nil
}
