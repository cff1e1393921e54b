//! A namespace of a test's own, and what a user does and sees in it.

use super::LIMIT;
use super::audit::{self, Write};
use super::control_plane::ControlPlane;
use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config, Resource, ResourceExt};
use opentunnel_api::{Condition, Tunnel, TunnelStatus};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// A namespace with a name that nothing else has. Dropping it deletes it.
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// The administrator.
    pub client: Client,
    /// Where it is.
    pub plane: &'static ControlPlane,
    /// It is not deleted by being dropped.
    pub left: bool,
}

/// What a program said.
pub struct Said {
    /// Whether it succeeded.
    pub ok: bool,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Namespace {
    /// A new one.
    pub async fn new() -> Self {
        Self::on(ControlPlane::get()).await
    }

    /// A new one on a control plane.
    pub async fn on(plane: &'static ControlPlane) -> Self {
        let client = client(&plane.kubeconfig).await;
        let name = format!("t-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let api: Api<KubeNamespace> = Api::all(client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).expect("a namespace");
        api.create(&Default::default(), &namespace).await.expect("a namespace can be made");
        Self { name, client, plane, left: false }
    }

    /// The Tunnels in it.
    pub fn tunnels(&self) -> Api<Tunnel> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The Secrets in it.
    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Runs `kubectl -n <this namespace> …`.
    pub async fn kubectl(&self, args: &[&str]) -> Said {
        self.kubectl_with("", args).await
    }

    /// The same with something on standard input.
    pub async fn kubectl_with(&self, stdin: &str, args: &[&str]) -> Said {
        let mut command: Command = self.plane.kubectl().into();
        command.arg("-n").arg(&self.name).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut kubectl = command.spawn().expect("kubectl can be run");
        let mut pipe = kubectl.stdin.take().expect("a pipe");
        // It may end before it has read all: what it says then tells why.
        let _ = pipe.write_all(stdin.as_bytes()).await;
        drop(pipe);
        let output = timeout(LIMIT * 2, kubectl.wait_with_output()).await.expect("kubectl ends");
        let output = output.expect("kubectl can be waited for");
        Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `kubectl apply -f -`: must succeed.
    pub async fn apply(&self, manifests: &str) {
        let said = self.try_apply(manifests).await;
        assert!(said.ok, "kubectl apply failed: {}", said.err);
    }

    /// `kubectl apply -f -`.
    pub async fn try_apply(&self, manifests: &str) -> Said {
        self.kubectl_with(manifests, &["apply", "-f", "-"]).await
    }

    /// A Tunnel that must be there.
    pub async fn tunnel(&self, name: &str) -> Tunnel {
        self.tunnels().get(name).await.expect("the Tunnel is there")
    }

    /// Returns the Tunnel once it is as `is` wants it; `what` says in words what that is.
    pub async fn wait_for(&self, name: &str, what: &str, is: impl Fn(&Tunnel) -> bool) -> Tunnel {
        let tunnel = self.wait(self.tunnels(), name, what, |tunnel| tunnel.is_some_and(&is)).await;
        tunnel.expect("the condition wants one")
    }

    /// Returns the Tunnel once its first condition is this one, as `("Ready", "True", "Open")`.
    pub async fn wait_condition(&self, name: &str, (type_, status, reason): (&str, &str, &str)) -> Tunnel {
        let what = format!("{type_} {status} {reason}");
        let is = |c: &Condition| c.type_ == type_ && c.status == status && c.reason == reason;
        self.wait_for(name, &what, |tunnel| main_condition(tunnel).is_some_and(is)).await
    }

    /// Returns the Tunnel once it is Ready.
    pub async fn wait_ready(&self, name: &str) -> Tunnel {
        self.wait_condition(name, ("Ready", "True", "Open")).await
    }

    /// Returns once the Tunnel is gone.
    pub async fn wait_no_tunnel(&self, name: &str) {
        self.wait(self.tunnels(), name, "no such Tunnel", |tunnel| tunnel.is_none()).await;
    }

    /// Deletes a Tunnel; does not wait for the end.
    pub async fn delete(&self, name: &str) {
        self.tunnels().delete(name, &DeleteParams::default()).await.expect("the Tunnel is there");
    }

    /// A Secret's data as text; `None`: there is no such Secret.
    pub async fn secret_data(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let secret = self.secrets().get_opt(name).await.expect("the API server answers")?;
        let text = |data: k8s_openapi::ByteString| String::from_utf8(data.0).expect("text");
        Some(secret.data.unwrap_or_default().into_iter().map(|(key, data)| (key, text(data))).collect())
    }

    /// Returns once the Secret is gone.
    pub async fn wait_no_secret(&self, name: &str) {
        let gone = |secret: Option<&Secret>| secret.is_none();
        let wait = await_condition(self.secrets(), name, gone);
        let waited = timeout(LIMIT, wait).await;
        waited.expect("the Secret goes").expect("it can be watched");
    }

    /// The Events of a Tunnel, as `Normal Opened`, the oldest first.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.name);
        let list = api.list(&ListParams::default()).await.expect("Events can be listed");
        let mut events = list.items;
        events.retain(|e| e.regarding.as_ref().and_then(|o| o.name.as_deref()) == Some(name));
        events.sort_by_key(|e| e.event_time.clone().map(|time| time.0));
        let text = |e: Event| format!("{} {}", e.type_.unwrap_or_default(), e.reason.unwrap_or_default());
        events.into_iter().map(text).collect()
    }

    /// All Events, each with its own name, its reason and its Tunnel's name.
    pub async fn all_events(&self) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.name);
        let list = api.list(&ListParams::default()).await.expect("Events can be listed");
        let of = |event: &Event| event.regarding.as_ref().and_then(|of| of.name.clone());
        list.items.iter().map(|e| format!("Event {} {:?} {:?}", e.name_any(), e.reason, of(e))).collect()
    }

    /// Returns once the Tunnel has this Event, as `Normal Opened`: it comes after the status.
    pub async fn wait_event(&self, name: &str, event: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let events = self.events(name).await;
            if events.iter().any(|e| e == event) {
                return;
            }
            assert!(Instant::now() < deadline, "no Event {event} of {name}, but {events:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The operator's writes in this namespace, from the audit log.
    pub async fn writes(&self) -> Vec<Write> {
        audit::writes(self).await
    }

    async fn wait<K>(&self, api: Api<K>, name: &str, what: &str, is: impl Fn(Option<&K>) -> bool) -> Option<K>
    where
        K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
    {
        match timeout(LIMIT, await_condition(api, name, is)).await {
            Ok(object) => object.expect("it can be watched"),
            Err(_) => panic!("{name} is not as it should be after {LIMIT:?} ({what}): {}", self.describe(name).await),
        }
    }

    /// A Tunnel's metadata and status, for people.
    async fn describe(&self, name: &str) -> String {
        match self.tunnels().get_opt(name).await {
            Ok(Some(mut tunnel)) => {
                tunnel.metadata.managed_fields = None;
                let shown = json!({"metadata": tunnel.metadata, "status": tunnel.status});
                serde_saphyr::to_string(&shown).unwrap_or_default()
            }
            Ok(None) => "there is no such Tunnel".into(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // What no operator is there for any more to finalize stays until the control plane ends.
        let delete = ["delete", "namespace", &self.name, "--wait=false"];
        let _ = self.plane.kubectl().args(delete).output();
    }
}

/// A client of the API server.
pub async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a kubeconfig");
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// A Tunnel's status.
pub fn status(tunnel: &Tunnel) -> &TunnelStatus {
    tunnel.status.as_ref().expect("a status")
}

/// The names in a Tunnel's `status.secrets`.
pub fn secret_names(tunnel: &Tunnel) -> Vec<&str> {
    status(tunnel).secrets.iter().flatten().map(|secret| secret.name.as_str()).collect()
}

/// A Tunnel's main condition: the first.
pub fn main_condition(tunnel: &Tunnel) -> Option<&Condition> {
    tunnel.status.as_ref()?.conditions.as_ref()?.first()
}
