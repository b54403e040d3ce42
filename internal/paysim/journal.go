package paysim

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/holdfast-escrow/holdfast"
)

// A line of the journal, ended by a newline:
//
//	paid    <key hash> <body hash> <hold> <recipient> <amount> <time> <key>
//	refused … the same
//	lied    … the same: success was claimed and nothing was done
//	hidden  … the same, and the time at which it will be paid; look-ups do not see it
//	pending … the same, and look-ups say that it is pending
//
// Times are ms of Unix time. The key is = and the key query-escaped, or - for
// the hold's own key. Lines of old journals end after the amount.
const (
	wordPaid    = "paid"
	wordRefused = "refused"
	wordLied    = "lied"
	wordHidden  = "hidden"
	wordPending = "pending"
	maxLine     = 4096
)

// record is one line of the journal.
type record struct {
	word string
	key  keyHash
	name string // the key as it was sent
	result
	due int64 // of hidden and pending
}

// journal appends lines in groups: whoever comes while a group is being written
// joins the next one, and nobody's lock is held during the write.
type journal struct {
	f     *os.File
	fsync bool

	mu      sync.Mutex
	idle    sync.Cond // on mu: no group is being written
	next    *group    // being filled
	current *group    // being written, nil when none is
	broken  error     // after a failed write nothing more is promised
	closing bool

	wake    chan struct{} // capacity 1
	stopped chan struct{}
}

// group is lines that are written at once. err is set before done is closed.
type group struct {
	lines []byte
	done  chan struct{}
	err   error
}

func newGroup() *group { return &group{done: make(chan struct{})} }

// wait returns when the group is in the file. A nil group is there already.
func (g *group) wait() error {
	if g == nil {
		return nil
	}
	<-g.done
	return g.err
}

// openJournal reads the file from its beginning, drops a last line that was torn
// by a crash, and locks the file against a second simulator.
func openJournal(path string, fsync bool, each func(record)) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the payment journal: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("payment journal %s is in use by another simulator: %w", path, err)
	}
	whole, err := replay(f, each)
	if err == nil {
		err = f.Truncate(whole)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read payment journal %s: %w", path, err)
	}
	j := &journal{f: f, fsync: fsync, next: newGroup(), wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	j.idle.L = &j.mu
	go j.write()
	return j, nil
}

// replay hands every line to each and returns the length of the file up to the
// last line that is whole. A bad line before the last one is not a torn write
// and stops the start: what was paid would no longer be known.
func replay(f io.Reader, each func(record)) (whole int64, err error) {
	r := bufio.NewReaderSize(f, 1<<20)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return whole, nil // no newline: torn, or nothing
		}
		if err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
		rec, bad := parseLine(line[:len(line)-1])
		if bad != nil {
			length := int64(len(line))
			if _, err := r.Peek(1); errors.Is(err, io.EOF) && length < maxLine {
				return whole, nil
			}
			return 0, fmt.Errorf("line %d: %w", n, bad)
		}
		each(rec)
		whole += int64(len(line))
	}
}

func appendLine(b []byte, r record) []byte {
	b = append(append(b, r.word...), ' ')
	b = append(hex.AppendEncode(b, r.key[:]), ' ')
	b = append(hex.AppendEncode(b, r.body[:]), ' ')
	b = append(append(b, r.hold.String()...), ' ')
	b = append(append(b, r.recipient.String()...), ' ')
	b = append(strconv.AppendInt(b, r.amount, 10), ' ')
	b = append(strconv.AppendInt(b, r.at, 10), ' ')
	if r.name == ownKey(r.hold) {
		b = append(b, '-')
	} else {
		b = append(append(b, '='), url.QueryEscape(r.name)...)
	}
	if r.word == wordHidden || r.word == wordPending {
		b = strconv.AppendInt(append(b, ' '), r.due, 10)
	}
	return append(b, '\n')
}

// ownKey is the key that Holdfast pays a hold with.
func ownKey(id holdfast.HoldID) string { return id.String() + ":EXECUTED" }

func parseLine(line []byte) (r record, err error) {
	f := bytes.Split(line, []byte(" "))
	r.word = string(f[0])
	want := 8
	switch r.word {
	case wordPaid, wordLied:
	case wordRefused:
		r.refused = true
	case wordHidden, wordPending:
		want = 9
	default:
		return r, fmt.Errorf("unknown word %q", f[0])
	}
	if old := len(f) == 6 && want == 8; len(f) != want && !old || len(f[1]) != 2*len(r.key) || len(f[2]) != 2*len(r.body) {
		return r, fmt.Errorf("not a line of a payment journal: %q", line)
	}
	_, err1 := hex.Decode(r.key[:], f[1])
	_, err2 := hex.Decode(r.body[:], f[2])
	err3 := r.hold.UnmarshalText(f[3])
	err4 := r.recipient.UnmarshalText(f[4])
	var err5, err6, err7, err8 error
	r.amount, err5 = strconv.ParseInt(string(f[5]), 10, 64)
	r.name = ownKey(r.hold)
	if len(f) > 6 {
		r.at, err6 = strconv.ParseInt(string(f[6]), 10, 64)
		if name, escaped := strings.CutPrefix(string(f[7]), "="); escaped {
			r.name, err7 = url.QueryUnescape(name)
		}
	}
	if len(f) > 8 {
		r.due, err8 = strconv.ParseInt(string(f[8]), 10, 64)
	}
	return r, errors.Join(err1, err2, err3, err4, err5, err6, err7, err8)
}

// append adds a line to the next group.
func (j *journal) append(r record) *group {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return failedGroup(j.broken)
	}
	j.next.lines = appendLine(j.next.lines, r)
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return j.next
}

// pending is the group after which everything appended so far is written; nil
// when it is.
func (j *journal) pending() *group {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.broken != nil:
		return failedGroup(j.broken)
	case len(j.next.lines) > 0:
		return j.next
	default:
		return j.current
	}
}

func failedGroup(err error) *group {
	g := newGroup()
	g.err = err
	close(g.done)
	return g
}

func (j *journal) write() {
	defer close(j.stopped)
	for range j.wake {
		j.mu.Lock()
		g := j.next
		if len(g.lines) == 0 {
			stop := j.closing
			j.mu.Unlock()
			if stop {
				return
			}
			continue
		}
		j.next, j.current = newGroup(), g
		g.err = j.broken
		j.mu.Unlock()

		if g.err == nil {
			_, g.err = j.f.Write(g.lines)
		}
		if g.err == nil && j.fsync {
			g.err = j.f.Sync()
		}
		j.mu.Lock()
		if g.err != nil && j.broken == nil {
			j.broken = fmt.Errorf("write the payment journal: %w", g.err)
		}
		j.current = nil
		j.idle.Broadcast()
		stop := j.closing && len(j.next.lines) == 0
		j.mu.Unlock()
		g.lines = nil
		close(g.done)
		if stop {
			return
		}
	}
}

// truncate empties the file. The caller keeps appenders out.
func (j *journal) truncate() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.current != nil || len(j.next.lines) > 0 {
		j.idle.Wait()
	}
	if err := j.f.Truncate(0); err != nil {
		return fmt.Errorf("empty the payment journal: %w", err)
	}
	j.broken = nil
	return nil
}

// close writes what is left. Appends after it fail.
func (j *journal) close() error {
	j.mu.Lock()
	j.closing = true
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	<-j.stopped
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = errors.New("the payment simulator is closed")
	}
	g := j.next
	j.next = newGroup()
	if len(g.lines) > 0 { // came between the last write and here
		g.err = j.broken
		close(g.done)
	}
	return errors.Join(j.f.Sync(), j.f.Close())
}
