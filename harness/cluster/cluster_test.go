package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// patience is how long anything may take that is to happen at all.
const patience = time.Minute

var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "holdfast-cluster-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-tags", "failpoints", "-o", binary, "../../cmd/holdfast")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	code := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the binary:", err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func start(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("starts servers")
	}
	cfg.Binary, cfg.Log = binary, t.Output()
	c, err := Start(t.Context(), cfg)
	check(t, err)
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// user is a user on a shard of choice, and the n-th of this run.
func user(c *Cluster, shard, n int) string {
	for i := n * 1000; ; i++ {
		var u holdfast.UserID
		copy(u[:], fmt.Sprintf("%016d", i))
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
		if c.Map().OfUser(u) == shard {
			return u.String()
		}
	}
}

// world is users and the means to move their coins.
type world struct {
	*testing.T
	c       *Cluster
	clients []*apiclient.Client
	sender  string // on shard 0
	others  []string
	n       int
}

func newWorld(t *testing.T, c *Cluster) *world {
	t.Helper()
	w := &world{T: t, c: c}
	for i, api := range c.APIs() {
		w.clients = append(w.clients, &apiclient.Client{API: api, Admin: c.Admins()[i], Token: c.Token(),
			HTTP: &http.Client{Timeout: 5 * time.Second}})
	}
	w.sender = user(c, 0, 1)
	w.others = []string{user(c, 0, 2), user(c, 1, 3), user(c, c.Shards()-1, 4)}
	for _, u := range append(w.others, w.sender) {
		_, err := w.clients[0].OpenAccount(t.Context(), u)
		check(t, err)
	}
	_, err := w.clients[0].Deposit(t.Context(), w.sender, apiclient.Cash{Amount: 1_000_000, Currency: "RBX", Key: "fund"})
	check(t, err)
	return w
}

// create makes a hold of one second through a coordinator, or through any that
// answers (-1), as a client does that repeats its key.
func (w *world) create(t *testing.T, coordinator int) string {
	t.Helper()
	w.n++
	want := apiclient.CreateHold{Sender: w.sender, Recipient: w.others[w.n%len(w.others)], Amount: 1, UnlockInSeconds: 1,
		Key: "hold-" + strconv.Itoa(w.n)}
	var id string
	try := 0
	testkit.Eventually(t, patience, func() (bool, string) {
		i := coordinator
		if try++; i < 0 {
			i = try % len(w.clients)
		}
		h, err := w.clients[i].Create(t.Context(), want)
		id = h.ID.String()
		return err == nil, fmt.Sprint(err)
	})
	return id
}

func (w *world) executed(t *testing.T, id string) {
	t.Helper()
	try := 0
	testkit.Eventually(t, patience, func() (bool, string) {
		try++
		h, err := w.clients[try%len(w.clients)].Hold(t.Context(), id)
		return err == nil && h.Status == holdfast.Executed, fmt.Sprintf("%s is %s, %v", id, h.Status, err)
	})
}

func (w *world) works(t *testing.T) {
	t.Helper()
	var ids []string
	for i := range w.clients {
		ids = append(ids, w.create(t, i))
	}
	for _, id := range ids {
		w.executed(t, id)
	}
}

func gone(pid int) bool { return syscall.Kill(pid, 0) != nil }

// TestCluster is one long run over one cluster, as the harness uses it: every
// part of it leaves a cluster that works.
func TestCluster(t *testing.T) {
	t.Parallel()
	began := time.Now()
	c := start(t, Config{Seed: 1})
	t.Logf("started in %s", time.Since(began))
	w := newWorld(t, c)
	w.works(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"killed_processes_come_back", testKills},
		{"a_cut_link_recovers", testCut},
		{"links_fail_in_many_ways", testLinkFaults},
		{"paused_ones_resume", testPause},
		{"servers_come_back", testServers},
		{"a_shard_has_another_clock", testClock},
		{"a_shard_has_a_full_disk", testDisk},
		{"usage_is_told", testUsage},
	} {
		t.Run(part.name, func(t *testing.T) {
			defer mend(t, c) // also after a failure, for the parts to come
			part.run(t, w)
			mend(t, c)
			w.works(t)
		})
	}
	p, raw, err := w.clients[0].Prove(t.Context())
	if err != nil || !p.OK {
		t.Errorf("the ledger is not whole: %v %s", err, raw)
	}
	pids := []int{c.Redis.Pid()}
	for i := range c.Shards() {
		pids = append(pids, c.Shard(i).Pid())
	}
	for _, p := range c.Processes() {
		pids = append(pids, p.Pid())
	}
	check(t, c.Stop(t.Context()))
	for _, pid := range pids {
		if pid == 0 || !gone(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
	if _, err := os.Stat(c.Dir()); err == nil {
		t.Errorf("%s is still there", c.Dir())
	}
}

func mend(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	check(t, c.Mend(ctx))
}

func testKills(t *testing.T, w *world) {
	for _, p := range w.c.Processes() {
		id := w.create(t, -1)
		pid, starts := p.Pid(), p.Starts()
		check(t, p.Kill())
		if p.Alive() || !gone(pid) || p.ExitCode() != -1 {
			t.Errorf("%s outlived its kill", p.Name)
		}
		check(t, p.Kill()) // a dead one can be killed
		check(t, p.Start(t.Context()))
		check(t, p.Ready(t.Context()))
		if p.Pid() == pid || p.Starts() != starts+1 || strings.Count(p.Log(), `"msg":"serving"`) != p.Starts() {
			t.Errorf("%s is not started again: %s", p.Name, p.Log())
		}
		w.executed(t, id)
	}
	// One of each is enough, and who dials a dead one is refused.
	for _, role := range []Role{Participant, Scheduler} {
		check(t, w.c.Process(role, 0).Kill())
	}
	w.works(t)
	mend(t, w.c)
	check(t, w.c.Process(Coordinator, 0).Kill())
	if _, err := w.clients[0].Account(t.Context(), w.sender); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a dead coordinator answers %v", err)
	}
	p := w.c.Process(Coordinator, 1)
	check(t, p.StopGracefully(t.Context()))
	if p.ExitCode() != 0 {
		t.Errorf("exit code %d after a graceful stop", p.ExitCode())
	}
	if err := p.Start(t.Context(), "HOLDFAST_PAYMENT_TIMEOUT=soon"); err == nil || !strings.Contains(err.Error(), "soon") {
		t.Errorf("a wrong setting starts: %v", err)
	}
	if p.ExitCode() == 0 || p.Alive() {
		t.Errorf("exit code %d of a start that was refused", p.ExitCode())
	}
	check(t, p.Start(t.Context(), "HOLDFAST_LOG_LEVEL=debug"))
	pid := p.Pid()
	mend(t, w.c)
	if p.Pid() == pid {
		t.Error("a process with variables of its own survives Mend")
	}
}

func testCut(t *testing.T, w *world) {
	l := w.c.Link("client", "coordinator0")
	before := l.Struck()
	l.CutOneWay(Down)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	want := apiclient.CreateHold{Sender: w.sender, Recipient: w.others[0], Amount: 1, UnlockInSeconds: 1, Key: "silent"}
	if _, err := w.clients[0].Create(ctx, want); err == nil {
		t.Error("an answer came over a link that is cut")
	}
	if l.StruckOneWay(Down) == 0 || l.Struck() == before {
		t.Error("the cut was not counted")
	}
	// The request went through, only its answer did not.
	h, err := w.clients[1].Create(t.Context(), want)
	check(t, err)
	w.executed(t, h.ID.String())
	check(t, l.Heal())
	w.works(t)

	// One coordinator loses one participant; the other does not.
	l = w.c.Link("coordinator0", "participant0")
	before = l.Struck()
	l.Cut()
	id := w.create(t, 1)
	testkit.Eventually(t, patience, func() (bool, string) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := w.clients[0].Hold(ctx, id)
		return l.Struck() > before, fmt.Sprintf("nothing is held up: %v", err)
	})
	check(t, l.Heal())
	w.executed(t, id)
	struck := l.Struck()
	w.works(t)
	if l.Struck() != struck {
		t.Error("a healed link counts on")
	}
}

func TestStrikes(t *testing.T) {
	t.Parallel()
	p := &Process{log: newLog(filepath.Join(t.TempDir(), "log"))}
	if p.Strikes("claimed") != 0 || p.Log() != "" {
		t.Error("strikes without a log")
	}
	say := func(text string) {
		t.Helper()
		f, err := p.log.append()
		check(t, err)
		_, err = f.WriteString(text)
		check(t, errors.Join(err, f.Close()))
	}
	say("{\"msg\":\"failpoint struck claimed exit\"}\nfailpoint struck claimed delay=2s\nfailpoint struck cl")
	if got := p.Strikes("claimed"); got != 1 {
		t.Errorf("%d strikes before the line is whole", got)
	}
	say("aimed exit\npanic: no\n")
	if all, exits := p.Strikes("claimed"), p.Strikes("claimed exit"); all != 2 || exits != 1 || p.Panics() != 1 {
		t.Errorf("%d strikes, %d exits, %d panics", all, exits, p.Panics())
	}
}
