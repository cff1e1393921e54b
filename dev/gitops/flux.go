package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/polling"
	"github.com/fluxcd/pkg/ssa"
	"github.com/fluxcd/pkg/ssa/normalize"
	"github.com/fluxcd/pkg/ssa/utils"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// flux applies what is on stdin, as the kustomize-controller does for a Kustomization with `wait: true` (see
// KustomizationReconciler.apply there): the same engine, field manager and clean-up of kubectl's fields.
func flux(kubeconfig string, force bool) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	api, err := client.New(config, client.Options{})
	if err != nil {
		return err
	}
	objects, err := utils.ReadObjects(os.Stdin)
	if err != nil {
		return err
	}
	if err := normalize.UnstructuredList(objects); err != nil {
		return err
	}
	const controller, group = "kustomize-controller", "kustomize.toolkit.fluxcd.io"
	manager := ssa.NewResourceManager(api, polling.NewStatusPoller(api, api.RESTMapper(), polling.Options{}),
		ssa.Owner{Field: controller, Group: group})
	manager.SetOwnerLabels(objects, "test", "flux-system")
	options := ssa.DefaultApplyOptions()
	options.Force = force
	options.WaitInterval = 100 * time.Millisecond
	options.Cleanup.Annotations = []string{corev1.LastAppliedConfigAnnotation}
	options.Cleanup.Exclusions = map[string]string{group + "/ssa": "Merge"}
	for _, one := range []ssa.FieldManager{
		{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationApply},
		{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationUpdate},
		{Name: "before-first-apply", OperationType: metav1.ManagedFieldsOperationUpdate},
		{Name: controller, OperationType: metav1.ManagedFieldsOperationUpdate},
	} {
		options.Cleanup.FieldManagers = append(options.Cleanup.FieldManagers, one)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	changes, err := manager.ApplyAllStaged(ctx, objects, options)
	if err != nil {
		return err
	}
	for _, change := range changes.Entries {
		fmt.Println(change.Subject, change.Action)
	}
	wait := ssa.WaitOptions{Interval: 100 * time.Millisecond, Timeout: time.Minute}
	return manager.WaitForSetWithContext(ctx, changes.ToObjMetadataSet(), wait)
}
