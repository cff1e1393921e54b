package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fakeGo stands in for go: it notes that it was called and makes a program that
// does nothing.
const fakeGo = `
echo "$1" >> "$CALLS"
test "$1" = build || exit 0
while test "$1" != -o; do shift; done
mkdir -p "$(dirname "$2")" && printf '#!/bin/sh\n' > "$2" && chmod +x "$2"
`

// fakeEnv is an environment with a `go` of our own and an empty cache.
func fakeEnv(t *testing.T, text string) (env []string, cache, calls string) {
	t.Helper()
	bin := t.TempDir()
	script(t, filepath.Join(bin, "go"), text)
	cache, calls = t.TempDir(), filepath.Join(bin, "calls")
	return []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "CALLS=" + calls,
		"OPENTUNNEL_CACHE=" + cache, "KUBEBUILDER_ASSETS=",
	}, cache, calls
}

// Two builds at the same time are one build; both print the directory.
func TestConcurrentBuilds(t *testing.T) {
	env, _, calls := fakeEnv(t, fakeGo)
	one, two := start(t, env, "build"), start(t, env, "build")
	dir, code := one.exit()
	other, otherCode := two.exit()
	if code != 0 || otherCode != 0 || dir != other {
		t.Fatalf("%d %q, %d %q", code, dir, otherCode, other)
	}
	if gone := lacking(strings.TrimSuffix(dir, "\n"), programs); len(gone) > 0 {
		t.Errorf("%s lacks %v", dir, gone)
	}
	if data, _ := os.ReadFile(calls); string(data) != "mod\nmod\nlist\nbuild\n" {
		t.Errorf("calls of go: %q", data)
	}
}

// An interrupted build ends its compilers and leaves nothing half made.
func TestInterruptedBuild(t *testing.T) {
	env, cache, calls := fakeEnv(t, "echo $$ > $CALLS.tmp; mv $CALLS.tmp $CALLS; sleep 1000\n")
	p := start(t, env, "build")
	eventually(t, "go was called", func() bool { _, err := os.Stat(calls); return err == nil })
	_ = p.Process.Signal(syscall.SIGINT)
	if out, code := p.exit(); code != 1 || out != "" {
		t.Errorf("exit code %d, stdout %q", code, out)
	}
	for _, pattern := range []string{"build-*", "bin/*"} {
		if left, _ := filepath.Glob(filepath.Join(cache, "cluster", "*", pattern)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// What KUBEBUILDER_ASSETS holds is used, what it lacks is built.
func TestAssets(t *testing.T) {
	env, _, calls := fakeEnv(t, fakeGo)
	assets := t.TempDir()
	env = append(env, "KUBEBUILDER_ASSETS="+assets)
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		script(t, filepath.Join(assets, name), "")
	}
	out, code := start(t, env, "build").exit()
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, name := range programs {
		target, err := filepath.EvalSymlinks(filepath.Join(strings.TrimSuffix(out, "\n"), name))
		if err != nil {
			t.Error(err)
		}
		if own := filepath.Dir(target) == assets; own != (name != "kube-controller-manager") {
			t.Errorf("%s is %s", name, target)
		}
	}
	script(t, filepath.Join(assets, "kube-controller-manager"), "")
	if err := os.Remove(calls); err != nil {
		t.Fatal(err)
	}
	if out, code := start(t, env, "build").exit(); code != 0 || out != assets+"\n" {
		t.Errorf("exit code %d, %q, want %s", code, out, assets)
	}
	if _, err := os.Stat(calls); err == nil {
		t.Error("go was called though nothing is missing")
	}
}

// KUBERNETES takes another go.mod; what the default has built stays.
func TestOtherKubernetes(t *testing.T) {
	env, _, calls := fakeEnv(t, `test "$1" = build && cp go.mod $CALLS.mod`+fakeGo)
	dirs := map[string]bool{}
	for minor, want := range map[string]string{"": "kubernetes v1.36.", "1.36": "kubernetes v1.36.", "1.33": "kubernetes v1.33."} {
		_ = os.Remove(calls + ".mod")
		dir, code := start(t, append(env, "KUBERNETES="+minor), "build").exit()
		mod, _ := os.ReadFile(calls + ".mod")
		if code != 0 || len(mod) > 0 && !strings.Contains(string(mod), want) {
			t.Errorf("KUBERNETES=%s: exit code %d, go.mod without %q", minor, code, want)
		}
		dirs[dir] = true
	}
	if len(dirs) != 2 {
		t.Errorf("default, 1.36 and 1.33 are in %v", dirs)
	}
	p := start(t, append(env, "KUBERNETES=1.2"), "build")
	if _, code := p.exit(); code != 1 || !strings.Contains(p.stderr.String(), "take 1.33") {
		t.Errorf("exit code %d, stderr %s", code, p.stderr)
	}
}

// What a node needs is built besides, by a second build.
func TestNodePrograms(t *testing.T) {
	env, _, calls := fakeEnv(t, fakeGo)
	dir, _ := start(t, env, "build").exit()
	if other, code := start(t, env, "build", "--node").exit(); code != 0 || other != dir {
		t.Errorf("exit code %d, %q is not %q", code, other, dir)
	}
	if gone := lacking(strings.TrimSuffix(dir, "\n"), needed(true)); len(gone) > 0 {
		t.Errorf("%s lacks %v", dir, gone)
	}
	if data, _ := os.ReadFile(calls); strings.Count(string(data), "build\n") != 2 {
		t.Errorf("calls of go: %q", data)
	}
	p := start(t, env, "up", "--node", "192.0.2.1")
	if out, code := p.exit(); code != 1 || out != "" || !strings.Contains(p.stderr.String(), "not an address of this machine") {
		t.Errorf("exit code %d, stdout %q, stderr %s", code, out, p.stderr)
	}
}

// Errors say what to do.
func TestBuildErrors(t *testing.T) {
	for goSays, want := range map[string]string{
		"go: go.mod requires go >= 1.26.0 (running go 1.20.1; GOTOOLCHAIN=local)": "Go is too old",
		"go: k8s.io/api@v0.36.3: dial tcp: lookup proxy.golang.org: no such host": "check the network",
		"mkdir /tmp/go-build1: no space left on device":                           "the disk is full",
		"k8s.io/kubernetes/x: compile: signal: killed":                            "out of memory",
		"k8s.io/kubernetes/x: something that nobody has thought of":               "nobody has thought of",
	} {
		env, _, _ := fakeEnv(t, "echo '"+goSays+"' >&2; exit 1\n")
		p := start(t, env, "build")
		out, code := p.exit()
		if text := p.stderr.String(); code != 1 || out != "" || !strings.Contains(text, want) || !strings.Contains(text, goSays) {
			t.Errorf("exit code %d, stdout %q, stderr %q, want %q", code, out, text, want)
		}
	}
	env, _, _ := fakeEnv(t, "")
	p := start(t, append(env, "PATH=/nonexistent"), "build")
	if _, code := p.exit(); code != 1 || !strings.Contains(p.stderr.String(), "Install Go") {
		t.Errorf("exit code %d, stderr %s", code, p.stderr)
	}
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]int{"": 2, "help": 0, "--help": 0, "up --help": 0, "build -h": 0,
		"up --nonsense": 2, "up more": 2, "down": 2} {
		p := start(t, nil, strings.Fields(args)...)
		out, code := p.exit()
		if code != want || strings.Contains(out, "Usage:") != (want == 0) || strings.Contains(p.stderr.String(), "Usage:") != (want == 2) {
			t.Errorf("cluster %s: exit code %d, stdout %q, stderr %q", args, code, out, p.stderr)
		}
	}
}
