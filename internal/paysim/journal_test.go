package paysim

import (
	"bytes"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, journalName)
	p, refused := testPayment(1), testPayment(2)
	first := open(t, dir)
	first.fault(fmt.Sprintf(`{"banned":[%q]}`, refused.Recipient))
	_, paidAnswer := first.pay(p)
	_, refusedAnswer := first.pay(refused)
	if _, err := New(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("two simulators on one journal: %v", err)
	}
	// What is in the file before any Close is what a kill -9 leaves.
	written, err := os.ReadFile(path)
	if err != nil || bytes.Count(written, []byte("\n")) != 2 {
		t.Fatalf("journal after two answers: %q, %v", written, err)
	}
	for name, tail := range map[string]string{"whole": "", "torn": "paid 00ff", "torn to junk": "pa\x00\x00\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, journalName)
			if err := os.WriteFile(path, append(bytes.Clone(written), tail...), 0o644); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			status, body := s.pay(p)
			s.want("paid before", status, body, 200, 1, p)
			status, again := s.pay(refused)
			s.want("refused before", status, again, 403, 0, refused)
			if body != paidAnswer || again != refusedAnswer {
				t.Errorf("answers changed: %s, %s", body, again)
			}
			q := testPayment(3)
			status, body = s.pay(q)
			s.want("paid now", status, body, 200, 1, q)
			now, err := os.ReadFile(path)
			if err != nil || !bytes.HasPrefix(now, written) || bytes.Count(now, []byte("\n")) != 3 {
				t.Errorf("journal now: %q, %v", now, err)
			}
		})
	}
	t.Run("broken in the middle stops the start", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, journalName), append([]byte("junk\n"), written...), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("opened: %v", err)
		}
	})
}

func TestBrokenJournalPromisesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sim, err := New(Config{Dir: dir, Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(sim)
	defer srv.Close()
	s := &stand{t, sim, srv.URL}
	sim.journal.f.Close() // every write fails from here on
	p := testPayment(1)
	for range 2 {
		if status, body := s.pay(p); status != 503 {
			t.Errorf("pay: %d %s", status, body)
		}
		if status, body := s.lookup(p); status != 503 {
			t.Errorf("look-up: %d %s", status, body)
		}
	}
	if err := sim.Close(); err == nil {
		t.Error("Close hid that the journal is broken")
	}
}
