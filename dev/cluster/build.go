package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// buildFlags are given to every `go build`. What -s throws away need not be
// compiled; the standard library is compiled as for all else that is built here.
// The version is what `kubectl version` shows.
func buildFlags() []string {
	version := kubernetesVersion()
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	ldflags := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		ldflags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s"+
			" -X %[1]s.gitTreeState=clean", pkg, version, numbers[0], numbers[1])
	}
	return []string{"-mod=readonly", "-buildvcs=false", "-trimpath", "-gcflags=all=-dwarf=false", "-gcflags=std=",
		"-ldflags=" + ldflags}
}

// buildTags choose the programs that cmd/controlplane is made of. Without the
// first one there is nothing in it: `go test ./...` and `go vet ./...` are not
// to compile Kubernetes once more.
func buildTags(names []string) string {
	tags := "-tags=controlplane"
	for _, name := range names {
		tags += ",with_" + strings.ReplaceAll(name, "-", "_")
	}
	return tags
}

// goMod is the path in source, without `.mod` and `.sum`, of what becomes go.mod
// and go.sum. otherKubernetes has those of other minors.
var goMod = "go"

const otherKubernetes = "kubernetes/"

// chooseKubernetes takes the go.mod of the minor that KUBERNETES names, if it does.
func chooseKubernetes() error {
	minor := os.Getenv("KUBERNETES")
	if minor == "" || strings.HasPrefix(kubernetesVersion(), "v"+minor+".") {
		return nil
	}
	if _, err := source.ReadFile(otherKubernetes + minor + ".mod"); err != nil {
		others, _ := fs.Glob(source, otherKubernetes+"*.mod")
		for i, other := range others {
			others[i] = strings.TrimSuffix(path.Base(other), ".mod")
		}
		return fmt.Errorf("KUBERNETES=%s: dev/cluster has no such minor. Leave it unset for %s, or take %s",
			minor, kubernetesVersion(), strings.Join(others, " or "))
	}
	goMod = otherKubernetes + minor
	return nil
}

// kubernetesVersion reads the version from go.mod, the one place that names it.
func kubernetesVersion() string {
	mod, err := source.ReadFile(goMod + ".mod")
	match := regexp.MustCompile(`k8s\.io/kubernetes (v\d+\.\d+\.\d+)`).FindSubmatch(mod)
	if err != nil || match == nil {
		panic(goMod + ".mod does not require k8s.io/kubernetes")
	}
	return string(match[1])
}

// buildLocked builds what built lacks of the names, while no other process
// does. An interrupted build leaves nothing that looks finished.
func buildLocked(ctx context.Context, cache, built string, names []string) error {
	if err := os.MkdirAll(built, 0o755); err != nil {
		return err
	}
	lock, err := lockFile(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	names = lacking(built, names)
	if len(names) == 0 {
		return nil // built by another process while we waited
	}
	leftovers, _ := filepath.Glob(filepath.Join(cache, "build-*"))
	for _, dir := range leftovers {
		os.RemoveAll(dir)
	}
	temp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	src := filepath.Join(temp, "src")
	if err := os.CopyFS(src, source); err != nil {
		return err
	}
	for _, suffix := range []string{".mod", ".sum"} {
		if err := os.Rename(filepath.Join(src, goMod+suffix), filepath.Join(src, "go"+suffix)); err != nil {
			return err
		}
	}
	if err := compile(ctx, src, filepath.Join(temp, "bin"), names); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(temp, "bin", name), filepath.Join(built, name)); err != nil {
			return err
		}
	}
	return nil
}

// compile builds the named programs, as one that has their names or, with those
// of a node, as two.
func compile(ctx context.Context, src, out string, names []string) error {
	if _, err := exec.LookPath("go"); err != nil {
		return fmt.Errorf("cannot build %s: there is no `go` in PATH.\n"+
			"Install Go (the version is in dev/cluster/go.mod), or let KUBEBUILDER_ASSETS name a directory that holds them",
			strings.Join(names, ", "))
	}
	say("building %s (Kubernetes %s) into %s", strings.Join(names, ", "), kubernetesVersion(), filepath.Dir(filepath.Dir(out)))
	say("the first time this takes about 5 minutes on two cores, downloads 0.7 GB of Go modules and needs 4 GB of disk")
	progress := newProgress()
	defer progress.stop()
	overlay, err := progress.makeLean(ctx, src)
	if err != nil {
		return err
	}
	of := func(some []string) []string {
		return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !slices.Contains(some, name) })
	}
	if err := progress.compile(ctx, src, filepath.Join(out, "controlplane"), of(programs), overlay); err != nil {
		return err
	}
	if err := progress.compile(ctx, src, filepath.Join(out, "node"), of(nodePrograms)); err != nil {
		return err
	}
	if gone := lacking(out, names); len(gone) > 0 {
		return fmt.Errorf("`go build` succeeded without making %s", strings.Join(gone, ", "))
	}
	say("built in %s", progress.elapsed())
	return nil
}

// compile builds one program that is all the named ones, with a link of each name beside it.
func (p *progress) compile(ctx context.Context, src, program string, names []string, flags ...string) error {
	if len(names) == 0 {
		return nil
	}
	flags = append(append(buildFlags(), flags...), buildTags(names), "./cmd/controlplane")

	// Listing the packages downloads the modules and tells how many there are.
	var list bytes.Buffer
	if err := p.run(ctx, src, &list, append([]string{"list", "-deps"}, flags...)); err != nil {
		return err
	}
	p.compiling(strings.Count(list.String(), "\n"))
	if err := p.run(ctx, src, nil, append([]string{"build", "-v", "-o", program}, flags...)); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Link(program, filepath.Join(filepath.Dir(program), name)); err != nil {
			return err
		}
	}
	return nil
}

// progress tells every few seconds how far a build is.
type progress struct {
	start time.Time
	done  chan struct{}

	mu       sync.Mutex
	modules  int      // downloaded so far
	packages int      // compiled so far
	total    int      // packages there are; 0 while modules are downloaded
	rest     []string // what go said apart from progress: its errors
}

func newProgress() *progress {
	p := &progress{start: time.Now(), done: make(chan struct{})}
	go func() {
		ticker := time.NewTicker(10 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-p.done:
				return
			case <-ticker.C:
				say("%s: %s", p.elapsed(), p.state())
			}
		}
	}()
	return p
}

func (p *progress) stop()           { close(p.done) }
func (p *progress) elapsed() string { return time.Since(p.start).Round(time.Second).String() }

func (p *progress) state() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total == 0 {
		return fmt.Sprintf("downloading modules, %d so far", p.modules)
	}
	return fmt.Sprintf("compiling and linking, %d packages of at most %d compiled", p.packages, p.total)
}

// compiling says that the modules are there.
func (p *progress) compiling(total int) {
	p.mu.Lock()
	p.total = total
	p.mu.Unlock()
}

// run calls go and reads its progress.
func (p *progress) run(ctx context.Context, dir string, stdout io.Writer, args []string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GO111MODULE=on",
		"GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	cmd.Stdout = stdout
	cmd.SysProcAttr = childAttributes()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // its compilers, too
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	scanner := bufio.NewScanner(stderr)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		p.read(scanner.Text())
	}
	_, _ = io.Copy(io.Discard, stderr)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return explain(err, strings.Join(p.rest, "\n"))
	}
	return nil
}

var packagePath = regexp.MustCompile(`^[\w.~-]+(/[\w.~-]+)*$`)

func (p *progress) read(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case strings.HasPrefix(line, "go: downloading "):
		p.modules++
	case packagePath.MatchString(line):
		p.packages++
	default:
		p.rest = append(p.rest, line)
		p.rest = p.rest[max(0, len(p.rest)-30):]
	}
}

// explain adds to the error of go what a person can do about it.
func explain(err error, output string) error {
	hint := ""
	switch has := func(words ...string) bool {
		for _, word := range words {
			if strings.Contains(output, word) {
				return true
			}
		}
		return false
	}; {
	case has("requires go >=", "invalid go version", "unknown directive"):
		hint = "Go is too old: install the version that dev/cluster/go.mod asks for"
	case has("dial tcp", "no such host", "i/o timeout", "TLS handshake", "connection refused", "module lookup disabled"):
		hint = "Go modules cannot be downloaded: check the network and `go env GOPROXY`, then call this again (what has been downloaded is kept)"
	case has("no space left on device"):
		hint = "the disk is full: free 4 GB, or move GOMODCACHE, GOCACHE and OPENTUNNEL_CACHE elsewhere"
	case has("signal: killed", "cannot allocate memory"):
		hint = "out of memory: free 3 GB, or set GOFLAGS=-p=1"
	}
	if hint != "" {
		hint = "\n" + hint
	}
	return fmt.Errorf("go: %w\n%s%s", err, strings.TrimSpace(output), hint)
}
