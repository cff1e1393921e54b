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

// listen obeys the lines of the protocol until the end of the file. What is for
// the control plane is handed on.
func (a *adopted) listen(in io.Reader, orders chan<- order) {
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		verb, object, _ := strings.Cut(line, " ")
		object = strings.TrimSpace(object)
		switch verb {
		case "":
		case "pause", "resume", "stop", "start":
			orders <- order{verb, object}
		default:
			if err := a.obey(verb, object); err != nil {
				say("%q: %v", line, err)
			}
		}
	}
}

func (a *adopted) obey(verb, number string) error {
	pid, err := strconv.Atoi(number)
	if (verb != "adopt" && verb != "forget") || err != nil || pid <= 1 || pid == os.Getpid() {
		return fmt.Errorf("want `adopt` or `forget PID`, `pause`, `resume`, `stop` or `start PROGRAM`")
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
