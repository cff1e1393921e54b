//go:build unix && !linux

package main

import "syscall"

// childAttributes gives a child its own process group, so that a Ctrl-C in the
// terminal reaches this program only, which ends its children in the right
// order.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
