//! A test's own world: a namespace, an AWS, operators and their logs.

use super::LIMIT;
use super::api_proxy::ApiProxy;
use super::audit::{self, OPERATOR, Write};
use super::control_plane::{ControlPlane, SYSTEM_NAMESPACE};
use super::log;
use super::namespace::{Namespace, status};
use super::operator::{Operator, Settings};
use super::promise::dead_tokens;
use super::tap::Tap;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use opentunnel_api::{ClientMode, Tunnel};
use opentunnel_operator::leader::LEASE;
use secure_tunneling_emulator::{Config, Emulator, Quotas, TunnelStatus};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// A namespace (whose methods are this one's), an AWS without quotas, and operators' logs. Make it
/// first, so that it is dropped last: it looks then for tokens in the logs, and shows the logs of a
/// test that failed.
pub struct World {
    namespace: Namespace,
    /// AWS IoT Secure Tunneling.
    pub aws: Emulator,
    dir: PathBuf,
    files: AtomicUsize,
}

/// A credential that only one operator has: what it does can be told from what others do.
pub struct Identity {
    /// The kubeconfig with it.
    pub kubeconfig: PathBuf,
    /// What the audit log calls it.
    pub credential: String,
}

/// What the API server calls a credential's ID among a user's `extra`.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

impl World {
    /// A new one.
    pub async fn new() -> Self {
        Self::on(ControlPlane::get()).await
    }

    /// A new one on a control plane.
    pub async fn on(plane: &'static ControlPlane) -> Self {
        let config = Config { quotas: Quotas::none(), ..Config::default() };
        let namespace = Namespace::on(plane).await;
        let dir = plane.dir.join(&namespace.name);
        fs::create_dir(&dir).expect("a directory can be made");
        Self {
            aws: Emulator::start(config).await.expect("the emulator starts"),
            namespace,
            dir,
            files: AtomicUsize::new(0),
        }
    }

    /// How often an operation of AWS was called.
    pub fn calls_of(&self, operation: &str) -> usize {
        self.aws.calls().iter().filter(|call| call.operation == operation).count()
    }

    /// The Tunnel's is the only tunnel that is open, and a Secret of both sides holds its live tokens.
    pub async fn assert_live(&self, tunnel: &Tunnel, secret: &str) {
        let id = status(tunnel).tunnel_id.clone().expect("an ID");
        let open = self.aws.tunnels().into_iter().filter(|t| t.status == TunnelStatus::Open);
        assert_eq!(open.map(|t| t.tunnel_id).collect::<Vec<_>>(), std::slice::from_ref(&id));
        let dead = dead_tokens(self, &self.aws, &id, &[(secret, ClientMode::All)]).await;
        assert!(dead.is_empty(), "{}", dead[0]);
    }

    /// Settings for an operator of this world, see [`Settings::quick`].
    pub fn settings(&self) -> Settings {
        let kubeconfig = &self.plane.operator_kubeconfig;
        Settings::quick(kubeconfig, &self.name, &self.aws.endpoint())
    }

    /// The same for one that takes part in the election of this world's leader. deploy/ grants what that takes in the
    /// operator's own namespace alone: so here it is granted in this one.
    pub async fn electing(&self) -> Settings {
        let role = ["get", "role,rolebinding", LEASE, "-n", SYSTEM_NAMESPACE, "-o", "json"];
        let said = self.kubectl(&role).await;
        let mut list: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("no Role: {}", said.err));
        for object in list["items"].as_array_mut().expect("a list") {
            object["metadata"] = json!({"name": LEASE, "namespace": self.name});
        }
        self.apply(&list.to_string()).await;
        // The API server's RBAC may lag behind.
        let review = json!({"spec": {"user": OPERATOR, "resourceAttributes": {
            "group": "coordination.k8s.io", "resource": "leases", "verb": "update", "namespace": self.name,
        }}});
        let review: SubjectAccessReview = serde_json::from_value(review).expect("a review");
        let (reviews, begun) = (Api::<SubjectAccessReview>::all(self.client.clone()), Instant::now());
        while !reviews.create(&Default::default(), &review).await.is_ok_and(|r| r.status.is_some_and(|s| s.allowed)) {
            assert!(begun.elapsed() < LIMIT, "the Role has no effect");
            sleep(Duration::from_millis(20)).await;
        }
        self.settings().flag("--leader-elect", "true").env("POD_NAMESPACE", &self.name)
    }

    /// Who holds this world's Lease.
    pub async fn holder(&self) -> Option<String> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.name);
        let lease = api.get_opt(LEASE).await.expect("the API server answers")?;
        lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
    }

    /// Returns once somebody holds it who is not this one: who, and how long it took.
    pub async fn next_holder(&self, before: Option<&str>) -> (String, Duration) {
        let begun = Instant::now();
        loop {
            match self.holder().await {
                Some(holder) if Some(holder.as_str()) != before => return (holder, begun.elapsed()),
                holder if begun.elapsed() > LIMIT => {
                    self.show_logs();
                    panic!("nobody else leads after {LIMIT:?}: {holder:?} holds the Lease");
                }
                _ => {}
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// An operator with [`Self::settings`] that is ready.
    pub async fn operator(&self) -> Operator {
        self.operator_with(&self.settings()).await
    }

    /// An operator that is ready.
    pub async fn operator_with(&self, settings: &Settings) -> Operator {
        let mut operator = self.spawn(settings);
        operator.ready().await;
        operator
    }

    /// An operator that was just started.
    pub fn spawn(&self, settings: &Settings) -> Operator {
        Operator::spawn(settings, self.file("log"))
    }

    /// A proxy in front of the API server; [`Settings::via`] sends an operator through it.
    pub async fn api_proxy(&self) -> ApiProxy {
        self.tapped_api_proxy(None).await
    }

    /// The same, with a tap.
    pub async fn tapped_api_proxy(&self, tap: Option<Arc<Tap>>) -> ApiProxy {
        ApiProxy::start(&self.plane.operator_kubeconfig, self.file("kubeconfig"), tap).await
    }

    /// An operator's own credential: [`Settings::with_identity`] gives it one.
    pub async fn identity(&self) -> Identity {
        let kubeconfig = self.file("kubeconfig");
        self.plane.write_operator_kubeconfig(&kubeconfig).expect("a kubeconfig");
        let whoami = ["auth", "whoami", "-o", "json", "--kubeconfig"];
        let said = self.kubectl(&[&whoami[..], &[kubeconfig.to_str().expect("UTF-8")]].concat()).await;
        let review: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("whoami: {}", said.err));
        let credential = &review["status"]["userInfo"]["extra"][CREDENTIAL_ID][0];
        Identity { credential: credential.as_str().expect("a credential has an ID").to_owned(), kubeconfig }
    }

    /// All that was written under an identity, anywhere, in the order of the answers.
    pub async fn writes_by(&self, identity: &Identity) -> Vec<Write> {
        let mut writes = audit::writes_by(self, &identity.credential).await;
        writes.split_off(1) // the first is our own question what the credential's ID is
    }

    /// All rights that were used under an identity, but for our own question who it is.
    pub async fn rights_used_by(&self, identity: &Identity) -> BTreeSet<String> {
        let mut rights = audit::rights_used(self, &identity.credential).await;
        rights.remove("create authentication.k8s.io/selfsubjectreviews");
        rights
    }

    /// A name for a file of an operator's: it has the operator's number.
    pub fn file(&self, extension: &str) -> PathBuf {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("operator-{number}.{extension}"))
    }

    /// Leaves the namespace to the end of the control plane: to delete one takes the namespace
    /// controller a request for each resource that there is, too much where there are hundreds.
    pub fn leave_namespace(&mut self) {
        self.namespace.left = true;
    }

    /// Shows the logs of all operators so far, for people.
    pub fn show_logs(&self) {
        for (number, log) in self.logs().iter().enumerate() {
            eprintln!("--- log of operator {number} in {}:\n{}", self.namespace.name, log::tail(log));
        }
    }

    /// The logs of all operators so far.
    pub fn logs(&self) -> Vec<String> {
        let numbers = 0..self.files.load(Ordering::Relaxed);
        let log = |n| fs::read_to_string(self.dir.join(format!("operator-{n}.log"))).ok();
        numbers.filter_map(log).collect()
    }
}

impl Deref for World {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        } else {
            assert!(!self.logs().iter().any(|log| log::has_token(log)), "there is an access token in a log");
        }
    }
}
