//go:build unix && !linux

package cluster

import "syscall"

// dieWithUs: these systems have no such signal.
func dieWithUs(*syscall.SysProcAttr) {}
