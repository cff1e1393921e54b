//! A namespace that wants everything gets its share, and its quota.

use super::scene::{Scene, plain};
use crate::support::LIMIT;
use crate::support::control_plane::repository;
use crate::support::namespace::status;
use serde_json::Value;
use std::fs;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// As many Tunnels as an attacker may have, in one go.
fn many(count: usize) -> String {
    (0..count).map(|n| format!("---\n{}\n", plain(&format!("t{n}")))).collect()
}

#[tokio::test]
async fn a_namespace_with_hundreds_of_tunnels_holds_up_no_other() {
    let (scene, operator) = Scene::new().await;
    operator.kill();
    let settings = scene.world.settings().flag("--open-rate", "1").flag("--poll-interval", "60s");
    let namespaces = format!("{},{}", scene.world.name, scene.other.name);
    let _operator = scene.world.operator_with(&settings.flag("--watch-namespace", &namespaces)).await;
    scene.mallory_may(&many(200), &["create", "-f", "-"]).await;
    assert!(scene.world.aws.tunnels().len() < 150, "the attacker's are queued");
    scene.other.apply(&plain("late")).await;
    let before = scene.world.calls_of("OpenTunnel");
    let late = scene.other.wait_ready("late").await;
    // To its own opening: what follows (the Secret, the status, the watch of this test) is not the queue's.
    let id = status(&late).tunnel_id.clone().expect("it is Ready");
    let calls = scene.world.aws.calls();
    let mut openings = calls.iter().filter(|call| call.operation == "OpenTunnel").skip(before);
    let waited = openings.position(|call| call.tunnel_id.as_deref() == Some(&id)).unwrap_or(0);
    println!("opened after 200 of another namespace, with {waited} openings from its creation to its own");
    assert!(waited <= 8, "it waited for {waited} openings");
    scene.victim_is_unharmed().await;
}

#[tokio::test]
async fn the_sample_of_a_resource_quota_limits_the_tunnels_of_a_namespace() {
    let (scene, _operator) = Scene::new().await;
    let sample = fs::read_to_string(repository().join("deploy/examples/resource-quota.yaml")).expect("a sample");
    let sample = sample.replace("namespace: edge", &format!("namespace: {}", scene.world.name));
    scene.world.apply(&sample).await;
    // A controller counts first.
    let deadline = Instant::now() + LIMIT;
    let hard = loop {
        let said = scene.world.kubectl(&["get", "resourcequota", "-o", "json"]).await;
        let list: Value = serde_json::from_str(&said.out).expect("JSON");
        if let Some(hard) = list["items"][0]["status"]["hard"]["count/tunnels.opentunnel.dev"].as_str() {
            break hard.parse::<usize>().expect("a number");
        }
        assert!(Instant::now() < deadline, "the quota is never counted: {list}");
        sleep(Duration::from_millis(100)).await;
    };
    let said = scene.mallory(&many(hard + 3), &["create", "-f", "-"]).await;
    assert!(!said.ok && said.err.contains("exceeded quota"), "{}", said.err);
    let there = scene.world.tunnels().list(&Default::default()).await.expect("they can be listed").items.len();
    assert_eq!(there, hard);
    // Who may edit the namespace may not lift it.
    scene.mallory_may_not("", &["delete", "resourcequota", "--all"]).await;
}
