//go:build controlplane && with_kube_scheduler

package main

import (
	"os"
	_ "time/tzdata"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func init() {
	mains["kube-scheduler"] = func() { os.Exit(cli.Run(app.NewSchedulerCommand())) }
}
