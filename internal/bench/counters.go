package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// counters only grow; a run is charged with the difference.
type counters struct {
	cpu         map[string]float64 // seconds by role
	walBytes    int64
	diskBytes   int64
	checkpoints int64
}

const counterSQL = `SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint, current_setting('server_version_num')::int`

const diskSQL = `SELECT pg_database_size(current_database())`

// The view of the checkpoints changed its name in PostgreSQL 17.
const (
	checkpointsSQL    = `SELECT num_timed + num_requested FROM pg_stat_checkpointer`
	checkpointsOldSQL = `SELECT checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter`
)

// count reads all counters; what cannot be read is 0.
func (b *Bench) count(ctx context.Context) counters {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	n := counters{cpu: cpuByRole(b.PID, b.SimPID)}
	if b.shards == nil {
		return n
	}
	var mu sync.Mutex
	err := b.shards.each(ctx, b.shards.servers, func(ctx context.Context, _ int, c *pgx.Conn) error {
		var wal, checkpoints int64
		var version int
		if err := c.QueryRow(ctx, counterSQL).Scan(&wal, &version); err != nil {
			return err
		}
		sql := checkpointsSQL
		if version < 170000 {
			sql = checkpointsOldSQL
		}
		err := c.QueryRow(ctx, sql).Scan(&checkpoints)
		mu.Lock()
		defer mu.Unlock()
		n.walBytes += wal
		n.checkpoints += checkpoints
		return err
	})
	err = errors.Join(err, b.shards.each(ctx, b.DSNs, func(ctx context.Context, _ int, c *pgx.Conn) error {
		var size int64
		err := c.QueryRow(ctx, diskSQL).Scan(&size)
		mu.Lock()
		defer mu.Unlock()
		n.diskBytes += size
		return err
	}))
	if err != nil {
		b.Note("not all counters of the shards could be read: %v", err)
	}
	return n
}

// redisState is what Redis says of its memory and its triggers.
type redisState struct {
	bytes, triggers int64
	ok              bool
}

// redis asks for it over a connection of its own. It speaks the protocol by
// hand: two questions do not justify a client library here.
func (b *Bench) redis(ctx context.Context) redisState {
	if b.RedisURL == "" {
		return redisState{}
	}
	s, err := askRedis(ctx, b.RedisURL, max(1, len(b.DSNs)))
	if err != nil {
		b.Note("Redis could not be asked: %v", err)
	}
	return s
}

func askRedis(ctx context.Context, at string, shards int) (s redisState, err error) {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "redis" {
		return s, errors.New("the URL does not start with redis://")
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	nc, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return s, err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(5 * time.Second))
	c := redisConn{nc, bufio.NewReader(nc)}
	if password, ok := u.User.Password(); ok {
		args := []string{"AUTH", password}
		if name := u.User.Username(); name != "" {
			args = []string{"AUTH", name, password}
		}
		if _, err := c.do(args...); err != nil {
			return s, err
		}
	}
	if db := strings.Trim(u.Path, "/"); db != "" {
		if _, err := c.do("SELECT", db); err != nil {
			return s, err
		}
	}
	info, err := c.do("INFO", "memory")
	if err != nil {
		return s, err
	}
	_, rest, _ := strings.Cut(info, "used_memory:")
	number, _, _ := strings.Cut(rest, "\r\n")
	if s.bytes, err = strconv.ParseInt(number, 10, 64); err != nil {
		return s, err
	}
	for i := range shards {
		for _, kind := range []string{"pending_triggers", "inflight_triggers"} {
			text, err := c.do("ZCARD", fmt.Sprintf("%s:{%d}", kind, i))
			if err != nil {
				return s, err
			}
			n, _ := strconv.ParseInt(text, 10, 64)
			s.triggers += n
		}
	}
	s.ok = true
	return s, nil
}

type redisConn struct {
	w io.Writer
	r *bufio.Reader
}

// do sends one command and reads a simple, integer or bulk answer.
func (c redisConn) do(args ...string) (string, error) {
	var out strings.Builder
	fmt.Fprintf(&out, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&out, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(c.w, out.String()); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	switch {
	case line == "":
		return "", errors.New("an empty answer")
	case line[0] == '-':
		return "", errors.New(line[1:])
	case line[0] != '$':
		return line[1:], nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 || n > 1<<20 {
		return "", fmt.Errorf("a bulk answer of %s bytes", line[1:])
	}
	bulk := make([]byte, n+2)
	_, err = io.ReadFull(c.r, bulk)
	return string(bulk[:n]), err
}

// triggerMemory compares Redis before the load with the moment at which it was
// seen with the most triggers.
type triggerMemory struct {
	base  redisState
	bytes int64
	most  int64 // triggers above the base
}

func (t *triggerMemory) from(s redisState) { t.base = s }

func (t *triggerMemory) to(s redisState) {
	if n := s.triggers - t.base.triggers; s.ok && t.base.ok && n > t.most {
		t.most, t.bytes = n, s.bytes-t.base.bytes
	}
}

// leastTriggers is from how many on their memory stands out from that of the
// connections' buffers.
const leastTriggers = 10_000

func (t *triggerMemory) perTrigger() float64 {
	if t.most < leastTriggers || t.bytes <= 0 {
		return 0
	}
	return float64(t.bytes) / float64(t.most)
}
