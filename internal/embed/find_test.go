package embed

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// program writes a script that prints a version.
func program(t *testing.T, dir, name, prints string) {
	t.Helper()
	check(t, os.MkdirAll(dir, 0o755))
	writeProgram(t, filepath.Join(dir, name), fmt.Appendf(nil, "#!/bin/sh\necho '%s'\n", prints))
}

// writeProgram keeps tests that run in parallel from starting a process in the
// middle: it would inherit the open file, and a program that is open for
// writing cannot be run.
func writeProgram(t *testing.T, path string, content []byte) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	check(t, os.WriteFile(path, content, 0o755))
}

func postgresVersion(t *testing.T, dir, version string) {
	t.Helper()
	program(t, dir, "postgres", "postgres (PostgreSQL) "+version)
	program(t, dir, "initdb", "initdb (PostgreSQL) "+version)
}

func TestFind(t *testing.T) {
	t.Parallel()
	root, err := filepath.EvalSymlinks(t.TempDir())
	check(t, err)
	bin := func(n string) string { return filepath.Join(root, n, "bin") }
	for _, v := range []string{"9", "14", "16", "17"} {
		postgresVersion(t, bin(v), v+".3 (Debian)")
	}
	program(t, bin("r5"), "redis-server", "Redis server v=5.0.14 sha=00000000:0")
	program(t, bin("r7"), "redis-server", "Redis server v=7.0.15 sha=00000000:0")
	program(t, bin("broken"), "redis-server", "no number")
	globs := []string{filepath.Join(root, "*", "bin")}

	tests := []struct {
		name         string
		search       search
		want         want
		postgres     string
		redis        string
		missing      string
		missingHints string
	}{
		{"highest number first", search{pgGlobs: globs, path: bin("r7")}, want{}, bin("17"), bin("r7"), "", ""},
		{"PATH before the rest", search{pgGlobs: globs, path: bin("16") + ":" + bin("r7")}, want{}, bin("16"), bin("r7"), "", ""},
		{"too old in PATH is passed over", search{pgGlobs: globs, path: bin("14") + ":" + bin("r5") + ":" + bin("r7")}, want{}, bin("17"), bin("r7"), "", ""},
		{"existing data needs its version", search{pgGlobs: globs, path: bin("r7")}, want{pgMajor: 16}, bin("16"), bin("r7"), "", ""},
		{"existing data without its version", search{pgGlobs: globs, path: bin("r7")}, want{pgMajor: 15}, "", bin("r7"), "postgresql-15", "PostgreSQL 15, which made the data, was not found"},
		{"named directory", search{pgGlobs: globs}, want{pgBin: bin("16"), redisBin: filepath.Join(bin("r7"), "redis-server")}, bin("16"), bin("r7"), "", ""},
		{"named directory too old", search{pgGlobs: globs, path: bin("r7")}, want{pgBin: bin("14")}, "", bin("r7"), "postgresql", "version 14 is in " + bin("14")},
		{"nothing anywhere", search{path: bin("broken")}, want{}, "", "", "postgresql redis-server", "Redis 6 or newer was not found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.redis != "" {
				tt.redis = filepath.Join(tt.redis, "redis-server")
			}
			found, missing := tt.search.find(t.Context(), tt.want)
			if tt.postgres != "" && found.postgres != filepath.Join(tt.postgres, "postgres") {
				t.Errorf("postgres = %q, want it in %q", found.postgres, tt.postgres)
			}
			if found.redis != tt.redis {
				t.Errorf("redis = %q, want %q", found.redis, tt.redis)
			}
			var hints []string
			for _, m := range missing {
				hints = append(hints, m.why)
			}
			if packages(missing) != tt.missing || !strings.Contains(strings.Join(hints, ";"), tt.missingHints) {
				t.Errorf("missing %q (%v), want %q (%s)", packages(missing), hints, tt.missing, tt.missingHints)
			}
		})
	}
}

func TestStart_without_programs_says_what_to_install(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := Start(t.Context(), Config{Dir: dir, search: &search{}, Install: true})
	wantLine(t, err, "apt-get install postgresql redis-server")
	wantLine(t, err, "PostgreSQL 15 or newer was not found; Redis 6 or newer was not found")
	// The directory is free again for the next try.
	lock, err := takeLock(dir)
	check(t, err)
	check(t, lock.release())
}

func TestInstall(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root may install packages")
	}
	root := t.TempDir()
	bin := filepath.Join(root, "bin")
	aptGet := filepath.Join(root, "apt-get")
	s := &search{path: bin, aptGet: aptGet}
	missing := []lack{{name: "Redis", pkg: "redis-server"}}
	logPath := filepath.Join(root, "log")

	writeProgram(t, aptGet, []byte("#!/bin/sh\necho \"$*\" $DEBIAN_FRONTEND >>"+root+"/calls\n"))
	check(t, s.install(t.Context(), missing, logPath))
	calls, err := os.ReadFile(filepath.Join(root, "calls"))
	check(t, err)
	if want := "update noninteractive\ninstall -y --no-install-recommends redis-server noninteractive\n"; string(calls) != want {
		t.Errorf("apt-get was called with %q, want %q", calls, want)
	}

	writeProgram(t, aptGet, []byte("#!/bin/sh\necho 'E: no space'\nexit 100\n"))
	wantLine(t, s.install(t.Context(), missing, logPath), "could not install redis-server: exit status 100: E: no space")
}
