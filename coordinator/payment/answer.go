package payment

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-escrow/holdfast"
)

const (
	maxCode      = 64  // bytes of a refusal code
	maxPaymentID = 128 // characters of a payment id
)

// judge maps an answer to what it proves. Everything that is not spelled out
// here is Unknown.
func (c *Client) judge(op operation, h holdfast.Hold, status int, contentType string, body []byte) Answer {
	doc, err := parse(body)
	switch {
	case status == http.StatusOK || status == http.StatusCreated:
		if err != nil {
			return unknown("payment API answered %d: %w", status, err)
		}
		return c.judgeDone(op, h, status, doc)
	case status >= 400 && status < 500:
		if err == nil && doc.Code != nil && c.refusals[*doc.Code] {
			return c.judgeRefusal(h, status, doc)
		}
		if op == opLookup && status == http.StatusNotFound && !isPage(contentType, body) {
			return Answer{Outcome: NeverSeen}
		}
		if err == nil && doc.Code != nil {
			return unknown("payment API answered %d with code %s, which is not on the list of refusals", status, short(*doc.Code))
		}
	}
	return unknown("payment API answered %d", status)
}

// judgeDone judges a 200 or 201. A look-up may also report a refusal or that
// nothing is decided yet; a payment may not.
func (c *Client) judgeDone(op operation, h holdfast.Hold, status int, doc document) Answer {
	if doc.Status == nil {
		return unknown("payment API answered %d without a status", status)
	}
	switch {
	case *doc.Status == "succeeded":
		if err := doc.echoes(h, true); err != nil {
			return unknown("payment API answered %d: %w", status, err)
		}
		if err := checkPaymentID(doc.PaymentID); err != nil {
			return unknown("payment API answered %d: %w", status, err)
		}
		return Answer{Outcome: Succeeded, PaymentID: *doc.PaymentID}
	case op == opLookup && *doc.Status == "refused" && doc.Code != nil && c.refusals[*doc.Code]:
		return c.judgeRefusal(h, status, doc)
	case op == opLookup && *doc.Status == "pending":
		return Answer{Err: ErrPending}
	}
	return unknown("payment API answered %d with status %s", status, short(*doc.Status))
}

// judgeRefusal is for a listed code. A refusal need not echo the request, but
// what it does echo must be ours: it costs the recipient the money.
func (c *Client) judgeRefusal(h holdfast.Hold, status int, doc document) Answer {
	if err := doc.echoes(h, false); err != nil {
		return unknown("payment API answered %d with code %s: %w", status, short(*doc.Code), err)
	}
	return Answer{Outcome: Refused, Code: *doc.Code, Echoed: doc.HoldID != nil}
}

// isPage reports a 404 that comes from a web server or a proxy rather than from
// the payment API: an HTML page. Other bodies, or none, cannot be told apart
// from an API that says "never seen" in its own words.
func isPage(contentType string, body []byte) bool {
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(contentType)), "text/html") ||
		bytes.HasPrefix(bytes.TrimSpace(body), []byte("<"))
}

// document is the part of an answer that we read; nil means absent or null.
type document struct {
	PaymentID, Status, Code               *string
	HoldID, SenderID, RecipientID, Amount *json.RawMessage
	Currency                              *string
}

// parse reads exactly one JSON object: names in their own case and only once,
// nothing after it. A looser reader would let a garbled answer pass for an echo.
func parse(body []byte) (document, error) {
	var d document
	if !utf8.Valid(body) {
		return d, errors.New("the answer is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return d, errors.New("the answer is not a JSON object")
	}
	seen := make(map[string]bool, 8)
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return document{}, errors.New("the answer is garbled JSON")
		}
		dst := d.field(name)
		if dst == nil {
			dst = new(json.RawMessage)
		} else if seen[name] {
			return document{}, fmt.Errorf("the answer names %s twice", name)
		} else {
			seen[name] = true
		}
		if err := dec.Decode(dst); err != nil {
			return document{}, fmt.Errorf("the answer is garbled JSON at %s", short(name))
		}
	}
	if _, err := dec.Token(); err != nil {
		return document{}, errors.New("the answer is cut off")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return document{}, errors.New("the answer has text after its JSON object")
	}
	return d, nil
}

func (d *document) field(name string) any {
	switch name {
	case "payment_id":
		return &d.PaymentID
	case "status":
		return &d.Status
	case "code":
		return &d.Code
	case "hold_id":
		return &d.HoldID
	case "sender_id":
		return &d.SenderID
	case "recipient_id":
		return &d.RecipientID
	case "amount":
		return &d.Amount
	case "currency":
		return &d.Currency
	}
	return nil
}

// echoes checks that the answer is about this hold. With all, the fields that
// the contract names must be there; the others only must not contradict.
func (d *document) echoes(h holdfast.Hold, all bool) error {
	var amount int64
	var hold holdfast.HoldID
	var sender, recipient holdfast.UserID
	for _, f := range []struct {
		name     string
		got      *json.RawMessage
		dst      any
		same     func() bool
		required bool
	}{
		{"hold_id", d.HoldID, &hold, func() bool { return hold == h.ID }, all},
		{"amount", d.Amount, &amount, func() bool { return amount == h.Amount }, all},
		{"recipient_id", d.RecipientID, &recipient, func() bool { return recipient == h.Recipient }, all},
		{"sender_id", d.SenderID, &sender, func() bool { return sender == h.Sender }, false},
	} {
		switch {
		case f.got == nil && f.required:
			return fmt.Errorf("the answer does not echo %s", f.name)
		case f.got != nil && (json.Unmarshal(*f.got, f.dst) != nil || !f.same()):
			return fmt.Errorf("the answer echoes another %s", f.name)
		}
	}
	if d.Currency != nil && *d.Currency != h.Currency {
		return errors.New("the answer echoes another currency")
	}
	return nil
}

func checkPaymentID(id *string) error {
	if id == nil || strings.TrimSpace(*id) == "" {
		return errors.New("the answer has no payment_id")
	}
	if utf8.RuneCountInString(*id) > maxPaymentID {
		return fmt.Errorf("the payment_id is longer than %d characters", maxPaymentID)
	}
	for _, r := range *id {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return errors.New("the payment_id has characters that cannot be printed")
		}
	}
	return nil
}

// short quotes a text of the other side for an error, bounded.
func short(s string) string {
	if len(s) > maxCode {
		s = s[:maxCode] + "…"
	}
	return fmt.Sprintf("%q", s)
}

func appendJSONString(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("payment: marshal the string %q: %v", s, err)) // a string always marshals
	}
	return append(b, q...)
}
