package embed

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tempDir can be entered by every user, other than t.TempDir.
func tempDir(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL and Redis; -short is set")
	}
	dir, err := os.MkdirTemp("", "holdfast-embed-")
	check(t, err)
	check(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

func start(t *testing.T, cfg Config) *Stack {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL and Redis; -short is set")
	}
	if cfg.Log == nil {
		// Only the errors: a server that dies unasked must show.
		cfg.Log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) { t.Errorf("%s", b) }),
			&slog.HandlerOptions{Level: slog.LevelError}))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Start(ctx, cfg)
	check(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return s
}

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	check(t, err)
	defer conn.Close(context.Background())
	var value any
	check(t, conn.QueryRow(t.Context(), sql).Scan(&value))
	return fmt.Sprint(value)
}

func exec1(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	check(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), sql)
	check(t, err)
}

// wantLine wants an error of one line that contains the text.
func wantLine(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line with %q", err, text)
	}
}

func squat(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", addr)
	check(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }
