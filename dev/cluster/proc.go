package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// child is one process of the control plane.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed once the process is gone
	// It was ended by order: the rest goes on.
	stopped bool
}

// startChild starts a program in dir with its output in a log file there. Call
// it on the main goroutine (see init in main.go).
func startChild(program, dir string, args []string) (*child, error) {
	name := filepath.Base(program)
	log := filepath.Join(dir, name+".log")
	file, err := os.OpenFile(log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	c := &child{name: name, cmd: exec.Command(program, args...), log: log, done: make(chan struct{})}
	c.cmd.Dir = dir
	c.cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "ETCD_") // etcd takes flags from there, too
	})
	c.cmd.Stdout, c.cmd.Stderr = file, file
	c.cmd.SysProcAttr = childAttributes()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// withLog adds the end of the child's log to a message: the log itself goes
// with the directory.
func (c *child) withLog(message string) error {
	data, _ := os.ReadFile(c.log)
	lines := strings.Split(string(bytes.TrimSpace(data)), "\n")
	lines = lines[max(0, len(lines)-20):]
	return fmt.Errorf("%s. The end of its log:\n    %s", message, strings.Join(lines, "\n    "))
}
