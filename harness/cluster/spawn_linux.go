package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

func dieWithUs(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }

// standsStill reports whether no thread of a process runs any more: each is
// stopped or dead. The state is the first field after the name, which ends at
// the last parenthesis (proc_pid_stat(5)).
func standsStill(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // the thread is gone
		}
		_, state, _ := bytes.Cut(raw[max(0, bytes.LastIndexByte(raw, ')')):], []byte(") "))
		if len(state) == 0 || !bytes.ContainsRune([]byte("TtZX"), rune(state[0])) {
			return false
		}
	}
	return true
}
