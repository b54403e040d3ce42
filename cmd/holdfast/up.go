package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/spf13/cobra"
)

func (a *app) upCommand() *cobra.Command {
	var fresh, install bool
	c := &cobra.Command{
		Use: "up", Short: "Start everything in one process, on private PostgreSQL shards and Redis", Args: exactly(),
		Long: `Starts four private PostgreSQL shards and one Redis below the data directory
(unless HOLDFAST_SHARDS and HOLDFAST_REDIS_URL name your own), brings their
schema up to date, and runs every role: public API, admin API, participant,
scheduler and, unless HOLDFAST_PAYMENT_URL is set, a payment simulator. It stays
in the foreground; Ctrl-C stops it cleanly, the data stays.`,
		Example: `  holdfast up
  holdfast up --fresh
  holdfast up --api-addr 127.0.0.1:9090 --data /var/tmp/holdfast`,
	}
	given := settingFlags(c)
	c.Flags().BoolVar(&fresh, "fresh", false, "empty the data directory first: every account and hold in it is gone")
	c.Flags().BoolVar(&install, "install", false, "install missing server programs through the system's package manager")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := a.settings(given())
		if err != nil {
			return err
		}
		u := &up{app: a, cfg: cfg, install: install}
		if fresh {
			if err := u.empty(); err != nil {
				return err
			}
		}
		return u.run(cmd.Context())
	}
	return c
}

// settingFlags gives a command a flag per setting; the returned function tells
// which were used, by the name of the setting.
func settingFlags(c *cobra.Command) func() map[string]string {
	for _, s := range settings.Table() {
		if !s.ClientOnly {
			c.Flags().String(s.Flag(), s.Default, s.Help+" ["+s.Name+"]")
		}
	}
	return func() map[string]string {
		used := map[string]string{}
		for _, s := range settings.Table() {
			if f := c.Flags().Lookup(s.Flag()); f != nil && f.Changed {
				used[s.Name] = f.Value.String()
			}
		}
		return used
	}
}

// up is one run of the whole system in the foreground.
type up struct {
	*app
	cfg     *settings.Config
	install bool
	quiet   io.Writer // instead of stdout, for the demo

	stack *embed.Stack
	log   *slog.Logger
	file  *os.File
	proc  *process
}

func (u *up) say(format string, args ...any) {
	if u.quiet == nil && u.output != "json" {
		fmt.Fprintf(u.stdout, format+"\n", args...)
	}
}

// run starts, prints how to go on, waits for the end of ctx and stops.
func (u *up) run(ctx context.Context) error {
	if err := u.start(ctx); err != nil {
		if ctx.Err() != nil {
			return errors.New("stopped while starting")
		}
		return err
	}
	if err := u.greet(); err != nil {
		return errors.Join(err, u.stop(ctx))
	}
	<-ctx.Done()
	u.say("stopping: finishing what is under way (Ctrl-C again ends at once)")
	if err := u.stop(ctx); err != nil {
		return err
	}
	u.say("stopped; the data is in %s", u.cfg.Data)
	return nil
}

// start brings everything up, or gives everything back.
func (u *up) start(ctx context.Context) (err error) {
	r := roles{coordinator: true, participant: true, scheduler: true, sim: u.cfg.PaymentURL == ""}
	internal := u.cfg.Given("HOLDFAST_BRANCH_ADDR")
	if internal && u.cfg.BranchSecret == "" {
		return &usageError{err: errors.New("HOLDFAST_BRANCH_ADDR needs HOLDFAST_BRANCH_SECRET")}
	}
	l, err := listen(u.cfg, r, internal)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			l.close()
			err = errors.Join(err, u.stopServers(ctx))
		}
	}()
	dsns, redisURL, err := u.servers(ctx)
	if err != nil {
		return err
	}
	if err := ensureSecret(u.cfg); err != nil {
		return err
	}
	if err := u.openLog(); err != nil {
		return err
	}
	u.say("bringing the schema of %d shards up to date", len(dsns))
	if err := shards.Migrate(ctx, dsns, nil, u.log.With("role", "shards")); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if u.proc, err = newProcess(ctx, u.cfg, r, l, dsns, redisURL, u.log); err != nil {
		return err
	}
	u.proc.start(ctx)
	return (&runFile{PID: os.Getpid(), API: addrOf(l.api), Admin: addrOf(l.admin), Branch: addrOf(l.branch), Sim: addrOf(l.sim),
		Shards: dsns, RedisURL: redisURL, StartedAt: time.Now().UTC()}).write(u.cfg.Data)
}

// servers starts the embedded servers, or takes those of the settings.
func (u *up) servers(ctx context.Context) (dsns []string, redisURL string, err error) {
	own, ownRedis := len(u.cfg.Shards) > 0, u.cfg.RedisURL != ""
	if own && !ownRedis {
		return nil, "", &usageError{err: errors.New("HOLDFAST_REDIS_URL is not set, but HOLDFAST_SHARDS is: name both or none")}
	}
	if own {
		return u.cfg.Shards, u.cfg.RedisURL, os.MkdirAll(u.cfg.Data, 0o755)
	}
	progress := u.stdout
	if u.quiet != nil {
		progress = u.quiet
	}
	if u.output == "json" {
		progress = io.Discard
	}
	u.stack, err = embed.Start(ctx, embed.Config{Dir: u.cfg.Data, Shards: u.cfg.ShardCount, Install: u.install, Progress: progress})
	if err != nil {
		return nil, "", err
	}
	redisURL = u.stack.RedisURL
	if ownRedis {
		redisURL = u.cfg.RedisURL
	}
	return u.stack.DSNs, redisURL, nil
}

// maxLog is the size from which the log is put aside at the next start.
const maxLog = 64 << 20

// openLog sends everything to a file and what needs a person also to stderr.
func (u *up) openLog() error {
	path := u.logPath()
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return fmt.Errorf("put the old log aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	u.file = f
	u.log = slog.New(slog.NewMultiHandler(
		slog.NewJSONHandler(f, &slog.HandlerOptions{Level: logLevel(u.cfg)}),
		slog.NewTextHandler(u.stderr, &slog.HandlerOptions{Level: slog.LevelError}),
	))
	u.warnUnarmed(u.log)
	return nil
}

func (u *up) logPath() string { return filepath.Join(u.cfg.Data, "holdfast.log") }

func logLevel(cfg *settings.Config) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return slog.LevelInfo // unreachable: the table checks the name
	}
	return l
}

func (u *up) stop(ctx context.Context) error {
	err := u.proc.stop(ctx)
	os.Remove(filepath.Join(u.cfg.Data, runFileName))
	err = errors.Join(err, u.stopServers(ctx))
	if u.file != nil {
		u.file.Close()
	}
	return err
}

func (u *up) stopServers(ctx context.Context) error {
	if u.stack == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopServers)
	defer cancel()
	return u.stack.Stop(ctx)
}

// empty removes the data directory, if it is one of ours.
func (u *up) empty() error {
	if len(u.cfg.Shards) > 0 {
		return &usageError{err: errors.New("--fresh empties the embedded servers; it does not touch the ones of HOLDFAST_SHARDS")}
	}
	entries, err := os.ReadDir(u.cfg.Data)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--fresh: %w", err)
	}
	ours := false
	for _, e := range entries {
		ours = ours || e.Name() == "servers.json" || e.Name() == secretFile
	}
	if !ours {
		return fmt.Errorf("--fresh would delete %s, which does not look like a data directory of Holdfast: remove it yourself if that is meant", u.cfg.Data)
	}
	if err := embed.Remove(u.cfg.Data); err != nil {
		return fmt.Errorf("--fresh: %w", err)
	}
	return nil
}

// ensureSecret makes the development secret unless one is configured.
func ensureSecret(cfg *settings.Config) error {
	if cfg.JWTSecret != "" {
		return nil
	}
	path := filepath.Join(cfg.Data, secretFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make the development secret: %w", err)
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	_, err = fmt.Fprintln(f, hex.EncodeToString(secret))
	return errors.Join(err, f.Sync(), f.Close())
}

// greet prints what a newcomer needs next.
func (u *up) greet() error {
	token, err := serviceToken(u.cfg)
	if err != nil {
		return err
	}
	l := u.proc.listeners
	if u.output == "json" {
		return u.showJSON(map[string]any{"api": addrOf(l.api), "admin": addrOf(l.admin), "sim": addrOf(l.sim),
			"token": token, "pid": os.Getpid(), "data": u.cfg.Data})
	}
	sender, recipient := newUser(), newUser()
	u.say("\nHoldfast is up.\n  public API  http://%s\n  admin API   http://%s  (/metrics, /readyz)", addrOf(l.api), addrOf(l.admin))
	if l.sim != nil {
		u.say("  payments    http://%s  (simulator)", addrOf(l.sim))
	}
	u.say("  log         %s\n\nTry it. A token for one hour (another: holdfast token mint):\n\nexport TOKEN=%s\n", u.logPath(), token)
	u.say(`curl -sS -X PUT "http://%s/v1/accounts/{%s,%s}" -H "Authorization: Bearer $TOKEN"`, addrOf(l.api), sender, recipient)
	u.say(`curl -sS "http://%s/v1/accounts/%s/deposits" -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{"amount":1000,"currency":"RBX","idempotency_key":"first-deposit"}'`,
		addrOf(l.api), sender)
	u.say(`curl -sS "http://%s/v1/holds" -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{"sender_id":"%s","recipient_id":"%s","amount":100,"unlock_in_seconds":10,"idempotency_key":"first-hold"}'`,
		addrOf(l.api), sender, recipient)
	u.say("\nTen seconds later the recipient has the coins: holdfast account get %s\nCtrl-C stops everything; the data stays.", recipient)
	return nil
}

// newUser makes a random (version 4) user id.
func newUser() holdfast.UserID {
	var u holdfast.UserID
	rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}
