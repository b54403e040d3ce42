// Package apiclient is a small HTTP client of the public and the admin API, for
// the command line, the demo and the benchmark's preparation. It speaks only
// what is on the wire and must not know how a coordinator works.
package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// Client asks one coordinator. API and Admin are base URLs without a trailing
// slash; see BaseURL.
type Client struct {
	API   string
	Admin string
	Token string
	HTTP  *http.Client // nil: one with a timeout of 30 s
}

// maxAnswer bounds what is read of one answer.
const maxAnswer = 64 << 20

var defaultHTTP = &http.Client{
	Timeout: 30 * time.Second,
	Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	},
}

// BaseURL turns an address as settings write it (host:port or URL) into a base
// URL that a client on this machine can dial.
func BaseURL(addr string) string {
	if strings.HasPrefix(addr, "http://") || strings.HasPrefix(addr, "https://") {
		return strings.TrimRight(addr, "/")
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil && (host == "" || host == "0.0.0.0" || host == "::") {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	return "http://" + addr
}

// Problem is an answer of the API that is not a success (RFC 9457).
type Problem struct {
	Status    int             `json:"status"`
	Code      string          `json:"code"`
	Title     string          `json:"title"`
	Detail    string          `json:"detail"`
	RequestID string          `json:"request_id"`
	Retryable bool            `json:"retryable"`
	Hold      json.RawMessage `json:"hold,omitempty"`
}

func (p *Problem) Error() string {
	text := p.Title
	if p.Detail != "" {
		text = p.Detail
	}
	if text == "" {
		text = http.StatusText(p.Status)
	}
	s := fmt.Sprintf("%s (%d %s)", text, p.Status, p.Code)
	if p.RequestID != "" && p.Status >= 500 {
		s += ", request " + p.RequestID
	}
	return s
}

// AsProblem returns the problem behind an error, nil when the error is no
// answer of the API.
func AsProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return nil
}

// Public calls the public API. in (nil: no body) is sent as JSON, the answer is
// read into out (nil: not read) and returned as it came.
func (c *Client) Public(ctx context.Context, method, path string, in, out any) (json.RawMessage, error) {
	return c.call(ctx, c.API, method, path, in, out)
}

// AdminCall calls the admin API.
func (c *Client) AdminCall(ctx context.Context, method, path string, in, out any) (json.RawMessage, error) {
	return c.call(ctx, c.Admin, method, path, in, out)
}

func (c *Client) call(ctx context.Context, base, method, path string, in, out any) (json.RawMessage, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	hc := c.HTTP
	if hc == nil {
		hc = defaultHTTP
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, unreachable(base, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read answer of %s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, problemOf(resp, answer)
	}
	if out != nil {
		if err := json.Unmarshal(answer, out); err != nil {
			return answer, fmt.Errorf("%s %s answered something that is not understood: %w", method, path, err)
		}
	}
	return answer, nil
}

func problemOf(resp *http.Response, answer []byte) *Problem {
	p := &Problem{}
	if json.Unmarshal(answer, p) != nil || p.Code == "" {
		p.Code, p.Title = "unexpected_answer", http.StatusText(resp.StatusCode)
	}
	p.Status = resp.StatusCode
	if p.RequestID == "" {
		p.RequestID = resp.Header.Get("X-Request-Id")
	}
	return p
}

func unreachable(base string, err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("nothing listens at %s: start holdfast up, or name the address with --api and --admin: %w", base, syscall.ECONNREFUSED)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("reach %s: %w", base, err)
}
