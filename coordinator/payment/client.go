package payment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const (
	maxAnswer       = 64 << 10         // bytes of an answer's body, and of its headers
	idleConnections = 30 * time.Second // shorter than the keep-alive of common servers
	maxError        = 300              // bytes of an error's text: it is stored with the hold
)

type operation string

const (
	opPay    operation = "pay"
	opLookup operation = "lookup"
)

// Client talks to one payment API. It is safe for concurrent use.
type Client struct {
	cfg       Config
	url       *url.URL
	refusals  map[string]bool
	transport *http.Transport
	breaker   *breaker
	metrics   *metrics
}

// New makes a client; it makes no call. Close it to stop.
func New(cfg Config) (*Client, error) {
	cfg.defaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	u, err := cfg.paymentsURL()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: cfg.Timeout, KeepAlive: 30 * time.Second}
	c := &Client{
		cfg:      cfg,
		url:      u,
		refusals: make(map[string]bool, len(cfg.Refusals)),
		// No proxy from the environment, no compression (an answer's size is
		// bounded as it arrives), HTTP/1.1 only: on a shared HTTP/2 connection
		// nothing could be said about what was sent of one request.
		transport: &http.Transport{
			DialContext:            watchDial(dialer.DialContext),
			TLSHandshakeTimeout:    cfg.Timeout,
			MaxConnsPerHost:        cfg.MaxConns,
			MaxIdleConns:           cfg.MaxConns,
			MaxIdleConnsPerHost:    cfg.MaxConns,
			IdleConnTimeout:        idleConnections,
			MaxResponseHeaderBytes: maxAnswer,
			DisableCompression:     true,
		},
	}
	for _, code := range cfg.Refusals {
		c.refusals[code] = true
	}
	c.breaker = newBreaker(cfg)
	if c.metrics, err = newMetrics(cfg.Metrics, c.breaker.stateNumber); err != nil {
		c.breaker.close()
		return nil, err
	}
	return c, nil
}

// Close stops the breaker's watcher and drops idle connections. Calls in flight
// end as they would have.
func (c *Client) Close() {
	c.breaker.close()
	c.transport.CloseIdleConnections()
}

// Pay sends the payment of a hold, once, within the timeout. It never answers
// NeverSeen.
func (c *Client) Pay(ctx context.Context, h holdfast.Hold) Answer { return c.call(ctx, opPay, h) }

// Lookup asks what became of the hold's key, once, within the timeout.
func (c *Client) Lookup(ctx context.Context, h holdfast.Hold) Answer {
	return c.call(ctx, opLookup, h)
}

// Allow asks the breaker for the right to make one call. The error is ErrOpen.
func (c *Client) Allow() (Permit, error) { return c.breaker.allow() }

// State is the breaker's: Closed, HalfOpen or Open.
func (c *Client) State() string { return c.breaker.state() }

// Counts are the breaker's figures of the current window.
func (c *Client) Counts() Counts { return c.breaker.counts() }

// OnChange calls f with the breaker's state after it changed, one call at a
// time and in order; states that last only a moment may be left out, the last
// one never is. f must not block: later changes wait for it.
func (c *Client) OnChange(f func(state string)) { c.breaker.onChange(f) }

// Timeout is how long one try may take at most.
func (c *Client) Timeout() time.Duration { return c.cfg.Timeout }

func (c *Client) call(ctx context.Context, op operation, h holdfast.Hold) Answer {
	began := time.Now()
	a := c.try(ctx, op, h)
	c.metrics.observe(op, a, time.Since(began))
	return a
}

func (c *Client) try(caller context.Context, op operation, h holdfast.Hold) Answer {
	ctx, cancel := context.WithTimeout(caller, c.cfg.Timeout)
	defer cancel()
	var way sending
	req := c.request(op, h, &way).WithContext(httptrace.WithClientTrace(ctx, way.hooks()))
	// The transport itself, not an http.Client: it follows no redirects and
	// keeps no cookies.
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return Answer{Err: c.explain(caller, err), SureNotSent: way.sure()}
	}
	body, err := readAnswer(res)
	if err != nil {
		return Answer{Err: c.explain(caller, fmt.Errorf("payment API answered %d: %w", res.StatusCode, err))}
	}
	return answered(op, c.judge(op, h, res.StatusCode, res.Header.Get("Content-Type"), body))
}

var (
	jsonType  = []string{"application/json"}
	userAgent = []string{"holdfast"}
)

func (c *Client) request(op operation, h holdfast.Hold, way *sending) *http.Request {
	key := Key(h.ID)
	req := &http.Request{
		Method: http.MethodGet, URL: c.url, Host: c.url.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Accept": jsonType, "User-Agent": userAgent},
	}
	if op == opLookup {
		req.URL = c.url.JoinPath(key)
		return req
	}
	body := paymentBody(h)
	req.Method = http.MethodPost
	req.Header["Content-Type"] = jsonType
	req.Header["Idempotency-Key"] = []string{key}
	req.ContentLength = int64(len(body))
	req.Body = io.NopCloser(bytes.NewReader(body))
	// The transport takes a request with this header for one that it may repeat
	// when a kept-alive connection breaks. It may only when nothing was sent.
	req.GetBody = func() (io.ReadCloser, error) {
		if !way.sure() {
			return nil, errSent
		}
		return io.NopCloser(bytes.NewReader(body)), nil
	}
	return req
}

func paymentBody(h holdfast.Hold) []byte {
	b := make([]byte, 0, 256)
	b = append(b, `{"hold_id":"`...)
	b = append(b, h.ID.String()...)
	b = append(b, `","sender_id":"`...)
	b = append(b, h.Sender.String()...)
	b = append(b, `","recipient_id":"`...)
	b = append(b, h.Recipient.String()...)
	b = append(b, `","amount":`...)
	b = strconv.AppendInt(b, h.Amount, 10)
	b = append(b, `,"currency":`...)
	b = appendJSONString(b, h.Currency)
	return append(b, '}')
}

// readAnswer reads the whole body or errs: half an answer is no answer. A body
// that is too long is not drained; closing it drops the connection.
func readAnswer(res *http.Response) ([]byte, error) {
	defer res.Body.Close()
	if res.StatusCode < 200 {
		return nil, errors.New("this is not a final answer") // 101: its body is the bare connection
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	return body, nil
}

// explain turns the error of a broken call into one that is short enough to be
// stored and says whose doing it was. A deadline is never ours, not even the
// caller's: a caller that waits as long as we do must not hide a hanging API.
func (c *Client) explain(caller context.Context, err error) error {
	text := err.Error()
	if len(text) > maxError {
		text = text[:maxError] + "…"
	}
	// The other side may have had a hand in the text, and PostgreSQL stores it.
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "")
	switch {
	case errors.Is(caller.Err(), context.Canceled):
		return fmt.Errorf("%w: %s", ErrAbandoned, text)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from the payment API within %v: %s", c.cfg.Timeout, text)
	default:
		return fmt.Errorf("call the payment API: %s", text)
	}
}
