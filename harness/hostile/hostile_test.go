package hostile

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/harness"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	headerTimeout = time.Second
	bodyTimeout   = 2 * time.Second
)

// target is a stack with the limits of the binary and a shorter patience.
func target(t *testing.T) Target {
	t.Helper()
	dsns := testkit.Databases(t, 2)
	stack, err := harness.Start(t.Context(), harness.Options{DSNs: dsns, RedisURL: testkit.Redis(t), Log: testkit.Logger(t),
		Server: func(s *http.Server) { s.ReadHeaderTimeout, s.ReadTimeout = headerTimeout, bodyTimeout }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		stack.Stop(ctx)
	})
	secret, issuer, audience := harness.Signing()
	return Target{API: stack.API.API, Admin: stack.API.Admin, DSNs: dsns, Secret: secret, Issuer: issuer, Audience: audience,
		HeaderTimeout: headerTimeout, BodyTimeout: bodyTimeout}
}

// TestNothingGetsThrough is the suite against a stack on real servers. It is
// alone in its process: it counts goroutines.
func TestNothingGetsThrough(t *testing.T) {
	r := Run(t.Context(), target(t))
	for _, f := range r.Findings {
		t.Error(f)
	}
	for _, s := range r.Sections {
		t.Logf("%-10s %5d probes %8s", s.Name, s.Probes, s.Took.Round(time.Millisecond))
		if s.Probes == 0 {
			t.Errorf("section %s tried nothing", s.Name)
		}
	}
	if len(r.Sections) != len(groups()) {
		t.Errorf("%d sections of %d were run", len(r.Sections), len(groups()))
	}
	t.Logf("%d probes in %s", r.Probes, r.Took.Round(time.Millisecond))
}
