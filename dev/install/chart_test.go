package install

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// same compares what both say in YAML, and shows the lines that differ.
func same(t *testing.T, have, want any) {
	t.Helper()
	if difference := cmp.Diff(lines(t, want), lines(t, have)); difference != "" {
		t.Errorf("-want +have:\n%s", difference)
	}
}

func lines(t *testing.T, value any) []string {
	t.Helper()
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

// helms are the labels that every object of a chart has.
var helms = []string{"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/name",
	"app.kubernetes.io/version", "helm.sh/chart"}

// common takes off what is Helm's own and Kustomize's own, and returns the rest by the objects' names.
func common(t *testing.T, objects []object) map[string]any {
	t.Helper()
	text, err := json.Marshal(objects)
	if err != nil {
		t.Fatal(err)
	}
	// Kustomize starts new Pods by the ConfigMap's name, the chart by an annotation.
	text = regexp.MustCompile(`"opentunnel-operator-[a-z0-9]{10}"`).ReplaceAll(text, []byte(`"opentunnel-operator"`))
	if err := json.Unmarshal(text, &objects); err != nil {
		t.Fatal(err)
	}
	named := map[string]any{}
	for _, o := range objects {
		less(o, "metadata", "labels", helms...)
		less(o, "metadata", "annotations", "helm.sh/resource-policy")
		if pods, ok := at(o, "spec", "template").(object); ok {
			less(pods, "metadata", "labels", helms...)
			less(pods, "metadata", "annotations", "checksum/config")
		}
		withoutInstance(o)
		if o["kind"] == "CustomResourceDefinition" {
			delete(o["metadata"].(object), "creationTimestamp")
		}
		named[id(o)] = o
	}
	// helm does not make the namespace that it installs into; docs/install.md says how it gets these labels.
	delete(named, "Namespace /"+system)
	return named
}

func less(o object, parent, field string, keys ...string) {
	from, _ := at(o, parent, field).(object)
	for _, key := range keys {
		delete(from, key)
	}
	if len(from) == 0 {
		delete(o[parent].(object), field)
	}
}

// withoutInstance takes the release's name off all selectors.
func withoutInstance(value any) {
	switch value := value.(type) {
	case object:
		if selector, ok := value["matchLabels"].(object); ok {
			delete(selector, "app.kubernetes.io/instance")
		}
		for _, child := range value {
			withoutInstance(child)
		}
	case []any:
		for _, child := range value {
			withoutInstance(child)
		}
	}
}

func TestTheChartAndKustomizeMakeTheSameObjects(t *testing.T) {
	dir := kustomization(t, `
configMapGenerator:
  - {name: opentunnel-operator, namespace: opentunnel-system, behavior: merge, literals: [AWS_REGION=`+region+`]}`, "deploy")
	same(t, common(t, render(t, withRegion())), common(t, kustomize(t, dir)))
}

func TestForSingleNamespacesTheyAreTheSameToo(t *testing.T) {
	dir := own(t, system, "deploy/namespaced", "OPENTUNNEL_CLUSTER_ID=one", "OPENTUNNEL_WATCH_NAMESPACE="+system)
	chart := common(t, render(t, withRegion("watchNamespace: "+system, "clusterID: one", "crds: {enabled: false}")))
	kustomize := common(t, kustomize(t, dir))
	// These variables are demanded by name there, and by the chart's templates here.
	env := at(kustomize["Deployment "+system+"/"+name], "spec", "template", "spec", "containers", 0).(object)
	env["env"] = slices.DeleteFunc(env["env"].([]any), func(v any) bool {
		return strings.HasPrefix(at(v, "name").(string), "OPENTUNNEL_")
	})
	same(t, chart, kustomize)
}

func TestTheCRDIsKeptOrNotOrLeftOut(t *testing.T) {
	kept := func(objects []object) any {
		return at(find(t, objects, "CustomResourceDefinition"), "metadata", "annotations", "helm.sh/resource-policy")
	}
	if kept(render(t, withRegion())) != "keep" {
		t.Error("the CRD is deleted with the release")
	}
	if kept(render(t, withRegion("crds: {keep: false}"))) != nil {
		t.Error("the CRD is kept")
	}
	for _, o := range render(t, withRegion("crds: {enabled: false}")) {
		if o["kind"] == "CustomResourceDefinition" || strings.HasPrefix(at(o, "metadata", "name").(string), "opentunnel-edit") {
			t.Errorf("%s is there", id(o))
		}
	}
}

func TestTheVersionsAreTheOperators(t *testing.T) {
	version := regexp.MustCompile(`(?m)^version = "(.*)"`).FindStringSubmatch(read(t, "Cargo.toml"))[1]
	var about object
	if err := yaml.Unmarshal([]byte(read(t, "deploy/chart/Chart.yaml")), &about); err != nil {
		t.Fatal(err)
	}
	if about["version"] != version || about["appVersion"] != version {
		t.Errorf("Cargo.toml has %s, the chart %v and %v", version, about["version"], about["appVersion"])
	}
}

func TestLintFindsNothing(t *testing.T) {
	for _, values := range []string{withRegion(), withRegion(everything)} {
		helm(t, "lint", "--strict", "--quiet", chart, "-f", file(t, values)).must(t)
	}
}

// everything sets all that is off or empty.
const everything = `
watchSecrets: false
log: {format: json, filter: debug}
settings: {OPENTUNNEL_OPEN_RATE: 2, OPENTUNNEL_DEFAULT_TAG: team=edge}
replicaCount: 3
image: {repository: registry.example.com/operator, tag: "1.2.3@sha256:0123456789012345678901234567890123456789012345678901234567890123", pullPolicy: Always}
imagePullSecrets: [{name: registry}]
serviceAccount: {annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::123456789012:role/opentunnel"}}
commonLabels: {team: edge}
deploymentAnnotations: {example.com/deployment: "yes"}
podLabels: {azure.workload.identity/use: "true"}
podAnnotations: {example.com/pod: "yes"}
extraEnv: [{name: HTTPS_PROXY, value: "http://proxy:3128"}]
extraEnvFrom: [{secretRef: {name: aws-keys}}]
volumes: [{name: ca, configMap: {name: ca}}]
volumeMounts: [{name: ca, mountPath: /etc/ca, readOnly: true}]
nodeSelector: {kubernetes.io/os: linux}
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
tolerations: [{key: infra, operator: Exists}]
priorityClassName: system-cluster-critical
networkPolicy: {enabled: true, from: [{namespaceSelector: {matchLabels: {a: b}}}]}
podMonitor: {enabled: true, interval: 30s, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}, alertLabels: {severity: warning}}
extraObjects:
  - {apiVersion: v1, kind: ConfigMap, metadata: {name: "{{ .Release.Name }}-extra"}}
  - |
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: {{ include "opentunnel.fullname" . }}-text}
`

func TestEachValueReachesItsPlace(t *testing.T) {
	values := strings.Replace(withRegion(everything), "aws: {", `aws: {endpoint_url: "https://vpce-1.example.com", credentials: {secretName: aws, secretKey: file, profile: edge}, `, 1)
	objects := render(t, values)
	deployment := find(t, objects, "Deployment")
	pod := at(deployment, "spec", "template")
	spec := at(pod, "spec")
	container := at(spec, "containers", 0)
	account := find(t, objects, "ServiceAccount")
	policy := find(t, objects, "NetworkPolicy")
	for _, c := range []struct {
		have any
		want string
	}{
		{find(t, objects, "ConfigMap", name)["data"], `{AWS_REGION: eu-central-1, AWS_PROFILE: edge,
			AWS_SHARED_CREDENTIALS_FILE: /var/run/secrets/aws/credentials,
			AWS_ENDPOINT_URL_IOTSECURETUNNELING: "https://vpce-1.example.com", OPENTUNNEL_WATCH_SECRETS: "false",
			OPENTUNNEL_LOG_FORMAT: json, OPENTUNNEL_LOG_FILTER: debug, OPENTUNNEL_OPEN_RATE: "2", OPENTUNNEL_DEFAULT_TAG: team=edge}`},
		{at(deployment, "spec", "replicas"), `3`},
		{at(deployment, "metadata", "labels", "team"), `edge`},
		{at(deployment, "metadata", "annotations"), `{example.com/deployment: "yes"}`},
		{at(pod, "metadata", "labels", "team"), `edge`},
		{at(pod, "metadata", "labels", "azure.workload.identity/use"), `"true"`},
		{at(pod, "metadata", "annotations", "example.com/pod"), `"yes"`},
		{at(spec, "imagePullSecrets"), `[{name: registry}]`},
		{at(spec, "nodeSelector"), `{kubernetes.io/os: linux}`},
		{at(spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms", 0,
			"matchExpressions", 0, "key"), `a`},
		{at(spec, "tolerations"), `[{key: infra, operator: Exists}]`},
		{at(spec, "priorityClassName"), `system-cluster-critical`},
		{at(spec, "volumes"), `[{name: aws-credentials, secret: {secretName: aws, items: [{key: file, path: credentials}]}},
			{name: ca, configMap: {name: ca}}]`},
		{at(container, "image"), `registry.example.com/operator:1.2.3@sha256:0123456789012345678901234567890123456789012345678901234567890123`},
		{at(container, "imagePullPolicy"), `Always`},
		{at(container, "env", 4), `{name: HTTPS_PROXY, value: "http://proxy:3128"}`},
		{at(container, "envFrom"), `[{configMapRef: {name: opentunnel-operator}}, {secretRef: {name: aws-keys}}]`},
		{at(container, "volumeMounts"), `[{name: aws-credentials, mountPath: /var/run/secrets/aws, readOnly: true},
			{name: ca, mountPath: /etc/ca, readOnly: true}]`},
		{at(account, "metadata", "annotations"), `{eks.amazonaws.com/role-arn: "arn:aws:iam::123456789012:role/opentunnel"}`},
		{at(policy, "spec", "ingress"), `[{ports: [{port: http, protocol: TCP}], from: [{namespaceSelector: {matchLabels: {a: b}}}]}]`},
		{at(find(t, objects, "PodMonitor"), "spec", "podMetricsEndpoints"), `[{port: http, path: /metrics, interval: 30s}]`},
		{at(find(t, objects, "PodMonitor"), "metadata", "labels", "release"), `prometheus`},
		{at(find(t, objects, "PrometheusRule"), "metadata", "labels", "release"), `prometheus`},
		{at(find(t, objects, "PrometheusRule"), "spec", "groups", 0, "rules", 0, "labels"), `{severity: warning}`},
		{find(t, objects, "ConfigMap", name+"-extra")["apiVersion"], `v1`},
		{find(t, objects, "ConfigMap", name+"-text")["apiVersion"], `v1`},
	} {
		var want any
		if err := yaml.Unmarshal([]byte(strings.ReplaceAll(c.want, "\t", " ")), &want); err != nil {
			t.Fatalf("%v in %s", err, c.want)
		}
		same(t, c.have, want)
	}
	// Without the watch of Secrets, without the right to it.
	for _, rule := range find(t, objects, "ClusterRole", name)["rules"].([]any) {
		if fmt.Sprint(at(rule, "resources")) == "[secrets]" && strings.Contains(fmt.Sprint(at(rule, "verbs")), "list") {
			t.Errorf("Secrets may be listed: %v", rule)
		}
	}
}

func TestTheValuesInTheDocsAreTaken(t *testing.T) {
	objects := render(t, documented(t, "Helm")[0])
	find(t, objects, "PodMonitor")
	same(t, at(find(t, objects, "ConfigMap"), "data", "OPENTUNNEL_OPEN_RATE"), "2")
}

func TestWhatOthersHaveMadeIsUsed(t *testing.T) {
	objects := render(t, withRegion("serviceAccount: {create: false, name: mine}", "podDisruptionBudget: {enabled: false}", "fullnameOverride: tunnels"))
	for _, o := range objects {
		if o["kind"] == "ServiceAccount" || o["kind"] == "PodDisruptionBudget" {
			t.Errorf("there is %s", id(o))
		}
	}
	same(t, at(find(t, objects, "Deployment", "tunnels"), "spec", "template", "spec", "serviceAccountName"), "mine")
	same(t, at(find(t, objects, "ClusterRoleBinding"), "subjects", 0, "name"), "mine")
	same(t, at(find(t, objects, "RoleBinding"), "subjects", 0, "name"), "mine")
}

func TestWatchedNamespacesHaveARoleEachAndNothingIsTheClusters(t *testing.T) {
	objects := render(t, withRegion(`watchNamespace: "edge, factory,edge"`, "clusterID: one", "crds: {enabled: false}"))
	var namespaces []string
	for _, o := range objects {
		if at(o, "metadata", "namespace") == nil {
			t.Errorf("%s is the whole cluster's", id(o))
		}
		if o["kind"] == "RoleBinding" {
			same(t, at(o, "subjects", 0, "namespace"), system)
			namespaces = append(namespaces, at(o, "metadata", "namespace").(string))
		}
	}
	slices.Sort(namespaces)
	same(t, namespaces, []string{"edge", "factory", system})
	same(t, at(find(t, objects, "ConfigMap"), "data", "OPENTUNNEL_WATCH_NAMESPACE"), "edge,factory")
}

func TestAnotherSettingStartsThePodsAnew(t *testing.T) {
	checksum := func(values string) any {
		return at(find(t, render(t, withRegion(values)), "Deployment"), "spec", "template", "metadata", "annotations", "checksum/config")
	}
	if checksum("") == checksum("settings: {OPENTUNNEL_OPEN_RATE: 2}") {
		t.Error("the Pods stay as they are")
	}
}

func TestAWrongValueIsRefusedInWords(t *testing.T) {
	for values, words := range map[string]string{
		"":                                            "aws.region is missing",
		"aws: {regoin: eu-central-1}":                 "'regoin' not allowed",
		"aws: {region: Frankfurt}":                    "/aws/region",
		"watchNamespaces: [a]":                        "'watchNamespaces' not allowed",
		withRegion("watchNamespace: edge"):            "clusterID is missing",
		withRegion("watchNamespace: Edge"):            "/watchNamespace",
		withRegion("replicas: 1"):                     "'replicas' not allowed",
		withRegion(`replicaCount: "2"`):               "/replicaCount",
		withRegion("log: {format: xml}"):              "/log/format",
		withRegion("serviceAccount: {create: false}"): "serviceAccount.name is missing",
		withRegion("settings: {OPENTUNNEL_WATCH_NAMESPACE: edge}"): "OPENTUNNEL_WATCH_NAMESPACE",
		withRegion("settings: {AWS_SECRET_ACCESS_KEY: secret}"):    "AWS_SECRET_ACCESS_KEY",
	} {
		if said := template(t, values); said.ok || !strings.Contains(said.err, words) {
			t.Errorf("%s: no %q in %s", values, words, said.err)
		}
	}
}

func TestTheAlertsAreThoseOfKustomize(t *testing.T) {
	rules := func(rule any) []any { return at(rule, "spec", "groups", 0, "rules").([]any) }
	var want any
	if err := yaml.Unmarshal([]byte(read(t, "deploy/monitoring/prometheusrule.yaml")), &want); err != nil {
		t.Fatal(err)
	}
	have := find(t, render(t, withRegion("prometheusRule: {enabled: true}")), "PrometheusRule")
	same(t, rules(have), rules(want))
	one := render(t, withRegion("prometheusRule: {enabled: true}", "replicaCount: 1"))
	if strings.Contains(fmt.Sprint(one), "OpentunnelReplicaMissing") {
		t.Error("a second replica is missed where there should be one")
	}
}
