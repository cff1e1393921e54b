package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"sigs.k8s.io/yaml"
)

const example = repository + "/deploy/gitops/example"

// Flux's own types, strictly: a field that Flux does not know is an error.
func TestTheFluxExampleIsWhatFluxReads(t *testing.T) {
	text, err := os.ReadFile(repository + "/deploy/gitops/flux/kustomizations.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var before []string
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		var source sourcev1.GitRepository
		if bytes.Contains(document, []byte("kind: GitRepository\nmetadata")) {
			if err := yaml.UnmarshalStrict(document, &source); err != nil {
				t.Error(err)
			}
			continue
		}
		var one kustomizev1.Kustomization
		if err := yaml.UnmarshalStrict(document, &one); err != nil {
			t.Error(err)
		}
		for _, other := range one.Spec.DependsOn {
			if !slices.Contains(before, other.Name) {
				t.Errorf("%s depends on %s, which is not before it", one.Name, other.Name)
			}
		}
		if len(one.Spec.DependsOn) == 0 && len(before) > 0 {
			t.Errorf("%s waits for nothing", one.Name)
		}
		if !one.Spec.Wait && len(one.Spec.HealthChecks) == 0 {
			t.Errorf("who waits for %s waits for nothing", one.Name)
		}
		folder := filepath.Join(example, one.Spec.Path)
		if _, err := os.Stat(folder + "/kustomization.yaml"); err != nil {
			t.Error(err)
		}
		for _, check := range one.Spec.HealthChecks {
			object := read(t, folder+"/"+check.Name+".yaml")
			if object["kind"] != check.Kind || object["apiVersion"] != check.APIVersion {
				t.Errorf("%v is not in %s", check, folder)
			}
		}
		before = append(before, one.Name)
	}
	if strings.Join(before, " ") != "opentunnel edge-tunnels edge-apps" {
		t.Error(before)
	}
}
