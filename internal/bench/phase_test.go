package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// childFlag makes this test program a process of the load generator.
const childFlag = "BENCH_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childFlag) != "" {
		if err := Child(context.Background(), os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func spawnChild() *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childFlag+"=1")
	return cmd
}

func TestSplitKeepsTheWhole(t *testing.T) {
	t.Parallel()
	start := time.Now()
	whole := phase{Step: stepCreate, Clients: 10, Rate: 300, Most: 101, Start: start, Cancel: make([]holdID, 7)}
	clients, most, cancels, rate := 0, int64(0), 0, 0.0
	intended := map[time.Duration]bool{}
	for i := range 3 {
		p := whole.split(i, 3)
		clients, most, cancels, rate = clients+p.Clients, most+p.Most, cancels+len(p.Cancel), rate+p.Rate
		s := schedule{p.Start, p.requestRate()}
		for n := range int64(100) {
			intended[s.intended(n).Sub(start).Round(time.Microsecond)] = true
		}
	}
	if clients != 10 || most != 101 || cancels != 7 || rate != 300 {
		t.Errorf("the parts have %d clients, %d requests, %d cancels, rate %g", clients, most, cancels, rate)
	}
	one := schedule{start, 300}
	for n := range int64(300) {
		if at := one.intended(n).Sub(start).Round(time.Microsecond); !intended[at] && !intended[at-time.Microsecond] && !intended[at+time.Microsecond] {
			t.Fatalf("request %d, due after %s, belongs to no part", n, at)
		}
	}
}

func TestHistogramTravelsUnchanged(t *testing.T) {
	t.Parallel()
	for _, h := range []*histogram{newHistogram(), newSmallHistogram()} {
		for i := range 5000 {
			h.record(time.Duration(i*i) * time.Microsecond)
		}
		b, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		var back histogram
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		for _, q := range []float64{1, 50, 99, 99.9, 100} {
			if h.ms(q) != back.ms(q) {
				t.Errorf("quantile %g was %g ms and is %g ms", q, h.ms(q), back.ms(q))
			}
		}
		if h.TotalCount() != back.TotalCount() {
			t.Errorf("%d values became %d", h.TotalCount(), back.TotalCount())
		}
	}
	for _, bad := range []string{`[]`, `[[9,0]]`, `7`, `[[3,0],[-5,1]]`} {
		if err := json.Unmarshal([]byte(bad), new(histogram)); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestSeenIsMergedOverProcesses(t *testing.T) {
	t.Parallel()
	sum := newSeen()
	for i := range 3 {
		s := newSeen()
		for n := range 100 {
			s.Create.record(time.Duration(i*100+n+1) * time.Millisecond)
		}
		s.Created, s.Acked, s.Errors["timeout"] = 100, 110, int64(i)
		one := s.Series.at(int64(5 + i%2))
		one.N = 10
		one.Latency.record(time.Duration(i+1) * time.Second)
		sum.merge(s)
	}
	if sum.Created != 300 || sum.Acked != 330 || sum.Errors["timeout"] != 3 {
		t.Errorf("created %d, acknowledged %d, errors %v", sum.Created, sum.Acked, sum.Errors)
	}
	if p := sum.Create.ms(50); p < 149 || p > 152 {
		t.Errorf("the median over all is %g ms, want 150", p)
	}
	if sum.Series[5].N != 20 || sum.Series[6].N != 10 || len(sum.Series) != 2 {
		t.Errorf("the seconds are %v", sum.Series)
	}
	if p := sum.Series.between(time.Unix(5, 0), time.Unix(6, 0)).ms(100); p < 2900 || p > 3100 {
		t.Errorf("the slowest of second 5 took %g ms, want 3000", p)
	}
}

func TestLoadOfSeveralProcesses(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	cfg := Config{Scenario: "create", Duration: time.Second, Rate: 300, Clients: 9, Processes: 3}
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	bench, err := Open(Target{API: a.URL, Token: "token", Spawn: spawnChild})
	if err != nil {
		t.Fatal(err)
	}
	b := &run{Bench: bench, cfg: &cfg, report: newReport(&cfg), series: series{}}
	s, err := b.main(context.Background(), b.newPhase(stepCreate))
	if err != nil {
		t.Fatal(err)
	}
	if s.Acked != 300 || b.acked != 300 || a.creates.Load() != 300 || s.Create.TotalCount() != 300 {
		t.Errorf("acknowledged %d, sent %d, %d latencies; want 300", s.Acked, a.creates.Load(), s.Create.TotalCount())
	}
	var inLine int64
	for _, one := range b.series {
		inLine += one.N
	}
	if inLine != 300 {
		t.Errorf("%d are on the time line", inLine)
	}
}

func TestChildEndsWithItsParent(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := a.phase(0)
	p.Duration = time.Hour
	spec, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	in, keepOpen := io.Pipe()
	go func() {
		keepOpen.Write(spec)
		for a.creates.Load() < 5 {
			timer := time.NewTimer(time.Millisecond)
			<-timer.C
		}
		keepOpen.Close() // the parent is gone
	}()
	var out bytes.Buffer
	if err := Child(context.Background(), in, &out); err != nil {
		t.Fatal(err)
	}
	var answer childAnswer
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil || answer.Seen.Acked < 5 {
		t.Errorf("the child said %s, %v", out.String(), err)
	}
	if err := Child(context.Background(), strings.NewReader("nonsense"), io.Discard); err == nil {
		t.Error("a child without a phase is content")
	}
}

func TestUsersOfSomeShardsOnly(t *testing.T) {
	t.Parallel()
	m := holdfast.EvenShardMap(4)
	for only, avoid := range map[int]int{-1: 2, 2: -1} {
		p := phase{Seed: 3, Senders: 500, Owner: m.Owner[:], OnlyShard: only, AvoidShard: avoid}
		w := &worker{g: newGenerator(p, nil)}
		from := newPicker(testRand(), p.Senders, 0)
		for range 200 {
			if on := m.OfUser(w.user(kindSender, &from)) == 2; on != (only == 2) {
				t.Fatalf("only %d, not %d: drew a user with shard 2 = %t", only, avoid, on)
			}
		}
	}
}
