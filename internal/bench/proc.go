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

// Roles whose CPU is told apart. The load generator and the simulator stand
// for other people's machines and are no part of the product's cost.
const (
	roleLoad = "load"
	roleSim  = "payment-sim"
)

// cpuByRole is the CPU seconds used so far by a process and its descendants, by
// role, by the simulator, and by this process with its children that have ended
// as the load. Without /proc, or for pid 0, only the load is there.
func cpuByRole(pid, simPID int) map[string]float64 {
	cpu := map[string]float64{}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var used syscall.Rusage
		if syscall.Getrusage(who, &used) == nil {
			cpu[roleLoad] += seconds(used.Utime) + seconds(used.Stime)
		}
	}
	if pid == 0 {
		return cpu
	}
	all := processes()
	for _, p := range all {
		switch {
		case simPID != 0 && descends(all, p.pid, simPID):
			cpu[roleSim] += p.seconds
		case descends(all, p.pid, pid):
			cpu[role(p.name)] += p.seconds
		}
	}
	return cpu
}

func processes() map[int]procStat {
	all := map[int]procStat{}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		if line, err := os.ReadFile(path); err == nil {
			if p, ok := readStat(line); ok {
				all[p.pid] = p
			}
		}
	}
	return all
}

// resetPeak makes peakRSS count from now on, where the kernel lets us.
func resetPeak(pid int) {
	if pid != 0 {
		_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/clear_refs", []byte("5"), 0) // else the peak since its start
	}
}

// peakRSS is the most memory that a process had resident, in bytes; 0 where
// that cannot be known.
func peakRSS(pid int) int64 {
	if pid == 0 {
		return 0
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	return kibibytes(string(text), "VmHWM:")
}

func kibibytes(status, name string) int64 {
	_, rest, _ := strings.Cut(status, name)
	line, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, "kB")), 10, 64)
	return n << 10
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
