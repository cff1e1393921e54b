package main

import "syscall"

// childAttributes gives a child its own process group, so that a Ctrl-C in the
// terminal reaches this program only, which ends its children in the right
// order; and the kernel's promise to kill the child when this program dies,
// however it dies.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
