package install

import (
	"slices"
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

func TestACredentialsSecretOfTheOverlayReachesThePod(t *testing.T) {
	// As docs/aws.md says.
	patch := strings.Split(strings.Split(read(t, "docs/aws.md"), "secretGenerator:")[1], "```")[0]
	dir := kustomization(t, `
namespace: team-a
configMapGenerator:
  - {name: opentunnel-operator, behavior: merge, literals: [AWS_REGION=`+region+`]}
secretGenerator:`+patch, "deploy/base")
	write(t, dir+"/aws-credentials.env", "AWS_ACCESS_KEY_ID=AKIA\nAWS_SECRET_ACCESS_KEY=secret\n")
	objects := kustomize(t, dir)
	secret := at(find(t, objects, "Secret"), "metadata", "name").(string)
	from := at(find(t, objects, "Deployment"), "spec", "template", "spec", "containers", 0, "envFrom").([]any)
	if !strings.HasPrefix(secret, "aws-credentials-") ||
		!slices.ContainsFunc(from, func(source any) bool { return at(source, "secretRef", "name") == secret }) {
		t.Errorf("the Pod does not read Secret %s: %v", secret, from)
	}
	namespace(t, "team-a")
	kubectl(t, "apply", "--dry-run=server", "-k", dir).must(t)
}
