package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/holdfast-escrow/holdfast/shards"
)

// fleet is a deployment with a process per role and replica.
type fleet struct {
	t        *testing.T
	settings map[string]string // of every process
	token    string
}

// server is one process of a fleet.
type server struct {
	t    *testing.T
	role string
	exe  string // "" is this test, playing main
	set  map[string]string
	cmd  *exec.Cmd
	log  logBuffer
	done chan struct{}

	API, Admin, Branch, Sim string // where it listens, as its log says
}

// logBuffer is written by a process while a test reads it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newFleet(t *testing.T, redisURL string) *fleet {
	t.Helper()
	secret := strings.Repeat("j", 32)
	r := command([]string{"HOLDFAST_JWT_SECRET=" + secret}, "token", "mint")
	if r.code != exitOK {
		t.Fatalf("no token: %s", r.errOut)
	}
	return &fleet{t: t, token: strings.TrimSpace(r.out), settings: map[string]string{
		"HOLDFAST_JWT_SECRET": secret, "HOLDFAST_BRANCH_SECRET": strings.Repeat("b", 32), "HOLDFAST_REDIS_URL": redisURL,
		"HOLDFAST_PAYMENT_TIMEOUT": "2s",
		"HOLDFAST_API_ADDR":        "127.0.0.1:0", "HOLDFAST_ADMIN_ADDR": "127.0.0.1:0",
		"HOLDFAST_SIM_ADDR": "127.0.0.1:0", "HOLDFAST_BRANCH_ADDR": "127.0.0.1:0",
	}}
}

// serve starts one process with more settings and waits until it listens.
func (f *fleet) serve(role string, more map[string]string) *server {
	f.t.Helper()
	return f.serveWith("", role, more)
}

// serveWith does so with another executable.
func (f *fleet) serveWith(exe, role string, more map[string]string) *server {
	f.t.Helper()
	s := &server{t: f.t, role: role, exe: exe, set: maps.Clone(f.settings)}
	s.set["HOLDFAST_DATA"] = f.t.TempDir()
	maps.Copy(s.set, more)
	s.start()
	f.t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(cmp.Or(s.exe, os.Args[0]), "serve", "--role", s.role)
	s.cmd.Env = []string{playMain + "=1", "PATH=" + os.Getenv("PATH")}
	for k, v := range s.set {
		s.cmd.Env = append(s.cmd.Env, k+"="+v)
	}
	s.log, s.done = logBuffer{}, make(chan struct{})
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = childAttributes()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) { cmd.Wait(); close(done) }(s.cmd, s.done)
	testkit.Eventually(s.t, upPatience, func() (bool, string) {
		select {
		case <-s.done:
			s.t.Fatalf("the %s did not start:\n%s", s.role, s.log.String())
		default:
		}
		for line := range strings.Lines(s.log.String()) {
			var said struct{ Msg, API, Admin, Branch, Sim string }
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "serving" {
				s.API, s.Admin, s.Branch, s.Sim = said.API, said.Admin, said.Branch, said.Sim
				return true, ""
			}
		}
		return false, s.role + " does not listen:\n" + s.log.String()
	})
}

// kill ends the process at once, as kill -9 does.
func (s *server) kill() {
	s.cmd.Process.Kill()
	<-s.done
}

// startAgain starts it at the addresses that the others know.
func (s *server) startAgain() {
	s.t.Helper()
	s.set["HOLDFAST_BRANCH_ADDR"], s.set["HOLDFAST_SIM_ADDR"] = s.Branch, s.Sim
	s.start()
}

// stop ends it politely.
func (s *server) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.done
	if code := s.cmd.ProcessState.ExitCode(); code != exitOK {
		s.t.Errorf("the %s stops with exit code %d:\n%s", s.role, code, s.log.String())
	}
}

func (s *server) get(path string) (int, string) {
	resp, err := http.Get(apiclient.BaseURL(s.Admin) + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// metric is the sum of a metric over its labels that contain a text.
func (s *server) metric(name, label string) (sum float64) {
	s.t.Helper()
	_, text := s.get("/metrics")
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		if v, err := strconv.ParseFloat(m[2], 64); err == nil && strings.Contains(m[1], label) {
			sum += v
		}
	}
	return sum
}

func (f *fleet) client(s *server) *apiclient.Client {
	return &apiclient.Client{API: apiclient.BaseURL(s.API), Admin: apiclient.BaseURL(s.Admin), Token: f.token}
}

// split is two of each role and one payment simulator.
type split struct {
	*fleet
	sim                          *server
	participants, coords, scheds [2]*server
}

func startSplit(t *testing.T, dsns []string, redisURL string) *split {
	t.Helper()
	s := &split{fleet: newFleet(t, redisURL)}
	given := map[string]string{"HOLDFAST_SHARDS": strings.Join(dsns, ",")}
	url := func(addr string) string { return apiclient.BaseURL(addr) }
	s.sim = s.serve("payment-sim", nil)
	for i := range 2 {
		s.participants[i] = s.serve("participant", given)
	}
	for i := range 2 {
		s.coords[i] = s.serve("coordinator", map[string]string{"HOLDFAST_SHARD_COUNT": strconv.Itoa(len(dsns)),
			"HOLDFAST_PAYMENT_URL":  url(s.sim.Sim),
			"HOLDFAST_PARTICIPANTS": url(s.participants[0].Branch) + "," + url(s.participants[1].Branch)})
	}
	for i := range 2 {
		s.scheds[i] = s.serve("scheduler", map[string]string{"HOLDFAST_SHARDS": given["HOLDFAST_SHARDS"],
			"HOLDFAST_COORDINATORS": url(s.coords[0].Branch) + "," + url(s.coords[1].Branch)})
	}
	return s
}

// create makes n holds with 1 to most seconds of delay, in turn through both
// coordinators, and repeats each with its key until it is acknowledged.
func (s *split) create(prefix string, users []string, n int, most int64) []string {
	s.t.Helper()
	ids := make([]string, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			want := apiclient.CreateHold{Sender: users[i%len(users)], Recipient: users[(i+1+i/len(users)%(len(users)-1))%len(users)], Amount: 1,
				UnlockInSeconds: 1 + int64(i)%most, Key: fmt.Sprintf("%s-%d", prefix, i)}
			testkit.Eventually(s.t, upPatience, func() (bool, string) {
				h, err := s.client(s.coords[i%2]).Create(context.Background(), want)
				ids[i] = h.ID.String()
				return err == nil, fmt.Sprintf("hold %d is not created: %v", i, err)
			})
		})
	}
	all.Wait()
	return ids
}

func (s *split) fund(n int) (users []string) {
	s.t.Helper()
	c := s.client(s.coords[0])
	for range n {
		u := newUser().String()
		if _, err := c.OpenAccount(context.Background(), u); err != nil {
			s.t.Fatal(err)
		}
		if _, err := c.Deposit(context.Background(), u, apiclient.Cash{Amount: 1000, Currency: "RBX", Key: "fund"}); err != nil {
			s.t.Fatal(err)
		}
		users = append(users, u)
	}
	return users
}

// executed waits until at least n of the holds are.
func (s *split) executed(c *apiclient.Client, ids []string, n int) {
	s.t.Helper()
	testkit.Eventually(s.t, upPatience, func() (bool, string) {
		done, why := 0, ""
		for _, id := range ids {
			h, err := c.Hold(context.Background(), id)
			if err == nil && h.Status == holdfast.Executed {
				done++
			} else {
				why = fmt.Sprintf("%s is %s, %v", id, h.Status, err)
			}
		}
		return done >= n, fmt.Sprintf("%d of %d executed; %s", done, len(ids), why)
	})
}

func (s *split) paidOnce(ids []string) {
	s.t.Helper()
	for _, id := range ids {
		resp, err := http.Get(apiclient.BaseURL(s.sim.Sim) + "/sim/effects?hold_id=" + id)
		if err != nil {
			s.t.Fatal(err)
		}
		var e struct{ Effects int }
		err = json.NewDecoder(resp.Body).Decode(&e)
		resp.Body.Close()
		if err != nil || e.Effects != 1 {
			s.t.Errorf("%s was paid %d times, %v", id, e.Effects, err)
		}
	}
}

func (s *split) whole(c *apiclient.Client) {
	s.t.Helper()
	if p, raw, err := c.Prove(context.Background()); err != nil || !p.OK {
		s.t.Errorf("the ledger is not whole: %v\n%s", err, raw)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	t.Run("holds_are_driven_across_processes_and_every_role_may_be_killed", func(t *testing.T) {
		t.Parallel()
		s := startSplit(t, testkit.Databases(t, 4), testkit.Redis(t))
		users := s.fund(8)

		ids := s.create("calm", users, 50, 2)
		s.executed(s.client(s.coords[1]), ids, len(ids))
		s.paidOnce(ids)
		// A hold of two seconds lies below the next sweep: without the triggers
		// that the coordinators set, PostgreSQL would have driven all of them.
		woken := s.scheds[0].metric("holdfast_scheduler_driven_total", `"redis"`) + s.scheds[1].metric("holdfast_scheduler_driven_total", `"redis"`)
		if woken < 25 {
			t.Errorf("Redis woke %v holds of %d", woken, len(ids))
		}

		ids = s.create("storm", users, 50, 2)
		survivor := s.client(s.coords[0])
		s.executed(survivor, ids, 1)
		for _, victim := range []*server{s.coords[1], s.participants[1], s.scheds[0], s.sim} {
			victim.kill()
		}
		s.sim.startAgain()
		s.executed(survivor, ids, len(ids))
		s.paidOnce(ids)
		s.whole(survivor)
		for _, p := range []*server{s.scheds[1], s.coords[0], s.participants[0], s.sim} {
			p.stop()
		}
	})
	t.Run("a_coordinator_that_counts_other_shards_is_refused", func(t *testing.T) {
		t.Parallel()
		f := newFleet(t, testkit.Redis(t))
		p := f.serve("participant", map[string]string{"HOLDFAST_SHARDS": strings.Join(testkit.Databases(t, 2), ",")})
		for count, want := range map[string]int{"2": 200, "1": 503, "3": 503} {
			c := f.serve("coordinator", map[string]string{"HOLDFAST_SHARD_COUNT": count,
				"HOLDFAST_PAYMENT_URL": "http://127.0.0.1:1", "HOLDFAST_PARTICIPANTS": apiclient.BaseURL(p.Branch)})
			if got, text := c.get("/readyz"); got != want {
				t.Errorf("with %s shards of 2: %d %s, want %d", count, got, text, want)
			}
			_, err := f.client(c).OpenAccount(t.Context(), newUser().String())
			if opened := err == nil; opened != (want == 200) {
				t.Errorf("with %s shards of 2 an account is opened: %v, %v", count, opened, err)
			}
			if said := strings.Count(c.log.String(), "a process refuses requests"); (said == 1) != (want == 503) {
				t.Errorf("with %s shards of 2 the log says so %d times:\n%s", count, said, c.log.String())
			}
		}
	})
	t.Run("readyz_tells_what_is_away", func(t *testing.T) {
		t.Parallel()
		stack := testkit.Stack(t, 2)
		if err := shards.Migrate(t.Context(), stack.DSNs, nil, testkit.Logger(t)); err != nil {
			t.Fatal(err)
		}
		s := startSplit(t, stack.DSNs, stack.RedisURL)
		wait := func(code int, parts ...string) {
			t.Helper()
			for _, p := range []*server{s.coords[0], s.scheds[0]} {
				testkit.Eventually(t, upPatience, func() (bool, string) {
					got, text := p.get("/readyz")
					ok := got == code
					for _, part := range parts {
						ok = ok && strings.Contains(text, part)
					}
					return ok, fmt.Sprintf("the %s answers %d %s, want %d %s", p.role, got, text, code, parts)
				})
			}
		}
		wait(200, `"status":"ready"`, `"redis":"up"`)
		if err := stack.Redis.Kill(); err != nil {
			t.Fatal(err)
		}
		wait(200, `"status":"degraded"`, `"redis":"down"`, `"0":"up"`)
		if err := stack.Postgres(1).Kill(); err != nil {
			t.Fatal(err)
		}
		wait(200, `"status":"degraded"`, `"0":"up"`, `"1":"down"`)
		if err := stack.Postgres(0).Kill(); err != nil {
			t.Fatal(err)
		}
		wait(503, `"status":"down"`)
	})
}
