package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/embed"
)

// payment is the other end of a coordinator's link to the payment API.
const payment = "payment"

func (c *Cluster) embedDir() string { return filepath.Join(c.cfg.Dir, "servers") }

// startEmbedded starts the servers and brings the schema up with the binary.
func startEmbedded(ctx context.Context, c *Cluster) (*embed.Stack, error) {
	s, err := embed.Start(ctx, embed.Config{Dir: c.embedDir(), Shards: c.cfg.Shards, FastTests: true, Log: c.log})
	if err != nil {
		return nil, err
	}
	if err := c.Migrate(ctx, c.cfg.Binary, s.DSNs); err != nil {
		return nil, errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// Migrate runs `migrate up` of a binary over the shards, with these variables
// over the ordinary ones.
func (c *Cluster) Migrate(ctx context.Context, binary string, dsns []string, env ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(binary, "migrate", "up")
	cmd.Env = append([]string{"HOLDFAST_SHARDS=" + strings.Join(dsns, ",")}, env...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := c.spawner.start(cmd); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("migrate: %w: %s", err, strings.TrimSpace(out.String()))
		}
		return nil
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-done
		return fmt.Errorf("migrate: %w", ctx.Err())
	}
}

// replicas is how many of each role there are, in the order of their start.
func (c *Cluster) replicas() []struct {
	role Role
	n    int
} {
	return []struct {
		role Role
		n    int
	}{{PaymentSim, 1}, {Participant, c.cfg.Participants}, {Coordinator, c.cfg.Coordinators}, {Scheduler, c.cfg.Schedulers}}
}

// wire chooses the addresses of every process, opens the links and writes the
// settings that make each process dial its own links.
func (c *Cluster) wire() error {
	taken := map[int]bool{}
	for _, r := range c.replicas() {
		for i := range r.n {
			p, err := c.newProcess(r.role, i, taken)
			if err != nil {
				return err
			}
			c.processes = append(c.processes, p)
		}
	}
	proxies := newProxies(c.cfg.Seed, taken)
	for _, p := range c.processes {
		if err := c.wireProcess(proxies, p); err != nil {
			return err
		}
	}
	return nil
}

// newProcess gives a process its addresses. Nobody else in this cluster gets
// the same, though nobody listens there yet.
func (c *Cluster) newProcess(role Role, i int, taken map[int]bool) (*Process, error) {
	name := fmt.Sprintf("%s%d", role, i)
	p := &Process{Name: name, Role: role, Index: i, c: c,
		log: newLog(filepath.Join(c.cfg.Dir, "log", name+".log"))}
	for _, addr := range []struct {
		into   *string
		wanted bool
	}{{&p.API, role == Coordinator}, {&p.Admin, role != PaymentSim},
		{&p.Branch, role == Coordinator || role == Participant}, {&p.Sim, role == PaymentSim}} {
		for addr.wanted && *addr.into == "" {
			port, err := embed.FreePort()
			if err != nil {
				return nil, err
			}
			if !taken[port] {
				taken[port] = true
				*addr.into = "127.0.0.1:" + strconv.Itoa(port)
			}
		}
	}
	return p, nil
}

func (c *Cluster) wireProcess(proxies *proxies, p *Process) error {
	set := map[string]string{
		"HOLDFAST_DATA":       filepath.Join(c.cfg.Dir, p.Name),
		"HOLDFAST_JWT_SECRET": c.secret, "HOLDFAST_BRANCH_SECRET": c.branch,
	}
	for name, addr := range map[string]string{"HOLDFAST_API_ADDR": p.API, "HOLDFAST_ADMIN_ADDR": p.Admin,
		"HOLDFAST_BRANCH_ADDR": p.Branch, "HOLDFAST_SIM_ADDR": p.Sim} {
		if addr != "" {
			set[name] = addr
		}
	}
	p.settings = set
	w := wirer{c: c, proxies: proxies, p: p}
	switch p.Role {
	case Participant:
		set["HOLDFAST_SHARDS"] = w.shards()
	case Coordinator:
		w.link("client", p.Name, p.API)
		set["HOLDFAST_SHARD_COUNT"] = strconv.Itoa(c.cfg.Shards)
		set["HOLDFAST_PARTICIPANTS"] = w.peers(Participant)
		set["HOLDFAST_REDIS_URL"] = w.redis()
		set["HOLDFAST_PAYMENT_URL"] = "http://" + w.link(p.Name, payment, c.Process(PaymentSim, 0).Sim)
		set["HOLDFAST_PAYMENT_TIMEOUT"] = "2s"
	case Scheduler:
		set["HOLDFAST_SHARDS"] = w.shards()
		set["HOLDFAST_COORDINATORS"] = w.peers(Coordinator)
		set["HOLDFAST_REDIS_URL"] = w.redis()
	}
	return w.err
}

// wirer opens the links of one process and keeps the first error.
type wirer struct {
	c       *Cluster
	proxies *proxies
	p       *Process
	err     error
}

func (w *wirer) link(from, to, upstream string) string {
	if w.err != nil {
		return ""
	}
	l, err := w.proxies.link(from, to, upstream)
	if err != nil {
		w.err = err
		return ""
	}
	w.c.links[l.String()] = l
	return l.Addr
}

func (w *wirer) shards() string {
	var out []string
	for i, dsn := range w.c.servers.DSNs {
		addr := w.c.Shard(i).Addr()
		out = append(out, strings.Replace(dsn, addr, w.link(w.p.Name, "shard"+strconv.Itoa(i), addr), 1))
	}
	return strings.Join(out, ",")
}

func (w *wirer) redis() string {
	addr := w.c.Redis.Addr()
	return strings.Replace(w.c.servers.RedisURL, addr, w.link(w.p.Name, "redis", addr), 1)
}

func (w *wirer) peers(role Role) string {
	var out []string
	for _, peer := range w.c.Processes(role) {
		out = append(out, "http://"+w.link(w.p.Name, peer.Name, peer.Branch))
	}
	return strings.Join(out, ",")
}

// behind opens the links to somebody who listens, or closes those to somebody
// who is gone.
func (c *Cluster) behind(name string, alive bool) error {
	var errs []error
	for _, l := range c.links {
		if l.To == name || (l.To == payment && name == string(PaymentSim)+"0") {
			errs = append(errs, l.alive(alive))
		}
	}
	return errors.Join(errs...)
}

// watch does for the servers what processes do themselves: they are killed and
// started by whoever has them, and tell nobody.
func (c *Cluster) watch() {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	pids := map[string]int{}
	for {
		now := map[string]int{"redis": c.Redis.Pid()}
		for i := range c.cfg.Shards {
			now["shard"+strconv.Itoa(i)] = c.Shard(i).Pid()
		}
		for name, pid := range now {
			if was, known := pids[name]; known && (was == 0) != (pid == 0) {
				if err := c.behind(name, pid != 0); err != nil {
					c.log.Error("a server is back but its link is not", "server", name, "error", err.Error())
				}
			}
		}
		pids = now
		select {
		case <-c.watching:
			return
		case <-tick.C:
		}
	}
}

// maxAnswer bounds what is read of one answer.
const maxAnswer = 8 << 20

func (c *Cluster) get(ctx context.Context, url string) (int, string, error) {
	return c.ask(ctx, http.MethodGet, url, "")
}

func (c *Cluster) ask(ctx context.Context, method, url, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, string(text), err
}

// calmPayments takes the simulator's faults back.
func (c *Cluster) calmPayments(ctx context.Context) error {
	code, text, err := c.ask(ctx, http.MethodPut, c.PaymentAdmin()+"/sim/faults", "{}")
	if err == nil && code/100 != 2 {
		err = fmt.Errorf("the payment simulator answers %d %s", code, text)
	}
	return err
}

// Metric is the sum of a metric of this process over its series whose labels
// contain a text.
func (p *Process) Metric(name, label string) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), p.c.http.Timeout)
	defer cancel()
	code, text, err := p.c.get(ctx, p.opsURL()+"/metrics")
	if err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", p.Name, err)
	}
	if code != http.StatusOK {
		return 0, fmt.Errorf("metrics of %s: answer %d", p.Name, code)
	}
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(name)+`(\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		if v, err := strconv.ParseFloat(m[2], 64); err == nil && strings.Contains(m[1], label) {
			sum += v
		}
	}
	return sum, nil
}
