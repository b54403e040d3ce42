package main

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/dtm-labs/client/dtmcli"
	"github.com/dtm-labs/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/dtmsvr/entry"
	"github.com/dtm-labs/logger"
	"github.com/go-resty/resty/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // dtm's barrier takes database/sql only
)

// dtmPeer: senders on one server, recipients on the second, dtm's own store on
// the third. A TCC of dtm cannot wait for a time: its Confirm follows at once.
// What can wait is its two-phase message, in whole seconds. So the jobs start
// and lifecycle run a TCC (without any delay), lag and crash run messages.
type dtmPeer struct {
	site
	senders, recipients, store *pgxpool.Pool
	sendersSQL                 *sql.DB
	server                     *proc
	env                        []string
	url                        string
}

// dtmServer is dtm itself, started from its module; its settings come from the
// environment.
func dtmServer() {
	os.Args = os.Args[:1]
	keepConnections()
	version := "v1.18.0"
	if app, _ := entry.Main(&version); app == nil {
		os.Exit(1)
	}
	select {}
}

// keepConnections of dtm's HTTP client, in its server and in ours: its default
// is one idle connection per core and host.
func keepConnections() {
	dtmcli.GetRestyClient().SetTransport(&http.Transport{MaxIdleConnsPerHost: 512})
}

// mute stands for the logger of dtm's client, which writes to our stdout.
type mute struct{}

func (mute) Debugf(string, ...any) {}
func (mute) Infof(string, ...any)  {}
func (mute) Warnf(string, ...any)  {}
func (mute) Errorf(string, ...any) {}

func (p *dtmPeer) setup(ctx context.Context) (err error) {
	dir, err := moduleDir(ctx, "github.com/dtm-labs/dtm")
	if err != nil {
		return err
	}
	const barrier, store = "dtmcli.barrier.postgres.sql", "dtmsvr.storage.postgres.sql"
	for i, d := range []struct {
		into *(*pgxpool.Pool)
		sql  string
	}{{&p.senders, barrier}, {&p.recipients, barrier}, {&p.store, store}} {
		if *d.into, err = openPool(ctx, p.dsns[i]); err != nil {
			return err
		}
		script, err := os.ReadFile(filepath.Join(dir, "sqls", d.sql))
		if err != nil {
			return err
		}
		if _, err := (*d.into).Exec(ctx, string(script)); err != nil {
			return fmt.Errorf("%s: %w", d.sql, err)
		}
	}
	if err := createAccounts(ctx, p.senders, p.lab.o.senders, 0); err != nil {
		return err
	}
	if err := createAccounts(ctx, p.recipients, 0, p.lab.o.recipients); err != nil {
		return err
	}
	if p.sendersSQL, err = openSQL(p.dsns[0]); err != nil {
		return err
	}
	dtmcli.SetCurrentDBType(dtmcli.DBTypePostgres)
	logger.WithLogger(mute{})
	keepConnections()
	dtmcli.GetRestyClient().SetTimeout(30 * time.Second)
	if err := p.settings(); err != nil {
		return err
	}
	return p.revive(ctx)
}

func openSQL(dsn string) (*sql.DB, error) {
	db, err := sql.Open("pgx/v5", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(maxPool)
	db.SetMaxIdleConns(maxPool)
	return db, nil
}

// settings are dtm's defaults except for its connections, which the server
// bounds, and its timer, which looks every second instead of every three.
func (p *dtmPeer) settings() error {
	u, err := url.Parse(p.dsns[2])
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		return err
	}
	password, _ := u.User.Password()
	p.env = []string{"STORE_DRIVER=postgres", "STORE_HOST=" + host, "STORE_PORT=" + port, "STORE_USER=" + u.User.Username(),
		"STORE_PASSWORD=" + password, "STORE_DB=" + u.Path[1:], "STORE_MAX_OPEN_CONNS=80", "STORE_MAX_IDLE_CONNS=80",
		"TRANS_CRON_INTERVAL=1", "LOG_LEVEL=error", "TZ=UTC"}
	for _, name := range []string{"HTTP_PORT", "GRPC_PORT", "JSON_RPC_PORT"} {
		port, err := freePort()
		if err != nil {
			return err
		}
		p.env = append(p.env, fmt.Sprintf("%s=%d", name, port))
		if name == "HTTP_PORT" {
			p.url = fmt.Sprintf("http://127.0.0.1:%d/api/dtmsvr", port)
		}
	}
	return nil
}

func (p *dtmPeer) revive(ctx context.Context) (err error) {
	if p.server, err = spawn("dtm", p.lab.self, []string{"dtm-server"}, p.env, nil, nil); err != nil {
		return err
	}
	return p.server.until(ctx, func(ctx context.Context) bool { return answers(ctx, p.url+"/version") })
}

func (p *dtmPeer) kill() { p.server.kill() }

func (p *dtmPeer) create(ctx context.Context, t *transfer) error {
	switch p.job {
	case "start":
		return p.tries(*t)
	case "lifecycle":
		return p.tcc(ctx, *t)
	}
	return p.message(t)
}

// tries is a TCC up to the answers of both Tries; it stays prepared.
func (p *dtmPeer) tries(t transfer) error {
	tcc := &dtmcli.Tcc{TransBase: *dtmimp.NewTransBase(t.ID, "tcc", p.url, "")}
	tcc.TimeoutToFail, tcc.RetryInterval = 7200, 3600
	if err := dtmimp.TransCallDtm(&tcc.TransBase, "prepare"); err != nil {
		return err
	}
	return p.branches(tcc, t)
}

func (p *dtmPeer) branches(tcc *dtmcli.Tcc, t transfer) error {
	for _, side := range []string{"sender", "recipient"} {
		at := p.worker + "/" + side
		if _, err := tcc.CallBranch(t, at+"/try", at+"/confirm", at+"/cancel"); err != nil {
			return err
		}
	}
	return nil
}

// tcc is the whole transaction: both Tries, the payment, both Confirms.
func (p *dtmPeer) tcc(ctx context.Context, t transfer) error {
	wait := func(tcc *dtmcli.Tcc) { tcc.WaitResult = true }
	return dtmcli.TccGlobalTransaction2(p.url, t.ID, wait, func(tcc *dtmcli.Tcc) (*resty.Response, error) {
		if err := p.branches(tcc, t); err != nil {
			return nil, err
		}
		return nil, p.lab.pay.pay(ctx, t)
	})
}

// message debits in a local transaction and has dtm call the recipient's branch
// after the delay. Only whole seconds of delay can be asked for, so the due time
// is moved to one: rounding is not counted as lag.
func (p *dtmPeer) message(t *transfer) error {
	delay := max(time.Until(t.due()).Round(time.Second), time.Second)
	t.DueUS = time.Now().Add(delay).UnixMicro()
	msg := dtmcli.NewMsg(p.url, t.ID).SetDelay(uint64(delay/time.Second)).Add(p.worker+"/recipient/action", t)
	return msg.DoAndSubmitDB(p.worker+"/sender/query", p.sendersSQL, func(tx *sql.Tx) error {
		return change(tx, debitSQL, amount, t.Sender)
	})
}

// change runs a statement that must find its row; dtm takes back everything
// when it does not.
func change(tx *sql.Tx, query string, args ...any) error {
	r, err := tx.Exec(query, args...)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("%d rows changed, %w", n, dtmcli.ErrFailure)
	}
	return nil
}

func (p *dtmPeer) books(ctx context.Context) (b books, err error) {
	err = p.store.QueryRow(ctx, `SELECT count(*) FILTER (WHERE status = 'succeed'),
		count(*) FILTER (WHERE status IN ('prepared', 'submitted', 'aborting')) FROM trans_global`).Scan(&b.done, &b.open)
	if err != nil {
		return b, err
	}
	of, err := money(ctx, p.senders)
	if err != nil {
		return b, err
	}
	have, err := money(ctx, p.recipients)
	if err != nil {
		return b, err
	}
	b.missing = int64(p.lab.o.senders)*senderFunds - of - have
	if p.job == "lag" || p.job == "crash" {
		// A debit without its credit is owed while its message is open. What is
		// prepared only may have no debit, so this is exact at rest.
		b.missing -= b.open * amount
	}
	return b, nil
}

func (p *dtmPeer) close() {
	if p.server != nil {
		p.server.stop()
	}
	for _, db := range []*pgxpool.Pool{p.senders, p.recipients, p.store} {
		if db != nil {
			db.Close()
		}
	}
	if p.sendersSQL != nil {
		p.sendersSQL.Close()
	}
}
