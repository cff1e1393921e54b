//go:build controlplane && with_kube_proxy

package main

import (
	"os"
	_ "time/tzdata"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

func init() {
	mains["kube-proxy"] = func() { os.Exit(cli.Run(app.NewProxyCommand())) }
}
