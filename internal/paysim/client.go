package paysim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Control steers and questions a simulator in another process.
type Control struct {
	URL    string // base of the simulator, without a slash at its end
	Client *http.Client
}

const (
	controlTimeout = 30 * time.Second
	maxControlBody = 64 << 20
)

// SetFaults changes how the simulator behaves from the next call on.
func (c Control) SetFaults(ctx context.Context, f Faults) error {
	return c.do(ctx, http.MethodPut, "/sim/faults", &f, nil)
}

// Faults is how the simulator behaves now, with what is left of its rules.
func (c Control) Faults(ctx context.Context) (f Faults, err error) {
	return f, c.do(ctx, http.MethodGet, "/sim/faults", nil, &f)
}

// Stats are the counts so far.
func (c Control) Stats(ctx context.Context) (s Stats, err error) {
	return s, c.do(ctx, http.MethodGet, "/sim/stats", nil, &s)
}

// Effects is how often a hold was really paid.
func (c Control) Effects(ctx context.Context, id holdfast.HoldID) (e HoldEffects, err error) {
	return e, c.do(ctx, http.MethodGet, "/sim/effects?hold_id="+id.String(), nil, &e)
}

// EffectsAfter is one page of everything that was paid.
func (c Control) EffectsAfter(ctx context.Context, after int64) (p Page, err error) {
	return p, c.do(ctx, http.MethodGet, "/sim/effects?limit=50000&after="+strconv.FormatInt(after, 10), nil, &p)
}

// EachEffect hands over every payment after a place in the journal, and returns
// the place from which to go on.
func (c Control) EachEffect(ctx context.Context, after int64, each func(Effect)) (next int64, err error) {
	for {
		p, err := c.EffectsAfter(ctx, after)
		if err != nil {
			return after, err
		}
		for _, e := range p.Effects {
			each(e)
		}
		if after = p.Next; !p.More {
			return after, nil
		}
	}
}

// Reset forgets every payment, all counts and all faults.
func (c Control) Reset(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/sim/reset", nil, nil)
}

func (c Control) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("payment simulator: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, body)
	if err != nil {
		return fmt.Errorf("payment simulator: %w", err)
	}
	client := c.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("payment simulator: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxControlBody))
	if err != nil {
		return fmt.Errorf("payment simulator: %s %s: %w", method, path, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("payment simulator: %s %s: %s: %s", method, path, res.Status, bytes.TrimSpace(b[:min(len(b), 500)]))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("payment simulator: %s %s: %w", method, path, err)
	}
	return nil
}
