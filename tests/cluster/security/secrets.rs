//! Secrets that are somebody else's, and forged token Secrets.

use super::scene::{Scene, plain};
use crate::support::namespace::{secret_names, status};
use serde_json::{Value, json};

fn with_secret(tunnel: &str, secret: &str) -> String {
    let spec = json!({"secrets": [{"name": secret}]});
    json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": tunnel}, "spec": spec})
        .to_string()
}

#[tokio::test]
async fn a_secret_of_somebody_elses_is_neither_read_nor_written_nor_deleted() {
    let (scene, _operator) = Scene::new().await;
    // The namespace's own, which the attacker may not even read where rights on Secrets are narrower.
    let said = scene.world.kubectl(&["create", "secret", "generic", "password", "--from-literal=p=hunter2"]).await;
    assert!(said.ok, "{}", said.err);
    scene.mallory_may(&plain("first"), &["create", "-f", "-"]).await;
    scene.world.wait_ready("first").await;
    let read = async |name: &str| json!(scene.world.secrets().get(name).await.expect("it is there"));
    let before = [read("password").await, read("first-tokens").await];
    for (name, secret) in [("grab", "password"), ("second", "first-tokens")] {
        scene.mallory_may(&with_secret(name, secret), &["create", "-f", "-"]).await;
        scene.world.wait_condition(name, ("Ready", "False", "SecretConflict")).await;
        let tunnel = json!(scene.world.tunnel(name).await).to_string();
        assert!(!tunnel.contains("hunter2") && !tunnel.contains("aHVudGVyMg"));
        scene.mallory_may("", &["delete", "tunnel", name]).await;
        scene.world.wait_no_tunnel(name).await;
    }
    assert_eq!([read("password").await, read("first-tokens").await], before);
    assert_eq!(scene.world.aws.tunnels().len(), 2, "nothing was opened for them");
    scene.victim_is_unharmed().await;
}

/// A token Secret as the operator makes it, but for what it holds.
fn forged(name: &str, tunnel: &Value) -> String {
    let owner = json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "controller": true,
        "name": tunnel["metadata"]["name"], "uid": tunnel["metadata"]["uid"]});
    let metadata = json!({"name": name, "ownerReferences": [owner],
        "labels": {"opentunnel.dev/secret": "tokens", "app.kubernetes.io/managed-by": "opentunnel-operator"},
        "annotations": {"opentunnel.dev/token-generation": "4000000000000000000", "opentunnel.dev/tunnel-id": "x"}});
    json!({"apiVersion": "v1", "kind": "Secret", "type": "opentunnel.dev/tunnel-tokens", "metadata": metadata,
        "stringData": {"sourceAccessToken": "forged"}})
    .to_string()
}

#[tokio::test]
async fn a_forged_token_secret_of_another_namespaces_tunnel_moves_nothing_there() {
    let (scene, _operator) = Scene::new().await;
    let before = scene.other.tunnel("victim").await.metadata.resource_version;
    for name in ["victim-tokens", "more"] {
        scene.mallory_may(&forged(name, &json!(scene.victim)), &["create", "-f", "-"]).await;
    }
    // The operator has seen them when a later one of its own is healed.
    scene.mallory_may(&plain("mine"), &["create", "-f", "-"]).await;
    let mine = scene.world.wait_ready("mine").await;
    scene.mallory_may("", &["delete", "secret", "mine-tokens"]).await;
    let generation = status(&mine).token_generation;
    scene.world.wait_for("mine", "new tokens", |t| status(t).token_generation > generation).await;
    assert_eq!(scene.other.tunnel("victim").await.metadata.resource_version, before);
    scene.victim_is_unharmed().await;
}

#[tokio::test]
async fn a_forged_token_secret_of_ones_own_tunnel_is_not_believed() {
    let (scene, _operator) = Scene::new().await;
    scene.mallory_may(&with_secret("mine", "a"), &["create", "-f", "-"]).await;
    let mine = scene.world.wait_ready("mine").await;
    scene.mallory_may(&forged("b", &json!(mine)), &["create", "-f", "-"]).await;
    // Asked for by the spec, it gets tokens of the attacker's own tunnel, whatever it says; else it goes.
    let spec = json!({"spec": {"secrets": [{"name": "b"}]}}).to_string();
    scene.mallory_may("", &["patch", "tunnel", "mine", "--type=merge", "-p", &spec]).await;
    let is_b = |t: &opentunnel_api::Tunnel| {
        let status = status(t);
        secret_names(t) == ["b"] && status.conditions.as_ref().is_some_and(|c| c[0].reason == "Open")
    };
    let after = scene.world.wait_for("mine", "Ready with b", is_b).await;
    assert!(status(&after).token_generation < Some(100), "{:?}", status(&after).token_generation);
    let data = scene.world.secret_data("b").await.expect("it is there");
    let live = scene.world.aws.live_tokens(status(&after).tunnel_id.as_deref().expect("an ID")).expect("it is open");
    assert!(data["sourceAccessToken"] == live.source && data["destinationAccessToken"] == live.destination);
    scene.victim_is_unharmed().await;
}
