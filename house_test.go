package holdfast_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// These tests keep the house in order: who may import whom, where a foreign
// package may appear, how long a file and a function may grow, and three habits
// that are not ours. They parse every Go file of the module and name the rule,
// the place and the way out.

const (
	module       = "github.com/holdfast-escrow/holdfast"
	maxFileLines = 400
	maxFuncLines = 70
	maxTestLines = 120 // of one test function: its table is read as a list

	// peersModule has a go.mod of its own: what it imports never gets into the
	// product, so it has no cages. All other laws hold there too.
	peersModule = "harness/peers"
)

// mayImport is the import law: room → rooms whose packages its product code may
// import. A room is the first folder of a package's path, "root" for the nouns.
// Imports inside one room are always allowed. testkit is a room of its own: it
// is test support that happens to live under internal.
var mayImport = map[string][]string{
	"root":         {},
	"internal":     {"root"},
	"shards":       {"root", "internal"},
	"participants": {"root", "internal", "shards"},
	"scheduler":    {"root", "internal", "shards"},
	"coordinator":  {"root", "internal"},
	"client":       {"root"},
	"testkit":      {"root", "internal", "shards", "participants", "coordinator", "scheduler"},
	"harness":      {"root", "internal", "shards", "participants", "coordinator", "scheduler", "client", "testkit"},
	"cmd":          {"root", "internal", "shards", "participants", "coordinator", "scheduler", "client"},
}

// testsMayNotImport: a test may put other rooms together, as cmd does, but the
// binary and the harness are nobody's library.
var testsMayNotImport = []string{"cmd", "harness"}

// mayStartTheHarness are the files of the binary that start the failure
// injection. Their build tag keeps it out of the binary that people run.
var mayStartTheHarness = []string{"cmd/holdfast/chaos.go", "cmd/holdfast/chaos_bugs.go"}

// cage says where a foreign package may be imported by product code. places are
// folders (with everything below), files are base names in any folder; test
// files may import any caged package. A package without a cage is not agreed.
type cage struct {
	pkg    string // import path prefix
	places []string
	files  []string
}

var cages = []cage{
	{pkg: "github.com/redis/go-redis", places: []string{"scheduler", "internal/testkit", "harness"}},
	{pkg: "github.com/sony/gobreaker", places: []string{"coordinator/payment"}},
	{pkg: "github.com/gorilla/mux", files: []string{"http.go", "admin_http.go"}},
	{pkg: "github.com/jackc/pgx", places: []string{"shards", "participants", "scheduler", "internal/pg",
		"internal/testkit", "internal/embed", "internal/bench", "cmd", "harness"}},
	{pkg: "github.com/golang-jwt/jwt", places: []string{"internal/auth"}},
	{pkg: "github.com/spf13/cobra", places: []string{"cmd"}},
	{pkg: "github.com/spf13/pflag", places: []string{"cmd"}},
	{pkg: "github.com/HdrHistogram/hdrhistogram-go", places: []string{"cmd", "harness", "internal/bench"}},
	{pkg: "github.com/prometheus/", places: []string{"coordinator", "participants", "scheduler", "shards", "internal", "cmd", "harness"}},
	{pkg: "github.com/anishathalye/porcupine", places: []string{"harness/checker"}},
	{pkg: "golang.org/x/sync", places: []string{"coordinator", "participants", "scheduler", "shards", "internal", "cmd", "harness"}},
	{pkg: "github.com/Shopify/toxiproxy", places: []string{"harness/cluster"}},
	{pkg: "github.com/rs/zerolog", places: []string{"harness/cluster"}}, // toxiproxy wants one of its loggers
	{pkg: "pgregory.net/rapid"}, // tests only
}

// A violation is one rule broken at one place.
type violation struct{ where, rule, do string }

func (v violation) String() string {
	return fmt.Sprintf("%s: %s\n\twhat to do: %s", v.where, v.rule, v.do)
}

// source is one parsed file; name is its slash path from the module's root.
type source struct {
	name string
	fset *token.FileSet
	ast  *ast.File
}

func (s source) isTest() bool { return strings.HasSuffix(s.name, "_test.go") }
func (s source) dir() string  { return path.Dir(s.name) }

func (s source) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", s.name, s.fset.Position(p).Line)
}

// in reports whether the file lies in the folder or below it.
func (s source) in(folder string) bool { return strings.HasPrefix(s.name, folder+"/") }

func roomOf(dir string) string {
	switch {
	case dir == ".":
		return "root"
	case dir == "internal/testkit" || strings.HasPrefix(dir, "internal/testkit/"):
		return "testkit"
	}
	first, _, _ := strings.Cut(dir, "/")
	return first
}

// importLaw checks the imports of our own packages.
func importLaw(s source) (out []violation) {
	room := roomOf(s.dir())
	allowed, known := mayImport[room]
	if !known {
		return []violation{{s.name, "folder " + room + " is not a room of the house",
			"put the code into the room whose job it is, or add the room to the table here and in CONTRIBUTING.md"}}
	}
	for _, im := range s.ast.Imports {
		p, _ := strconv.Unquote(im.Path.Value)
		if p != module && !strings.HasPrefix(p, module+"/") {
			continue
		}
		to := roomOf(strings.TrimPrefix(strings.TrimPrefix(p, module), "/"))
		if p == module {
			to = "root"
		}
		if to == room {
			continue
		}
		bad := !slices.Contains(allowed, to) && !(to == "harness" && slices.Contains(mayStartTheHarness, s.name))
		if s.isTest() {
			bad = room != "harness" && room != "cmd" && slices.Contains(testsMayNotImport, to)
		}
		if bad {
			out = append(out, violation{s.at(im.Pos()), fmt.Sprintf("import law: %s may not import %s (%s)", room, to, p),
				"share a noun of the root package, or declare a small interface here and let cmd join the two"})
		}
	}
	return out
}

// cageLaw checks the imports of foreign packages.
func cageLaw(s source) (out []violation) {
	if s.dir() == peersModule {
		return nil
	}
	for _, im := range s.ast.Imports {
		p, _ := strconv.Unquote(im.Path.Value)
		first, _, _ := strings.Cut(p, "/")
		if !strings.Contains(first, ".") || p == module || strings.HasPrefix(p, module+"/") {
			continue // the standard library, or ours
		}
		i := slices.IndexFunc(cages, func(c cage) bool { return strings.HasPrefix(p, c.pkg) })
		if i < 0 {
			out = append(out, violation{s.at(im.Pos()), "no cage for " + p,
				"do without it, or argue for it in docs/decisions.md with its cost and give it a cage here"})
			continue
		}
		c := cages[i]
		if s.isTest() || slices.ContainsFunc(c.places, s.in) || slices.Contains(c.files, path.Base(s.name)) {
			continue
		}
		out = append(out, violation{s.at(im.Pos()), p + " is out of its cage",
			fmt.Sprintf("move the code to one of %v %v, or hide the package behind a function there", c.places, c.files)})
	}
	return out
}

// sizeLaw checks the length of files and functions. Tests are spared the limit
// on files and have a wider one on functions, since one promise after the other
// is read as a list.
func sizeLaw(s source) (out []violation) {
	lines := s.fset.File(s.ast.FileStart).LineCount()
	if !s.isTest() && lines > maxFileLines {
		out = append(out, violation{s.name, fmt.Sprintf("%d lines, at most %d", lines, maxFileLines),
			"split it by what it talks about, not by size"})
	}
	for _, d := range s.ast.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		most := maxFuncLines
		if s.isTest() {
			most = maxTestLines
		}
		if n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1; n > most {
			out = append(out, violation{s.at(f.Pos()), fmt.Sprintf("func %s has %d lines, at most %d", f.Name.Name, n, most),
				"name a step of it and move that step out"})
		}
	}
	return out
}

// habitLaw refuses init functions, the environment outside cmd, and sleeping
// tests. testkit and harness hold the one loop that polls with a deadline.
func habitLaw(s source) (out []violation) {
	names := map[string]string{} // local name → import path
	for _, im := range s.ast.Imports {
		p, _ := strconv.Unquote(im.Path.Value)
		name := path.Base(p)
		if im.Name != nil {
			name = im.Name.Name
		}
		names[name] = p
	}
	envFree := s.isTest() || s.in("cmd") || s.in("internal/testkit") || s.in("harness")
	// These find programs on the PATH and start them with this environment.
	starts := s.in("internal/embed") || s.in("internal/bench")
	sleeps := true
	for _, p := range names {
		// In a synctest bubble a sleep only moves the bubble's own clock.
		sleeps = sleeps && p != "testing/synctest"
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if lit, ok := firstArg(n).(*ast.BasicLit); ok && lit.Value == `"PATH"` && starts {
				return false
			}
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				out = append(out, violation{s.at(n.Pos()), "func init",
					"build the value in the constructor that needs it, or in a package-level variable"})
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok {
				break
			}
			switch what := names[x.Name] + "." + n.Sel.Name; {
			case starts && what == "os.Environ":
			case !envFree && slices.Contains([]string{"os.Getenv", "os.LookupEnv", "os.Environ"}, what):
				out = append(out, violation{s.at(n.Pos()), what + " outside cmd",
					"take the value as a field of Config; cmd reads the environment"})
			case s.isTest() && sleeps && what == "time.Sleep":
				out = append(out, violation{s.at(n.Pos()), "time.Sleep in a test",
					"wait on a channel, or poll with a deadline through internal/testkit"})
			}
		}
		return true
	})
	return out
}

func firstArg(c *ast.CallExpr) ast.Expr {
	if len(c.Args) == 0 {
		return nil
	}
	return c.Args[0]
}

// sources parses every Go file of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			if name != "." && (base == "testdata" || base == "bin" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		all = append(all, source{filepath.ToSlash(name), fset, f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 3 {
		t.Fatalf("found only %d Go files; does the test run in the module's root?", len(all))
	}
	return all
}

func TestHouse(t *testing.T) {
	t.Parallel()
	all := sources(t)
	for _, law := range []struct {
		name  string
		check func(source) []violation
	}{
		{"import_law", importLaw},
		{"foreign_packages_stay_in_their_cages", cageLaw},
		{"files_and_functions_stay_small", sizeLaw},
		{"no_init_no_environment_no_sleep", habitLaw},
	} {
		t.Run(law.name, func(t *testing.T) {
			t.Parallel()
			for _, s := range all {
				for _, v := range law.check(s) {
					t.Error(v)
				}
			}
		})
	}
}

// TestHouseLawsBite shows that each law finds what it is there to find, and
// leaves alone what is allowed.
func TestHouseLawsBite(t *testing.T) {
	t.Parallel()
	long := "package x\nfunc f() {" + strings.Repeat("\n", maxFuncLines) + "}"
	longer := "package x\nfunc f() {" + strings.Repeat("\n", maxTestLines) + "}"
	for _, c := range []struct {
		name, file, src string
		check           func(source) []violation
		broken          int
	}{
		{"coordinator imports participants", "coordinator/a.go", `package a; import _ "` + module + `/participants"`, importLaw, 1},
		{"a package below coordinator imports shards", "coordinator/payment/a.go", `package a; import _ "` + module + `/shards"`, importLaw, 1},
		{"the root imports internal", "a.go", `package a; import _ "` + module + `/internal/branch"`, importLaw, 1},
		{"product code imports testkit", "participants/a.go", `package a; import _ "` + module + `/internal/testkit"`, importLaw, 1},
		{"cmd imports harness", "cmd/holdfast/a.go", `package a; import _ "` + module + `/harness"`, importLaw, 1},
		{"the command that starts the harness imports it", "cmd/holdfast/chaos.go", `package a; import _ "` + module + `/harness/chaos"`, importLaw, 0},
		{"a test imports cmd", "shards/a_test.go", `package a; import _ "` + module + `/cmd/holdfast"`, importLaw, 1},
		{"a room nobody knows", "util/a.go", `package a`, importLaw, 1},
		{"participants imports root, shards and internal", "participants/a.go",
			`package a; import (_ "` + module + `"; _ "` + module + `/shards"; _ "` + module + `/internal/branch"; _ "fmt")`, importLaw, 0},
		{"a test imports testkit and another room", "coordinator/a_test.go",
			`package a; import (_ "` + module + `/internal/testkit"; _ "` + module + `/participants")`, importLaw, 0},

		{"redis in the coordinator", "coordinator/a.go", `package a; import _ "github.com/redis/go-redis/v9"`, cageLaw, 1},
		{"mux in another file", "coordinator/routes.go", `package a; import _ "github.com/gorilla/mux"`, cageLaw, 1},
		{"breaker outside payment", "coordinator/a.go", `package a; import _ "github.com/sony/gobreaker/v2"`, cageLaw, 1},
		{"rapid in product code", "participants/a.go", `package a; import _ "pgregory.net/rapid"`, cageLaw, 1},
		{"a package nobody agreed on", "shards/a_test.go", `package a; import _ "example.org/x"`, cageLaw, 1},
		{"a peer in the harness itself", "harness/a.go", `package a; import _ "github.com/riverqueue/river"`, cageLaw, 1},
		{"a peer in the module that measures it", peersModule + "/a.go", `package a; import _ "github.com/riverqueue/river"`, cageLaw, 0},

		{"each in its place", "scheduler/http.go",
			`package a; import (_ "github.com/redis/go-redis/v9"; _ "github.com/jackc/pgx/v5"; _ "github.com/gorilla/mux")`, cageLaw, 0},

		{"a long function", "x/a.go", long, sizeLaw, 1},
		{"a long function of a test", "x/a_test.go", long, sizeLaw, 0},
		{"a longer function of a test", "x/a_test.go", longer, sizeLaw, 1},
		{"a long file", "x/a.go", "package x" + strings.Repeat("\n", maxFileLines+1), sizeLaw, 1},
		{"a long test file", "x/a_test.go", "package x" + strings.Repeat("\n", maxFileLines+1), sizeLaw, 0},
		{"a file of the longest length", "x/a.go", "package x" + strings.Repeat("\n", maxFileLines), sizeLaw, 0},

		{"init", "shards/a.go", `package a; func init() {}`, habitLaw, 1},
		{"a method called init", "shards/a.go", `package a; type T int; func (T) init() {}`, habitLaw, 0},
		{"environment in a room", "shards/a.go", `package a; import sys "os"; var _ = sys.Getenv("X")`, habitLaw, 1},
		{"PATH where programs are started", "internal/embed/a.go", `package a; import "os"; var _ = os.Getenv("PATH")`, habitLaw, 0},
		{"another variable there", "internal/embed/a.go", `package a; import "os"; var _ = os.Getenv("X")`, habitLaw, 1},
		{"environment in cmd", "cmd/holdfast/a.go", `package a; import "os"; var _ = os.Getenv("X")`, habitLaw, 0},
		{"a test that sleeps", "shards/a_test.go", `package a; import "time"; func f() { time.Sleep(1) }`, habitLaw, 1},
		{"a test that sleeps in a bubble", "shards/a_test.go", `package a; import ("time"; "testing/synctest"); func f() { time.Sleep(1); synctest.Wait() }`, habitLaw, 0},
		{"a method called Sleep", "shards/a_test.go", `package a; func f(time T) { time.Sleep(1) }`, habitLaw, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, c.file, c.src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.check(source{c.file, fset, f}); len(got) != c.broken {
				t.Fatalf("want %d violations, got %d: %v", c.broken, len(got), got)
			}
		})
	}
}
