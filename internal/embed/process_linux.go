package embed

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func setDeathSignal(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// procStat is the part of /proc/<pid>/stat that we use; proc(5) numbers the fields.
type procStat struct {
	state   byte
	ppid    int
	ticks   uint64 // utime + stime
	reaped  uint64 // cutime + cstime: children that have ended
	started uint64 // tells a process from a later one of the same number
}

func statOf(pid int) (procStat, bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, false
	}
	// The name in parentheses may hold anything; the fields are behind its end.
	end := bytes.LastIndexByte(raw, ')')
	fields := strings.Fields(string(raw[end+1:]))
	if end < 0 || len(fields) < 20 {
		return procStat{}, false
	}
	number := func(field int) uint64 {
		n, _ := strconv.ParseUint(fields[field-3], 10, 64)
		return n
	}
	return procStat{
		state:   fields[0][0],
		ppid:    int(number(4)),
		ticks:   number(14) + number(15),
		reaped:  number(16) + number(17),
		started: number(22),
	}, true
}

// child is a process that is not ours to wait for.
type child struct {
	pid     int
	started uint64
}

func (c child) alive() bool {
	st, ok := statOf(c.pid)
	return ok && st.started == c.started && st.state != 'Z' && st.state != 'X'
}

func (c child) signal(sig syscall.Signal) {
	if c.alive() {
		syscall.Kill(c.pid, sig)
	}
}

func childrenOf(parent int) []child {
	var out []child
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if st, ok := statOf(pid); ok && st.ppid == parent {
			out = append(out, child{pid: pid, started: st.started})
		}
	}
	return out
}

// awaitStopped waits, not for long, until a process sent SIGSTOP stands still.
func awaitStopped(pid int) {
	deadline := time.Now().Add(time.Second)
	for time.Now().Before(deadline) {
		if st, ok := statOf(pid); !ok || st.state == 'T' || st.state == 'Z' {
			return
		}
		<-time.After(time.Millisecond)
	}
}

// clockTicks is the kernel's unit of times in /proc, the same on every
// architecture that Go supports.
const clockTicks = 100

func cpuSeconds(pid int) float64 {
	if pid == 0 {
		return 0
	}
	st, ok := statOf(pid)
	if !ok {
		return 0
	}
	ticks := st.ticks + st.reaped
	for _, c := range childrenOf(pid) {
		if st, ok := statOf(c.pid); ok {
			ticks += st.ticks + st.reaped
		}
	}
	return float64(ticks) / clockTicks
}

// serves reports whether the process is a postmaster of that data directory.
// The command line is readable where the working directory is not (root
// without the right to trace), the working directory is right where the data
// was moved.
func serves(pid int, data string) bool {
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && cwd == data {
		return true
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(raw), "\x00")
	return filepath.Base(args[0]) == "postgres" && slices.Contains(args, data)
}

// foreign stands for a process that is not our child.
func foreign(pid int) child {
	st, _ := statOf(pid)
	return child{pid: pid, started: st.started}
}
