package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// The yardstick tells how fast the machine is today: one small transaction that
// updates one row of many and appends one, which is the least that any ledger
// must do per movement when it commits each on its own.
const (
	yardstickDatabase = "holdfast_yardstick"
	yardstickRows     = 100_000
	yardstickClients  = 64
	yardstickTables   = `CREATE TABLE balance (id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 60);
CREATE TABLE posting (id int NOT NULL, amount bigint NOT NULL, at timestamptz NOT NULL DEFAULT now());
INSERT INTO balance SELECT g, 0 FROM generate_series(1, 100000) AS g;
ANALYZE balance`
	yardstickScript = `\set id random(1, 100000)
\set amount random(1, 1000)
BEGIN;
UPDATE balance SET n = n + :amount WHERE id = :id;
INSERT INTO posting (id, amount) VALUES (:id, :amount);
COMMIT;
`
)

// FindPgBench looks for pgbench in the path and beside the servers of the
// distribution's packages, newest first; "" when there is none.
func FindPgBench() string {
	if p, err := exec.LookPath("pgbench"); err == nil {
		return p
	}
	var all []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/pgbench", "/usr/pgsql-*/bin/pgbench", "/opt/homebrew/opt/postgresql*/bin/pgbench"} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	if len(all) == 0 {
		return ""
	}
	sort.Strings(all)
	return all[len(all)-1]
}

var tpsPattern = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

// yardstick runs pgbench in a database of its own on the server of dsn and
// returns its transactions per second.
func yardstick(ctx context.Context, pgbench, dsn string, length time.Duration) (float64, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return 0, fmt.Errorf("the DSN is malformed")
	}
	admin, err := pgx.ConnectConfig(ctx, cfg.Copy())
	if err != nil {
		return 0, err
	}
	defer admin.Close(context.WithoutCancel(ctx))
	drop := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		admin.Exec(ctx, "DROP DATABASE IF EXISTS "+yardstickDatabase+" WITH (FORCE)")
	}
	drop()
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+yardstickDatabase); err != nil {
		return 0, err
	}
	defer drop()
	own := cfg.Copy()
	own.Database = yardstickDatabase
	c, err := pgx.ConnectConfig(ctx, own)
	if err != nil {
		return 0, err
	}
	_, err = c.PgConn().Exec(ctx, yardstickTables).ReadAll()
	c.Close(ctx)
	if err != nil {
		return 0, fmt.Errorf("make tables: %w", err)
	}
	return pgbenchTPS(ctx, pgbench, own, length)
}

func pgbenchTPS(ctx context.Context, pgbench string, cfg *pgx.ConnConfig, length time.Duration) (float64, error) {
	script, err := os.CreateTemp("", "yardstick-*.sql")
	if err != nil {
		return 0, err
	}
	defer os.Remove(script.Name())
	if _, err = script.WriteString(yardstickScript); err == nil {
		err = script.Close()
	}
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, pgbench, "-n", "-M", "prepared", "-c", strconv.Itoa(yardstickClients), "-j", "4",
		"-T", strconv.Itoa(max(1, int(length.Seconds()))), "-f", script.Name(), yardstickDatabase)
	cmd.Env = append(os.Environ(), "PGHOST="+cfg.Host, fmt.Sprintf("PGPORT=%d", cfg.Port), "PGUSER="+cfg.User, "PGPASSWORD="+cfg.Password)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, lastLine(out))
	}
	m := tpsPattern.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench said no rate: %s", lastLine(out))
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

func lastLine(b []byte) string {
	lines := regexp.MustCompile(`\n+`).Split(string(b), -1)
	for i := len(lines) - 1; i >= 0; i-- {
		if lines[i] != "" {
			return lines[i]
		}
	}
	return ""
}
