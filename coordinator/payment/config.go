package payment

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// windowBuckets is how many steps the breaker's rolling window moves in.
const windowBuckets = 10

// Config is what a Client needs. Fields left zero take the default named.
type Config struct {
	URL      string        // required: http or https, the part before /v1/payments
	Timeout  time.Duration // 5 s: one try, from waiting for a connection to the answer's last byte
	Refusals []string      // codes that mean "never": recipient_banned, recipient_closed, payment_forbidden

	ErrorRatio    float64       // 0.10: the breaker opens above it
	MinCalls      int           // 20: finished calls in the window before it may open
	Window        time.Duration // 30 s, in 10 steps; must be longer than Timeout
	OpenFor       time.Duration // 5 s until half-open
	HalfOpenCalls int           // 3 trial calls; all must do well to close the breaker

	// MaxConns bounds the connections to the payment API, idle or busy: 1,024.
	// A call that finds no free one waits within its timeout.
	MaxConns int

	Metrics prometheus.Registerer
	Log     *slog.Logger
}

func (c *Config) defaults() {
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Refusals == nil {
		c.Refusals = []string{"recipient_banned", "recipient_closed", "payment_forbidden"}
	}
	if c.ErrorRatio == 0 {
		c.ErrorRatio = 0.10
	}
	if c.MinCalls == 0 {
		c.MinCalls = 20
	}
	if c.Window == 0 {
		c.Window = 30 * time.Second
	}
	if c.OpenFor == 0 {
		c.OpenFor = 5 * time.Second
	}
	if c.HalfOpenCalls == 0 {
		c.HalfOpenCalls = 3
	}
	if c.MaxConns == 0 {
		c.MaxConns = 1024
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

func (c *Config) check() error {
	switch {
	case c.Timeout < 0:
		return fmt.Errorf("payment timeout %v is negative", c.Timeout)
	case !(c.ErrorRatio > 0 && c.ErrorRatio <= 1):
		return fmt.Errorf("payment breaker error ratio %v does not lie between 0 and 1", c.ErrorRatio)
	case c.MinCalls < 0 || c.HalfOpenCalls < 0 || c.MaxConns < 0:
		return fmt.Errorf("payment breaker calls (%d, half-open %d) and connections (%d) cannot be negative",
			c.MinCalls, c.HalfOpenCalls, c.MaxConns)
	case c.OpenFor < 0:
		return fmt.Errorf("payment breaker open time %v is negative", c.OpenFor)
	case c.Window <= c.Timeout:
		// A call counts in the step in which its permit was taken. If a step
		// could leave the window before a timeout is reported, an API that
		// only hangs would never open the breaker.
		return fmt.Errorf("payment breaker window %v is not longer than the payment timeout %v", c.Window, c.Timeout)
	}
	for _, code := range c.Refusals {
		if code == "" || len(code) > maxCode || strings.TrimSpace(code) != code {
			return fmt.Errorf("payment refusal code %q is empty, padded or longer than %d bytes", code, maxCode)
		}
	}
	return nil
}

// paymentsURL is where payments are sent; a key's own address lies below it.
func (c *Config) paymentsURL() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("payment URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("payment URL %q is not an http or https address", u.Redacted())
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, fmt.Errorf("payment URL %q may not carry credentials, a query or a fragment", u.Redacted())
	}
	if u.Path == "" {
		u.Path = "/" // else the joined path is relative and the request line malformed
	}
	return u.JoinPath("v1", "payments"), nil
}
