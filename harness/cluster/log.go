package cluster

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
)

// logFile is everything that one process has said on stderr and stdout, over
// all its lives. The process writes into the file itself, so that its last line
// is there however it ended.
type logFile struct {
	path string

	mu      sync.Mutex
	read    int64          // bytes that are counted
	strikes map[string]int // "POINT" and "POINT ACTION"
	panics  int
}

func newLog(path string) *logFile { return &logFile{path: path, strikes: map[string]int{}} }

func (l *logFile) append() (*os.File, error) {
	return os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// lastLines is how much of a log an error shows.
const lastLines = 4

// last is the end of the log, for errors.
func (l *logFile) last() string {
	raw, err := os.ReadFile(l.path)
	if err != nil {
		return "no log"
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-lastLines):], " | ") + " (log: " + l.path + ")"
}

// count reads on in the file; a line that is not whole yet waits.
func (l *logFile) count() {
	f, err := os.Open(l.path)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.Seek(l.read, io.SeekStart); err != nil {
		return
	}
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		l.read += int64(len(line))
		switch {
		case bytes.HasPrefix(line, []byte("failpoint struck ")):
			point, action, _ := strings.Cut(strings.TrimSpace(string(line[len("failpoint struck "):])), " ")
			l.strikes[point]++
			l.strikes[point+" "+action]++
		case bytes.HasPrefix(line, []byte("panic: ")), bytes.HasPrefix(line, []byte("fatal error: ")):
			l.panics++
		}
	}
}

// Log is everything that the process has said so far, over all its runs.
func (p *Process) Log() string {
	raw, err := os.ReadFile(p.log.path)
	if err != nil {
		return ""
	}
	return string(raw)
}

// LogPath is the file behind Log.
func (p *Process) LogPath() string { return p.log.path }

// Strikes is how often a failpoint has struck in this process, over all its
// runs; the name may be "POINT" or "POINT ACTION".
func (p *Process) Strikes(point string) int {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.log.count()
	return p.log.strikes[point]
}

// Panics is how often this process has died of a panic, over all its runs.
func (p *Process) Panics() int {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.log.count()
	return p.log.panics
}

// Usage asks the kernel and the process itself. What cannot be known is 0.
func (p *Process) Usage() (fds, goroutines int, rssBytes int64) {
	pid := p.Pid()
	if pid == 0 {
		return 0, 0, 0
	}
	if names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		fds = len(names)
	}
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		if fields := strings.Fields(string(raw)); len(fields) > 1 {
			pages, _ := strconv.ParseInt(fields[1], 10, 64)
			rssBytes = pages * int64(os.Getpagesize())
		}
	}
	if p.Role != PaymentSim {
		n, _ := p.Metric("go_goroutines", "")
		goroutines = int(n)
	}
	return fds, goroutines, rssBytes
}
