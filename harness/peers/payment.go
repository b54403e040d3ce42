package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// payments calls the payment API in the middle of each transfer. It is the same
// simulator for every system, with the same latency.
type payments struct {
	url    string
	client *http.Client
}

const paymentLatencyMS = 1

func newPayments(url string) *payments {
	return &payments{url, &http.Client{Timeout: 5 * time.Second,
		Transport: &http.Transport{MaxIdleConns: 512, MaxIdleConnsPerHost: 512}}}
}

// pay pays one transfer under its own key, so that a repeated call pays once.
func (p *payments) pay(ctx context.Context, t transfer) error {
	body, err := json.Marshal(map[string]any{"hold_id": t.ID, "sender_id": user(0xa, t.Sender),
		"recipient_id": user(0xb, t.Recipient), "amount": amount, "currency": "RBX"})
	if err != nil {
		return err
	}
	return p.call(ctx, http.MethodPost, "/v1/payments", t.ID, body, nil)
}

// effects are the simulator's own books: what was really paid.
type effects struct {
	Payments int `json:"payments"`
	Doubles  int `json:"doubles"`
}

func (p *payments) effects(ctx context.Context) (e effects, err error) {
	return e, p.call(ctx, http.MethodGet, "/sim/effects", "", nil, &e)
}

// reset forgets all payments, so that each run counts its own.
func (p *payments) reset(ctx context.Context) error {
	if err := p.call(ctx, http.MethodPost, "/sim/reset", "", nil, nil); err != nil {
		return err
	}
	faults := fmt.Appendf(nil, `{"latency_ms":%d}`, paymentLatencyMS)
	return p.call(ctx, http.MethodPut, "/sim/faults", "", faults, nil)
}

func (p *payments) call(ctx context.Context, method, path, key string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: status %d: %.200s", method, path, resp.StatusCode, answer)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(answer, into)
	}
	return err
}
