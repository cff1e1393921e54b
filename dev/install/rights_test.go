package install

import (
	"slices"
	"strings"
	"testing"
)

// The rights of the operator's ServiceAccount, as `kubectl auth can-i --list` tells them.
var (
	everywhere = []string{
		"customresourcedefinitions.apiextensions.k8s.io [] [tunnels.opentunnel.dev] [get]",
		"namespaces [] [kube-system] [get]",
	}
	watched = []string{
		"events.events.k8s.io [] [] [create]",
		"secrets [] [] [get create update delete list watch]",
		"tunnels.opentunnel.dev [] [] [get list watch patch]",
		"tunnels.opentunnel.dev/finalizers [] [] [update]",
		"tunnels.opentunnel.dev/status [] [] [patch]",
	}
	home = []string{"leases.coordination.k8s.io [] [] [get create update]"}
)

// docs/install.md, "Rights": a row for each way.
func TestEachWayGivesTheRightsThatItSaysAndNoOthers(t *testing.T) {
	for _, space := range []string{"home", "edge", "other"} {
		namespace(t, space)
	}
	for _, way := range []struct {
		name    string
		install func(*testing.T) (remove func())
		// In its own namespace, in edge, in another one.
		home, edge, other [][]string
	}{
		{"deploy/base", byKustomize(func(t *testing.T) string { return own(t, "home", "deploy/base") }),
			[][]string{everywhere, watched, home}, [][]string{everywhere, watched}, [][]string{everywhere, watched}},
		{"deploy/namespaced", byKustomize(func(t *testing.T) string { return own(t, "home", "deploy/namespaced") }),
			[][]string{watched, home}, nil, nil},
		{"deploy/namespaced, and edge", func(t *testing.T) func() {
			one := byKustomize(func(t *testing.T) string { return own(t, "home", "deploy/namespaced") })(t)
			two := byKustomize(func(t *testing.T) string { return watchedNamespace(t, "edge", "home") })(t)
			return func() { one(); two() }
		}, [][]string{watched, home}, [][]string{watched}, nil},
		{"Helm", byHelm(), [][]string{everywhere, watched, home}, [][]string{everywhere, watched}, [][]string{everywhere, watched}},
		{"Helm, clusterID", byHelm("--set=clusterID=one"), [][]string{everywhere[:1], watched, home},
			[][]string{everywhere[:1], watched}, [][]string{everywhere[:1], watched}},
		{"Helm, watchNamespace: edge", byHelm("--set=clusterID=one,watchNamespace=edge"), [][]string{home}, [][]string{watched}, nil},
	} {
		t.Run(way.name, func(t *testing.T) {
			defer way.install(t)()
			for space, rights := range map[string][][]string{"home": way.home, "edge": way.edge, "other": way.other} {
				want := slices.Concat(rights...)
				slices.Sort(want)
				same(t, strings.Join(may(t, "home:"+name, space), "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func byKustomize(dir func(*testing.T) string) func(*testing.T) func() {
	return func(t *testing.T) func() {
		dir := dir(t)
		kubectl(t, "apply", "-k", dir).must(t)
		return func() { kubectl(t, "delete", "-k", dir).must(t) }
	}
}

func byHelm(args ...string) func(*testing.T) func() {
	return func(t *testing.T) func() {
		args := append([]string{"install", name, chart, "-n", "home", "--set=aws.region=" + region, "--set=crds.enabled=false"}, args...)
		release(t, args...).must(t)
		return func() { release(t, "uninstall", name, "-n", "home").must(t) }
	}
}

// watchedNamespace gives the operator of namespace `home` its rights in another one.
func watchedNamespace(t *testing.T, space, home string) string {
	return kustomization(t, `
namespace: `+space+`
patches:
  - target: {kind: RoleBinding, name: opentunnel-operator-watched}
    patch: |
      - {op: replace, path: /subjects/0/namespace, value: `+home+`}`, "deploy/watched")
}

// may is what a ServiceAccount may do in a namespace, less what everybody may.
func may(t *testing.T, account, space string) []string {
	list := func(account string) []string {
		text := kubectl(t, "auth", "can-i", "--list", "--no-headers", "-n", space, "--as=system:serviceaccount:"+account).must(t)
		var lines []string
		for line := range strings.Lines(text) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return lines
	}
	everybodys := list("home:nobody")
	mine := slices.DeleteFunc(list(account), func(line string) bool { return slices.Contains(everybodys, line) })
	slices.Sort(mine)
	return mine
}
