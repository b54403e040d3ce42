package hostile

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// tables is a checksum over all rows of each table of each shard.
type tables map[string]string

// sums compares tables.
type sums struct {
	conns []*pgx.Conn
	names [][]string // per shard
}

const sumTime = time.Minute

// moving are the tables that the system itself moves while nobody asks
// anything of it.
const moving = `'watermark'`

const tablesSQL = `SELECT c.relname FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND pg_table_is_visible(c.oid)
AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%' AND c.relname NOT IN (` + moving + `)
ORDER BY 1`

// openSums finds the tables themselves, so that a new one cannot escape.
func openSums(ctx context.Context, dsns []string) (*sums, error) {
	s := &sums{}
	for i, dsn := range dsns {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("connect to shard %d: %w", i, err)
		}
		s.conns = append(s.conns, conn)
		rows, err := conn.Query(ctx, tablesSQL)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("list the tables of shard %d: %w", i, err)
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(names) < 5 {
			s.close()
			return nil, fmt.Errorf("shard %d has the tables %v: %w", i, names, err)
		}
		s.names = append(s.names, names)
	}
	return s, nil
}

func (s *sums) close() {
	for _, c := range s.conns {
		_ = c.Close(context.WithoutCancel(context.Background()))
	}
}

// isMemory reports a table that only remembers what was answered to a key.
func isMemory(name string) bool {
	return strings.HasSuffix(name, " idempotency") || strings.HasSuffix(name, " cash refused")
}

// sumUp is nil when there are no shards to look at.
func (s *suite) sumUp() tables {
	if len(s.sums.conns) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, sumTime)
	defer cancel()
	out := tables{}
	for i, conn := range s.sums.conns {
		for _, table := range s.sums.names[i] {
			parts := map[string]string{table: "true"}
			if table == "cash" { // refused withdrawals are remembered there
				parts = map[string]string{"cash": "refusal IS NULL", "cash refused": "refusal IS NOT NULL"}
			}
			for name, where := range parts {
				var sum string
				q := fmt.Sprintf(`SELECT count(*) || '-' || coalesce(sum(hashtextextended(x::text, 0)::numeric), 0) FROM (SELECT * FROM %s WHERE %s) x`,
					pgx.Identifier{table}.Sanitize(), where)
				if err := conn.QueryRow(ctx, q).Scan(&sum); err != nil {
					s.found("checksums", "table %s of shard %d: %v", table, i, err)
				}
				out[fmt.Sprintf("shard %d %s", i, name)] = sum
			}
		}
	}
	return out
}
