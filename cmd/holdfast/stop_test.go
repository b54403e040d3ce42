package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/settings"
)

// Other processes must learn from an answer that nothing was done: the end of
// their connection would leave them with an unknown outcome.
func TestStopIsAnnounced(t *testing.T) {
	t.Parallel()
	secret := []byte(strings.Repeat("b", 32))
	stops := &process{cfg: &settings.Config{BranchSecret: string(secret)}}
	var asked int
	first := httptest.NewServer(stops.internalHandler())
	defer first.Close()
	next := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		branch.WriteAnswer(w, []branch.CodeResult{{Code: branch.CodeOK}}, nil)
	}))
	defer next.Close()
	one, err := branch.NewHTTP(branch.HTTPConfig{URLs: []string{first.URL}, Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	both, err := branch.NewHTTP(branch.HTTPConfig{URLs: []string{first.URL, next.URL}, Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	stops.leave()

	var answers []branch.CodeResult
	if err := one.Send(t.Context(), 0, branch.OpCredit, []branch.CreditItem{{}}, &answers); !errors.Is(err, holdfast.ErrShardUnavailable) {
		t.Errorf("a step sent to one that stops: %v", err)
	}
	if err := both.Send(t.Context(), 0, branch.OpCredit, []branch.CreditItem{{}}, &answers); err != nil || asked != 1 {
		t.Errorf("the next one was asked %d times: %v", asked, err)
	}
	resp, err := http.Post(first.URL, "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !resp.Close {
		t.Error("its connections are kept")
	}

	w := httptest.NewRecorder()
	stops.readyz(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	var doc struct{ Status string }
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != 503 || doc.Status != "draining" {
		t.Errorf("readyz: %d %s", w.Code, w.Body)
	}
}
