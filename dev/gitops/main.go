// Command gitops does what Flux and Argo CD do with a Tunnel, with their own libraries: the tests of the operator call it.
//
//	gitops flux KUBECONFIG [--force] < MANIFESTS     applies as Flux's kustomize-controller; prints what became of each
//	gitops argocd RULES ACTION < OBJECT              prints the patch that a button of Argo CD sends
package main

import (
	"errors"
	"fmt"
	"os"
)

var errUsage = errors.New("usage: gitops flux KUBECONFIG [--force] | gitops argocd RULES ACTION")

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gitops:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "flux":
		return flux(args[1], false)
	case len(args) == 3 && args[0] == "flux" && args[2] == "--force":
		return flux(args[1], true)
	case len(args) == 3 && args[0] == "argocd":
		return argocd(Rules(args[1]), args[2])
	default:
		return errUsage
	}
}
