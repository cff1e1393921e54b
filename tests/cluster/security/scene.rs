//! Two namespaces, one operator: an attacker who may edit one, and a victim in the other.

use crate::support::control_plane::ControlPlane;
use crate::support::namespace::{Namespace, Said, status};
use crate::support::operator::{Operator, Settings};
use crate::support::{LIMIT, World};
use opentunnel_api::Tunnel;
use secure_tunneling_emulator::TunnelStatus;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub fn plain(name: &str) -> String {
    json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": name}}).to_string()
}

/// Where attacks are tried. Its methods are the attacker's namespace's, as the administrator sees it.
pub struct Scene {
    pub world: World,
    /// The victim's namespace, with a Tunnel `victim`.
    pub other: Namespace,
    /// The victim's Tunnel, as it was when all was well.
    pub victim: Tunnel,
    tokens: BTreeMap<String, String>,
    kubeconfig: PathBuf,
}

impl Scene {
    /// One with an operator that watches both namespaces.
    pub async fn new() -> (Self, Operator) {
        let world = World::new().await;
        let other = Namespace::new().await;
        let kubeconfig = world.file("kubeconfig");
        for args in [
            &["create", "serviceaccount", "mallory"][..],
            &[
                "create",
                "rolebinding",
                "mallory",
                "--clusterrole=edit",
                &format!("--serviceaccount={}:mallory", world.name),
            ],
        ] {
            let said = world.kubectl(args).await;
            assert!(said.ok, "{}", said.err);
        }
        ControlPlane::get().write_kubeconfig(&world.name, "mallory", &kubeconfig).expect("a token");
        let operator = world.operator_with(&settings(&world, &other)).await;
        other.apply(&plain("victim")).await;
        let victim = other.wait_ready("victim").await;
        let tokens = other.secret_data("victim-tokens").await.expect("a Secret");
        let scene = Self { world, other, victim, tokens, kubeconfig };
        // A controller fills the role edit, some time after deploy/ was applied.
        let deadline = Instant::now() + LIMIT;
        while !scene.mallory("", &["auth", "can-i", "create", "tunnels"]).await.ok {
            assert!(Instant::now() < deadline, "edit has no rights on Tunnels");
            sleep(Duration::from_millis(100)).await;
        }
        (scene, operator)
    }

    /// Another operator.
    pub async fn operator(&self) -> Operator {
        self.world.operator_with(&settings(&self.world, &self.other)).await
    }

    /// `kubectl` as the attacker, who may edit the one namespace and no more.
    pub async fn mallory(&self, stdin: &str, args: &[&str]) -> Said {
        let as_mallory = ["--kubeconfig", self.kubeconfig.to_str().expect("a path")];
        self.world.kubectl_with(stdin, &[&as_mallory[..], args].concat()).await
    }

    /// What the attacker is allowed to do.
    pub async fn mallory_may(&self, stdin: &str, args: &[&str]) {
        let said = self.mallory(stdin, args).await;
        assert!(said.ok, "{args:?}: {}", said.err);
    }

    /// What the attacker is not allowed to do, as the API server says.
    pub async fn mallory_may_not(&self, stdin: &str, args: &[&str]) {
        let said = self.mallory(stdin, args).await;
        assert!(!said.ok && said.err.contains("Forbidden"), "{args:?}: {} {}", said.out, said.err);
    }

    /// A status that somebody with rights on it writes: a restored backup, an editor of the subresource.
    pub async fn write_status(&self, name: &str, status: Value) {
        let patch = json!({"status": status}).to_string();
        let args = ["patch", "tunnel", name, "--subresource=status", "--type=merge", "-p", &patch];
        let said = self.world.kubectl(&args).await;
        assert!(said.ok, "{}", said.err);
    }

    /// What names the victim's tunnel in a status.
    pub fn victims_tunnel(&self) -> Value {
        let status = status(&self.victim);
        json!({"tunnelId": status.tunnel_id, "tunnelArn": status.tunnel_arn, "state": "OPEN"})
    }

    /// Returns once a tunnel is closed.
    pub async fn wait_closed(&self, id: &str) {
        let deadline = Instant::now() + LIMIT;
        while self.world.aws.live_tokens(id).is_some() {
            assert!(Instant::now() < deadline, "tunnel {id} is not closed");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nothing has happened to the victim: its tunnel is open with the tokens that were made when it was opened,
    /// its owner tag is on, and they stand in its Secret and nowhere else.
    pub async fn victim_is_unharmed(&self) {
        let now = self.other.tunnel("victim").await;
        assert_eq!(
            (now.metadata.uid.as_ref(), status(&now)),
            (self.victim.metadata.uid.as_ref(), status(&self.victim))
        );
        assert_eq!(self.other.secret_data("victim-tokens").await.as_ref(), Some(&self.tokens));
        let id = status(&now).tunnel_id.as_deref().expect("an ID");
        let live = self.world.aws.live_tokens(id).expect("its tunnel is open");
        assert!(
            live.source == self.tokens["sourceAccessToken"]
                && live.destination == self.tokens["destinationAccessToken"]
        );
        let aws = self.world.aws.tunnels();
        let tunnel = aws.iter().find(|t| t.tunnel_id == id).expect("it is there");
        assert_eq!(tunnel.status, TunnelStatus::Open);
        assert!(tunnel.tags.contains_key("opentunnel.dev/owner"), "{:?}", tunnel.tags);
        let reads = ["OpenTunnel", "DescribeTunnel", "ListTunnels"];
        let calls = self.world.aws.calls();
        let done: Vec<_> = calls.iter().filter(|c| c.tunnel_id.as_deref() == Some(id)).map(|c| &c.operation).collect();
        assert!(done.iter().all(|operation| reads.contains(&operation.as_str())), "{done:?}");
        let secrets = self.world.secrets().list(&Default::default()).await.expect("they can be listed").items;
        let stolen = secrets.iter().flat_map(|s| s.data.iter().flatten()).any(|(_, value)| {
            value.0 == self.tokens["sourceAccessToken"].as_bytes()
                || value.0 == self.tokens["destinationAccessToken"].as_bytes()
        });
        assert!(!stolen, "the victim's token stands in the attacker's namespace");
    }
}

fn settings(world: &World, other: &Namespace) -> Settings {
    world.settings().flag("--watch-namespace", &format!("{},{}", world.name, other.name))
}
