// Package hostile sends a running system everything that a careless or an evil
// client can think of, and checks what must hold then (I14 and I15): each
// request is refused with the code that the contract names for it, no answer
// is a 5xx or tells of the inside, no row of the shards changes, and the
// process goes on with as many goroutines as before. It knows the system by
// its addresses, its signing secret and its databases only, so that it can be
// turned on real processes as on a stack in a test. Nothing else may write
// while it runs: it could not tell whose change it sees.
package hostile

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Target is the system under attack.
type Target struct {
	API, Admin string   // base URLs, http only
	DSNs       []string // the shards; empty: no checksums are compared
	// Secret signs HS256 tokens that the system accepts with Issuer and
	// Audience ("holdfast" when empty).
	Secret           []byte
	Issuer, Audience string
	// HeaderTimeout and BodyTimeout are those of the servers: how long they
	// wait for a slow client. Zero: 5 s and 15 s, as the binary has them.
	HeaderTimeout, BodyTimeout time.Duration
	// Only names the sections to run; empty: all.
	Only []string
}

// Finding is one thing that must not be.
type Finding struct {
	Section, Probe, Detail string
}

func (f Finding) String() string { return f.Section + ": " + f.Probe + ": " + f.Detail }

// Section is a group of probes and how it went.
type Section struct {
	Name     string
	Probes   int
	Findings int
	Took     time.Duration
}

// Report is what became of a run.
type Report struct {
	Sections []Section
	Probes   int
	Findings []Finding
	Took     time.Duration
}

// OK reports whether nothing was found.
func (r Report) OK() bool { return len(r.Findings) == 0 && r.Probes > 0 }

const (
	slack       = 25               // goroutines that pools may have more at the end
	settleTime  = 20 * time.Second // for connections and goroutines to go
	maxFindings = 200              // beyond it a report is not read
)

// suite is one run.
type suite struct {
	Target
	ctx     context.Context
	report  Report
	section string
	world
	sums *sums
	keys int
}

// group is probes that are sent one after the other, with the checksums
// compared around them all. free does more than probes can say.
type group struct {
	name string
	list func(*suite) []probe
	free func(*suite)
	// remembers: the idempotency rows may change, money may not.
	remembers bool
	// moves: money may move, the section checks itself that it comes back.
	moves bool
}

func groups() []group {
	return []group{
		{name: "amounts", list: amounts},
		{name: "times", list: times},
		{name: "json", list: documents},
		{name: "fields", list: fields},
		{name: "ids", list: ids},
		{name: "keys", list: keys},
		{name: "headers", list: headers},
		{name: "tokens", list: tokens},
		{name: "paths", list: paths},
		{name: "methods", list: methods},
		{name: "scopes", list: scopes},
		{name: "queries", list: queries},
		{name: "accounts", list: accounts},
		{name: "batches", list: batches},
		{name: "operators", list: operators},
		{name: "funds", list: funds, remembers: true},
		{name: "accepted", free: accepted, moves: true},
		{name: "wire", free: wire},
		{name: "smuggling", free: smuggling},
		{name: "giants", free: giants},
		{name: "slow", free: slow},
	}
}

// Run attacks the target with everything. An error in the report's findings
// named "setup" means that there was nothing to attack.
func Run(ctx context.Context, t Target) Report {
	if t.Issuer == "" {
		t.Issuer = "holdfast"
	}
	if t.Audience == "" {
		t.Audience = "holdfast"
	}
	if t.HeaderTimeout == 0 {
		t.HeaderTimeout = 5 * time.Second
	}
	if t.BodyTimeout == 0 {
		t.BodyTimeout = 15 * time.Second
	}
	s := &suite{Target: t, ctx: ctx, section: "setup"}
	began := time.Now()
	defer func() { s.report.Took = time.Since(began) }()
	if err := s.setUp(); err != nil {
		s.found("setup", "%v", err)
		return s.report
	}
	defer s.sums.close()
	base, counted := s.goroutines()
	for _, g := range groups() {
		if ctx.Err() != nil {
			s.found("run", "stopped before the end: %v", context.Cause(ctx))
			break
		}
		if len(t.Only) == 0 || slices.Contains(t.Only, g.name) {
			s.run(g)
		}
	}
	s.section = "after"
	s.alive()
	if counted {
		s.backTo(base)
	}
	s.tearDown()
	s.report.Took = time.Since(began)
	return s.report
}

func (s *suite) run(g group) {
	began, probes, findings := time.Now(), s.report.Probes, len(s.report.Findings)
	s.section = g.name
	before := s.sumUp()
	var list []probe
	if g.list != nil {
		list = g.list(s)
		for _, p := range list {
			s.try(p)
		}
	} else {
		g.free(s)
	}
	if changed := s.changed(before, g); changed != "" {
		s.blame(changed, list, g)
	}
	s.alive()
	s.report.Sections = append(s.report.Sections, Section{g.name, s.report.Probes - probes, len(s.report.Findings) - findings, time.Since(began)})
}

// changed names what a group may not have changed.
func (s *suite) changed(before tables, g group) string {
	if g.moves || before == nil {
		return ""
	}
	return differ(before, s.sumUp(), g)
}

func differ(before, now tables, g group) string {
	var names []string
	for name, sum := range now {
		if before[name] != sum && !(g.remembers && isMemory(name)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// blame sends the probes once more, one by one, to name the one that changes
// what it may not.
func (s *suite) blame(changed string, list []probe, g group) {
	s.found("all", "changed rows in %s", changed)
	for _, p := range list {
		before := s.sumUp()
		s.send(p)
		if again := s.changed(before, g); again != "" {
			s.found(p.name, "changes rows in %s each time it is sent", again)
		}
	}
}

func (s *suite) found(probe, format string, args ...any) {
	if len(s.report.Findings) < maxFindings {
		s.report.Findings = append(s.report.Findings, Finding{s.section, probe, fmt.Sprintf(format, args...)})
	}
}

// alive checks that both listeners still answer a good request.
func (s *suite) alive() {
	for _, p := range []probe{
		{name: "alive", method: "GET", path: "/livez", admin: true, status: 200},
		{name: "alive", method: "GET", path: "/v1/holds/" + s.hold, token: s.user, status: 200},
	} {
		if a, err := s.send(p); err != nil || a.status != p.status {
			s.found(p.name, "%s %s: the process does not answer any more: %d, %v", p.method, p.path, a.status, err)
		}
	}
}

// goroutines is how many the process has, when it tells: its profiles are open
// to the machine it runs on.
func (s *suite) goroutines() (n int, ok bool) {
	a, err := s.send(probe{name: "goroutines", method: "GET", path: "/debug/pprof/goroutine?debug=1", admin: true})
	if err != nil || a.status != 200 {
		return 0, false
	}
	_, err = fmt.Sscanf(string(a.body), "goroutine profile: total %d", &n)
	return n, err == nil
}

func (s *suite) backTo(base int) {
	now := 0
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); s.pause() {
		n, ok := s.goroutines()
		if now = n; ok && now <= base+slack {
			return
		}
	}
	s.found("goroutines", "%d at the beginning, %d at the end", base, now)
}

func (s *suite) pause() {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-s.ctx.Done():
	}
}

func hostOf(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return "", fmt.Errorf("%q is not an http address", base)
	}
	return u.Host, nil
}
