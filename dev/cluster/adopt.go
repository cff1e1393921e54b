package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

var errStdinClosed = errors.New("stdin was closed")

// adopted are processes of others that end with the control plane: so a test
// harness that is itself killed leaves nothing behind.
type adopted struct {
	mu        sync.Mutex
	processes map[int]*os.Process
	killed    bool
}

// listen obeys the lines of the protocol until the end of the file.
func (a *adopted) listen(in io.Reader) {
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		if line := strings.TrimSpace(scanner.Text()); line != "" {
			if err := a.obey(line); err != nil {
				say("%q: %v", line, err)
			}
		}
	}
}

func (a *adopted) obey(line string) error {
	verb, number, _ := strings.Cut(line, " ")
	pid, err := strconv.Atoi(strings.TrimSpace(number))
	if (verb != "adopt" && verb != "forget") || err != nil || pid <= 1 || pid == os.Getpid() {
		return fmt.Errorf("want `adopt PID` or `forget PID`")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.processes[pid]; old != nil {
		_ = old.Release()
		delete(a.processes, pid)
	}
	if verb == "forget" {
		return nil
	}
	// On Linux this is a handle (pidfd) on the process that has the number
	// now, not on one that gets it later.
	process, err := os.FindProcess(pid)
	if err == nil {
		err = process.Signal(syscall.Signal(0)) // is there one?
	}
	if err != nil {
		return err
	}
	if a.killed { // adopted while the rest was ended
		return process.Kill()
	}
	if a.processes == nil {
		a.processes = map[int]*os.Process{}
	}
	a.processes[pid] = process
	return nil
}

// kill ends all of them, and those that are still to come.
func (a *adopted) kill() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, process := range a.processes {
		_ = process.Kill()
	}
	a.processes = nil
	a.killed = true
}
