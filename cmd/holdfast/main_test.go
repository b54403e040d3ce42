package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/spf13/cobra"
)

// result is what one command line did.
type result struct {
	code        int
	out, errOut string
}

// command runs a command line with an environment of its own.
func command(environ []string, args ...string) result {
	var out, errOut strings.Builder
	code := realMain(context.Background(), args, environ, strings.NewReader(""), &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

func TestUsageErrorsExitWith2AndOneReason(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"nonsense":                               "unknown command",
		"hold nonsense":                          "no command",
		"hold get":                               "wants HOLD_ID",
		"hold get a b":                           "wants HOLD_ID",
		"hold create --from a":                   "required flag",
		"hold create --from a --to b --amount 1": "exactly one of --in and --at",
		"hold create --from a --to b --amount 1 --in 5":    "not a duration",
		"hold create --from a --to b --amount 1 --in 1.5s": "whole seconds",
		"hold create --from a --to b --amount 1 --in -3s":  "not a duration",
		"hold create --from a --to b --amount 1 --at soon": "not a time",
		"hold create --from a --to b --amount x --in 5s":   "invalid argument",
		"hold list":              "required flag",
		"hold watch x --every 1": "not a duration",
		"account deposit x":      "required flag",
		"dlq retry x":            "required flag",
		"dlq resolve x --reason r --outcome maybe --evidence e": "paid or not_paid",
		"token mint --ttl 2h":                  "not between",
		"token mint --sub a --service b":       "not both",
		"token mint --sub nobody":              "sub",
		"token mint --scopes fly":              "unknown scope",
		"serve":                                "--role is missing",
		"serve --role king":                    "no role",
		"serve --role participant":             "HOLDFAST_SHARDS is not set",
		"serve --role coordinator":             "HOLDFAST_PARTICIPANTS is not set",
		"serve --role coordinator --horizon 1": "--horizon",
		"up --horizon never":                   "--horizon",
		"up extra":                             "no argument",
		"up --shards postgres://h/d":           "HOLDFAST_REDIS_URL is not set",
		"up --fresh --shards postgres://h/d":   "does not touch",
		"version -o yaml":                      "table or json",
		"version --nonsense":                   "unknown flag",
		"bench --scenario party":               "no scenario",
		"bench --duration 30":                  "not a duration",
		"bench --delay 10s..1s":                "delay",
		"bench --dir x":                        "--embedded",
		"migrate up":                           "HOLDFAST_SHARDS is not set",
	} {
		data := t.TempDir()
		environ := []string{"HOLDFAST_DATA=" + data, "HOLDFAST_JWT_SECRET=" + strings.Repeat("s", 32), "HOLDFAST_API_ADDR=127.0.0.1:0",
			"HOLDFAST_ADMIN_ADDR=127.0.0.1:0", "HOLDFAST_SIM_ADDR=127.0.0.1:0"}
		r := command(environ, strings.Fields(line)...)
		if r.code != exitUsage || !strings.Contains(r.errOut, want) {
			t.Errorf("%q: exit %d, says %q; want 2 and %q", line, r.code, r.errOut, want)
		}
		if r.out != "" {
			t.Errorf("%q printed %q", line, r.out)
		}
	}
}

func TestWrongSettingStopsEveryCommandWithOneLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"up"}, {"serve", "--role", "payment-sim"}, {"payment-sim"}, {"account", "get", "x"}, {"token", "mint"}} {
		r := command([]string{"HOLDFAST_HORIZONT=5m"}, args...)
		if r.code != exitUsage || strings.Count(r.errOut, "\n") != 1 || !strings.Contains(r.errOut, "HOLDFAST_HORIZONT") {
			t.Errorf("%v: exit %d, says %q", args, r.code, r.errOut)
		}
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	t.Parallel()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s has no example or no description", c.CommandPath())
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if r := command(nil, args...); r.code != exitOK || !strings.Contains(r.out, "Examples:") {
			t.Errorf("%v: exit %d, prints %q", args, r.code, r.out)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

func TestServeHelpListsEverySettingWithItsDefault(t *testing.T) {
	t.Parallel()
	r := command(nil, "serve", "--help")
	for _, want := range []string{"HOLDFAST_API_ADDR", "127.0.0.1:8080", "HOLDFAST_HORIZON", `"5m"`, "HOLDFAST_PAYMENT_REFUSALS", "recipient_banned",
		"HOLDFAST_BREAKER_ERROR_RATIO", "0.10", "HOLDFAST_BRANCH_ADDR", "127.0.0.1:8083", "HOLDFAST_CURRENCIES", "RBX:0"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("the help lacks %s", want)
		}
	}
}

func TestTokenMintPrintsOnlyAValidToken(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("k", 40)
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, secretFile), []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	verifier, err := auth.NewHS256([]byte(secret), "holdfast", "holdfast", 0)
	if err != nil {
		t.Fatal(err)
	}
	const user = "7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11"
	for _, c := range []struct {
		environ []string
		args    []string
		service bool
		scopes  int
	}{
		{[]string{"HOLDFAST_DATA=" + data}, nil, true, len(auth.AllScopes())},
		{[]string{"HOLDFAST_JWT_SECRET=" + secret}, []string{"--service", "billing", "--ttl", "5m"}, true, len(auth.AllScopes())},
		{nil, []string{"--data", data, "--sub", user, "--scopes", "holds:create,holds:read"}, false, 2},
	} {
		r := command(c.environ, append([]string{"token", "mint"}, c.args...)...)
		if r.code != exitOK || r.errOut != "" || strings.Count(r.out, "\n") != 1 {
			t.Fatalf("%v: exit %d, prints %q and %q", c.args, r.code, r.out, r.errOut)
		}
		who, err := verifier.Verify(strings.TrimSpace(r.out))
		if err != nil {
			t.Fatalf("%v: the token is refused: %v", c.args, err)
		}
		if who.Service != c.service || len(who.Scopes) != c.scopes || (!c.service && who.User.String() != user) {
			t.Errorf("%v: the token is for %+v", c.args, who)
		}
	}
}

func TestTokenMintWithoutSecretSaysWhatToDo(t *testing.T) {
	t.Parallel()
	r := command([]string{"HOLDFAST_DATA=" + t.TempDir()}, "token", "mint")
	if r.code != exitError || !strings.Contains(r.errOut, "HOLDFAST_JWT_SECRET") || r.out != "" {
		t.Errorf("exit %d, says %q", r.code, r.errOut)
	}
}

// fakeAPI answers every request with one status and document, and remembers
// the requests.
func fakeAPI(t *testing.T, status int, document string) (environ []string, requests *[]string) {
	t.Helper()
	requests = new([]string)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*requests = append(*requests, r.Method+" "+r.URL.RequestURI())
		w.WriteHeader(status)
		w.Write([]byte(document))
	}))
	t.Cleanup(s.Close)
	addr := strings.TrimPrefix(s.URL, "http://")
	return []string{"HOLDFAST_API_ADDR=" + addr, "HOLDFAST_ADMIN_ADDR=" + addr, "HOLDFAST_TOKEN=t"}, requests
}

func TestExitCodesOfAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status   int
		document string
		args     []string
		want     int
	}{
		{200, `{"hold_id":"01990000-0000-8123-8000-000000000001","status":"PENDING"}`, []string{"hold", "get", "x"}, exitOK},
		{404, `{"code":"hold_not_found"}`, []string{"hold", "get", "x"}, exitNotFound},
		{409, `{"code":"hold_matured"}`, []string{"hold", "cancel", "x"}, exitError},
		{503, `{"code":"overloaded"}`, []string{"account", "get", "x"}, exitError},
		{200, `{"ok":true,"shards":[]}`, []string{"ledger", "prove"}, exitOK},
		{200, `{"ok":false,"shards":[]}`, []string{"ledger", "prove"}, exitCheck},
		{200, `{"ok":false,"shards":[]}`, []string{"ledger", "prove", "-o", "json"}, exitCheck},
		{404, `{"code":"dead_letter_not_found"}`, []string{"dlq", "close", "x", "--reason", "r"}, exitNotFound},
		{200, `{`, []string{"hold", "get", "x"}, exitError},
	} {
		environ, _ := fakeAPI(t, c.status, c.document)
		if r := command(environ, c.args...); r.code != c.want {
			t.Errorf("%v answered %d %s: exit %d, want %d (%s)", c.args, c.status, c.document, r.code, c.want, r.errOut)
		}
	}
}

func TestCommandsAskTheRightQuestion(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"hold get abc":    "GET /v1/holds/abc",
		"hold get a/../b": "GET /v1/holds/a%2F..%2Fb",
		"hold cancel abc": "DELETE /v1/holds/abc",
		"hold list --from u --status PENDING --key k&x": "GET /v1/holds?idempotency_key=k%26x&page_size=50&sender_id=u&status=PENDING",
		"account open u":                                       "PUT /v1/accounts/u",
		"account entries u":                                    "GET /v1/accounts/u/entries?page_size=50",
		"dlq list --code late_success":                         "GET /admin/v1/dead-letters?code=late_success&open=true&page_size=50",
		"dlq refund h --reason r":                              "POST /admin/v1/dead-letters/h:refund",
		"dlq resolve h --reason r --outcome paid --evidence e": "POST /admin/v1/dead-letters/h:resolve",
		"shard list":                                           "GET /admin/v1/shards",
		"ledger prove":                                         "GET /admin/v1/ledger/proof",
	} {
		environ, requests := fakeAPI(t, 200, `{"ok":true}`)
		r := command(environ, strings.Fields(line)...)
		if r.code != exitOK || len(*requests) != 1 || (*requests)[0] != want {
			t.Errorf("%q: exit %d, asked %q, want %q (%s)", line, r.code, *requests, want, r.errOut)
		}
	}
}

func TestJSONOutputIsTheAnswerAsItCame(t *testing.T) {
	t.Parallel()
	environ, _ := fakeAPI(t, 200, `{"hold_id":"01990000-0000-8123-8000-000000000001","status":"PENDING","news":7}`)
	r := command(environ, "hold", "get", "x", "-o", "json")
	var doc map[string]any
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || doc["news"] != 7.0 {
		t.Errorf("printed %q, %v", r.out, err)
	}
}

func TestRunFileOfALiveProcessNamesTheAddresses(t *testing.T) {
	t.Parallel()
	environ, requests := fakeAPI(t, 200, `{"status":"open"}`)
	addr := strings.TrimPrefix(environ[0], "HOLDFAST_API_ADDR=")
	data := t.TempDir()
	alive := runFile{PID: os.Getpid(), API: addr, Admin: addr, StartedAt: time.Now()}
	if err := alive.write(data); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(data, runFileName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the run file can be read by others: %v, %v", info.Mode(), err)
	}
	own := []string{"HOLDFAST_DATA=" + data, "HOLDFAST_TOKEN=t"}
	if r := command(own, "account", "get", "u"); r.code != exitOK || len(*requests) != 1 {
		t.Errorf("exit %d, %d requests: %s", r.code, len(*requests), r.errOut)
	}
	if r := command(append(own, "HOLDFAST_API_ADDR=127.0.0.1:1"), "account", "get", "u"); r.code != exitError || len(*requests) != 1 {
		t.Errorf("a setting does not win over the run file: exit %d", r.code)
	}
	dead := alive
	dead.PID = 1 << 30
	if err := dead.write(data); err != nil {
		t.Fatal(err)
	}
	if _, ok := readRunFile(data); ok {
		t.Error("the run file of a dead process counts")
	}
}

func TestPortInUseIsNamedWithItsSetting(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	r := command([]string{"HOLDFAST_DATA=" + t.TempDir()}, "up", "--api-addr", addr, "--admin-addr", "127.0.0.1:0", "--sim-addr", "127.0.0.1:0")
	want := "holdfast: address " + addr + " is in use: stop the other process or set HOLDFAST_API_ADDR\n"
	if r.code != exitError || r.errOut != want {
		t.Errorf("exit %d, says %q, want %q", r.code, r.errOut, want)
	}
}

func TestFreshSparesForeignDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	precious := filepath.Join(dir, "thesis.tex")
	if err := os.WriteFile(precious, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := command([]string{"HOLDFAST_DATA=" + dir}, "up", "--fresh")
	if r.code != exitError || !strings.Contains(r.errOut, "does not look like") {
		t.Errorf("exit %d, says %q", r.code, r.errOut)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("--fresh deleted what was not ours: %v", err)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	if r := command(nil, "version"); r.code != exitOK || !strings.HasPrefix(r.out, "holdfast ") {
		t.Errorf("exit %d, prints %q", r.code, r.out)
	}
}
