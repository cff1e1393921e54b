//go:build controlplane

// Package eviction is all that kube-controller-manager uses of kubelet's package
// of this name, which takes kubelet, the scheduler and cAdvisor to compile.
package eviction

import v1 "k8s.io/api/core/v1"

// PodIsEvicted returns true if the reported pod status is due to an eviction.
func PodIsEvicted(podStatus v1.PodStatus) bool {
	return podStatus.Phase == v1.PodFailed && podStatus.Reason == "Evicted"
}
