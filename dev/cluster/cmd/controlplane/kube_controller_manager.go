//go:build controlplane && with_kube_controller_manager

package main

import (
	"os"
	_ "time/tzdata"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func init() {
	mains["kube-controller-manager"] = func() { os.Exit(cli.Run(app.NewControllerManagerCommand())) }
}
