package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const (
	repository = "../.."
	rules      = Rules(repository + "/deploy/gitops/argo-cd/resource_customizations/opentunnel.dev/Tunnel")
	argocdCM   = repository + "/deploy/gitops/argo-cd/argocd-cm.yaml"
	page       = repository + "/docs/gitops.md"
	rotateAt   = "opentunnel.dev/rotate-at"
	someTime   = "0001-01-01T00:00:00Z"
)

// As in the Rust tests: what is generated is written, and the change is seen in the diff.
var update = os.Getenv("UPDATE_DOCS") != ""

func read(t *testing.T, file string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(file, err)
	}
	return object
}

func compare(t *testing.T, file string, wanted []byte) {
	t.Helper()
	if update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, wanted, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if present, _ := os.ReadFile(file); string(present) != string(wanted) {
		t.Errorf("%s is old: make docs", file)
	}
}

func toYAML(t *testing.T, value any) []byte {
	t.Helper()
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte("# Written by `make docs`, and compared by dev/gitops.\n"), text...)
}

// The samples that the operator's own code has written, by name, in the order of the docs.
func samples(t *testing.T) ([]string, map[string]map[string]any) {
	t.Helper()
	files, err := filepath.Glob(string(rules) + "/testdata/*.yaml")
	if err != nil || len(files) < 15 {
		t.Fatal(files, err)
	}
	all := map[string]map[string]any{}
	for _, file := range files {
		all[strings.TrimSuffix(filepath.Base(file), ".yaml")] = read(t, file)
	}
	return slices.Sorted(maps.Keys(all)), all
}

// A condition of an object, as `Ready True Open`.
func conditions(object map[string]any) []string {
	list, _, _ := unstructured.NestedSlice(object, "status", "conditions")
	var texts []string
	for _, one := range list {
		c := one.(map[string]any)
		texts = append(texts, fmt.Sprint(c["type"], " ", c["status"], " ", c["reason"]))
	}
	return texts
}

func has(conditions []string, start string) bool {
	return slices.ContainsFunc(conditions, func(c string) bool { return strings.HasPrefix(c, start) })
}

// What both tools are to say, by what the operator promises of its conditions.
func expected(name string, conditions []string) (status.Status, string) {
	switch {
	case name == "deleted":
		// Argo CD shows each object that is being deleted as Progressing, and runs no script.
		return status.TerminatingStatus, "Progressing"
	case name == "created", name == "edited":
		return status.InProgressStatus, "Progressing"
	case has(conditions, "Stalled True"):
		return status.FailedStatus, "Degraded"
	case has(conditions, "Ended True Suspended"):
		return status.CurrentStatus, "Suspended"
	case has(conditions, "Ended True"), has(conditions, "Ready True"):
		return status.CurrentStatus, "Healthy"
	default:
		return status.InProgressStatus, "Progressing"
	}
}

func TestFluxAndArgoCDUnderstandEachState(t *testing.T) {
	names, all := samples(t)
	type test struct {
		Health Health `json:"healthStatus"`
		Input  string `json:"inputPath"`
	}
	var tests []test
	table := "| main condition | reason | beside it | Flux (kstatus) | Argo CD |\n|---|---|---|---|---|\n"
	var rows []string
	for _, name := range names {
		object := all[name]
		// kstatus wants whole numbers as the API server's clients decode them.
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(name, err)
		}
		decoded := &unstructured.Unstructured{}
		if err := decoded.UnmarshalJSON(text); err != nil {
			t.Fatal(name, err)
		}
		result, err := status.Compute(decoded)
		if err != nil {
			t.Fatal(name, err)
		}
		health, err := rules.Health(object)
		if err != nil {
			t.Fatal(name, err)
		}
		found := conditions(object)
		kstatus, argo := expected(name, found)
		if result.Status != kstatus || health.Status != argo {
			t.Errorf("%s (%v): kstatus %s, Argo CD %s; wanted %s, %s", name, found, result.Status, health.Status, kstatus, argo)
		}
		tests = append(tests, test{health, "testdata/" + name + ".yaml"})
		rows = append(rows, row(name, found, result.Status, health.Status))
	}
	slices.Sort(rows)
	compare(t, string(rules)+"/health_test.yaml", toYAML(t, map[string]any{"tests": tests}))
	inPage(t, table+strings.Join(slices.Compact(rows), ""))
}

func row(name string, conditions []string, kstatus status.Status, health string) string {
	special := map[string]string{
		"created": "the operator has not written yet",
		"edited":  "the spec is newer than the status",
		"deleted": "it is being deleted",
	}
	if words, ok := special[name]; ok {
		return fmt.Sprintf("| %s | | | %s | %s |\n", words, kstatus, health)
	}
	main := strings.Fields(conditions[0])
	beside := ""
	if len(conditions) > 1 {
		beside = "`" + strings.Fields(conditions[1])[0] + "`"
	}
	return fmt.Sprintf("| `%s: %s` | `%s` | %s | %s | %s |\n", main[0], main[1], main[2], beside, kstatus, health)
}

// The page has the table between two comments.
func inPage(t *testing.T, table string) {
	t.Helper()
	const begin, end = "<!-- states: make docs -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	compare(t, page, []byte(before+begin+"\n"+table+"\n"+end+after))
}

// What each button does, and on which samples it can be pressed.
var actions = map[string]struct {
	patch   string
	enabled func(name string, conditions []string) bool
	tried   []string
}{
	"rotate": {
		`{"metadata": {"annotations": {"` + rotateAt + `": "` + someTime + `"}}}`,
		func(_ string, c []string) bool { return has(c, "Ready True") }, []string{"open"},
	},
	"suspend": {
		`{"spec": {"suspend": true}}`,
		func(name string, _ []string) bool { return name != "closing" && name != "suspended" },
		[]string{"open", "opening", "closed"},
	},
	"resume": {
		`{"spec": {"suspend": false}}`,
		func(name string, _ []string) bool { return name == "closing" || name == "suspended" }, []string{"suspended"},
	},
	"reopen": {
		"", func(name string, _ []string) bool { return name == "expired" || name == "closed" }, nil,
	},
}

func TestTheButtonsOfArgoCD(t *testing.T) {
	names, all := samples(t)
	type discovery struct {
		Input  string   `json:"inputPath"`
		Result []Action `json:"result"`
	}
	type action struct {
		Action   string `json:"action"`
		Input    string `json:"inputPath"`
		Expected string `json:"expectedOutputPath"`
	}
	var discoveries []discovery
	var acts []action
	for _, name := range names {
		buttons, err := rules.Actions(all[name])
		if err != nil {
			t.Fatal(name, err)
		}
		var result []Action
		for _, button := range slices.Sorted(maps.Keys(buttons)) {
			enabled := name != "deleted" && actions[button].enabled(name, conditions(all[name]))
			if buttons[button].Disabled == enabled {
				t.Errorf("%s of %s is disabled: %v", button, name, buttons[button].Disabled)
			}
			result = append(result, buttons[button])
		}
		if len(result) != len(actions) {
			t.Errorf("%s has the buttons %v", name, result)
		}
		discoveries = append(discoveries, discovery{"../testdata/" + name + ".yaml", result})
	}
	try := func(button, name, patch string) {
		before, after := all[name], read(t, string(rules)+"/testdata/"+name+".yaml")
		merge(after, parsed(t, patch))
		result, err := rules.Act(button, before)
		if err != nil {
			t.Fatal(button, name, err)
		}
		freeze(t, result)
		if !reflect.DeepEqual(normal(t, result), normal(t, after)) {
			t.Errorf("%s of %s: %v, wanted %v", button, name, result, after)
		}
		output := "testdata/" + name + "-" + button + ".yaml"
		compare(t, string(rules)+"/actions/"+output, toYAML(t, after))
		acts = append(acts, action{button, "../testdata/" + name + ".yaml", output})
	}
	for _, button := range slices.Sorted(maps.Keys(actions)) {
		for _, name := range actions[button].tried {
			try(button, name, actions[button].patch)
		}
	}
	try("reopen", "expired", `{"spec": {"reopenPolicy": "OnExpiry"}}`)
	try("reopen", "closed", `{"spec": {"reopenPolicy": "Always"}}`)
	compare(t, string(rules)+"/actions/action_test.yaml", toYAML(t, map[string]any{"discoveryTests": discoveries, "actionTests": acts}))
}

func parsed(t *testing.T, text string) map[string]any {
	t.Helper()
	var value map[string]any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	return value
}

// A JSON merge patch.
func merge(into, patch map[string]any) {
	for key, value := range patch {
		inner, isMap := value.(map[string]any)
		present, hasMap := into[key].(map[string]any)
		if isMap && hasMap {
			merge(present, inner)
		} else {
			into[key] = value
		}
	}
}

// The time of a rotation is the present; in the expected output stands another.
func freeze(t *testing.T, object map[string]any) {
	t.Helper()
	annotations, _, _ := unstructured.NestedStringMap(object, "metadata", "annotations")
	text, ok := annotations[rotateAt]
	if !ok {
		return
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("%s is %q: %v", rotateAt, text, err)
	}
	merge(object, parsed(t, actions["rotate"].patch))
}

// Numbers of one kind: Lua has no others than floats.
func normal(t *testing.T, value any) any {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var same any
	if err := json.Unmarshal(text, &same); err != nil {
		t.Fatal(err)
	}
	return same
}

// argocd-cm.yaml holds the same scripts, for who does not build Argo CD.
func TestTheConfigMapHasTheScripts(t *testing.T) {
	script := func(file string) string {
		text, err := os.ReadFile(filepath.Join(string(rules), file))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	type definition struct {
		Name string `json:"name"`
		Lua  string `json:"action.lua"`
	}
	var definitions []definition
	for _, name := range slices.Sorted(maps.Keys(actions)) {
		definitions = append(definitions, definition{name, script("actions/" + name + "/action.lua")})
	}
	buttons, err := yaml.Marshal(map[string]any{
		"discovery.lua": script("actions/discovery.lua"), "definitions": definitions,
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, argocdCM, toYAML(t, map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "argocd-cm", "namespace": "argocd"},
		"data": map[string]string{
			"resource.customizations.health.opentunnel.dev_Tunnel":  script("health.lua"),
			"resource.customizations.actions.opentunnel.dev_Tunnel": string(buttons),
		},
	}))
}
