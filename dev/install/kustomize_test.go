package install

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// What a team has in its git for a namespace of its own.
func own(t *testing.T, namespace, resource string, literals ...string) string {
	literals = append(literals, "AWS_REGION="+region)
	return kustomization(t, `
namespace: `+namespace+`
configMapGenerator:
  - name: opentunnel-operator
    behavior: merge
    literals: ["`+strings.Join(literals, `", "`)+`"]`, resource)
}

func TestTheBaseInstallsIntoANamespaceThatIsThereAndLeavesIt(t *testing.T) {
	namespace(t, "team-a")
	kubectl(t, "label", "namespace", "team-a", "team=a").must(t)
	before := live(t, "namespace", "team-a", "")
	dir := own(t, "team-a", "deploy/base")
	for _, o := range kustomize(t, dir) {
		if o["kind"] == "Namespace" || o["kind"] == "CustomResourceDefinition" {
			t.Errorf("there is %s", id(o))
		}
	}

	kubectl(t, "apply", "-k", dir).must(t)
	if found := live(t, "deployment", name, "team-a"); found == nil {
		t.Error("there is no Deployment")
	}
	binding := live(t, "clusterrolebinding", name, "")
	if at(binding, "subjects", 0, "namespace") != "team-a" {
		t.Errorf("the rights are another's: %v", binding["subjects"])
	}
	kubectl(t, "delete", "-k", dir).must(t)
	after := live(t, "namespace", "team-a", "")
	for _, field := range []string{"resourceVersion", "uid"} {
		if at(before, "metadata", field) != at(after, "metadata", field) {
			t.Errorf("the Namespace was touched: %v", after)
		}
	}
	if left := live(t, "clusterrole", name, ""); left != nil {
		t.Error("the ClusterRole is left")
	}
}

func TestTheOverlayForSingleNamespacesHasNothingOfTheWholeCluster(t *testing.T) {
	for _, o := range kustomize(t, own(t, "team-b", "deploy/namespaced")) {
		if at(o, "metadata", "namespace") != "team-b" {
			t.Errorf("%s is in no namespace", id(o))
		}
	}
}

func TestTheRulesInAWatchedNamespaceAreThoseOfTheClusterRole(t *testing.T) {
	all := kustomize(t, repository+"/deploy")
	var rules []any
	for _, rule := range find(t, all, "ClusterRole", name)["rules"].([]any) {
		// An object that it names is the cluster's.
		if at(rule, "resourceNames") == nil {
			rules = append(rules, rule)
		}
	}
	watched := kustomize(t, repository+"/deploy/watched")
	same(t, find(t, watched, "Role")["rules"], any(rules))
}

// documented are the blocks of YAML under a heading of docs/install.md.
func documented(t *testing.T, heading string) []string {
	t.Helper()
	_, section, found := strings.Cut(read(t, "docs/install.md"), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("docs/install.md has no %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var blocks []string
	for _, block := range strings.Split(section, "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		blocks = append(blocks, block)
	}
	return blocks
}

// folder makes a folder of a documented Kustomization, with a checkout in place of the URL.
func folder(t *testing.T, text string) string {
	t.Helper()
	resource := regexp.MustCompile(`resources:\n  - https://your\.git/opentunnel-operator//(.*)\?ref=v0\.1\.0\n`)
	found := resource.FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no resource in:\n%s", text)
	}
	return kustomization(t, resource.ReplaceAllString(text, ""), found[1])
}

func TestTheKustomizationsInTheDocsDoAsTheySay(t *testing.T) {
	base := kustomize(t, folder(t, documented(t, "Into a namespace that is there")[0]))
	blocks := documented(t, "For single namespaces")
	single := kustomize(t, folder(t, blocks[0]))
	for _, objects := range [][]object{base, single} {
		deployment := find(t, objects, "Deployment")
		same(t, at(deployment, "metadata", "namespace"), "team-a")
		same(t, at(deployment, "spec", "template", "spec", "containers", 0, "image"), "registry.example.com/opentunnel-operator:0.1.0")
		same(t, at(find(t, objects, "ConfigMap"), "data", "AWS_REGION"), region)
		same(t, at(find(t, objects, "RoleBinding", name), "subjects", 0, "namespace"), "team-a")
	}
	// What the Pod demands is there, under the name that the ConfigMap has got.
	config := find(t, single, "ConfigMap")
	demanded := 0
	for _, variable := range list(at(find(t, single, "Deployment"), "spec", "template", "spec", "containers", 0, "env")) {
		if from, ok := at(variable, "valueFrom", "configMapKeyRef").(object); ok {
			same(t, from["name"], at(config, "metadata", "name"))
			if at(config, "data", from["key"]) == nil {
				t.Errorf("the ConfigMap lacks %v", from["key"])
			}
			demanded++
		}
	}
	same(t, demanded, 3)
	watched := find(t, kustomize(t, folder(t, blocks[1])), "RoleBinding")
	same(t, at(watched, "metadata", "namespace"), "edge")
	same(t, at(watched, "subjects", 0, "namespace"), "team-a")
}

func TestACredentialsSecretOfTheOverlayReachesThePod(t *testing.T) {
	settings := "{name: opentunnel-operator, behavior: merge, literals: [AWS_REGION=" + region + "], namespace: " + system + "}"
	dir := kustomization(t, "configMapGenerator: ["+settings+"]\n"+documented(t, "Credentials in a Secret")[0], "deploy")
	write(t, dir+"/aws-credentials.env", "AWS_ACCESS_KEY_ID=AKIA\nAWS_SECRET_ACCESS_KEY=secret\n")
	kubectl(t, "apply", "-k", dir).must(t)
	t.Cleanup(func() { kubectl(t, "delete", "-k", dir).must(t) })

	var named []string
	deployment := live(t, "deployment", name, system)
	for _, source := range list(at(deployment, "spec", "template", "spec", "containers", 0, "envFrom")) {
		if secret, ok := at(source, "secretRef", "name").(string); ok {
			named = append(named, secret)
		}
	}
	if len(named) != 1 || at(live(t, "secret", named[0], system), "data", "AWS_ACCESS_KEY_ID") != "QUtJQQ==" {
		t.Errorf("the Pod reads other Secrets than the overlay's: %v", named)
	}
}

func TestTheOneFileHasWhatKustomizeMakes(t *testing.T) {
	up(t)
	t.Setenv("PATH", plane.Bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	image := "registry.example.com:5000/opentunnel-operator:0.1.0@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	run(t, "", "make", "-C", repository, "install-yaml", "AWS_REGION="+region, "IMAGE="+image).must(t)
	objects := parse(t, read(t, "target/install.yaml"))
	same(t, at(find(t, objects, "Deployment"), "spec", "template", "spec", "containers", 0, "image"), image)
	dir := kustomization(t, `
configMapGenerator:
  - {name: opentunnel-operator, namespace: opentunnel-system, behavior: merge, literals: [AWS_REGION=`+region+`]}
patches:
  - target: {kind: Deployment}
    patch: '- {op: replace, path: /spec/template/spec/containers/0/image, value: "`+image+`"}'`, "deploy")
	same(t, objects, kustomize(t, dir))
	t.Setenv("AWS_REGION", "")
	if said := run(t, "", "make", "-C", repository, "install-yaml"); said.ok || !strings.Contains(said.err, "AWS_REGION") {
		t.Errorf("without a region: %s%s", said.out, said.err)
	}
}
