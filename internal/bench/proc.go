package bench

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is the unit of the CPU times in /proc on Linux: USER_HZ, fixed at
// 100 by the kernel's interface.
const clockTick = 100

type procStat struct {
	pid, parent int
	name        string
	seconds     float64 // its own and those of its children that have ended
}

// readStat reads /proc/<pid>/stat. The name stands in parentheses and may
// itself contain anything, so the fields are counted from the last one.
func readStat(line []byte) (procStat, bool) {
	open, shut := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 0 || shut < open {
		return procStat{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:open])))
	f := strings.Fields(string(line[shut+1:]))
	if err != nil || len(f) < 15 {
		return procStat{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	ticks := 0.0
	for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime
		n, _ := strconv.ParseFloat(f[i], 64)
		ticks += n
	}
	return procStat{pid, parent, string(line[open+1 : shut]), ticks / clockTick}, true
}

// cpuOfFamily is the CPU seconds used so far by a process and its descendants,
// by role, and by this process as "load". Without /proc, or for pid 0, only
// this process is there.
func cpuOfFamily(pid int) map[string]float64 {
	var own syscall.Rusage
	cpu := map[string]float64{}
	if syscall.Getrusage(syscall.RUSAGE_SELF, &own) == nil {
		cpu["load"] = seconds(own.Utime) + seconds(own.Stime)
	}
	if pid == 0 {
		return cpu
	}
	all := map[int]procStat{}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		if line, err := os.ReadFile(path); err == nil {
			if p, ok := readStat(line); ok {
				all[p.pid] = p
			}
		}
	}
	for _, p := range all {
		if descends(all, p.pid, pid) {
			cpu[role(p.name)] += p.seconds
		}
	}
	return cpu
}

func seconds(t syscall.Timeval) float64 {
	return (time.Duration(t.Sec)*time.Second + time.Duration(t.Usec)*time.Microsecond).Seconds()
}

func descends(all map[int]procStat, pid, ancestor int) bool {
	for range 64 { // no family is that deep; a reused pid cannot make a circle endless
		if pid == ancestor {
			return true
		}
		p, ok := all[pid]
		if !ok || p.parent <= 1 {
			return false
		}
		pid = p.parent
	}
	return false
}

func role(name string) string {
	switch {
	case strings.HasPrefix(name, "postgres"), strings.HasPrefix(name, "postmaster"):
		return "postgres"
	case strings.HasPrefix(name, "redis"):
		return "redis"
	}
	return "holdfast"
}
