package paysim

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestJournalIsReadInBulk(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	paid, refused, late := testPayment(1), testPayment(2), testPayment(3)
	before := time.Now().Truncate(time.Millisecond)
	s.fault(fmt.Sprintf(`{"banned":[%q]}`, refused.Recipient))
	_, answer := s.pay(paid)
	s.pay(refused)
	read := func(from int64) (got []Outcome, n int64) {
		status, body := s.do("GET", fmt.Sprintf("/sim/journal?from=%d", from), "", nil)
		if status != 200 {
			t.Fatalf("journal from %d: %d %s", from, status, body)
		}
		n, err := ReadJournal(strings.NewReader(body), func(o Outcome) { got = append(got, o) })
		if err != nil {
			t.Fatal(err)
		}
		return got, n
	}
	got, n := read(0)
	if len(got) != 2 || got[0].Hold != paid.Hold || got[0].Refused || got[0].Amount != paid.Amount ||
		!strings.Contains(answer, got[0].PaymentID) || got[1].Hold != refused.Hold || !got[1].Refused {
		t.Fatalf("journal: %+v after %s", got, answer)
	}
	if got[0].At.Before(before) || got[0].At.After(time.Now()) {
		t.Errorf("paid at %s, asked at %s", got[0].At, before)
	}
	s.pay(late)
	if more, _ := read(n); len(more) != 1 || more[0].Hold != late.Hold {
		t.Errorf("journal from %d: %+v", n, more)
	}
	for _, bad := range []string{"x", "-1", "1.5"} {
		if status, body := s.do("GET", "/sim/journal?from="+bad, "", nil); status != 400 {
			t.Errorf("from %s: %d %s", bad, status, body)
		}
	}
	if status, _ := s.do("POST", "/sim/reset", "", nil); status != 200 {
		t.Fatalf("reset: %d", status)
	}
	if status, body := s.do("GET", fmt.Sprintf("/sim/journal?from=%d", n), "", nil); status != 416 {
		t.Errorf("beyond the end of an emptied journal: %d %s", status, body)
	}
}

func TestReadJournal(t *testing.T) {
	t.Parallel()
	p := testPayment(1)
	line := string(appendLine(nil, record{word: wordPaid, name: "k", result: result{hold: p.Hold, recipient: p.Recipient, amount: 5, at: 7}}))
	old := strings.Join(strings.Split(line, " ")[:6], " ") + "\n"
	for _, c := range []struct {
		name, text string
		n, whole   int
		bad        bool
	}{
		{"nothing", "", 0, 0, false},
		{"a line without the time", old, 1, len(old), false},
		{"a torn last line", line + line[:20], 1, len(line), false},
		{"junk", line + "junk\n", 1, len(line), true},
	} {
		var got []Outcome
		whole, err := ReadJournal(strings.NewReader(c.text), func(o Outcome) { got = append(got, o) })
		if len(got) != c.n || whole != int64(c.whole) || (err != nil) != c.bad {
			t.Errorf("%s: %d outcomes, %d bytes, %v", c.name, len(got), whole, err)
		}
	}
}
