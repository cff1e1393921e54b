package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The tests run this very program, as `cluster`: what they are about (stdin,
// signals, being killed) happens to a process.
func TestMain(m *testing.M) {
	if os.Getenv("CLUSTER_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// timeout ends a test that hangs. Reaching it is always a failure, so it is
// generous.
const timeout = time.Minute

// process is a running `cluster`.
type process struct {
	*exec.Cmd
	t      *testing.T
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr *buffer
	tmp    string // its TMPDIR
}

// output is the line of JSON that `up` prints.
type output struct{ Kubeconfig, AuditLog, Server, Bin, Dir string }

// start runs `cluster` with the arguments; env overrides the environment.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], args...), t: t, stderr: &buffer{}, tmp: t.TempDir()}
	p.Env = append(os.Environ(), "CLUSTER_TEST_MAIN=1", "TMPDIR="+p.tmp)
	p.Env = append(p.Env, env...)
	p.Stderr = p.stderr
	var err error
	if p.stdin, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewReader(stdout)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(timeout, func() { _ = p.Process.Kill() })
	t.Cleanup(func() {
		watchdog.Stop()
		_ = p.Process.Kill()
		_ = p.Wait()
		if t.Failed() {
			t.Logf("stderr of cluster %s:\n%s", strings.Join(args, " "), p.stderr)
		}
	})
	return p
}

// startUp runs `cluster up` until it is ready.
func startUp(t *testing.T, args ...string) (*process, output) {
	t.Helper()
	if _, err := ensurePrograms(t.Context(), programs); err != nil { // may take long: not within the timeout
		t.Fatal(err)
	}
	p := start(t, nil, append([]string{"up"}, args...)...)
	line, err := p.stdout.ReadBytes('\n')
	if err != nil {
		t.Fatalf("no line of JSON: %v", err)
	}
	var out output
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return p, out
}

// exit waits for the end and returns what was left of stdout and the exit code.
func (p *process) exit() (string, int) {
	p.t.Helper()
	rest, err := io.ReadAll(p.stdout)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = p.Wait()
	return string(rest), p.ProcessState.ExitCode()
}

// wantNothingLeft checks that no directory is left.
func (p *process) wantNothingLeft() {
	p.t.Helper()
	if left, _ := filepath.Glob(filepath.Join(p.tmp, "*")); len(left) > 0 {
		p.t.Errorf("left behind: %v", left)
	}
}

// eventually waits until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(timeout); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// script writes an executable shell script.
func script(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// buffer may be read while a process writes to it.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}
