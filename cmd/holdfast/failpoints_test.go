package main

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// maxFailPoints keeps the list one that a person can know.
const maxFailPoints = 20

// placesOfPoints is where each point stands: file and function or variable. A
// point that moves is a new place to think about, so the move is written here.
var placesOfPoints = map[string]string{
	"try_uncommitted":           "participants/ledger_try.go tryBatch",
	"try_committed":             "participants/failpoints.go answers",
	"claim_committed":           "participants/failpoints.go answers",
	"verdict_paid_committed":    "participants/failpoints.go answers",
	"recipient_credited":        "participants/failpoints.go answers",
	"executed_committed":        "participants/failpoints.go answers",
	"verdict_refused_committed": "participants/failpoints.go answers",
	"refund_committed":          "participants/failpoints.go answers",
	"cancel_committed":          "participants/failpoints.go answers",
	"claim_answered":            "coordinator/execute.go first",
	"verdict_paid_answered":     "coordinator/execute.go settle",
	"payment_sent":              "coordinator/payment/failpoints.go sentOn",
	"payment_answered":          "coordinator/payment/failpoints.go answered",
	"zadd_before":               "scheduler/zset.go add",
	"zadd_after":                "scheduler/zset.go add",
	"zset_claimed":              "scheduler/zset.go claim",
	"sweep_moved":               "scheduler/zset.go swept",
	"partition_created":         "shards/partitions.go createSome",
	"migration_uncommitted":     "shards/migrate.go apply",
	"migration_committed":       "shards/migrate.go migrateShard",
}

// placesOfHelpers is where the functions are called that stand between a point
// and the code.
var placesOfHelpers = map[string]string{
	"participants committed":       "participants/run.go runBatch",
	"participants uncommitted":     "participants/ledger_try.go tryBatch",
	"coordinator/payment sentOn":   "coordinator/payment/conn.go Write",
	"coordinator/payment answered": "coordinator/payment/client.go try",
}

func TestFailPoints(t *testing.T) {
	t.Parallel()
	points := failPoints()
	if len(points) > maxFailPoints {
		t.Errorf("%d points, at most %d", len(points), maxFailPoints)
	}
	var names []string
	for _, p := range points {
		if !regexp.MustCompile(`^[a-z]+(_[a-z]+)+$`).MatchString(string(p)) {
			t.Errorf("%q is not words with underscores", p)
		}
		names = append(names, string(p))
	}
	slices.Sort(names)
	if want := slices.Sorted(maps.Keys(placesOfPoints)); !slices.Equal(names, want) {
		t.Errorf("the product lists\n%s, want\n%s", names, want)
	}
	used := map[string][]string{} // point's name or "folder helper" → places
	for _, folder := range []string{"participants", "coordinator", "coordinator/payment", "scheduler", "shards"} {
		findPlaces(t, folder, used)
	}
	for name, want := range placesOfPoints {
		if got := used[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s stands at %q, want only at %q", name, got, want)
		}
	}
	for name, want := range placesOfHelpers {
		if got := used[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is called at %q, want only at %q", name, got, want)
		}
	}
}

// findPlaces notes where the points and the helpers of a package are used.
func findPlaces(t *testing.T, folder string, used map[string][]string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(folder), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no files: %v", folder, err)
	}
	names := map[string]string{} // constant → point's name
	var decls []ast.Decl
	var where []string
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			decls, where = append(decls, d), append(where, folder+"/"+filepath.Base(f))
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
				constants(g, names)
			}
		}
	}
	for i, d := range decls {
		place := where[i]
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.Name == "FailPoints" {
				continue
			}
			place += " " + d.Name.Name
			d.Name = ast.NewIdent("_")
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			place += " " + d.Specs[0].(*ast.ValueSpec).Names[0].Name
		}
		ast.Inspect(d, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if fun, ok := call.Fun.(*ast.Ident); ok && placesOfHelpers[folder+" "+fun.Name] != "" {
					used[folder+" "+fun.Name] = append(used[folder+" "+fun.Name], place)
				}
			}
			if id, ok := n.(*ast.Ident); ok && names[id.Name] != "" {
				used[names[id.Name]] = append(used[names[id.Name]], place)
			}
			return true
		})
	}
}

// constants collects the constants of the type failpoint.Point.
func constants(g *ast.GenDecl, names map[string]string) {
	for _, s := range g.Specs {
		v := s.(*ast.ValueSpec)
		sel, ok := v.Type.(*ast.SelectorExpr)
		if ok && sel.Sel.Name == "Point" && len(v.Values) == 1 {
			names[v.Names[0].Name] = strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`)
		}
	}
}

func TestFailPointPlan(t *testing.T) {
	t.Parallel()
	const plan = failpoint.Variable + "=nonsense:exit"
	if failpoint.Enabled {
		r := command([]string{plan}, "serve", "--role", "payment-sim")
		if r.code != exitUsage || !strings.Contains(r.errOut, `"nonsense"`) || !strings.Contains(r.errOut, "try_committed") ||
			strings.Count(r.errOut, "\n") != 1 {
			t.Errorf("a plan that cannot be understood: exit code %d, %q", r.code, r.errOut)
		}
		return
	}
	s := newFleet(t, "redis://127.0.0.1:1").serve("payment-sim", map[string]string{failpoint.Variable: "nonsense:exit"})
	if n := strings.Count(s.log.String(), "no crash points compiled in"); n != 1 {
		t.Errorf("a binary without points says so %d times:\n%s", n, s.log.String())
	}
}

// buildWithPoints builds the binary with the points compiled in.
func buildWithPoints(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the binary")
	}
	exe := filepath.Join(t.TempDir(), "holdfast")
	cmd := exec.Command("go", "build", "-tags", "failpoints", "-buildvcs=false", "-o", exe, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build with points: %v\n%s", err, out)
	}
	return exe
}

// TestCrashAfterTry is the second row of the crash table, with a real process
// that dies between the commit of a hold and its answer.
func TestCrashAfterTry(t *testing.T) {
	t.Parallel()
	exe := buildWithPoints(t)
	f := newFleet(t, testkit.Redis(t))
	dsns := testkit.Databases(t, 1)
	sim := f.serve("payment-sim", nil)
	p := f.serveWith(exe, "participant", map[string]string{"HOLDFAST_SHARDS": strings.Join(dsns, ","),
		failpoint.Variable: "try_committed:exit"})
	c := f.serve("coordinator", map[string]string{"HOLDFAST_SHARD_COUNT": "1", "HOLDFAST_PAYMENT_URL": apiclient.BaseURL(sim.Sim),
		"HOLDFAST_PARTICIPANTS": apiclient.BaseURL(p.Branch)})
	s := &split{fleet: f, sim: sim, coords: [2]*server{c, c}}
	users := s.fund(2)
	client := f.client(c)
	want := apiclient.CreateHold{Sender: users[0], Recipient: users[1], Amount: 7, UnlockInSeconds: 3600, Key: "crash"}

	if h, err := client.Create(context.Background(), want); err == nil {
		t.Fatalf("a hold is answered by a participant that died: %+v", h)
	}
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != failpoint.ExitCode ||
		!strings.Contains(p.log.String(), "failpoint struck try_committed exit\n") {
		t.Fatalf("the participant ended with %d:\n%s", code, p.log.String())
	}
	delete(p.set, failpoint.Variable)
	p.startAgain()
	var got holdfast.Hold
	testkit.Eventually(t, upPatience, func() (bool, string) {
		h, err := client.Create(context.Background(), want)
		got = h
		return err == nil, fmt.Sprintf("the key is not answered: %v", err)
	})
	if got.Status != holdfast.Pending || got.Amount != want.Amount {
		t.Errorf("the key is answered with %+v", got)
	}
	account, err := client.Account(context.Background(), users[0])
	if err != nil || account.Held != 7 || account.Available != 993 {
		t.Errorf("the sender is debited other than once: %+v, %v", account, err)
	}
	s.whole(client)
}
