package paysim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Outcome is one line of the journal: what became of one idempotency key. A
// payment that is put off has a line when it is paid and none before.
type Outcome struct {
	Hold      holdfast.HoldID
	Recipient holdfast.UserID
	Amount    int64
	At        time.Time // zero: decided before the journal kept the time
	Refused   bool      // else it was paid, or Lied
	Lied      bool      // success was claimed and nothing was done
	PaymentID string    // of a payment
}

// ReadJournal reads outcomes as GET /sim/journal sends them, up to the last
// whole line, and returns the length of what it has read.
func ReadJournal(from io.Reader, each func(Outcome)) (int64, error) {
	r := bufio.NewReaderSize(from, 1<<16)
	var whole int64
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		if err != nil {
			return whole, fmt.Errorf("read the payment journal after %d bytes: %w", whole, err)
		}
		res, err := parseLine(line[:len(line)-1])
		if err != nil {
			return whole, fmt.Errorf("read the payment journal after %d bytes: %w", whole, err)
		}
		whole += int64(len(line))
		if res.word == wordHidden || res.word == wordPending {
			continue // it has a line of its own when it is paid
		}
		o := Outcome{Hold: res.hold, Recipient: res.recipient, Amount: res.amount, Refused: res.refused, Lied: res.word == wordLied}
		if res.at != 0 {
			o.At = time.UnixMilli(res.at).UTC()
		}
		if !res.refused && !o.Lied {
			o.PaymentID = paymentID(res.key.number())
		}
		each(o)
	}
}

// getJournal sends the journal from a byte offset on, as it is on disk: the bulk
// way to learn what was really paid. A reader that goes on where it stopped
// reads every line once. An offset beyond the end means that the journal was
// emptied in between: 416.
func (s *Sim) getJournal(w http.ResponseWriter, r *http.Request) {
	var from int64
	if q := r.URL.Query(); q.Has("from") {
		var err error
		if from, err = strconv.ParseInt(q.Get("from"), 10, 64); err != nil || from < 0 {
			refuse(w, http.StatusBadRequest, codeInvalid, "from must be a number of bytes")
			return
		}
	}
	s.mu.Lock()
	s.ripen(time.Now())
	written := s.journal.pending()
	s.mu.Unlock()
	if err := written.wait(); err != nil {
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "the journal cannot be written")
		return
	}
	info, err := s.journal.f.Stat()
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, codeUnavailable, "the journal cannot be read")
		return
	}
	if from > info.Size() {
		refuse(w, http.StatusRequestedRangeNotSatisfiable, codeInvalid, fmt.Sprintf("the journal has %d bytes", info.Size()))
		return
	}
	w.Header()["Content-Type"] = []string{"text/plain; charset=utf-8"}
	_, _ = io.Copy(w, io.NewSectionReader(s.journal.f, from, info.Size()-from))
}
