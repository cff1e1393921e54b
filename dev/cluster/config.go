package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
)

// auditPolicy logs every request once it is answered, except what would drown
// the rest: renewals of the control plane's own Leases and health checks.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  resources: [{group: coordination.k8s.io, resources: [leases]}]
  namespaces: [kube-system]
- level: None
  verbs: [get]
  nonResourceURLs: ["/readyz*", "/livez*", "/healthz*"]
- level: Metadata
`

// Files in the directory of a control plane. Its processes run in it, so these
// names are also what their flags say.
const (
	fileKubeconfig           = "kubeconfig"
	fileControllerKubeconfig = "controller-manager.kubeconfig"
	fileKubeletKubeconfig    = "kubelet.kubeconfig"
	fileSchedulerKubeconfig  = "scheduler.kubeconfig"
	fileProxyKubeconfig      = "proxy.kubeconfig"
	fileAuditLog             = "audit.log"
	fileAuditPolicy          = "audit-policy.yaml"
	fileTokens               = "tokens.csv"
	fileCA                   = "ca.crt"
	fileServingCert          = "apiserver.crt"
	fileServingKey           = "apiserver.key"
	fileServiceAccountKey    = "service-accounts.key"

	// etcd has no password: on a socket in a directory of mode 0700 nobody
	// else on the machine reads the Secrets in it, and it takes no port.
	etcdSocket = "etcd.sock"
	peerSocket = "etcd-peer.sock"
)

// The Service range, and in it the address of the API server's own Service.
const (
	serviceRange = "10.96.0.0/16"
	serviceIP    = "10.96.0.1"
)

// What Pods have: the node's share of it is all of it.
const podRange = "10.88.0.0/16"

// writeConfig writes the files that do not depend on the API server's port.
func writeConfig(dir string, creds *credentials) error {
	return writeFiles(dir, map[string][]byte{
		fileAuditPolicy:       []byte(auditPolicy),
		fileCA:                creds.ca,
		fileServingCert:       creds.servingCert,
		fileServingKey:        creds.servingKey,
		fileServiceAccountKey: creds.serviceAccountKey,
		fileTokens: fmt.Appendf(nil, "%s,admin,admin,system:masters\n%s,system:kube-controller-manager,controllers\n"+
			"%s,system:node:node,kubelet,system:nodes\n%s,system:kube-scheduler,scheduler\n%s,system:kube-proxy,proxy\n",
			creds.adminToken, creds.controllerToken, creds.kubeletToken, creds.schedulerToken, creds.proxyToken),
	})
}

func writeKubeconfigs(dir, server string, creds *credentials) error {
	return writeFiles(dir, map[string][]byte{
		fileKubeconfig:           kubeconfig(server, creds.ca, "admin", creds.adminToken),
		fileControllerKubeconfig: kubeconfig(server, creds.ca, "controller-manager", creds.controllerToken),
		fileKubeletKubeconfig:    kubeconfig(server, creds.ca, "kubelet", creds.kubeletToken),
		fileSchedulerKubeconfig:  kubeconfig(server, creds.ca, "scheduler", creds.schedulerToken),
		fileProxyKubeconfig:      kubeconfig(server, creds.ca, "proxy", creds.proxyToken),
	})
}

func kubeconfig(server string, ca []byte, user, token string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: dev
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %[3]s
  user:
    token: %[4]s
contexts:
- name: dev
  context:
    cluster: dev
    user: %[3]s
    namespace: default
current-context: dev
`, server, base64.StdEncoding.EncodeToString(ca), user, token)
}

func writeFiles(dir string, files map[string][]byte) error {
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func etcdArgs() []string {
	return []string{
		"--data-dir=etcd",
		"--listen-client-urls=unix://" + etcdSocket,
		"--advertise-client-urls=http://127.0.0.1:2379", // must be a host and port; nobody asks
		"--listen-peer-urls=unix://" + peerSocket,
		"--unsafe-no-fsync",
	}
}

func apiserverArgs(port int, node string) []string {
	// Without a node nobody but those who have a kubeconfig is told where it is.
	where := []string{
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1", // else it looks for a default route
		"--endpoint-reconciler-type=none",
	}
	if node != "" {
		where = []string{"--bind-address=0.0.0.0", "--advertise-address=" + node, "--allow-privileged",
			"--kubelet-preferred-address-types=InternalIP"} // its name means nothing here
	}
	return append(where,
		"--etcd-servers=unix://"+etcdSocket,
		fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file="+fileServingCert,
		"--tls-private-key-file="+fileServingKey,
		"--authorization-mode=Node,RBAC",
		// As on OpenShift: blockOwnerDeletion takes the right to update the owner's finalizers.
		"--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
		"--token-auth-file="+fileTokens,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+fileServiceAccountKey,
		"--service-account-signing-key-file="+fileServiceAccountKey,
		"--service-cluster-ip-range="+serviceRange,
		"--audit-policy-file="+fileAuditPolicy,
		"--audit-log-path="+fileAuditLog,
		"--audit-log-mode=blocking",  // nothing waits in a buffer
		"--audit-log-maxsize=100000", // never rotated
	)
}

// controllerManagerArgs choose the controllers that make deletion, namespaces,
// aggregated ClusterRoles and quotas behave as in a real cluster. Without a node nothing that
// makes Pods is of use. Each controller has its own account and rights.
func controllerManagerArgs(node bool) []string {
	controllers := "garbage-collector-controller,namespace-controller," +
		"serviceaccount-controller,root-ca-certificate-publisher-controller," +
		"clusterrole-aggregation-controller,resourcequota-controller"
	if node {
		controllers = "*"
	}
	return []string{
		"--kubeconfig=" + fileControllerKubeconfig,
		"--controllers=" + controllers,
		"--use-service-account-credentials",
		"--root-ca-file=" + fileCA,
		"--leader-elect=false",
		"--secure-port=0",
	}
}

func schedulerArgs() []string {
	return []string{"--kubeconfig=" + fileSchedulerKubeconfig, "--leader-elect=false", "--secure-port=0"}
}

// proxyArgs leave alone what is the whole machine's, not the network namespace's.
func proxyArgs() []string {
	return []string{
		"--kubeconfig=" + fileProxyKubeconfig,
		"--hostname-override=node",
		"--proxy-mode=iptables",
		"--cluster-cidr=" + podRange,
		"--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-established=0",
		"--conntrack-tcp-timeout-close-wait=0",
		"--healthz-bind-address=",
		"--metrics-bind-address=",
	}
}
