package settings

import (
	"strings"
	"testing"
	"time"
)

func TestDefaultsAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	c, err := Load([]string{"PATH=/bin", "HOME=/root"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.APIAddr != "127.0.0.1:8080" || c.AdminAddr != "127.0.0.1:8081" || c.SimAddr != "127.0.0.1:8082" {
		t.Errorf("addresses are %s, %s, %s", c.APIAddr, c.AdminAddr, c.SimAddr)
	}
	if c.Horizon != 5*time.Minute || c.SweepEvery != time.Minute || c.BreakerErrorRatio != 0.10 {
		t.Errorf("horizon %s, sweep %s, breaker %g", c.Horizon, c.SweepEvery, c.BreakerErrorRatio)
	}
	if c.Data != ".holdfast" || len(c.Shards) != 0 || c.PaymentURL != "" || c.Currencies["RBX"] != 0 {
		t.Errorf("unexpected defaults: %+v", c)
	}
	if len(c.PaymentRefusals) != 3 || c.Given("HOLDFAST_HORIZON") {
		t.Errorf("refusals %v, horizon given %t", c.PaymentRefusals, c.Given("HOLDFAST_HORIZON"))
	}
}

func TestFlagWinsOverEnvironment(t *testing.T) {
	t.Parallel()
	c, err := Load([]string{"HOLDFAST_HORIZON=2m", "HOLDFAST_SWEEP_EVERY=10s", "HOLDFAST_LOG_LEVEL="},
		map[string]string{"HOLDFAST_HORIZON": "3m"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Horizon != 3*time.Minute || c.SweepEvery != 10*time.Second || c.LogLevel != "info" {
		t.Errorf("got horizon %s, sweep %s, level %s", c.Horizon, c.SweepEvery, c.LogLevel)
	}
	if !c.Given("HOLDFAST_HORIZON") || !c.Given("HOLDFAST_SWEEP_EVERY") || c.Given("HOLDFAST_LOG_LEVEL") {
		t.Error("Given does not tell set values from defaults")
	}
}

func TestWrongSettingIsOneLineThatNamesIt(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"HOLDFAST_HORIZONN=5m":                          "did you mean HOLDFAST_HORIZON?",
		"HOLDFAST_COMPLETELY_UNRELATED=1":               "is not a setting",
		"HOLDFAST_HORIZON=5":                            "not a duration",
		"HOLDFAST_HORIZON=-5m":                          "not a duration",
		"HOLDFAST_HORIZON=+5m":                          "not a duration",
		"HOLDFAST_HORIZON=0":                            "not a duration",
		"HOLDFAST_HORIZON=0s":                           "not between",
		"HOLDFAST_HORIZON=5 m":                          "not a duration",
		"HOLDFAST_HORIZON=5m\nx":                        "not a duration",
		"HOLDFAST_PROOF_EVERY=0s":                       "not between",
		"HOLDFAST_SWEEP_EVERY=6m":                       "must not exceed HOLDFAST_HORIZON",
		"HOLDFAST_API_ADDR=8080":                        "host:port",
		"HOLDFAST_API_ADDR=127.0.0.1:99999":             "65535",
		"HOLDFAST_API_ADDR=127.0.0.1:http":              "65535",
		"HOLDFAST_BREAKER_ERROR_RATIO=NaN":              "not a number",
		"HOLDFAST_BREAKER_ERROR_RATIO=1.5":              "not a number",
		"HOLDFAST_DRAIN_RATE=Inf":                       "not a number",
		"HOLDFAST_DRAIN_RATE=-1":                        "not a number",
		"HOLDFAST_LANES=1.5":                            "whole number",
		"HOLDFAST_LOG_LEVEL=loud":                       "none of",
		"HOLDFAST_PAYMENT_URL=ftp://x":                  "http:// or https://",
		"HOLDFAST_PAYMENT_URL=payments.example":         "http:// or https://",
		"HOLDFAST_PAYMENT_URL=http://u:p@h":             "credentials",
		"HOLDFAST_PAYMENT_URL=http://h/?x=1":            "query",
		"HOLDFAST_PAYMENT_URL=http://:80":               "no host",
		"HOLDFAST_REDIS_URL=http://localhost":           "redis://",
		"HOLDFAST_REDIS_URL=redis://h/abc":              "number of a database",
		"HOLDFAST_SHARDS=host=a, postgres://u@h:nope/d": "item 2 is not a DSN",
		"HOLDFAST_SHARDS=nonsense":                      "not a DSN",
		"HOLDFAST_SHARDS=postgres://a/x,postgres://a/x": "same DSN",
		"HOLDFAST_PARTICIPANTS=http://a,ftp://b":        "item 2",
		"HOLDFAST_COORDINATORS=,":                       "lists nothing",
		"HOLDFAST_PAYMENT_REFUSALS=No Such":             "not a code",
		"HOLDFAST_PAYMENT_REFUSALS=a,outcome_unknown":   "is no refusal",
		"HOLDFAST_CURRENCIES=RBX":                       "CODE:exponent",
		"HOLDFAST_CURRENCIES=RBX:0,RBX:2":               "twice",
		"HOLDFAST_JWT_SECRET=short":                     "32 or more",
		"HOLDFAST_BRANCH_SECRET=short":                  "16 or more",
	} {
		name, _, _ := strings.Cut(setting, "=")
		_, err := Load([]string{setting}, nil)
		if err == nil {
			t.Errorf("%q was accepted", setting)
			continue
		}
		if s := err.Error(); !strings.Contains(s, name) || !strings.Contains(s, want) || strings.Contains(s, "\n") {
			t.Errorf("%q: the error is %q, want one line with %q and %q", setting, s, name, want)
		}
	}
}

func TestProofEveryCanBeNever(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]time.Duration{"": 24 * time.Hour, "0": 0, "6h": 6 * time.Hour} {
		c, err := Load([]string{"HOLDFAST_PROOF_EVERY=" + set}, nil)
		if err != nil || c.ProofEvery != want {
			t.Errorf("%q is %v, %v, want %s", set, c, err, want)
		}
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{
		"HOLDFAST_JWT_SECRET=hunter2", "HOLDFAST_BRANCH_SECRET=hunter2",
		"HOLDFAST_REDIS_URL=htt://user:hunter2@host", "HOLDFAST_SHARDS=postgre://u:hunter2@h/d",
		"HOLDFAST_SHARDS=postgres://u:hunter2@h:x/d", "HOLDFAST_REDIS_URL=redis://u:hunter2@h/x", "HOLDFAST_PAYMENT_URL=http://u:hunter2@h",
		"HOLDFAST_SHARDS=postgres://u:hunter2@h/d,postgres://u:hunter2@h/d",
	} {
		if _, err := Load([]string{setting}, nil); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error of %q is %v", setting, err)
		}
	}
}

func TestFlagErrorNamesTheFlag(t *testing.T) {
	t.Parallel()
	_, err := Load(nil, map[string]string{"HOLDFAST_HORIZON": "soon"})
	if err == nil || !strings.Contains(err.Error(), "--horizon") {
		t.Errorf("the error is %v, want it to name --horizon", err)
	}
	if _, err = Load(nil, map[string]string{"HOLDFAST_SHARDS": ""}); err == nil || !strings.Contains(err.Error(), "--shards is empty") {
		t.Errorf("an empty flag gives %v", err)
	}
}

func TestShardsKeepTheirCommas(t *testing.T) {
	t.Parallel()
	c, err := Load([]string{"HOLDFAST_SHARDS=postgres://u@a:1,b:2/x, host=/run dbname=y password=a://%,postgresql://c/z"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"postgres://u@a:1,b:2/x", "host=/run dbname=y password=a://%", "postgresql://c/z"}
	if strings.Join(c.Shards, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", c.Shards, want)
	}
}

func TestTableIsComplete(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, s := range Table() {
		if seen[s.Name] || !strings.HasPrefix(s.Name, Prefix) || s.Help == "" || s.parse == nil {
			t.Errorf("row %+v is a repetition or lacks its name, help or parser", s)
		}
		seen[s.Name] = true
	}
}

func TestParseDuration(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "30d": 720 * time.Hour, "1ms": time.Millisecond} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("%q is %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "d", "-1d", "1.5d", "0", "5", "5s ", "٣s", "36501d"} {
		if got, err := ParseDuration(in); err == nil {
			t.Errorf("%q was read as %s", in, got)
		}
	}
}
