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
	everybodys := map[string][]string{}
	for _, space := range []string{"home", "edge", "other"} {
		namespace(t, space)
		everybodys[space] = rights(t, "home:nobody", space)
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
			for space, granted := range map[string][][]string{"home": way.home, "edge": way.edge, "other": way.other} {
				want := slices.Concat(granted...)
				slices.Sort(want)
				have := slices.DeleteFunc(rights(t, "home:"+name, space), func(right string) bool {
					return slices.Contains(everybodys[space], right)
				})
				same(t, strings.Join(have, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// docs/install.md, "For single namespaces": which rights a team needs to install the operator there.
func TestATeamInstallsItWithAllRightsInItsNamespacesOrOnTopOfWhatAnAdministratorHasApplied(t *testing.T) {
	const team = "--as=team"
	bind := func(space, role string) {
		namespace(t, space)
		kubectl(t, "create", "rolebinding", "team", "--clusterrole="+role, "--user=team", "-n", space).must(t)
	}
	installed := func(space string) bool { return live(t, "rolebinding", name+"-watched", space) != nil }

	// Kubernetes' role admin has no rights on tunnels/status, and nobody grants what he has not.
	bind("admins", "admin")
	dir := own(t, "admins", "deploy/namespaced")
	refused := kubectl(t, "apply", "-k", dir, team)
	if refused.ok || !strings.Contains(refused.err, "attempting to grant RBAC permissions not currently held") ||
		!strings.Contains(refused.err, "tunnels/status") {
		t.Errorf("it is not refused for the rights that the team lacks: %s%s", refused.out, refused.err)
	}
	kubectl(t, "apply", "-k", watchedNamespace(t, "admins", "admins")).must(t)
	kubectl(t, "apply", "-k", dir, team).must(t)

	bind("owners", "cluster-admin")
	kubectl(t, "apply", "-k", own(t, "owners", "deploy/namespaced"), team).must(t)
	bind("owners-edge", "cluster-admin")
	kubectl(t, "apply", "-k", watchedNamespace(t, "owners-edge", "owners"), team).must(t)
	for _, space := range []string{"admins", "owners", "owners-edge"} {
		if !installed(space) {
			t.Errorf("the operator has no rights in %s", space)
		}
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

// rights are what a ServiceAccount may do in a namespace.
func rights(t *testing.T, account, space string) []string {
	text := kubectl(t, "auth", "can-i", "--list", "--no-headers", "-n", space, "--as=system:serviceaccount:"+account).must(t)
	var all []string
	for line := range strings.Lines(text) {
		all = append(all, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(all)
	return all
}
