//! The operator is uninstalled, in the right order and in every wrong one, and installed again: no object hangs once an
//! operator runs, and a new Tunnel opens. (A Tunnel that hangs is closed; one whose tunnel cannot be closed goes when its
//! lifetime is over, see `end_of_life.rs`.)
//!
//! A process stands for the Deployment's Pod, since there is no kubelet here: it is killed where the Pod would be.

use crate::support::control_plane::{ControlPlane, SYSTEM_NAMESPACE, repository};
use crate::support::namespace::Said;
use crate::support::operator::{Operator, http_get};
use crate::support::{LIMIT, World};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::ClusterResourceScope;
use kube::{Api, Resource};
use secure_tunneling_emulator::TunnelStatus;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

const CRD: &str = "tunnels.opentunnel.dev";
const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
const AGAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: again}}";

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    There,
    Terminating,
    Gone,
}

/// A cluster that nobody else uses meanwhile, with the operator installed.
struct Cluster {
    world: World,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    async fn take() -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let cluster = Self { world: World::on(ControlPlane::for_removals()).await, _alone: alone };
        // Another test may have failed halfway.
        cluster.install().await;
        cluster
    }

    async fn kubectl(&self, args: &[&str]) -> Said {
        self.world.kubectl(args).await
    }

    async fn must(&self, args: &[&str]) {
        let said = self.kubectl(args).await;
        assert!(said.ok, "kubectl {args:?}: {}", said.err);
    }

    /// `kubectl VERB -k deploy/`.
    async fn deploy(&self, verb: &[&str]) -> Said {
        let deploy = repository().join("deploy");
        let which = ["-n", SYSTEM_NAMESPACE, "-k", deploy.to_str().expect("UTF-8")];
        self.kubectl(&[verb, &which].concat()).await
    }

    /// Applies it as often as it takes: what is being deleted has to be gone first.
    async fn install(&self) {
        let applied = async || self.deploy(&["apply"]).await.ok && self.is_installed().await;
        self.until("deploy/ is applied", applied).await;
        self.world.plane.write_operator_kubeconfig(&self.world.plane.operator_kubeconfig).expect("a kubeconfig");
    }

    /// `kubectl delete -k deploy/`, but it does not wait.
    async fn uninstall(&self) {
        let said = self.deploy(&["delete", "--wait=false"]).await;
        assert!(said.ok, "{}", said.err);
    }

    /// (An API server whose kinds come and go may fail for a moment.)
    async fn state<K>(&self, name: &str) -> Option<State>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let found = Api::<K>::all(self.world.client.clone()).get_opt(name).await.ok()?;
        Some(match found.map(|object| object.meta().deletion_timestamp.is_some()) {
            None => State::Gone,
            Some(true) => State::Terminating,
            Some(false) => State::There,
        })
    }

    async fn crd_is(&self, state: State) -> bool {
        self.state::<CustomResourceDefinition>(CRD).await == Some(state)
    }

    async fn namespace_is(&self, state: State) -> bool {
        self.state::<Namespace>(SYSTEM_NAMESPACE).await == Some(state)
    }

    async fn is_installed(&self) -> bool {
        self.crd_is(State::There).await && self.namespace_is(State::There).await
    }

    async fn until(&self, what: &str, is: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !is().await {
            if begun.elapsed() > LIMIT {
                self.world.show_logs();
                panic!("not so after {LIMIT:?}: {what}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn until_no_crd(&self) {
        self.until("the CRD is gone", async || self.crd_is(State::Gone).await).await;
    }

    async fn until_no_namespace(&self) {
        self.until("the operator's namespace is gone", async || self.namespace_is(State::Gone).await).await;
    }

    /// A Tunnel that is Ready, and its operator.
    async fn with_a_tunnel(&self) -> Operator {
        let operator = self.world.operator().await;
        self.world.apply(PLAIN).await;
        self.world.wait_ready("plain").await;
        operator
    }

    /// Its tunnel is closed, and nothing of it is left.
    async fn assert_finished(&self) {
        assert!(self.world.aws.tunnels().iter().all(|tunnel| tunnel.status == TunnelStatus::Closed));
        assert_eq!(self.world.calls_of("CloseTunnel"), 1);
        self.world.wait_no_secret("plain-tokens").await;
    }

    /// A new Tunnel works as in a new installation, and goes.
    async fn assert_works(&self) {
        self.until("a Tunnel is taken", async || self.world.try_apply(AGAIN).await.ok).await;
        self.world.wait_ready("again").await;
        assert_eq!(self.world.calls_of("OpenTunnel"), 2);
        self.world.delete("again").await;
        self.world.wait_no_tunnel("again").await;
    }
}

/// Returns once `/readyz` says this.
async fn until_readyz(cluster: &Cluster, operator: &mut Operator, words: &[&str]) {
    let address = operator.address().await;
    let says = async || {
        let said = http_get(address, "/readyz").await.unwrap_or_default();
        words.iter().all(|words| said.contains(words))
    };
    cluster.until(&format!("/readyz says {words:?}"), says).await;
}

const ABSENT: [&str; 3] =
    ["HTTP/1.1 503", "tunnels.opentunnel.dev is not installed", "kubectl apply -f crds/tunnels.yaml"];

#[tokio::test]
async fn while_the_crd_is_absent_the_log_and_readyz_name_it_and_when_it_comes_it_goes_on() {
    let cluster = Cluster::take().await;
    cluster.must(&["delete", "crd", CRD]).await;
    let mut operator = cluster.world.spawn(&cluster.world.settings());
    until_readyz(&cluster, &mut operator, &ABSENT).await;
    cluster.install().await;
    operator.ready().await;
    cluster.world.apply(PLAIN).await;
    cluster.world.wait_ready("plain").await;

    // It is removed, with the Tunnel, while the operator runs.
    cluster.must(&["delete", "crd", CRD]).await;
    cluster.assert_finished().await;
    until_readyz(&cluster, &mut operator, &ABSENT).await;
    cluster.install().await;
    operator.ready().await;
    cluster.assert_works().await;
    let log = operator.log();
    assert!(log.contains(ABSENT[1]) && !log.contains("Failed to parse error data"), "{log}");
    assert!(operator.runs());
}

#[tokio::test]
async fn in_the_right_order_nothing_is_left_and_installed_again_it_works() {
    let cluster = Cluster::take().await;
    let operator = cluster.with_a_tunnel().await;
    cluster.must(&["delete", "tunnels", "--all"]).await;
    cluster.assert_finished().await;
    cluster.uninstall().await;
    operator.kill();
    cluster.until_no_crd().await;
    cluster.until_no_namespace().await;
    cluster.install().await;
    let _operator = cluster.world.operator().await;
    cluster.assert_works().await;
}

#[tokio::test]
async fn with_the_operator_gone_first_tunnels_are_finished_when_one_runs_again() {
    let cluster = Cluster::take().await;
    cluster.with_a_tunnel().await.kill();
    cluster.must(&["delete", "tunnels", "--all", "--wait=false"]).await;
    let _operator = cluster.world.operator().await;
    cluster.world.wait_no_tunnel("plain").await;
    cluster.assert_finished().await;
    cluster.assert_works().await;
}

#[tokio::test]
async fn with_its_namespace_gone_first_tunnels_are_finished_when_it_is_installed_again() {
    let cluster = Cluster::take().await;
    let operator = cluster.with_a_tunnel().await;
    cluster.must(&["delete", "namespace", SYSTEM_NAMESPACE, "--wait=false"]).await;
    operator.kill();
    cluster.must(&["delete", "tunnels", "--all", "--wait=false"]).await;
    cluster.until_no_namespace().await;
    cluster.install().await;
    let _operator = cluster.world.operator().await;
    cluster.world.wait_no_tunnel("plain").await;
    cluster.assert_finished().await;
    cluster.assert_works().await;
}

#[tokio::test]
async fn with_its_namespace_and_the_tunnels_in_it_gone_first_an_operator_elsewhere_finishes_them() {
    let cluster = Cluster::take().await;
    // It watches the one namespace that its Tunnel is in, as deploy/namespaced does. It may not be quick enough.
    cluster.with_a_tunnel().await.kill();
    cluster.must(&["delete", "namespace", &cluster.world.name, "--wait=false"]).await;
    let terminating = async || cluster.world.tunnel("plain").await.metadata.deletion_timestamp.is_some();
    cluster.until("the namespace takes its Tunnels with it", terminating).await;
    // So the operator cannot be installed there again.
    let said = cluster.kubectl(&["create", "serviceaccount", "opentunnel-operator"]).await;
    assert!(!said.ok && said.err.contains("because it is being terminated"), "{}", said.err);

    // That of deploy/base serves all namespaces, and has the cluster's default ID.
    let _operator = cluster.world.operator_with(&cluster.world.settings().without_flag("--watch-namespace")).await;
    let gone = async || {
        let namespaces = Api::<Namespace>::all(cluster.world.client.clone());
        namespaces.get_opt(&cluster.world.name).await.is_ok_and(|found| found.is_none())
    };
    cluster.until("the namespace is gone", gone).await;
    cluster.assert_finished().await;
}

#[tokio::test]
async fn with_the_crd_gone_first_and_no_operator_one_that_runs_again_finishes_the_crd() {
    let cluster = Cluster::take().await;
    cluster.with_a_tunnel().await.kill();
    cluster.must(&["delete", "crd", CRD, "--wait=false"]).await;
    let terminating = async || cluster.world.tunnel("plain").await.metadata.deletion_timestamp.is_some();
    cluster.until("the CRD takes its Tunnels with it", terminating).await;
    let mut operator = cluster.world.operator().await;
    cluster.until_no_crd().await;
    cluster.assert_finished().await;
    until_readyz(&cluster, &mut operator, &ABSENT).await;
    cluster.install().await;
    operator.ready().await;
    cluster.assert_works().await;
}

#[tokio::test]
async fn deleted_as_a_whole_and_applied_again_what_hung_is_finished_and_applied_once_more_it_works() {
    let cluster = Cluster::take().await;
    let operator = cluster.with_a_tunnel().await;
    cluster.uninstall().await;
    operator.kill();
    cluster.until_no_namespace().await;
    cluster.until("the CRD hangs", async || cluster.crd_is(State::Terminating).await).await;
    let said = cluster.deploy(&["apply"]).await;
    assert!(said.ok, "{}", said.err);
    let plane = cluster.world.plane;
    plane.write_operator_kubeconfig(&plane.operator_kubeconfig).expect("a kubeconfig");
    let mut operator = cluster.world.operator().await;
    cluster.until_no_crd().await;
    cluster.assert_finished().await;
    cluster.install().await;
    operator.ready().await;
    cluster.assert_works().await;
}
