//! A status that names a tunnel of somebody else's. Who may only edit a namespace cannot write it; a backup that is
//! restored with its status, or an administrator, can.

use super::scene::{Scene, plain};
use crate::support::namespace::{main_condition, status};
use opentunnel_api::Tunnel;
use serde_json::json;

#[tokio::test]
async fn who_may_edit_a_namespace_cannot_write_a_status() {
    let (scene, _operator) = Scene::new().await;
    scene.mallory_may(&plain("mine"), &["create", "-f", "-"]).await;
    let mine = scene.world.wait_ready("mine").await;
    let patch = json!({"status": scene.victims_tunnel()}).to_string();
    let args = ["patch", "tunnel", "mine", "--type=merge", "-p", &patch];
    scene.mallory_may_not("", &[&args[..], &["--subresource=status"]].concat()).await;
    // Without the subresource the API server drops it.
    scene.mallory_may("", &args).await;
    assert_eq!(scene.world.tunnel("mine").await.status, mine.status);
    scene.victim_is_unharmed().await;
}

#[tokio::test]
async fn a_status_that_names_the_victims_tunnel_gets_no_tokens_of_it_and_does_not_close_it() {
    let (scene, operator) = Scene::new().await;
    // By the operator that opened the attacker's own tunnel, and by one that knows nothing yet.
    for (name, restart) in [("known", false), ("unknown", true)] {
        scene.mallory_may(&plain(name), &["create", "-f", "-"]).await;
        let mine = scene.world.wait_ready(name).await;
        let restarted = if restart { Some(scene.operator().await) } else { None };
        scene.write_status(name, scene.victims_tunnel()).await;
        let secret = format!("{name}-tokens");
        scene.mallory_may("", &["delete", "secret", &secret]).await;
        let stalled = scene.world.wait_condition(name, ("Ready", "False", "InvalidRequest")).await;
        let message = &main_condition(&stalled).expect("one").message;
        assert!(message.contains("is not this Tunnel's by its owner tag"), "{message}");
        assert_eq!(scene.world.secret_data(&secret).await, None, "no tokens");
        scene.victim_is_unharmed().await;
        scene.mallory_may("", &["delete", "tunnel", name]).await;
        scene.world.wait_no_tunnel(name).await;
        scene.world.wait_event(name, "Warning NotOwned").await;
        scene.victim_is_unharmed().await;
        let id = status(&mine).tunnel_id.clone().expect("an ID");
        if restarted.is_none() {
            // The operator knows which is the attacker's own, and closes it.
            scene.wait_closed(&id).await;
        }
    }
    drop(operator);
}

#[tokio::test]
async fn retain_takes_no_owner_tag_off_a_tunnel_of_somebody_elses() {
    let (scene, operator) = Scene::new().await;
    let retain = |name: &str| {
        json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": name}, "spec": {"deletionPolicy": "Retain"}}).to_string()
    };
    // The victim's tunnel; the attacker's own with the victim's ARN.
    for (name, forged) in
        [("all", scene.victims_tunnel()), ("arn", json!({"tunnelArn": status(&scene.victim).tunnel_arn}))]
    {
        scene.mallory_may(&retain(name), &["create", "-f", "-"]).await;
        let mine = scene.world.wait_ready(name).await;
        scene.write_status(name, forged).await;
        scene.mallory_may("", &["delete", "tunnel", name]).await;
        scene.world.wait_no_tunnel(name).await;
        scene.victim_is_unharmed().await;
        let id = status(&mine).tunnel_id.clone().expect("an ID");
        let own = scene.world.aws.tunnels().into_iter().find(|t| t.tunnel_id == id).expect("it is there");
        assert_eq!(own.tags.contains_key("opentunnel.dev/owner"), name == "all", "{name}: {:?}", own.tags);
    }
    drop(operator);
}

#[tokio::test]
async fn a_backup_that_is_restored_with_its_status_takes_no_tunnel_over() {
    let (scene, _operator) = Scene::new().await;
    // The victim itself comes back from a backup, in another namespace: other UID, old status.
    let mut copy: Tunnel = scene.victim.clone();
    copy.metadata = Default::default();
    copy.metadata.name = Some("victim".into());
    scene.mallory_may(&serde_json::to_string(&copy).expect("JSON"), &["create", "-f", "-"]).await;
    scene.world.wait_ready("victim").await;
    scene.write_status("victim", json!(scene.victim.status)).await;
    let is_stalled = |t: &Tunnel| main_condition(t).is_some_and(|c| c.reason == "InvalidRequest");
    scene.world.wait_for("victim", "Stalled", is_stalled).await;
    scene.victim_is_unharmed().await;
    scene.mallory_may("", &["delete", "tunnel", "victim"]).await;
    scene.world.wait_no_tunnel("victim").await;
    scene.victim_is_unharmed().await;
}
