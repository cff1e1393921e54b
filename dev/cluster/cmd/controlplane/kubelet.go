//go:build controlplane && with_kubelet

package main

import (
	"context"
	"os"
	_ "time/tzdata"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kubelet/app"
)

func init() {
	mains["kubelet"] = func() {
		var command *cobra.Command
		switch newCommand := any(app.NewKubeletCommand).(type) {
		case func() *cobra.Command: // up to 1.33
			command = newCommand()
		case func(context.Context) *cobra.Command:
			command = newCommand(context.Background())
		}
		os.Exit(cli.Run(command))
	}
}
