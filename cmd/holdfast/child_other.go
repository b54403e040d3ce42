//go:build !linux

package main

import "syscall"

// childAttributes: a group of its own, so that a Ctrl-C at the terminal ends
// the load and not what is measured.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
