// Package install tests every way to install the operator, by the tools that people use: kubectl with Kustomize, helm
// and kubeconform, which are built from their Go modules (the `tool` lines of go.mod), on a real control plane.
package install

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"
)

// An object of Kubernetes, or a part of one.
type object = map[string]any

const (
	repository = "../.."
	chart      = repository + "/deploy/chart"
	region     = "eu-central-1"
	// The namespace of deploy/.
	system = "opentunnel-system"
	// The name of everything, and so of the chart's release.
	name = "opentunnel-operator"
	// Who the operator is in `system`.
	operator = "system:serviceaccount:" + system + ":" + name
)

// program is one that `make install-test` has built.
func program(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s is not set: `make install-test` builds what these tests need, and sets it", variable)
	}
	return path
}

// said is what a program printed, and whether it succeeded.
type said struct {
	out, err string
	ok       bool
}

func run(t *testing.T, stdin string, command string, args ...string) said {
	t.Helper()
	var out, err bytes.Buffer
	process := exec.Command(command, args...)
	process.Stdin, process.Stdout, process.Stderr = strings.NewReader(stdin), &out, &err
	// No settings, caches and repositories of the user's.
	home := t.TempDir()
	process.Env = append(os.Environ(), "HOME="+home, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home,
		"KUBERC=off", "KUBECONFIG=/nowhere")
	ended := process.Run()
	if _, exited := ended.(*exec.ExitError); ended != nil && !exited {
		t.Fatalf("%s: %v", command, ended)
	}
	return said{out.String(), err.String(), ended == nil}
}

// mustSay fails the test where the program did.
func (s said) must(t *testing.T) string {
	t.Helper()
	if !s.ok {
		t.Fatalf("it failed: %s%s", s.out, s.err)
	}
	return s.out
}

func helm(t *testing.T, args ...string) said {
	t.Helper()
	return run(t, "", program(t, "OPENTUNNEL_HELM"), args...)
}

// render is what helm makes of the chart with these values, given as YAML.
func render(t *testing.T, values string, args ...string) []object {
	t.Helper()
	return parse(t, template(t, values, args...).must(t))
}

func template(t *testing.T, values string, args ...string) said {
	t.Helper()
	args = append([]string{"template", name, chart, "-n", system, "-f", file(t, values)}, args...)
	return helm(t, args...)
}

// withRegion are values with what has no default.
func withRegion(values ...string) string {
	return "aws: {region: " + region + "}\n" + strings.Join(values, "\n")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// file is a new one with this text.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.yaml")
	write(t, path, text)
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parse reads YAML documents.
func parse(t *testing.T, text string) []object {
	t.Helper()
	var objects []object
	for _, document := range strings.Split("\n"+text, "\n---") {
		var parsed object
		if err := yaml.Unmarshal([]byte(document), &parsed); err != nil {
			t.Fatalf("%v in:\n%s", err, document)
		}
		if parsed != nil {
			objects = append(objects, parsed)
		}
	}
	return objects
}

// at is what stands at a path of keys and, for lists, indices; nil where there is nothing.
func at(from any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			parent, _ := from.(object)
			from = parent[step]
		case int:
			list, _ := from.([]any)
			if step >= len(list) {
				return nil
			}
			from = list[step]
		}
	}
	return from
}

func id(o object) string {
	return fmt.Sprintf("%v %v/%v", o["kind"], orNone(at(o, "metadata", "namespace")), at(o, "metadata", "name"))
}

func orNone(value any) any {
	if value == nil {
		return ""
	}
	return value
}

// find is the one object of a kind; the name may be left out.
func find(t *testing.T, objects []object, kind string, names ...string) object {
	t.Helper()
	var found []object
	for _, o := range objects {
		if o["kind"] == kind && (len(names) == 0 || at(o, "metadata", "name") == names[0]) {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("there are %d of %s %v", len(found), kind, names)
	}
	return found[0]
}

func ids(objects []object) []string {
	var all []string
	for _, o := range objects {
		all = append(all, id(o))
	}
	return all
}

// kustomization makes a folder with a user's Kustomization, which has folders of this repository as resources.
func kustomization(t *testing.T, text string, resources ...string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(repository)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		t.Fatal(err)
	}
	text += "\nresources:\n"
	for _, resource := range resources {
		// Kustomize takes relative paths alone.
		relative, err := filepath.Rel(dir, filepath.Join(root, resource))
		if err != nil {
			t.Fatal(err)
		}
		text += "  - " + relative + "\n"
	}
	write(t, filepath.Join(dir, "kustomization.yaml"), text)
	return dir
}

// plane is the control plane that all tests share: `cluster up`, without a CRD.
var plane struct {
	sync.Once
	failure              error
	stdin                io.Closer
	supervisor           *exec.Cmd
	Kubeconfig, Bin, Dir string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if plane.stdin != nil {
		// It ends then, and all that is its own.
		plane.stdin.Close()
		plane.supervisor.Wait()
	}
	os.Exit(code)
}

func up(t *testing.T) {
	t.Helper()
	plane.Do(func() {
		plane.supervisor = exec.Command(program(t, "OPENTUNNEL_CLUSTER_BIN"), "up")
		plane.supervisor.Stderr = os.Stderr
		out, err := plane.supervisor.StdoutPipe()
		if err == nil {
			plane.stdin, err = plane.supervisor.StdinPipe()
		}
		if err == nil {
			err = plane.supervisor.Start()
		}
		if err == nil {
			var line string
			if line, err = bufio.NewReader(out).ReadString('\n'); err == nil {
				err = json.Unmarshal([]byte(line), &plane)
			}
		}
		plane.failure = err
	})
	if plane.failure != nil {
		t.Fatalf("no control plane: %v", plane.failure)
	}
}

// kubectl as the administrator.
func kubectl(t *testing.T, args ...string) said {
	t.Helper()
	return kubectlWith(t, "", args...)
}

// kubectlWith has something on standard input.
func kubectlWith(t *testing.T, stdin string, args ...string) said {
	t.Helper()
	up(t)
	args = append([]string{"--kubeconfig", plane.Kubeconfig, "--cache-dir", filepath.Join(plane.Dir, "kubectl-cache")}, args...)
	return run(t, stdin, filepath.Join(plane.Bin, "kubectl"), args...)
}

// kustomize is what Kustomize makes of a folder.
func kustomize(t *testing.T, dir string) []object {
	t.Helper()
	return parse(t, kubectl(t, "kustomize", dir).must(t))
}

// release runs helm on the control plane.
func release(t *testing.T, args ...string) said {
	t.Helper()
	up(t)
	return helm(t, append(args, "--kubeconfig", plane.Kubeconfig)...)
}

// live is an object as the API server has it; nil: it has none.
func live(t *testing.T, kind, name, namespace string) object {
	t.Helper()
	var found object
	text := kubectl(t, "get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found").must(t)
	if err := json.Unmarshal([]byte(text), &found); text != "" && err != nil {
		t.Fatal(err)
	}
	return found
}

// namespace makes one, which is deleted in the end.
func namespace(t *testing.T, name string) {
	t.Helper()
	kubectl(t, "create", "namespace", name).must(t)
	t.Cleanup(func() { kubectl(t, "delete", "namespace", name, "--wait=false") })
}
