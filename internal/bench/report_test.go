package bench

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func TestReportHasTheNamesOfTheContract(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(newReport(&Config{Scenario: "create"}))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"created_per_s", "cancelled_per_s", "executed_per_s", "create_p50_ms", "create_p99_ms", "lag_p50_ms",
		"lag_p99_ms", "errors", "yardstick_per_s", "cpu_ms_per_lifecycle", "wal_bytes_per_hold", "ledger_ok"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestReportDerivesRatios(t *testing.T) {
	t.Parallel()
	r := &Report{Acknowledged: 1000, Executed: 500, CreatedPerS: 300, ExecutedPerS: 150, YardstickPerS: 600}
	r.CPUSeconds, r.CPUMSPerHoldByRole = map[string]float64{}, map[string]float64{}
	r.used(counters{cpu: map[string]float64{"postgres": 1, "load": 5}, walBytes: 500, diskBytes: 1_000_000},
		counters{cpu: map[string]float64{"postgres": 2, "holdfast": 1, "load": 50, "payment-sim": 9}, walBytes: 2_000_500, diskBytes: 4_000_000})
	r.derive()
	if r.DiskBytesPerHold != 3000 || r.CPUMSPerHoldByRole["payment-sim"] != 9 || r.CPUMSPerHoldByRole["postgres"] != 1 {
		t.Errorf("disk %g bytes, CPU by role %v; want 3000, payment-sim 9, postgres 1", r.DiskBytesPerHold, r.CPUMSPerHoldByRole)
	}
	if r.CPUMSPerHold != 2 || r.CPUMSPerLifecycle != 4 || r.WALBytesPerHold != 2000 {
		t.Errorf("CPU %g and %g ms, WAL %g bytes; want 2, 4, 2000", r.CPUMSPerHold, r.CPUMSPerLifecycle, r.WALBytesPerHold)
	}
	if r.CreatedPerYardstick != 0.5 || r.ExecutedPerYardstick != 0.25 {
		t.Errorf("ratios %g and %g, want 0.5 and 0.25", r.CreatedPerYardstick, r.ExecutedPerYardstick)
	}
}

func TestReportIsOKOnlyWhenProvenAndSettled(t *testing.T) {
	t.Parallel()
	for _, r := range []Report{{}, {LedgerOK: true}, {Settled: true}} {
		if r.OK() {
			t.Errorf("%+v counts as ok", r)
		}
	}
	if r := (Report{LedgerOK: true, Settled: true}); !r.OK() {
		t.Error("a whole run does not count as ok")
	}
}

func TestReportAsTableAndHTML(t *testing.T) {
	t.Parallel()
	r := newReport(&Config{Scenario: "lifecycle", Clients: 7})
	rec, start := newRecorder(), time.Unix(1_000_000, 0)
	for i := range 100 {
		rec.addCreate(time.Duration(i)*time.Millisecond, 1, true)
		one := rec.Series.at(start.Unix() + int64(i/50))
		one.N++
		one.Latency.record(time.Millisecond)
	}
	rec.addError("overloaded")
	r.creates(rec.seen, 2)
	r.Errors = rec.Errors
	r.executions(100, rec.Create, rec.Series, start, start.Add(2*time.Second))
	r.line(start, rec.Series)
	s := Summarize([]*Report{r})
	var text strings.Builder
	s.Table(&text)
	for _, want := range []string{"50/s (100)", "overloaded × 1", "NOT PROVEN"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, text.String())
		}
	}
	path := filepath.Join(t.TempDir(), "r.html")
	if err := s.WriteHTML(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Two time lines of two curves each, and the histograms of creates and lag.
	if svgs, curves := strings.Count(string(b), "<svg"), strings.Count(string(b), "<polyline"); svgs != 4 || curves != 4 {
		t.Errorf("the page has %d charts with %d curves, want 4 and 4", svgs, curves)
	}
	if strings.Contains(string(b), "http") || strings.Contains(string(b), "<script") || !strings.Contains(string(b), "prefers-color-scheme:dark") {
		t.Error("the page needs something from outside, or knows no dark")
	}
}

func TestRecorderSampleIsFairAndBounded(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	r := newRecorder()
	late := 0
	for i := range 10_000 {
		r.addCreate(0, 1, true)
		id := "early"
		if i >= 5000 {
			id = "late"
		}
		r.addSample(id, rng.IntN)
	}
	for _, id := range r.Sample {
		if id == "late" {
			late++
		}
	}
	if len(r.Sample) != sampleSize || late < sampleSize/5 || late > sampleSize*4/5 {
		t.Errorf("%d kept, %d of them from the second half", len(r.Sample), late)
	}
}

func TestRecordClampsWhatTheHistogramCannotHold(t *testing.T) {
	t.Parallel()
	h := newHistogram()
	h.record(-time.Second)
	h.record(24 * time.Hour)
	if h.TotalCount() != 2 {
		t.Errorf("%d of 2 values were counted", h.TotalCount())
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	seen := map[holdfast.UserID]bool{}
	for kind := kindSender; kind <= kindRecipient; kind++ {
		for i := range 20_000 {
			u := userAt(42, kind, i)
			if seen[u] || u[6]>>4 != 4 || u[8]>>6 != 2 {
				t.Fatalf("user %d of kind %d is %s: a repetition or no version 4", i, kind, u)
			}
			seen[u] = true
		}
	}
	if !seen[userAt(42, kindSender, 7)] || seen[userAt(43, kindSender, 7)] {
		t.Error("users do not follow from the seed alone")
	}
}

func TestPicker(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	count := func(exponent float64) (first int) {
		p := newPicker(rng, 1000, exponent)
		for range 10_000 {
			n := p.next()
			if n < 0 || n >= 1000 {
				t.Fatalf("drew user %d of 1000", n)
			}
			if n == 0 {
				first++
			}
		}
		return first
	}
	if uniform, skewed := count(0), count(1.5); uniform > 100 || skewed < 2000 {
		t.Errorf("user 0 was drawn %d times uniformly and %d times by Zipf", uniform, skewed)
	}
}

func TestReadStat(t *testing.T) {
	t.Parallel()
	line := []byte("42 (post (gres) x) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 25 75 20 0 1 0 100 0 0\n")
	p, ok := readStat(line)
	if !ok || p.pid != 42 || p.parent != 7 || p.name != "post (gres) x" || p.seconds != 3 {
		t.Errorf("read %+v, %t", p, ok)
	}
	for _, bad := range []string{"", "42", "x (y) S 1", "42 (y S 1"} {
		if _, ok := readStat([]byte(bad)); ok {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestFamily(t *testing.T) {
	t.Parallel()
	all := map[int]procStat{10: {pid: 10, parent: 1}, 11: {pid: 11, parent: 10}, 12: {pid: 12, parent: 11}, 20: {pid: 20, parent: 1},
		30: {pid: 30, parent: 31}, 31: {pid: 31, parent: 30}}
	for pid, want := range map[int]bool{10: true, 11: true, 12: true, 20: false, 30: false, 99: false} {
		if got := descends(all, pid, 10); got != want {
			t.Errorf("process %d descends: %t", pid, got)
		}
	}
	if cpu := cpuByRole(os.Getpid(), 0); cpu["load"] <= 0 {
		t.Errorf("this process has used %v", cpu)
	}
}

func TestYardstickRateIsRead(t *testing.T) {
	t.Parallel()
	out := []byte("latency average = 1 ms\ntps = 12345.678901 (without initial connection time)\n")
	if m := tpsPattern.FindSubmatch(out); m == nil || string(m[1]) != "12345.678901" {
		t.Errorf("read %q", m)
	}
	if got := lastLine([]byte("a\nb\n\n")); got != "b" {
		t.Errorf("the last line is %q", got)
	}
}

func testRand() *rand.Rand { return rand.New(rand.NewPCG(5, 6)) }

func TestRedisMemoryPerTrigger(t *testing.T) {
	t.Parallel()
	var m triggerMemory
	m.from(redisState{bytes: 1000, triggers: 10, ok: true})
	m.to(redisState{bytes: 900_000, triggers: 9_000, ok: true})
	if m.perTrigger() != 0 {
		t.Error("a few triggers were taken for a measurement")
	}
	m.to(redisState{bytes: 2_001_000, triggers: 20_010, ok: true})
	m.to(redisState{bytes: 5_000_000, triggers: 15_000, ok: true})
	if m.perTrigger() != 100 || m.most != 20_000 {
		t.Errorf("%g bytes for each of %d triggers, want 100 and 20,000", m.perTrigger(), m.most)
	}
}

func TestPeakMemoryIsRead(t *testing.T) {
	t.Parallel()
	if n := kibibytes("VmPeak:\t  99 kB\nVmHWM:\t   88 kB\nVmRSS:\t 77 kB\n", "VmHWM:"); n != 88<<10 {
		t.Errorf("read %d bytes", n)
	}
}
