package embed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The oldest versions that the tables and the Lua scripts are written for.
const (
	minPostgres = 15
	minRedis    = 6
)

const (
	versionTimeout = 10 * time.Second
	installTimeout = 10 * time.Minute
)

// programs is what was found.
type programs struct {
	postgres, initdb, redis string
	stats                   bool // pg_stat_statements can be loaded
}

// search is where to look. Tests have other places than the world.
type search struct {
	path    string   // a list like $PATH
	pgGlobs []string // directories of postgres and initdb; the highest number first
	aptGet  string   // empty means none
}

func usualPlaces() *search {
	s := &search{
		path: os.Getenv("PATH"),
		pgGlobs: []string{
			"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin",
			"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
		},
	}
	if path, err := exec.LookPath("apt-get"); err == nil {
		s.aptGet = path
	}
	return s
}

// want narrows a search: paths the caller insists on, and the major version of
// data that exists already (0 for none).
type want struct {
	pgBin, redisBin string
	pgMajor         int
}

// lack is a program that was not found, why, and the package that has it.
type lack struct{ name, pkg, why string }

func names(missing []lack) string {
	var out []string
	for _, m := range missing {
		out = append(out, m.name)
	}
	return strings.Join(out, " and ")
}

func packages(missing []lack) string {
	var out []string
	for _, m := range missing {
		out = append(out, m.pkg)
	}
	return strings.Join(out, " ")
}

func (s *search) find(ctx context.Context, w want) (programs, []lack) {
	var found programs
	var missing []lack
	if err := s.findPostgres(ctx, w, &found); err != nil {
		m := lack{name: "PostgreSQL", pkg: "postgresql", why: err.Error()}
		if w.pgMajor != 0 {
			m.pkg = fmt.Sprintf("postgresql-%d", w.pgMajor)
		}
		missing = append(missing, m)
	}
	if err := s.findRedis(ctx, w, &found); err != nil {
		missing = append(missing, lack{name: "Redis", pkg: "redis-server", why: err.Error()})
	}
	return found, missing
}

func (s *search) findPostgres(ctx context.Context, w want, found *programs) error {
	dirs := []string{w.pgBin}
	if w.pgBin == "" {
		dirs = s.postgresDirs()
	}
	seen := ""
	for _, dir := range dirs {
		postgres, initdb := filepath.Join(dir, "postgres"), filepath.Join(dir, "initdb")
		major, err := versionOf(ctx, postgres)
		if err != nil {
			continue
		}
		if _, err := os.Stat(initdb); err != nil {
			continue
		}
		if major < minPostgres || w.pgMajor != 0 && major != w.pgMajor {
			seen = fmt.Sprintf(" (version %d is in %s)", major, dir)
			continue
		}
		found.postgres, found.initdb = postgres, initdb
		found.stats = hasStats(dir)
		return nil
	}
	if w.pgBin != "" && seen == "" {
		seen = " in " + w.pgBin
	}
	if w.pgMajor != 0 {
		return fmt.Errorf("PostgreSQL %d, which made the data, was not found%s", w.pgMajor, seen)
	}
	return fmt.Errorf("PostgreSQL %d or newer was not found%s", minPostgres, seen)
}

// postgresDirs lists the places in the order of preference. Links are followed
// because a distribution may link postgres alone into $PATH.
func (s *search) postgresDirs() []string {
	var dirs []string
	add := func(dir string) {
		real, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
		if err == nil && !slices.Contains(dirs, filepath.Dir(real)) {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	for _, dir := range filepath.SplitList(s.path) {
		add(dir)
	}
	for _, glob := range s.pgGlobs {
		matches, _ := filepath.Glob(glob)
		slices.SortFunc(matches, func(a, b string) int { return lastNumber(b) - lastNumber(a) })
		for _, dir := range matches {
			add(dir)
		}
	}
	return dirs
}

func (s *search) findRedis(ctx context.Context, w want, found *programs) error {
	paths := []string{w.redisBin}
	if w.redisBin == "" {
		paths = nil
		dirs := append(filepath.SplitList(s.path), "/usr/local/bin", "/opt/homebrew/bin")
		if s.pgGlobs == nil {
			dirs = filepath.SplitList(s.path)
		}
		for _, dir := range dirs {
			paths = append(paths, filepath.Join(dir, "redis-server"))
		}
	}
	seen := ""
	for _, path := range paths {
		major, err := versionOf(ctx, path)
		if err != nil {
			continue
		}
		if major < minRedis {
			seen = fmt.Sprintf(" (version %d is %s)", major, path)
			continue
		}
		found.redis = path
		return nil
	}
	return fmt.Errorf("Redis %d or newer was not found%s", minRedis, seen)
}

var numberRE = regexp.MustCompile(`[0-9]+`)

func leadingNumber(s string) int {
	n, _ := strconv.Atoi(numberRE.FindString(s))
	return n
}

func lastNumber(s string) int {
	all := numberRE.FindAllString(s, -1)
	if len(all) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(all[len(all)-1])
	return n
}

// versionOf is the major version that a server prints about itself:
// "postgres (PostgreSQL) 15.3 …" or "Redis server v=7.0.15 …".
func versionOf(ctx context.Context, program string) (int, error) {
	if info, err := os.Stat(program); err != nil || info.IsDir() {
		return 0, fmt.Errorf("no program %s", program)
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", program, err)
	}
	major := leadingNumber(string(out))
	if major == 0 {
		return 0, fmt.Errorf("%s --version printed no version", program)
	}
	return major, nil
}

// hasStats looks for the module next to the programs, as Debian, Red Hat,
// Homebrew and a build from source lay them out.
func hasStats(bin string) bool {
	for _, lib := range []string{"lib", "lib/postgresql"} {
		for _, ext := range []string{".so", ".dylib"} {
			if _, err := os.Stat(filepath.Join(bin, "..", lib, "pg_stat_statements"+ext)); err == nil {
				return true
			}
		}
	}
	return false
}

func (s *search) canInstall() bool { return s.aptGet != "" && os.Geteuid() == 0 }

// install leaves whatever the packages set up by themselves as it is: another
// cluster on the machine may be somebody's.
func (s *search) install(ctx context.Context, missing []lack, logPath string) error {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of apt-get: %w", err)
	}
	defer logFile.Close()
	install := append([]string{"install", "-y", "--no-install-recommends"}, strings.Fields(packages(missing))...)
	for _, args := range [][]string{{"update"}, install} {
		cmd := exec.CommandContext(ctx, s.aptGet, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l")
		cmd.Stdout, cmd.Stderr = logFile, logFile
		if err := cmd.Run(); err != nil && args[0] == "install" {
			why := lastLine(logPath, 0)
			return fmt.Errorf("apt-get could not install %s: %w: %s (log: %s)", packages(missing), err, why, logPath)
		}
	}
	return nil
}
