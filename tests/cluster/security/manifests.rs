//! What stands in a manifest: copied names, forged annotations and tags.

use super::scene::{Scene, plain};
use crate::support::etcd::store_tunnel;
use crate::support::namespace::status;
use opentunnel_api::{FINALIZER, OPENING_ANNOTATION, OWNER_TAG};
use serde_json::{Value, json};

#[tokio::test]
async fn a_copied_manifest_gets_a_tunnel_of_its_own() {
    let (scene, _operator) = Scene::new().await;
    let mut copy = json!(scene.victim);
    copy["metadata"]["namespace"] = json!(scene.world.name);
    for field in ["resourceVersion", "managedFields", "creationTimestamp"] {
        copy["metadata"].as_object_mut().expect("metadata").remove(field);
    }
    assert!(copy["metadata"]["annotations"][OPENING_ANNOTATION].is_string() && copy["status"]["tunnelId"].is_string());
    scene.mallory_may(&copy.to_string(), &["create", "-f", "-"]).await;
    let mine = scene.world.wait_ready("victim").await;
    assert_ne!(status(&mine).tunnel_id, status(&scene.victim).tunnel_id);
    scene.victim_is_unharmed().await;
    scene.mallory_may("", &["delete", "tunnel", "victim"]).await;
    scene.world.wait_no_tunnel("victim").await;
    scene.victim_is_unharmed().await;
}

#[tokio::test]
async fn a_forged_claim_gets_a_tunnel_of_its_own_and_no_more() {
    let (scene, operator) = Scene::new().await;
    let claim = scene.victim.metadata.annotations.as_ref().expect("annotations")[OPENING_ANNOTATION].clone();
    let attempt = claim.split('/').nth(1).expect("an attempt").to_owned();
    let forged = [
        claim,
        format!("/{attempt}"),
        format!("{attempt}/"),
        "/".repeat(5000),
        "x".repeat(200_000),
        "\u{1b}[2J\n\u{202e}".into(),
    ];
    let annotated = |name: &str, claim: &str| {
        let metadata = json!({"name": name, "annotations": {OPENING_ANNOTATION: claim}, "finalizers": [FINALIZER]});
        json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": metadata}).to_string()
    };
    for (n, claim) in forged.iter().enumerate() {
        scene.mallory_may(&annotated(&format!("t{n}"), claim), &["create", "-f", "-"]).await;
        scene.world.wait_ready(&format!("t{n}")).await;
    }
    assert_eq!(scene.world.aws.tunnels().len(), forged.len() + 1, "one each");
    // Its own UID with the victim's attempt, for one that searches again after a restart.
    operator.kill();
    scene.mallory_may(&plain("own"), &["create", "-f", "-"]).await;
    let uid = scene.world.tunnel("own").await.metadata.uid.expect("a UID");
    let annotation = format!("{OPENING_ANNOTATION}={uid}/{attempt}");
    scene.mallory_may("", &["annotate", "tunnel", "own", &annotation]).await;
    let _operator = scene.operator().await;
    let own = scene.world.wait_ready("own").await;
    assert_ne!(status(&own).tunnel_id, status(&scene.victim).tunnel_id);
    scene.victim_is_unharmed().await;
}

#[tokio::test]
async fn no_tag_of_a_spec_says_whose_a_tunnel_is() {
    let (scene, _operator) = Scene::new().await;
    let id = status(&scene.victim).tunnel_id.clone().expect("an ID");
    let victims = scene.world.aws.tunnels().into_iter().find(|t| t.tunnel_id == id).expect("it is there");
    let tags = json!([{"key": OWNER_TAG, "value": victims.tags[OWNER_TAG]}, {"key": "team", "value": "red"}]);
    let manifest = |name: &str| -> Value {
        json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": name}, "spec": {"tags": tags}})
    };
    let said = scene.mallory(&manifest("refused").to_string(), &["create", "-f", "-"]).await;
    assert!(!said.ok && said.err.contains("belong to the operator"), "{}", said.err);
    // As a looser CRD would have let it in.
    let mut stored = manifest("stored");
    stored["metadata"] = json!({"name": "stored", "namespace": scene.world.name, "generation": 1,
        "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": "2026-01-01T00:00:00Z"});
    store_tunnel(&scene.world, "stored", &stored).await;
    let own = status(&scene.world.wait_ready("stored").await).tunnel_id.clone().expect("an ID");
    let own = scene.world.aws.tunnels().into_iter().find(|t| t.tunnel_id == own).expect("it is there");
    let uid = stored["metadata"]["uid"].as_str().expect("a UID");
    assert!(own.tags[OWNER_TAG].contains(uid) && own.tags["team"] == "red", "{:?}", own.tags);
    scene.victim_is_unharmed().await;
    scene.world.delete("stored").await;
    scene.world.wait_no_tunnel("stored").await;
}

#[tokio::test]
async fn nothing_is_done_in_another_namespace() {
    let (scene, _operator) = Scene::new().await;
    let other = scene.other.name.clone();
    for args in [
        &["get", "tunnels"][..],
        &["delete", "tunnel", "victim"],
        &["annotate", "tunnel", "victim", "a=b"],
        &["get", "secret", "victim-tokens"],
        &["delete", "secret", "victim-tokens"],
    ] {
        scene.mallory_may_not("", &[&["-n", &other][..], args].concat()).await;
    }
    // A Secret's name is a name, not a path.
    for name in [format!("../{other}/victim-tokens"), format!("{other}/victim-tokens")] {
        let spec = json!({"secrets": [{"name": name}]});
        let manifest = json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": "path"}, "spec": spec});
        let said = scene.mallory(&manifest.to_string(), &["create", "-f", "-"]).await;
        assert!(!said.ok && said.err.contains("a Secret's name may have only"), "{}", said.err);
    }
    scene.victim_is_unharmed().await;
}
