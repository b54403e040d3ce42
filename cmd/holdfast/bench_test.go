package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBenchEmbedded makes two short runs on a stack of its own, with the load
// from two processes, and checks that the figures add up.
func TestBenchEmbedded(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts real servers")
	}
	page := filepath.Join(t.TempDir(), "report.html")
	environ := []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), playMain + "=1"}
	r := command(environ, "bench", "--embedded", "--shards-count", "2", "--runs", "2", "--processes", "2", "--scenario", "lifecycle",
		"--rate", "50", "--duration", "3s", "--warmup", "0s", "--clients", "8", "--senders", "20", "--recipients", "20",
		"--delay", "4s", "--yardstick", "0s", "--report", page, "-o", "json")
	if r.code != exitOK {
		t.Fatalf("exit %d\n%s%s", r.code, r.out, r.errOut)
	}
	type figures struct {
		Acknowledged int64              `json:"acknowledged"`
		Executed     int64              `json:"executed"`
		LagP99       float64            `json:"lag_p99_ms"`
		Seen         int64              `json:"lag_seen_holds"`
		SeenP99      float64            `json:"lag_seen_p99_ms"`
		CommitP50    float64            `json:"lag_commit_p50_ms"`
		CPU          map[string]float64 `json:"cpu_seconds"`
		WAL          float64            `json:"wal_bytes_per_hold"`
		Disk         float64            `json:"disk_bytes_per_hold"`
		RSS          int64              `json:"rss_bytes"`
		OK           bool               `json:"ledger_ok"`
		Seconds      []struct {
			Answered int64 `json:"answered"`
			Executed int64 `json:"executed"`
		} `json:"seconds"`
	}
	var got struct {
		figures
		Runs []figures `json:"runs"`
	}
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || len(got.Runs) != 2 {
		t.Fatalf("%v, %d runs in\n%s", err, len(got.Runs), r.out)
	}
	for i, run := range got.Runs {
		var answered, executed int64
		for _, s := range run.Seconds {
			answered, executed = answered+s.Answered, executed+s.Executed
		}
		if run.Acknowledged != 150 || run.Executed != 150 || answered != 150 || executed != 150 || !run.OK {
			t.Errorf("run %d: %d acknowledged, %d executed, on the time line %d and %d; want 150 of all, and a whole ledger: %t",
				i, run.Acknowledged, run.Executed, answered, executed, run.OK)
		}
		if run.Seen == 0 || run.CommitP50 <= 0 || run.SeenP99 <= run.CommitP50 {
			t.Errorf("run %d: %d holds were watched: seen p99 %g ms after maturity, p50 %g ms after executed_at", i, run.Seen, run.SeenP99, run.CommitP50)
		}
		if run.LagP99 <= 0 || run.WAL <= 0 || run.RSS <= 0 {
			t.Errorf("run %d: lag %g ms, WAL %g, RSS %d", i, run.LagP99, run.WAL, run.RSS)
		}
	}
	for _, role := range []string{"postgres", "holdfast", "redis", "payment-sim", "load"} {
		if _, there := got.CPU[role]; !there {
			t.Errorf("no CPU of %s in %v", role, got.CPU)
		}
	}
	if html, err := os.ReadFile(page); err != nil || strings.Count(string(html), "<svg") != 4 {
		t.Errorf("the page has %d charts, %v", strings.Count(string(html), "<svg"), err)
	}
}

func TestBenchFlagsAreChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ args, want string }{
		{"--runs 0", "--runs"},
		{"--suite slow", "slow"},
		{"--suite quick --scenario create", "exclude"},
		{"--suite quick --rate 5", "--rate"},
		{"--shards-count 2", "--embedded"},
		{"--embedded --shards-count 65", "--shards-count"},
		{"--scenario party", "party"},
		{"--outage soon", "--outage"},
		{"--processes 300", "processes"},
	} {
		r := command(nil, append([]string{"bench"}, strings.Fields(c.args)...)...)
		if r.code != exitUsage || !strings.Contains(r.errOut, c.want) {
			t.Errorf("%s: exit %d, says %q", c.args, r.code, r.errOut)
		}
	}
}
