package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWholeLife uses a control plane as a test harness does, and closes stdin.
func TestWholeLife(t *testing.T) {
	crd := filepath.Join(t.TempDir(), "crd.yaml")
	if err := os.WriteFile(crd, []byte(testCRD), 0o600); err != nil {
		t.Fatal(err)
	}
	p, out := startUp(t, "--crds", crd)
	children := childrenOf(t, p.Process.Pid)

	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(out.Bin, "kubectl"), args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+out.Kubeconfig, "HOME="+t.TempDir())
		cmd.Stdin = strings.NewReader(stdin)
		result, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, result)
		}
		return string(result)
	}

	// Real garbage collection, also of what a custom resource owns.
	kubectl(`{"apiVersion": "dev.test/v1", "kind": "Thing", "metadata": {"name": "owner"}}`, "create", "-f", "-")
	uid := kubectl("", "get", "thing", "owner", "-o", "jsonpath={.metadata.uid}")
	kubectl(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "owned", "ownerReferences": [
		{"apiVersion": "dev.test/v1", "kind": "Thing", "name": "owner", "uid": %q}]}}`, uid), "create", "-f", "-")
	kubectl("", "delete", "thing", "owner")
	kubectl("", "wait", "--for=delete", "secret/owned", "--timeout=60s")

	// RBAC is on.
	if answer := kubectl("", "get", "--raw", "/apis/authorization.k8s.io/v1"); !strings.Contains(answer, "subjectaccessreviews") {
		t.Error(answer)
	}
	cmd := exec.Command(filepath.Join(out.Bin, "kubectl"), "--kubeconfig", out.Kubeconfig, "auth", "can-i", "get", "secrets",
		"--as=system:serviceaccount:default:default")
	if answer, _ := cmd.Output(); strings.TrimSpace(string(answer)) != "no" {
		t.Errorf("may an account without a role get Secrets? %q", answer)
	}

	// Every write is in the audit log, with its user.
	eventually(t, "the audit log has the deletion", func() bool {
		log, err := os.ReadFile(out.AuditLog)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, `"verb":"delete","user":{"username":"admin"`) && strings.Contains(line, "/things/owner") {
				return true
			}
		}
		return false
	})

	// Nobody else can read the keys and tokens.
	_ = filepath.WalkDir(out.Dir, func(path string, entry os.DirEntry, err error) error {
		if info, err := entry.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})

	// At the end everything goes, and what was adopted with it.
	adopted, forgotten := sleeper(t), sleeper(t)
	fmt.Fprintf(p.stdin, "adopt %d\nadopt %d\nnonsense\nforget %[2]d\n", adopted.Process.Pid, forgotten.Process.Pid)
	p.stdin.Close()
	if rest, code := p.exit(); code != 0 || rest != "" {
		t.Errorf("exit code %d, more on stdout: %q", code, rest)
	}
	_ = adopted.Wait()
	if signal := adopted.ProcessState.Sys().(syscall.WaitStatus).Signal(); signal != syscall.SIGKILL {
		t.Errorf("the adopted process: %v", adopted.ProcessState)
	}
	if !alive(forgotten.Process.Pid) {
		t.Error("the forgotten process was killed")
	}
	for _, pid := range children {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	p.wantNothingLeft()
	if !strings.Contains(p.stderr.String(), "nonsense") {
		t.Error("no complaint about a line of nonsense")
	}
}

// What an outage is made of: a program is stopped, and the rest lives on; etcd
// may be given an older state meanwhile.
func TestOutage(t *testing.T) {
	p, out := startUp(t)
	kubectl := func(args ...string) error {
		args = append(args, "--kubeconfig", out.Kubeconfig, "--cache-dir", t.TempDir(), "--request-timeout=2s")
		return exec.CommandContext(t.Context(), filepath.Join(out.Bin, "kubectl"), args...).Run()
	}
	order := func(lines ...string) { fmt.Fprintln(p.stdin, strings.Join(lines, "\n")) }
	answers := func() bool { return kubectl("get", "--raw", "/readyz") == nil }
	silent := func() bool { return !answers() }
	data := filepath.Join(out.Dir, "etcd")

	order("pause kube-apiserver")
	eventually(t, "nobody answers", silent)
	order("resume kube-apiserver")
	eventually(t, "it answers", answers)

	// Before and after a ConfigMap.
	stopped := func() bool { return len(childrenOf(t, p.Process.Pid)) == 1 }
	start := func() {
		order("start etcd", "start kube-apiserver")
		eventually(t, "it answers", answers)
	}
	order("stop kube-apiserver", "stop etcd", "stop nothing")
	eventually(t, "both are stopped", stopped)
	older := filepath.Join(t.TempDir(), "older")
	if err := os.CopyFS(older, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	start()
	if err := kubectl("create", "configmap", "new"); err != nil {
		t.Fatal(err)
	}
	order("stop kube-apiserver", "stop etcd")
	eventually(t, "both are stopped", stopped)
	if err := errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(older)), os.Chmod(data, 0o700)); err != nil {
		t.Fatal(err)
	}
	start()
	if kubectl("get", "configmap", "kube-root-ca.crt") != nil || kubectl("get", "configmap", "new") == nil {
		t.Error("etcd was not restored")
	}

	p.stdin.Close()
	if _, code := p.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(p.stderr.String(), `"nothing"`) {
		t.Error("no complaint about a program that there is not")
	}
	p.wantNothingLeft()
}

// A kill of the supervisor itself takes its children along. Its directory is
// removed by the next one.
func TestKilledSupervisor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux kills the children of a dead process")
	}
	p, _ := startUp(t)
	children := childrenOf(t, p.Process.Pid)
	if len(children) != 3 {
		t.Fatalf("children: %v", children)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all children are gone", func() bool { return !slices.ContainsFunc(children, alive) })
	_ = p.Wait()

	t.Setenv("TMPDIR", p.tmp)
	dirs, _ := filepath.Glob(filepath.Join(p.tmp, dirPattern+"*"))
	if len(dirs) != 1 {
		t.Fatalf("directories: %v", dirs)
	}
	removeStale()
	if _, err := os.Stat(dirs[0]); err != nil {
		t.Error("a young directory was removed")
	}
	old := time.Now().AddDate(0, 0, -1)
	if err := os.Chtimes(dirs[0], old, old); err != nil {
		t.Fatal(err)
	}
	lock, err := holdDir(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	removeStale()
	if _, err := os.Stat(dirs[0]); err != nil {
		t.Error("a directory in use was removed")
	}
	lock.Close()
	removeStale()
	p.wantNothingLeft()
}

// With --keep the end of stdin means nothing. The death of a process ends all.
func TestChildDies(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "chosen")
	p, out := startUp(t, "--keep", "--dir", dir)
	if out.Dir != dir {
		t.Errorf("dir is %s, want %s", out.Dir, dir)
	}
	p.stdin.Close()
	children := childrenOf(t, p.Process.Pid)
	for _, pid := range children {
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.HasPrefix(string(name), "kube-apiserver") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if _, code := p.exit(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if text := p.stderr.String(); !strings.Contains(text, "kube-apiserver ended: signal: killed. The end of its log:") {
		t.Errorf("stderr: %s", text)
	}
	if slices.ContainsFunc(children, alive) {
		t.Error("a process is left")
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory is left")
	}
}

func TestFailedStart(t *testing.T) {
	if _, err := ensurePrograms(t.Context(), programs); err != nil {
		t.Fatal(err)
	}
	assets := t.TempDir()
	script(t, filepath.Join(assets, "etcd"), "echo the disk is on fire >&2; exit 1\n")
	p := start(t, []string{"KUBEBUILDER_ASSETS=" + assets}, "up")
	rest, code := p.exit()
	if code != 1 || rest != "" {
		t.Errorf("exit code %d, stdout %q", code, rest)
	}
	for _, want := range []string{"etcd ended: exit status 1", "the disk is on fire"} {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("stderr does not say %q: %s", want, p.stderr)
		}
	}
	p.wantNothingLeft()
}

// A port that is taken at the last moment is no failure.
func TestPortTaken(t *testing.T) {
	bin, err := ensurePrograms(t.Context(), programs)
	if err != nil {
		t.Fatal(err)
	}
	assets := t.TempDir()
	first := filepath.Join(assets, "first")
	script(t, filepath.Join(assets, "kube-apiserver"), fmt.Sprintf(`
if mkdir %s 2>/dev/null; then echo 'listen tcp 127.0.0.1:1: bind: address already in use'; exit 1; fi
exec %s "$@"
`, first, filepath.Join(bin, "kube-apiserver")))
	t.Setenv("KUBEBUILDER_ASSETS", assets)
	p, _ := startUp(t)
	if _, err := os.Stat(first); err != nil {
		t.Error("the API server was not started twice")
	}
	end := syscall.SIGHUP
	if signal.Ignored(end) { // under nohup
		end = syscall.SIGTERM
	}
	_ = p.Process.Signal(end)
	if _, code := p.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.wantNothingLeft()
}

// A start that is interrupted by a signal leaves nothing either.
func TestInterruptedStart(t *testing.T) {
	if _, err := ensurePrograms(t.Context(), programs); err != nil {
		t.Fatal(err)
	}
	assets, pidFile := t.TempDir(), filepath.Join(t.TempDir(), "pid")
	script(t, filepath.Join(assets, "etcd"), "echo $$ > "+pidFile+".tmp; mv "+pidFile+".tmp "+pidFile+"; exec sleep 1000\n")
	p := start(t, []string{"KUBEBUILDER_ASSETS=" + assets}, "up")
	var pid int
	eventually(t, "etcd has started", func() bool {
		data, _ := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		return pid != 0
	})
	_ = p.Process.Signal(syscall.SIGTERM)
	if rest, code := p.exit(); code != 0 || rest != "" {
		t.Errorf("exit code %d, stdout %q", code, rest)
	}
	if alive(pid) {
		t.Error("etcd is left")
	}
	p.wantNothingLeft()
}

func TestDirMustBeEmpty(t *testing.T) {
	assets := t.TempDir()
	for _, name := range programs {
		script(t, filepath.Join(assets, name), "exit 1\n")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"KUBEBUILDER_ASSETS=" + assets}, "up", "--dir", dir)
	if _, code := p.exit(); code != 1 || !strings.Contains(p.stderr.String(), "not empty") {
		t.Errorf("exit code %d, stderr %s", code, p.stderr)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("a file of somebody else was removed")
	}
}

// sleeper starts a process that does nothing.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// stat returns the state and the parent of a process on Linux.
func stat(pid int) (state string, parent int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	parent, _ = strconv.Atoi(fields[1])
	return fields[0], parent
}

// alive tells whether a process runs; one that only waits for its parent to
// notice its end does not.
func alive(pid int) bool {
	if state, _ := stat(pid); state == "Z" {
		return false
	}
	return syscall.Kill(pid, 0) == nil
}

// childrenOf lists the child processes; none but on Linux.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	var children []int
	entries, _ := filepath.Glob("/proc/[0-9]*")
	for _, entry := range entries {
		child, _ := strconv.Atoi(filepath.Base(entry))
		if _, parent := stat(child); parent == pid {
			children = append(children, child)
		}
	}
	return children
}

const testCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: things.dev.test
spec:
  group: dev.test
  scope: Namespaced
  names: {kind: Thing, plural: things, singular: thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object}}
`
