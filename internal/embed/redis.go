package embed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// RedisDatabases is how many numbered databases the Redis server has.
const RedisDatabases = 256

const redisTimeout = 5 * time.Second

// Redis is the one Redis server. It keeps nothing on disk: the product must be
// able to lose all of it at any moment.
type Redis struct {
	server
	asked *atomic.Bool
}

func newRedis(e *environment) *Redis {
	return &Redis{server: server{env: e, name: "Redis", log: e.logPath("redis"), port: e.state.RedisPort}}
}

// URL names a numbered database, 0 to RedisDatabases-1.
func (r *Redis) URL(db int) string {
	return fmt.Sprintf("redis://:%s@%s/%d", r.env.state.RedisPassword, r.Addr(), db)
}

func (r *Redis) first(ctx context.Context) error {
	r.op.Lock()
	defer r.op.Unlock()
	begin := time.Now()
	r.stopStale(ctx)
	if err := r.onNewPort(func() error { return r.start(ctx) }); err != nil {
		return err
	}
	r.env.say("%s ready on %s (%.1f s)", r.name, r.Addr(), time.Since(begin).Seconds())
	return nil
}

// stopStale ends a Redis that outlived the process that started it. That it
// takes our random password proves that it is ours.
func (r *Redis) stopStale(ctx context.Context) {
	if r.port == 0 || portFree(r.port) {
		return
	}
	if _, err := r.Command(ctx, 0, "PING"); err == nil {
		r.env.say("%s: stopping one left over from a run that was killed …", r.name)
		_, _ = r.Command(ctx, 0, "SHUTDOWN", "NOSAVE") // it hangs up instead of answering
	}
}

func (r *Redis) start(ctx context.Context) error {
	cmd := exec.Command(r.env.programs.redis, "-")
	cmd.Dir = r.env.home
	// Through its input, because arguments can be read by every user.
	cmd.Stdin = strings.NewReader(r.config())
	err := r.launch(ctx, cmd, syscall.SIGKILL, func(ctx context.Context) error {
		_, err := r.Command(ctx, 0, "PING")
		return err
	})
	if err != nil {
		if r.Pid() != 0 {
			err = errors.Join(err, r.killAll(r.current()))
		}
		return err
	}
	r.asked = new(atomic.Bool)
	r.watch(r.current(), r.asked)
	return nil
}

func (r *Redis) config() string {
	return strings.Join([]string{
		"bind 127.0.0.1",
		"port " + strconv.Itoa(r.port),
		"requirepass " + r.env.state.RedisPassword,
		"databases " + strconv.Itoa(RedisDatabases),
		"daemonize no",
		`save ""`,
		"appendonly no",
		"maxmemory-policy noeviction",
		"",
	}, "\n")
}

// Stop ends the server; what it held is gone.
func (r *Redis) Stop(ctx context.Context) error {
	r.op.Lock()
	defer r.op.Unlock()
	proc := r.current()
	if proc == nil || !proc.running() {
		return nil
	}
	r.expectEnd()
	if err := thaw(proc); err != nil {
		return err
	}
	if err := r.stopSteps(ctx, proc, syscall.SIGTERM); err != nil {
		return err
	}
	return r.killAll(proc)
}

// Kill ends the server with SIGKILL and returns when it is gone.
func (r *Redis) Kill() error {
	r.op.Lock()
	defer r.op.Unlock()
	proc := r.current()
	if proc == nil {
		return nil
	}
	r.expectEnd()
	return r.killAll(proc)
}

func (r *Redis) expectEnd() {
	if r.asked != nil {
		r.asked.Store(true)
	}
}

// StartAgain starts a stopped or killed server, empty, on the same address. It
// is no error if it runs.
func (r *Redis) StartAgain(ctx context.Context) error {
	r.op.Lock()
	defer r.op.Unlock()
	if r.Pid() != 0 {
		return nil
	}
	return r.onSamePort(ctx, func() error { return r.start(ctx) })
}

// Restart is Stop and StartAgain.
func (r *Redis) Restart(ctx context.Context) error {
	if err := r.Stop(ctx); err != nil {
		return err
	}
	return r.StartAgain(ctx)
}

// Pause freezes the server (SIGSTOP): connections stay open and nobody answers.
func (r *Redis) Pause() error { return r.freeze(syscall.SIGSTOP) }

// Resume undoes Pause.
func (r *Redis) Resume() error { return r.freeze(syscall.SIGCONT) }

// Command runs one command on a numbered database over a connection of its
// own and returns a one-line reply as it came, without its type character. It
// is for PING and FLUSHALL, not for data: arguments must hold no blanks.
func (r *Redis) Command(ctx context.Context, db int, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.Addr())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	lines := bufio.NewReader(conn)
	reply := ""
	for _, line := range []string{"AUTH " + r.env.state.RedisPassword, "SELECT " + strconv.Itoa(db), strings.Join(args, " ")} {
		if _, err := fmt.Fprintf(conn, "%s\r\n", line); err != nil {
			return "", err
		}
		if reply, err = lines.ReadString('\n'); err != nil {
			return "", err
		}
		reply = strings.TrimSpace(reply)
		if strings.HasPrefix(reply, "-") {
			return "", fmt.Errorf("redis: %s", reply[1:])
		}
	}
	return strings.TrimLeft(reply, "+:$"), nil
}
