//go:build controlplane && with_kube_apiserver

package main

import (
	"os"
	_ "time/tzdata"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func init() {
	mains["kube-apiserver"] = func() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
}
