package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// The test binary plays holdfast itself when this variable is set, so that a
// real process can be killed without building anything. It has no HOLDFAST_
// prefix because an unknown setting would stop the start.
const playMain = "TEST_PLAYS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(playMain) != "" {
		main()
	}
	testkit.Main(m)
}

// upProcess is a real `holdfast up` on a directory.
type upProcess struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
	run  runFile
}

const upPatience = 2 * time.Minute

func startUp(t *testing.T, dir string, args ...string) *upProcess {
	t.Helper()
	p := &upProcess{t: t, dir: dir, done: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], append([]string{"up", "--data", dir, "--api-addr", "127.0.0.1:0",
		"--admin-addr", "127.0.0.1:0", "--sim-addr", "127.0.0.1:0"}, args...)...)
	p.cmd.Env = append(os.Environ(), playMain+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = childAttributes()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	t.Cleanup(p.kill)
	p.until("it is ready", func() bool {
		run, ok := readRunFile(dir)
		p.run = run
		return ok && run.PID == p.cmd.Process.Pid && ready(context.Background(), run.Admin)
	})
	return p
}

// until polls a condition while the process lives.
func (p *upProcess) until(what string, cond func() bool) {
	p.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(upPatience)
	for !cond() {
		select {
		case <-tick.C:
		case <-p.done:
			p.t.Fatalf("the process ended before %s:\n%s", what, p.out.String())
		case <-deadline:
			p.t.Fatalf("gave up waiting until %s:\n%s", what, p.tail())
		}
	}
}

func (p *upProcess) tail() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "holdfast.log"))
	return string(b[max(0, len(b)-4000):])
}

func (p *upProcess) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// stop asks it to end and returns its exit code.
func (p *upProcess) stop() int {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-p.done:
	case <-time.After(upPatience):
		p.t.Fatalf("it does not stop:\n%s", p.tail())
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *upProcess) client() *apiclient.Client {
	return &apiclient.Client{API: apiclient.BaseURL(p.run.API), Admin: apiclient.BaseURL(p.run.Admin), Token: p.token()}
}

func (p *upProcess) token() string {
	r := command([]string{"HOLDFAST_DATA=" + p.dir}, "token", "mint")
	if r.code != exitOK {
		p.t.Fatalf("no token: %s", r.errOut)
	}
	return strings.TrimSpace(r.out)
}

func dataDir(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real servers")
	}
	dir, err := os.MkdirTemp("", "holdfast-up-")
	if err != nil {
		t.Fatal(err)
	}
	// The servers may run as another user than root.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	t.Cleanup(func() {
		if err := embed.Remove(data); err != nil && !errors.Is(err, embed.ErrInUse) {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return data
}

// TestUpSurvivesKill follows the printed tour, kills the process in the middle
// of it and finds everything after the next start.
func TestUpSurvivesKill(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := startUp(t, dataDir(t))
	hold := p.tour()
	p.kill()

	p = startUp(t, p.dir)
	var h holdfast.Hold
	p.until("the hold is executed", func() bool {
		var err error
		h, err = p.client().Hold(ctx, hold)
		if err != nil {
			t.Fatalf("the hold is gone after kill -9: %v", err)
		}
		return h.Status == holdfast.Executed
	})
	acc, err := p.client().Account(ctx, h.Recipient.String())
	if err != nil || acc.Available != 100 {
		t.Errorf("the recipient has %d, %v; want 100", acc.Available, err)
	}
	environ := []string{"HOLDFAST_DATA=" + p.dir}
	if r := command(environ, "ledger", "prove"); r.code != exitOK {
		t.Errorf("the ledger is not whole: exit %d\n%s%s", r.code, r.out, r.errOut)
	}
	p.secondStartIsRefused()
	if code := p.stop(); code != exitOK {
		t.Errorf("a clean stop exits with %d:\n%s", code, p.out.String())
	}
	if _, err := os.Stat(filepath.Join(p.dir, runFileName)); err == nil {
		t.Error("the run file is still there after a clean stop")
	}
}

var curlPattern = regexp.MustCompile(`(?m)^curl .*$`)

// tour does what the three printed lines do and returns the hold's id.
func (p *upProcess) tour() string {
	p.t.Helper()
	p.until("the tour is printed", func() bool { return strings.Contains(p.out.String(), "Ctrl-C stops") })
	text := p.out.String()
	token := regexp.MustCompile(`(?m)^export TOKEN=(\S+)$`).FindStringSubmatch(text)
	lines := curlPattern.FindAllString(text, -1)
	if token == nil || len(lines) != 3 {
		p.t.Fatalf("no token or not three curl lines:\n%s", text)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		return p.tourByHand(lines)
	}
	answer := ""
	for _, line := range lines {
		cmd := exec.Command("sh", "-c", line)
		cmd.Env = append(os.Environ(), "TOKEN="+token[1])
		out, err := cmd.CombinedOutput()
		if answer = string(out); err != nil || strings.Contains(answer, `"code"`) {
			p.t.Fatalf("%s\nanswered %s, %v", line, answer, err)
		}
	}
	m := regexp.MustCompile(`"hold_id":\s*"([^"]+)"`).FindStringSubmatch(answer)
	if m == nil {
		p.t.Fatalf("the last line answered %s", answer)
	}
	return m[1]
}

// tourByHand stands in for curl where there is none.
func (p *upProcess) tourByHand(lines []string) string {
	p.t.Helper()
	users := regexp.MustCompile(`\{([^,}]+),([^}]+)\}`).FindStringSubmatch(lines[0])
	if users == nil {
		p.t.Fatalf("no two users in %s", lines[0])
	}
	ctx, c := context.Background(), p.client()
	for _, u := range users[1:] {
		if _, err := c.OpenAccount(ctx, u); err != nil {
			p.t.Fatal(err)
		}
	}
	if _, err := c.Deposit(ctx, users[1], apiclient.Cash{Amount: 1000, Currency: "RBX", Key: "first-deposit"}); err != nil {
		p.t.Fatal(err)
	}
	h, err := c.Create(ctx, apiclient.CreateHold{Sender: users[1], Recipient: users[2], Amount: 100, UnlockInSeconds: 10, Key: "first-hold"})
	if err != nil {
		p.t.Fatal(err)
	}
	return h.ID.String()
}

func (p *upProcess) secondStartIsRefused() {
	p.t.Helper()
	r := command([]string{"HOLDFAST_DATA=" + p.dir}, "up", "--api-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--sim-addr", "127.0.0.1:0")
	if r.code != exitError || !strings.Contains(r.errOut, "in use") {
		p.t.Errorf("a second start on the directory: exit %d, says %q", r.code, r.errOut)
	}
	r = command([]string{"HOLDFAST_DATA=" + p.dir}, "up", "--fresh", "--api-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--sim-addr", "127.0.0.1:0")
	if r.code != exitError || !strings.Contains(r.errOut, "in use") {
		p.t.Errorf("--fresh on a directory in use: exit %d, says %q", r.code, r.errOut)
	}
}

// TestDemo is the demo itself: it fails by itself when one hold ends wrongly.
func TestDemo(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts real servers")
	}
	r := command([]string{"PATH=" + os.Getenv("PATH")}, "demo")
	if r.code != exitOK {
		t.Fatalf("exit %d\n%s%s", r.code, r.out, r.errOut)
	}
	for want, n := range map[string]int{"EXECUTED": 8, "CANCELLED": 4, "FAILED (recipient_banned), refunded": 1, "The ledger is whole.": 1} {
		if got := strings.Count(r.out, want); got != n {
			t.Errorf("%q is printed %d times, want %d:\n%s", want, got, n, r.out)
		}
	}
}

// TestBenchAgainstUp runs a short load and reads its figures.
func TestBenchAgainstUp(t *testing.T) {
	t.Parallel()
	p := startUp(t, dataDir(t))
	r := command([]string{"HOLDFAST_DATA=" + p.dir}, "bench", "--rate", "50", "--duration", "4s", "--warmup", "0s", "--clients", "8",
		"--senders", "20", "--recipients", "20", "--delay", "1s..2s", "--cancel-ratio", "0.25", "--yardstick", "0s", "-o", "json")
	if r.code != exitOK {
		t.Fatalf("exit %d\n%s%s\n%s", r.code, r.out, r.errOut, p.tail())
	}
	for _, want := range []string{`"acknowledged": 200`, `"ledger_ok": true`, `"settled": true`, `"errors": {}`} {
		if !strings.Contains(r.out, want) {
			t.Errorf("the report lacks %s:\n%s", want, r.out)
		}
	}
	var created, executed, cancelled int
	for name, into := range map[string]*int{"created": &created, "executed": &executed, "cancelled": &cancelled} {
		m := regexp.MustCompile(`"` + name + `": (\d+)`).FindStringSubmatch(r.out)
		if m == nil {
			t.Fatalf("no %s in:\n%s", name, r.out)
		}
		fmt.Sscan(m[1], into)
	}
	if created != 200 || executed+cancelled != created || cancelled == 0 {
		t.Errorf("created %d, executed %d, cancelled %d do not add up", created, executed, cancelled)
	}
}
