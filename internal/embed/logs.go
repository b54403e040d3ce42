package embed

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"
	"time"
)

// maxLog is the size at which a server's log is moved to <name>.log.1; each
// server so keeps at most about twice as much.
const maxLog = 16 << 20

const trimLogsEvery = time.Minute

func (s *Stack) trimLogs(ctx context.Context) {
	defer close(s.logsDone)
	tick := time.NewTicker(trimLogsEvery)
	defer tick.Stop()
	for {
		for _, p := range s.postgres {
			s.trimLog(p.log)
		}
		s.trimLog(s.Redis.log)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Stack) trimLog(path string) {
	if err := trimLog(path, maxLog); err != nil {
		s.env.log.Warn("trim log", "log", path, "error", err.Error())
	}
}

// trimLog copies a log that is too big aside and empties it. The servers write
// in append mode straight into the file, without us in between, so it is
// emptied, not renamed; a line written in between may be lost.
func trimLog(path string, limit int64) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() <= limit {
		return nil
	}
	from, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	// The newest part is worth keeping, and a log that grew wild is not doubled.
	if _, err := from.Seek(max(0, info.Size()-limit), io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	return from.Truncate(0)
}

// lastLine is the line behind offset that says most about a death: the last
// fatal one, else the last.
func lastLine(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return "no log"
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return "no log"
	}
	last, fatal := "", ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.Contains(line, "FATAL") || strings.Contains(line, "PANIC") {
			fatal = line
		}
		if line != "" {
			last = line
		}
	}
	switch {
	case fatal != "":
		return fatal
	case last != "":
		return last
	}
	return "nothing in its log"
}
