//go:build unix && !linux

package embed

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// These systems have no death signal: servers that outlive us are found by
// their pid file and stopped at the next start.
func setDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}

// child is a process that is not ours to wait for.
type child struct{ pid int }

func foreign(pid int) child { return child{pid: pid} }

func (c child) alive() bool { return syscall.Kill(c.pid, 0) == nil }

func (c child) signal(sig syscall.Signal) { syscall.Kill(c.pid, sig) }

func childrenOf(parent int) []child {
	out, _ := exec.Command("pgrep", "-P", strconv.Itoa(parent)).Output()
	var children []child
	for _, field := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(field); err == nil {
			children = append(children, child{pid: pid})
		}
	}
	return children
}

func awaitStopped(int) {}

func cpuSeconds(int) float64 { return 0 }

func serves(pid int, data string) bool {
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres") && strings.Contains(string(out), data)
}
