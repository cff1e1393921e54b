//go:build controlplane

// Command controlplane is etcd, kube-apiserver, kube-controller-manager and
// kubectl, each Kubernetes' or etcd's own main, in one program, so that what
// they have in common is linked once, and is on disk and in memory once. The
// name under which it is called chooses.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// mains has the programs whose build tags were given: `with_` and the name.
var mains = map[string]func(){}

func main() {
	name := filepath.Base(os.Args[0])
	run, ok := mains[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "%q is no program of the control plane that this file holds\n", name)
		os.Exit(2)
	}
	run()
}
