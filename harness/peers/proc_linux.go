package main

import "syscall"

// childAttributes: a group of its own, so that a Ctrl-C reaches this process
// alone, which then stops the others in order; and they end when it is killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
