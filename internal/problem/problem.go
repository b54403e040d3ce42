// Package problem writes the answers of the APIs: RFC 9457 problem documents
// from one table of codes, and every other JSON document. What a code means to
// a client (status, title, whether repeating can help) stands in the table and
// nowhere else. It knows nothing of how a request is handled.
package problem

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/holdfast-escrow/holdfast"
)

// Media types of the answers, and the header that names a request.
const (
	MediaType = "application/problem+json"
	JSONType  = "application/json"
	RequestID = "X-Request-Id"
)

// Problem is an answer that is not a success. Handlers return it as an error.
// Detail is for the user and never carries text of the request.
type Problem struct {
	Type       string         `json:"type"`
	Title      string         `json:"title"`
	Status     int            `json:"status"`
	Detail     string         `json:"detail,omitempty"`
	Instance   string         `json:"instance,omitempty"`
	Code       string         `json:"code"`
	RequestID  string         `json:"request_id,omitempty"`
	Retryable  bool           `json:"retryable"`
	Hold       *holdfast.Hold `json:"hold,omitempty"`
	Errors     []FieldError   `json:"errors,omitempty"`
	RetryAfter int            `json:"-"` // seconds, 0 = no header
	Replayed   bool           `json:"-"` // remembered under an idempotency key
}

// FieldError says which field of the request is meant.
type FieldError struct {
	Field  string `json:"field"`
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// New makes the problem of a code. A code that is not in the table is a bug and
// becomes a bare 500.
func New(code, detail string) *Problem {
	e, ok := table[code]
	if !ok {
		code, detail, e = Internal, "", table[Internal]
	}
	return &Problem{Type: "urn:holdfast:problem:" + code, Title: e.title, Status: e.status, Detail: detail,
		Code: code, Retryable: e.retryable, RetryAfter: e.retryAfter}
}

// At names the field of the request that is meant.
func (p *Problem) At(field string) *Problem {
	p.Errors = append(p.Errors, FieldError{Field: field, Code: p.Code, Detail: p.Detail})
	return p
}

// With adds the hold that the problem is about.
func (p *Problem) With(h holdfast.Hold) *Problem {
	p.Hold = &h
	return p
}

// Error is for the log; the client gets the document.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Code
	}
	return p.Code + ": " + p.Detail
}

// Known reports whether a code is in the table.
func Known(code string) bool {
	_, ok := table[code]
	return ok
}

// Write answers a request with a problem. The request id is the one that the
// answer already carries in its header.
func Write(w http.ResponseWriter, r *http.Request, p *Problem) {
	doc := *p
	doc.RequestID = w.Header().Get(RequestID)
	doc.Instance = r.URL.EscapedPath()
	if len(doc.Instance) > 256 {
		doc.Instance = ""
	}
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	write(w, MediaType, p.Status, &doc)
}

// JSON answers a request with a document.
func JSON(w http.ResponseWriter, status int, doc any) { write(w, JSONType, status, doc) }

func write(w http.ResponseWriter, mediaType string, status int, doc any) {
	body, err := json.Marshal(doc)
	if err != nil {
		// Our own types always marshal; a document of somebody else's that does
		// not must not become a success without a body.
		status, mediaType = http.StatusInternalServerError, MediaType
		body, _ = json.Marshal(New(Internal, ""))
	}
	body = append(hideWords(body), '\n')
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body) // the client may have gone; nobody is left to be told
}

// The dtm protocol decides about an answer by looking for these two words
// anywhere in it, so a free text of a user could turn a success into something
// else. They stand in no document: their first letter is written as a JSON
// escape, which every reader of JSON turns back.
var words = []struct{ plain, hidden []byte }{
	{[]byte("FAILURE"), []byte(`\u0046AILURE`)},
	{[]byte("ONGOING"), []byte(`\u004fNGOING`)},
}

func hideWords(body []byte) []byte {
	for _, w := range words {
		if bytes.Contains(body, w.plain) {
			body = bytes.ReplaceAll(body, w.plain, w.hidden)
		}
	}
	return body
}

// Printable is a field name as it may stand in a problem: a name of ordinary
// letters is repeated, anything else is not.
func Printable(name string) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	if len(name) > 64 || strings.Trim(name, letters) != "" {
		return ""
	}
	return name
}
