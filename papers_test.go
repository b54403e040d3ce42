package holdfast_test

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast/internal/failpoint"
	"github.com/holdfast-escrow/holdfast/internal/settings"
)

// These tests keep the papers true where no Docker and no Prometheus runs:
// compose file, alert rules, README and docs may only name what exists.

// line is one "key: value" or "- value" of a YAML file with the path of keys
// that leads to it.
type line struct {
	path  string // services/coordinator/command
	value string
	n     int
}

var keyPattern = regexp.MustCompile(`^([A-Za-z0-9_.<-]+):(?:\s+(.*))?$`)

// readYAML reads the block style that our own files are written in: maps by
// indentation, lists of "- ", flow values on one line, anchors, whole-line
// comments. It refuses what it does not understand; a YAML library only for
// this check would be one more dependency.
func readYAML(name string, src []byte) ([]line, error) {
	type level struct {
		indent int
		path   string
		keys   map[string]bool
	}
	var out []line
	anchors := map[string]bool{}
	open := []level{{0, "", map[string]bool{}}}
	canNest := false
	sc := bufio.NewScanner(bytes.NewReader(src))
	for n := 1; sc.Scan(); n++ {
		fail := func(format string, a ...any) ([]line, error) {
			return nil, fmt.Errorf("%s:%d: %s", name, n, fmt.Sprintf(format, a...))
		}
		text := strings.TrimRight(sc.Text(), " ")
		body := strings.TrimLeft(text, " ")
		if body == "" || body[0] == '#' {
			continue
		}
		if strings.Contains(text, "\t") {
			return fail("a tab; indent with spaces")
		}
		indent := len(text) - len(body)
		item := strings.HasPrefix(body, "- ")
		if item {
			body = strings.TrimLeft(body[2:], " ")
		}
		top := &open[len(open)-1]
		switch {
		case indent > top.indent && canNest:
			open = append(open, level{indent, out[len(out)-1].path, map[string]bool{}})
		case indent > top.indent:
			return fail("indented below a line that has a value")
		}
		for indent < open[len(open)-1].indent {
			open = open[:len(open)-1]
		}
		if top = &open[len(open)-1]; top.indent != indent {
			return fail("indented by %d, which fits no line above", indent)
		}
		m := keyPattern.FindStringSubmatch(body)
		if m == nil {
			if !item {
				return fail("neither a key nor a list item: %s", body)
			}
			m = []string{"", "", body}
		}
		if item {
			top.keys = map[string]bool{} // every item has keys of its own
		}
		if m[1] != "" && top.keys[m[1]] {
			return fail("%s stands twice", m[1])
		}
		top.keys[m[1]] = true
		value, err := flowValue(m[2], anchors)
		if err != nil {
			return fail("%v", err)
		}
		path := strings.Trim(top.path+"/"+m[1], "/")
		out = append(out, line{path, value, n})
		canNest = m[1] != "" && (m[2] == "" || strings.HasPrefix(m[2], "&"))
		if item && m[1] != "" {
			// The other keys of this item stand below its first key.
			open = append(open, level{indent + 2, top.path, map[string]bool{m[1]: true}})
		}
	}
	return out, sc.Err()
}

// flowValue checks quotes, brackets and anchors of a one-line value and returns
// it without its outer quotes.
func flowValue(v string, anchors map[string]bool) (string, error) {
	if name, ok := strings.CutPrefix(v, "&"); ok {
		anchors[name] = true
		return "", nil
	}
	if name, ok := strings.CutPrefix(v, "*"); ok && !anchors[name] {
		return "", fmt.Errorf("anchor %s is not defined above", name)
	}
	var closing []byte
	quote := byte(0)
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '[':
			closing = append(closing, ']')
		case c == '{':
			closing = append(closing, '}')
		case c == ']' || c == '}':
			if len(closing) == 0 || closing[len(closing)-1] != c {
				return "", fmt.Errorf("unmatched %q", c)
			}
			closing = closing[:len(closing)-1]
		}
	}
	if quote != 0 || len(closing) > 0 {
		return "", fmt.Errorf("quotes or brackets are not closed: %s", v)
	}
	if s, err := strconv.Unquote(v); err == nil {
		return s, nil
	}
	return v, nil
}

func mustReadYAML(t *testing.T, name string) []line {
	t.Helper()
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := readYAML(name, src)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestComposeFile(t *testing.T) {
	t.Parallel()
	const name = "deploy/compose.yaml"
	lines := mustReadYAML(t, name)
	services, volumes := map[string]bool{}, map[string]bool{}
	var environ []string
	for _, l := range lines {
		switch p := strings.Split(l.path, "/"); {
		case p[0] == "services" && len(p) == 2:
			services[p[1]] = true
		case p[0] == "volumes" && len(p) == 2:
			volumes[p[1]] = true
		case strings.HasPrefix(p[len(p)-1], "HOLDFAST_"):
			// ${NAME:-default} stands for its default here.
			environ = append(environ, p[len(p)-1]+"="+regexp.MustCompile(`\$\{\w+:-([^}]*)\}`).ReplaceAllString(l.value, "$1"))
		}
	}
	for _, want := range []string{"shard0", "shard1", "shard2", "shard3", "redis", "coordinator", "participant", "scheduler", "payment-sim"} {
		if !services[want] {
			t.Errorf("%s has no service %s", name, want)
		}
	}
	cfg, err := settings.Load(environ, nil)
	if err != nil {
		t.Errorf("%s: the settings: %v", name, err)
	} else if len(cfg.Shards) != 4 || cfg.ShardCount != 4 {
		t.Errorf("%s: want 4 shards, got %d in HOLDFAST_SHARDS and HOLDFAST_SHARD_COUNT=%d", name, len(cfg.Shards), cfg.ShardCount)
	}
	host := regexp.MustCompile(`(?:http|redis)://([a-z0-9-]+):|@([a-z0-9-]+):\d`)
	for _, l := range lines {
		p := strings.Split(l.path, "/")
		for _, m := range host.FindAllStringSubmatch(l.value, -1) {
			if h := m[1] + m[2]; !services[h] && h != "holdfast" { // postgres://holdfast: is a user
				t.Errorf("%s:%d: no service %s", name, l.n, h)
			}
		}
		if len(p) == 4 && p[2] == "depends_on" && !services[p[3]] {
			t.Errorf("%s:%d: %s depends on %s, which is no service", name, l.n, p[1], p[3])
		}
		if len(p) == 3 && p[0] == "services" && p[2] == "volumes" {
			if v, _, _ := strings.Cut(strings.Trim(l.value, `["`), ":"); !volumes[v] {
				t.Errorf("%s:%d: volume %s is not declared", name, l.n, v)
			}
		}
		if m := regexp.MustCompile(`"--role", "([^"]*)"`).FindStringSubmatch(l.value); m != nil {
			for _, role := range strings.Split(m[1], ",") {
				if !slices.Contains([]string{"coordinator", "participant", "scheduler", "payment-sim"}, role) {
					t.Errorf("%s:%d: there is no role %s", name, l.n, role)
				}
			}
		}
	}
}

// TestComposeFileByDocker asks Docker itself where its compose plugin is there;
// no daemon is needed.
func TestComposeFileByDocker(t *testing.T) {
	t.Parallel()
	if exec.Command("docker", "compose", "version").Run() != nil {
		t.Skip("no docker compose here; TestComposeFile has checked syntax and names")
	}
	out, err := exec.Command("docker", "compose", "-f", "deploy/compose.yaml", "config", "--quiet").CombinedOutput()
	if err != nil {
		t.Fatalf("docker compose config: %v\n%s", err, out)
	}
}

func TestYAMLReaderRefuses(t *testing.T) {
	t.Parallel()
	for name, src := range map[string]string{
		"a tab":                   "a:\n\tb: 1\n",
		"a key twice":             "a: 1\na: 2\n",
		"a wrong indentation":     "a:\n    b: 1\n  c: 2\n",
		"a child of a value":      "a: 1\n  b: 2\n",
		"an open quote":           "a: \"x\n",
		"an open bracket":         "a: [1, 2\n",
		"an unknown anchor":       "a: *b\n",
		"neither key nor item":    "a:\n  what is this\n",
		"a key twice in one item": "a:\n  - b: 1\n    b: 2\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := readYAML("x", []byte(src)); err == nil {
				t.Fatalf("accepted as %v", got)
			}
		})
	}
}

// strings of the product that look like metric names: "holdfast_…".
func metricNames(t *testing.T) map[string]bool {
	names := map[string]bool{}
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if v, err := strconv.Unquote(lit.Value); err == nil && strings.HasPrefix(v, "holdfast_") {
					names[v] = true
				}
			}
			return true
		})
	}
	return names
}

func TestAlertRules(t *testing.T) {
	t.Parallel()
	const name = "deploy/prometheus/alerts.yaml"
	runbook, err := os.ReadFile("docs/operations/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	known := metricNames(t)
	metric := regexp.MustCompile(`holdfast_[a-z_]+`)
	alert, watched := "", map[string]bool{}
	for _, l := range mustReadYAML(t, name) {
		switch {
		case strings.HasSuffix(l.path, "/alert"):
			alert = l.value
			if !bytes.Contains(runbook, []byte("\n## "+l.value+"\n")) {
				t.Errorf("%s:%d: the runbook has no section %s", name, l.n, l.value)
			}
		case strings.HasSuffix(l.path, "/expr"):
			for _, m := range metric.FindAllString(l.value, -1) {
				if m = strings.TrimSuffix(m, "_bucket"); !known[m] {
					t.Errorf("%s:%d: no metric %s in the code", name, l.n, m)
				}
				watched[m] = true
			}
		case strings.HasSuffix(l.path, "/runbook"):
			if want := "docs/operations/runbook.md#" + strings.ToLower(alert); l.value != want {
				t.Errorf("%s:%d: %s is not the section of its alert, %s", name, l.n, l.value, want)
			}
		}
	}
	// These stand still, or stop a shard, while everything else looks well.
	for _, m := range []string{"holdfast_ledger_imbalance", "holdfast_ledger_proved_at_seconds", "holdfast_oldest_overdue_pending_seconds", "holdfast_scheduler_looked_at_seconds",
		"holdfast_oldest_executing_seconds", "holdfast_oldest_unrefunded_seconds",
		"holdfast_scheduler_clock_disagreement_seconds", "holdfast_shard_partitions_ahead_days"} {
		if !watched[m] {
			t.Errorf("%s: no rule names %s", name, m)
		}
	}
}

// TestPapersNameWhatExists: settings, make targets and links of the papers.
func TestPapersNameWhatExists(t *testing.T) {
	t.Parallel()
	var papers []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "deploy/*", "Makefile"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		papers = append(papers, found...)
	}
	// Two are read only by a binary built for failure injection.
	known := map[string]bool{failpoint.Variable: true, "HOLDFAST_CLOCK_OFFSET": true}
	for _, s := range settings.Table() {
		known[s.Name] = true
	}
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`HOLDFAST_[A-Z_]+[A-Z]`)
	target := regexp.MustCompile("(?m)(?:`|^)make ([a-z]+)")
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, paper := range papers {
		src, err := os.ReadFile(paper)
		if err != nil {
			continue // a folder
		}
		for _, name := range setting.FindAllString(string(src), -1) {
			if !known[name] {
				t.Errorf("%s names the setting %s, which internal/settings does not have", paper, name)
			}
		}
		if filepath.Ext(paper) != ".md" {
			continue
		}
		for _, m := range target.FindAllStringSubmatch(string(src), -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
				t.Errorf("%s says make %s, which the Makefile does not have", paper, m[1])
			}
		}
		for _, m := range link.FindAllStringSubmatch(string(src), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(paper), m[1])); err != nil {
				t.Errorf("%s links to %s, which does not exist", paper, m[1])
			}
		}
	}
}

// settingRow is the line of docs/settings.md for one setting.
func settingRow(s settings.Setting) string {
	def := "–"
	if s.Default != "" {
		def = "`" + s.Default + "`"
	}
	flag := "`--" + s.Flag() + "`"
	if s.ClientOnly {
		flag = "–"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s |", s.Name, flag, def, s.Help)
}

func TestEverySettingIsInItsPaper(t *testing.T) {
	t.Parallel()
	const name = "docs/settings.md"
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(string(src), "\n")
	for _, s := range settings.Table() {
		if row := settingRow(s); !slices.Contains(rows, row) {
			t.Errorf("%s lacks this line:\n%s", name, row)
		}
	}
}
