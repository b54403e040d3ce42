package paysim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const (
	defaultPage = 10_000
	maxPage     = 100_000
	readChunk   = 1 << 20
)

var errNoSuchPlace = errors.New("after is neither 0 nor the next of an earlier page of this journal")

// Effect is one payment that was really made.
type Effect struct {
	Hold      holdfast.HoldID `json:"hold_id"`
	Recipient holdfast.UserID `json:"recipient_id"`
	Amount    int64           `json:"amount"`
	Key       string          `json:"key"`
	PaymentID string          `json:"payment_id"`
	At        time.Time       `json:"at"`
}

// Page is a part of everything that was done, in the order in which it was done.
type Page struct {
	Effects []Effect `json:"effects"`
	Lies    []Effect `json:"lies,omitempty"` // success was claimed, nothing was done
	Next    int64    `json:"next"`           // the after of the next page
	More    bool     `json:"more"`           // false: this was all there is now
}

// EffectsAfter reads what was done from the journal itself and not from the
// memory, up to limit effects. After is 0 or the Next of an earlier page.
func (s *Sim) EffectsAfter(after int64, limit int) (Page, error) {
	s.mu.Lock()
	s.ripen(time.Now())
	written := s.journal.pending()
	s.mu.Unlock()
	page := Page{Effects: []Effect{}, Next: after}
	if err := written.wait(); err != nil {
		return page, err
	}
	if err := s.journal.checkPlace(after); err != nil {
		return page, err
	}
	rest := []byte{}
	for {
		chunk := make([]byte, readChunk)
		n, err := s.journal.f.ReadAt(chunk, page.Next+int64(len(rest)))
		rest = append(rest, chunk[:n]...)
		for {
			line, tail, whole := bytes.Cut(rest, []byte{'\n'})
			if !whole {
				break
			}
			if len(page.Effects)+len(page.Lies) == limit {
				page.More = true
				return page, nil
			}
			if err := page.add(line); err != nil {
				return page, err
			}
			page.Next += int64(len(line)) + 1
			rest = tail
		}
		if errors.Is(err, io.EOF) {
			return page, nil
		}
		if err != nil {
			return page, fmt.Errorf("read the payment journal: %w", err)
		}
	}
}

func (p *Page) add(line []byte) error {
	r, err := parseLine(line)
	if err != nil {
		return err
	}
	e := Effect{r.hold, r.recipient, r.amount, r.name, paymentID(r.key.number()), time.UnixMilli(r.at).UTC()}
	switch r.word {
	case wordPaid:
		p.Effects = append(p.Effects, e)
	case wordLied:
		p.Lies = append(p.Lies, e)
	}
	return nil
}

// checkPlace reports whether a line begins there.
func (j *journal) checkPlace(at int64) error {
	if at == 0 {
		return nil
	}
	var last [1]byte
	if at < 0 {
		return errNoSuchPlace
	}
	if _, err := j.f.ReadAt(last[:], at-1); err != nil || last[0] != '\n' {
		return errNoSuchPlace
	}
	return nil
}
