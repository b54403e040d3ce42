package shards

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// AppRole is the least-privilege role that the money and read pools work as.
const AppRole = "holdfast_app"

// tableRights is everything the application may do, table by table. What is not
// here it may not do. Rows are locked with FOR UPDATE only where UPDATE stands.
var tableRights = []struct{ table, rights string }{
	{"schema_migrations", "SELECT"},
	{"shard_self", "SELECT"},
	{"shard_map", "SELECT"},
	{"checkpoints", "SELECT"}, // the owner writes them
	{"accounts", "SELECT, INSERT, UPDATE"},
	{"holds", "SELECT, INSERT, UPDATE"},
	{"barrier", "SELECT, INSERT"},
	{"entries", "SELECT, INSERT"},
	{"cash", "SELECT, INSERT, UPDATE, DELETE"}, // a refusal is remembered, an unknown account is not
	{"issuance", "SELECT, INSERT, UPDATE"},
	{"audit", "SELECT, INSERT"},
	{"dead_letters", "SELECT, INSERT, UPDATE"},
	{"attempts", "SELECT, INSERT, UPDATE, DELETE"},
	{"watermark", "SELECT, UPDATE"},
	{"idempotency", "SELECT, INSERT, UPDATE, DELETE"},
	{"idempotency_0", "SELECT, INSERT, UPDATE, DELETE"},
	{"idempotency_1", "SELECT, INSERT, UPDATE, DELETE"},
	{"idempotency_2", "SELECT, INSERT, UPDATE, DELETE"},
	{"idempotency_3", "SELECT, INSERT, UPDATE, DELETE"},
}

// rightsOf finds the rights of one table of tableRights.
func rightsOf(table string) string {
	i := slices.IndexFunc(tableRights, func(r struct{ table, rights string }) bool { return r.table == table })
	return tableRights[i].rights
}

// grantSQL replaces whatever the role may do with a table.
func grantSQL(table, rights string) string {
	name := pgx.Identifier{table}.Sanitize()
	return "REVOKE ALL ON " + name + " FROM " + AppRole + ", PUBLIC;\n" +
		"GRANT " + rights + " ON " + name + " TO " + AppRole + ";\n"
}

const (
	roleSQL = `
SELECT coalesce((SELECT true FROM pg_roles WHERE rolname = $1), false),
       coalesce((SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication
                 FROM pg_roles WHERE rolname = $1), false)`
	createRoleSQL = `CREATE ROLE ` + AppRole + ` NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS`
	memberSQL     = `SELECT pg_has_role(current_user, $1, 'MEMBER')`
	joinRoleSQL   = `GRANT ` + AppRole + ` TO CURRENT_USER`
	mayCreateSQL  = `SELECT current_schema(), has_schema_privilege($1, current_schema(), 'CREATE')`
)

// roleTries bounds how often the role is looked at again: roles belong to the
// whole server, and several shards of one server are migrated at the same time.
const roleTries = 20

// grantApp makes the role and gives it exactly tableRights. Partitions get
// their rights when they are made.
func grantApp(ctx context.Context, conn *pgx.Conn, log *slog.Logger) error {
	var err error
	for range roleTries {
		if err = ensureRole(ctx, conn); !raced(err) {
			break
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("make role %s: %w", AppRole, err)
	}
	var schema string
	var mayCreate bool
	if err := conn.QueryRow(ctx, mayCreateSQL, AppRole).Scan(&schema, &mayCreate); err != nil {
		return fmt.Errorf("look at the schema's rights: %w", err)
	}
	name := pgx.Identifier{schema}.Sanitize()
	var sql strings.Builder
	sql.WriteString("GRANT USAGE ON SCHEMA " + name + " TO " + AppRole + ";\n")
	if mayCreate {
		sql.WriteString("REVOKE CREATE ON SCHEMA " + name + " FROM " + AppRole + ", PUBLIC;\n")
	}
	for _, t := range tableRights {
		sql.WriteString(grantSQL(t.table, t.rights))
	}
	// Without arguments it is one simple query, so the whole text is one transaction.
	if _, err := conn.Exec(ctx, sql.String()); err != nil {
		return fmt.Errorf("grant rights to %s: %w", AppRole, err)
	}
	if err := conn.QueryRow(ctx, mayCreateSQL, AppRole).Scan(&schema, &mayCreate); err != nil {
		return fmt.Errorf("look at the schema's rights: %w", err)
	}
	if mayCreate {
		log.Warn("application role may create tables; revoke CREATE on the schema as its owner", "role", AppRole, "schema", schema)
	}
	return nil
}

// ensureRole makes the role if the server lacks it and the owner a member, so
// that it may change into it.
func ensureRole(ctx context.Context, conn *pgx.Conn) error {
	var exists, mighty, member bool
	if err := conn.QueryRow(ctx, roleSQL, AppRole).Scan(&exists, &mighty); err != nil {
		return err
	}
	if mighty {
		return errors.New("the role exists with more rights than it may have (superuser, createrole, createdb, replication or bypassrls)")
	}
	if !exists {
		if _, err := conn.Exec(ctx, createRoleSQL); err != nil {
			return fmt.Errorf("the server does not have it and this user may not create it: %w", err)
		}
	}
	if err := conn.QueryRow(ctx, memberSQL, AppRole).Scan(&member); err != nil || member {
		return err
	}
	_, err := conn.Exec(ctx, joinRoleSQL)
	return err
}

// raced reports whether another session changed the same role meanwhile: the
// name is taken (42710), its row is new (23505), or it was "concurrently
// updated", which the server reports as an internal error.
func raced(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	return pg.Code == "42710" || pg.Code == "23505" || pg.Code == "XX000"
}

// pause waits, unless the context ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
