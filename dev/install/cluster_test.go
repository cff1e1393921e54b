package install

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Values in which every template of the chart is used. The CRD is out: another test may have installed it.
var rendered = map[string]string{
	"defaults": withRegion("crds: {enabled: false}"),
	"everything": strings.Replace(withRegion(everything, "crds: {enabled: false}"), "aws: {",
		"aws: {credentials: {secretName: aws}, ", 1),
	"single namespaces": withRegion("watchNamespace: default", "clusterID: one", "crds: {enabled: false}"),
}

func TestTheApiServerTakesWhatTheChartMakesAndWarnsOfNothing(t *testing.T) {
	namespace(t, "dry")
	kubectl(t, "label", "namespace", "dry", "pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted").must(t)
	prometheusOperator(t)
	for what, values := range rendered {
		manifests := helm(t, "template", name, chart, "-n", "dry", "-f", file(t, values)).must(t)
		said := kubectlWith(t, manifests, "apply", "--server-side", "--dry-run=server", "-f", "-")
		said.must(t)
		if said.err != "" {
			t.Errorf("%s: %s", what, said.err)
		}
	}
}

// prometheusOperator installs its CRDs of PodMonitor and PrometheusRule, and takes them away in the end.
func prometheusOperator(t *testing.T) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/prometheus-operator/prometheus-operator").Output()
	if err != nil {
		t.Fatal(err)
	}
	crds := []string{"--server-side"}
	for _, kind := range []string{"podmonitors", "prometheusrules"} {
		path := "example/prometheus-operator-crd/monitoring.coreos.com_" + kind + ".yaml"
		crds = append(crds, "-f", filepath.Join(strings.TrimSpace(string(dir)), path))
	}
	kubectl(t, append([]string{"apply"}, crds...)...).must(t)
	t.Cleanup(func() { kubectl(t, append([]string{"delete"}, crds[1:]...)...) })
	for _, kind := range []string{"podmonitors", "prometheusrules"} {
		kubectl(t, "wait", "--for=condition=Established", "crd/"+kind+".monitoring.coreos.com", "--timeout=60s").must(t)
	}
}

func TestKubeconformFindsNothing(t *testing.T) {
	schemas := schemas(t)
	check := func(manifests string) said {
		// The API server has no schema of what it does not serve here; the test above has asked it for these.
		return run(t, manifests, program(t, "OPENTUNNEL_KUBECONFORM"), "-strict", "-summary", "-schema-location", schemas,
			"-skip", "CustomResourceDefinition,PodMonitor,PrometheusRule")
	}
	for what, values := range rendered {
		said := check(helm(t, "template", name, chart, "-f", file(t, values)).must(t))
		if !said.ok || !strings.Contains(said.out, "Invalid: 0, Errors: 0") {
			t.Errorf("%s: %s%s", what, said.out, said.err)
		}
	}
	check(kubectl(t, "kustomize", repository+"/deploy").must(t)).must(t)
	// It would.
	wrong := "{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}, automountServiceAccountTokens: false}"
	if said := check(wrong); said.ok {
		t.Errorf("a field that does not exist is taken: %s", said.out)
	}
}

// schemas makes JSON schemas of what the API server says of its objects, as kubeconform reads them. (It would load those
// of the newest Kubernetes from the Internet.)
func schemas(t *testing.T) string {
	t.Helper()
	var api object
	if err := json.Unmarshal([]byte(kubectl(t, "get", "--raw", "/openapi/v2").must(t)), &api); err != nil {
		t.Fatal(err)
	}
	definitions := api["definitions"].(object)
	strict(definitions)
	dir := t.TempDir()
	save := func(name string, schema object) {
		text, err := json.Marshal(schema)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name+".json"), string(text))
	}
	save("definitions", object{"definitions": definitions})
	for name, definition := range definitions {
		for _, kind := range list(at(definition, "x-kubernetes-group-version-kind")) {
			group, _, _ := strings.Cut(at(kind, "group").(string), ".")
			parts := []string{at(kind, "kind").(string), group, at(kind, "version").(string)}
			parts = slices.DeleteFunc(parts, func(part string) bool { return part == "" })
			save(strings.ToLower(strings.Join(parts, "-")), object{"$ref": "definitions.json#/definitions/" + name})
		}
	}
	return dir + "/{{ .ResourceKind }}{{ .KindSuffix }}.json"
}

func list(value any) []any {
	all, _ := value.([]any)
	return all
}

// strict lets no field in that is not told, and says what OpenAPI 2 cannot.
func strict(schema any) {
	switch schema := schema.(type) {
	case object:
		if schema["format"] == "int-or-string" {
			schema["type"] = []any{"integer", "string"}
		}
		if _, fields := schema["properties"].(object); fields && schema["type"] == "object" {
			schema["additionalProperties"] = false
		}
		for child := range maps.Values(schema) {
			strict(child)
		}
	case []any:
		for _, child := range schema {
			strict(child)
		}
	}
}

// versions are the resourceVersions of all that the release has, by the objects' names.
func versions(t *testing.T, namespace string) map[string]string {
	t.Helper()
	manifest := release(t, "get", "manifest", name, "-n", namespace).must(t)
	var all object
	text := kubectlWith(t, manifest, "get", "-f", "-", "-o", "json").must(t)
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, o := range list(all["items"]) {
		found[id(o.(object))] = fmt.Sprint(at(o, "metadata", "resourceVersion"))
	}
	return found
}

func changed(before, after map[string]string) []string {
	var names []string
	for name, version := range after {
		if before[name] != version {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func TestHelmInstallsUpgradesRollsBackAndUninstalls(t *testing.T) {
	const space = "helm-life"
	values := []string{"-n", space, "--set", "aws.region=" + region}
	helm := func(args ...string) said { return release(t, append(args, values...)...) }
	t.Cleanup(func() {
		release(t, "uninstall", name, "-n", space, "--ignore-not-found")
		kubectl(t, "delete", "crd", "tunnels.opentunnel.dev", "--ignore-not-found")
		kubectl(t, "delete", "namespace", space, "--wait=false")
	})

	notes := helm("install", name, chart, "--create-namespace").must(t)
	for _, words := range []string{"region " + region, "kubectl rollout status -n " + space, "needs AWS credentials", "kind: Tunnel"} {
		if !strings.Contains(notes, words) {
			t.Errorf("no %q in the notes:\n%s", words, notes)
		}
	}
	first := versions(t, space)
	if len(first) < 10 {
		t.Fatalf("not all is there: %v", first)
	}
	// What the notes tell people to apply.
	manifest := "apiVersion: " + strings.Split(strings.Split(notes, "apiVersion: ")[1], "EOF")[0]
	manifest = strings.ReplaceAll(manifest, "\n     ", "\n")
	kubectl(t, "wait", "--for=condition=Established", "crd/tunnels.opentunnel.dev", "--timeout=60s").must(t)
	kubectlWith(t, manifest, "apply", "-f", "-").must(t)

	// The same once more writes nothing.
	helm("upgrade", name, chart).must(t)
	same(t, changed(first, versions(t, space)), []string(nil))

	deployment, config := "Deployment "+space+"/"+name, "ConfigMap "+space+"/"+name
	helm("upgrade", name, chart, "--set", "settings.OPENTUNNEL_OPEN_RATE=2").must(t)
	second := versions(t, space)
	same(t, changed(first, second), []string{config, deployment})
	same(t, at(live(t, "configmap", name, space), "data", "OPENTUNNEL_OPEN_RATE"), "2")

	release(t, "rollback", name, "1", "-n", space).must(t)
	same(t, changed(second, versions(t, space)), []string{config, deployment})
	same(t, at(live(t, "configmap", name, space), "data", "OPENTUNNEL_OPEN_RATE"), nil)

	// A newer chart has a newer CRD.
	newer := t.TempDir()
	if err := os.CopyFS(newer, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	crd := strings.Replace(read(t, "crds/tunnels.yaml"), "    - tun\n", "    - tun\n    - opentun\n", 1)
	write(t, filepath.Join(newer, "files/tunnels.yaml"), crd)
	helm("upgrade", name, newer).must(t)
	same(t, at(live(t, "crd", "tunnels.opentunnel.dev", ""), "spec", "names", "shortNames"), []string{"tun", "opentun"})

	release(t, "uninstall", name, "-n", space).must(t)
	for object := range first {
		kind, rest, _ := strings.Cut(object, " ")
		_, of, _ := strings.Cut(rest, "/")
		left := live(t, kind, of, space) != nil
		if left != (kind == "CustomResourceDefinition") {
			t.Errorf("after the uninstall, is %s there? %v", object, left)
		}
	}
	if live(t, "tunnels.opentunnel.dev", "sensor-42", "default") == nil {
		t.Error("the Tunnel is gone with the release")
	}

	// A reinstall takes the CRD over; without keep it goes, and the Tunnels with it.
	helm("install", name, chart, "--set", "crds.keep=false").must(t)
	release(t, "uninstall", name, "-n", space).must(t)
	// The API server looks every 5 s, for a minute, whether the last Tunnel is gone, and else begins again.
	kubectl(t, "wait", "--for=delete", "crd/tunnels.opentunnel.dev", "--timeout=180s").must(t)
}
