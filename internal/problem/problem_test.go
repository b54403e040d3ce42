package problem

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast"
)

func written(t *testing.T, p *Problem, path string) (*httptest.ResponseRecorder, map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	w.Header().Set(RequestID, "req-1")
	Write(w, httptest.NewRequest(http.MethodPost, path, nil), p)
	var doc map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return w, doc
}

func TestWrite(t *testing.T) {
	t.Parallel()
	w, doc := written(t, New("hold_matured", "too late").With(holdfast.Hold{Reference: "r"}).At("id"), "/v1/holds/x")
	if w.Code != 409 || w.Header().Get("Content-Type") != MediaType {
		t.Errorf("status %d, type %s", w.Code, w.Header().Get("Content-Type"))
	}
	for field, want := range map[string]any{"type": "urn:holdfast:problem:hold_matured", "title": "The hold has matured",
		"status": 409.0, "detail": "too late", "instance": "/v1/holds/x", "code": "hold_matured", "request_id": "req-1", "retryable": false} {
		if doc[field] != want {
			t.Errorf("%s = %v, want %v", field, doc[field], want)
		}
	}
	if doc["hold"] == nil || doc["errors"] == nil {
		t.Errorf("hold or errors missing: %s", w.Body)
	}
}

func TestEveryCode(t *testing.T) {
	t.Parallel()
	for code, e := range table {
		w, doc := written(t, New(code, ""), "/")
		if doc["code"] != code || e.title == "" || http.StatusText(e.status) == "" || w.Code != e.status {
			t.Errorf("%s: %+v, answer %d %s", code, e, w.Code, w.Body)
		}
		if (w.Header().Get("Retry-After") != "") != (e.retryAfter > 0) {
			t.Errorf("%s: Retry-After %q", code, w.Header().Get("Retry-After"))
		}
		// 503 and 429 promise that repeating helps, and say when.
		if (e.status == 503 || e.status == 429) && (!e.retryable || e.retryAfter == 0) {
			t.Errorf("%s does not say when to come back", code)
		}
	}
	if p := New("no_such_code", "a secret"); p.Status != 500 || p.Code != Internal || p.Detail != "" {
		t.Errorf("unknown code: %+v", p)
	}
}

func TestWordsOfDtmAreHidden(t *testing.T) {
	t.Parallel()
	const text = `ONGOING "FAILURE" \FAILURE \\ONGOINGFAILURE`
	w, doc := written(t, New(Internal, text), "/FAILURE/ONGOING")
	if strings.Contains(w.Body.String(), "FAILURE") || strings.Contains(w.Body.String(), "ONGOING") {
		t.Errorf("the words stand in %s", w.Body)
	}
	if doc["detail"] != text || doc["instance"] != "/FAILURE/ONGOING" {
		t.Errorf("the text was changed: %v", doc)
	}
}

func TestDocumentThatDoesNotMarshal(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	JSON(w, http.StatusOK, map[string]any{"f": func() {}})
	if w.Code != 500 || !strings.Contains(w.Body.String(), Internal) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"Sender_Id": "Sender_Id", "<b>": "", "a\nb": "", "": "", strings.Repeat("x", 65): ""} {
		if got := Printable(name); got != want {
			t.Errorf("%q = %q", name, got)
		}
	}
}
