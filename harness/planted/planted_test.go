//go:build planted

package planted

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

const root = "../.."

// leastBugs is how many the list must have.
const leastBugs = 19

func TestEveryEditApplies(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, b := range All() {
		if names[b.Name] || !regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)+$`).MatchString(b.Name) || b.About == "" || b.Catches == "" || len(b.Edits) == 0 {
			t.Errorf("%q is named twice, badly, or says too little", b.Name)
		}
		names[b.Name] = true
		if _, err := b.Files(root); err != nil {
			t.Error(err)
		}
	}
	if len(names) < leastBugs {
		t.Errorf("%d bugs, at least %d", len(names), leastBugs)
	}
}

// TestRottenEdit: an edit whose place is gone, or there twice, builds nothing.
func TestRottenEdit(t *testing.T) {
	t.Parallel()
	for name, old := range map[string]string{"gone": "this text is nowhere", "twice": "error"} {
		out := filepath.Join(t.TempDir(), "holdfast")
		err := Build(t.Context(), root, Bug{Name: name, Edits: []Edit{{"holdfast.go", old, ""}}}, out)
		if err == nil {
			t.Errorf("an edit whose text is %s is built", name)
		}
	}
}

// building bounds how many compilers and stacks run at once.
var building = make(chan struct{}, 2)

// TestEveryBugCompilesAndRuns: a bug that is seen at once, or never starts, tests
// nothing. Each binary must open accounts, reserve and pay.
func TestEveryBugCompilesAndRuns(t *testing.T) {
	t.Parallel()
	for _, b := range All() {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			building <- struct{}{}
			defer func() { <-building }()
			out := filepath.Join(t.TempDir(), "holdfast")
			if err := Build(t.Context(), root, b, out); err != nil {
				t.Fatal(err)
			}
			embedded(t, b, out)
			dsns := testkit.EmptyDatabases(t, 2)
			u := start(t, out, map[string]string{"HOLDFAST_SHARDS": strings.Join(dsns, ","), "HOLDFAST_REDIS_URL": testkit.Redis(t)})
			u.pays()
		})
	}
}

// embedded checks that a changed migration is the one in the binary: nothing in
// the documentation of the go command says that an overlay reaches those.
func embedded(t *testing.T, b Bug, exe string) {
	t.Helper()
	binary, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	files, err := b.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if strings.HasSuffix(name, ".sql") && !bytes.Contains(binary, []byte(text)) {
			t.Errorf("the binary has not the changed %s", name)
		}
	}
}

// running is one mutated binary that plays all roles.
type running struct {
	t      *testing.T
	client *apiclient.Client
	text   bytes.Buffer // to be read when it has ended
}

const patience = time.Minute

func start(t *testing.T, exe string, set map[string]string) *running {
	t.Helper()
	u := &running{t: t}
	data := filepath.Join(t.TempDir(), "data")
	secret := strings.Repeat("j", 32)
	env := []string{"PATH=" + os.Getenv("PATH"), "HOLDFAST_DATA=" + data, "HOLDFAST_JWT_SECRET=" + secret,
		"HOLDFAST_API_ADDR=127.0.0.1:0", "HOLDFAST_ADMIN_ADDR=127.0.0.1:0", "HOLDFAST_SIM_ADDR=127.0.0.1:0"}
	for k, v := range set {
		env = append(env, k+"="+v)
	}
	mint := exec.Command(exe, "token", "mint")
	mint.Env = env
	token, err := mint.Output()
	if err != nil {
		t.Fatalf("no token: %v", err)
	}
	cmd := exec.Command(exe, "up")
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &u.text, &u.text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(data, "holdfast.log"))
			t.Logf("it said:\n%s\n%s", u.text.String(), log)
		}
	})
	var at struct{ API, Admin string }
	testkit.Eventually(t, patience, func() (bool, string) {
		select {
		case <-done:
			t.Fatal("it does not start")
		default:
		}
		raw, err := os.ReadFile(filepath.Join(data, "run.json"))
		return err == nil && json.Unmarshal(raw, &at) == nil && at.API != "", "it does not listen"
	})
	u.client = &apiclient.Client{API: apiclient.BaseURL(at.API), Admin: apiclient.BaseURL(at.Admin), Token: strings.TrimSpace(string(token))}
	return u
}

// pays moves coins between users of both shards, one way and the other.
func (u *running) pays() {
	u.t.Helper()
	ctx := u.t.Context()
	var users []string
	for range 6 {
		var id holdfast.UserID
		_, _ = rand.Read(id[:])
		users = append(users, id.String())
		if _, err := u.client.OpenAccount(ctx, id.String()); err != nil {
			u.t.Fatal(err)
		}
		if _, err := u.client.Deposit(ctx, id.String(), apiclient.Cash{Amount: 100, Key: "first"}); err != nil {
			u.t.Fatal(err)
		}
	}
	var ids []string
	for i, from := range users {
		h, err := u.client.Create(ctx, apiclient.CreateHold{Sender: from, Recipient: users[(i+1)%len(users)], Amount: 10, UnlockInSeconds: 1, Key: "pay"})
		if err != nil {
			u.t.Fatal(err)
		}
		ids = append(ids, h.ID.String())
	}
	for _, id := range ids {
		testkit.Eventually(u.t, patience, func() (bool, string) {
			got, err := u.client.Hold(ctx, id)
			return err == nil && got.Status == holdfast.Executed, fmt.Sprintf("%+v, %v", got, err)
		})
	}
}

func TestMain(m *testing.M) { testkit.Main(m) }
