//! A Tunnel that this operator cannot read (stored under a looser CRD, or with a status that somebody wrote) is
//! told, waits, and goes when it is deleted. The others never notice.

use crate::support::api_proxy::Point;
use crate::support::aws_proxy::AwsProxy;
use crate::support::etcd::store_tunnel;
use crate::support::namespace::status;
use crate::support::{LIMIT, World};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams};
use opentunnel_api::Tunnel;
use secure_tunneling_emulator::TunnelStatus;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

fn plain(name: &str) -> String {
    format!("{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: {name}}}}}")
}

/// A new Tunnel, as etcd has it.
fn stored(world: &World, name: &str, spec: &Value, status: &Value) -> Value {
    json!({
        "apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "spec": spec, "status": status,
        "metadata": {"name": name, "namespace": world.name, "uid": uuid::Uuid::new_v4().to_string(), "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
    })
}

/// A Tunnel that is there gets another field, past the API server.
async fn spoil(world: &World, name: &str, part: &str, field: &str, value: Value) {
    let said = world.kubectl(&["get", "tunnel", name, "-o", "json"]).await;
    let mut tunnel: Value = serde_json::from_str(&said.out).expect("it is there");
    tunnel[part][field] = value;
    store_tunnel(world, name, &tunnel).await;
}

/// Returns once an operator has said of a Tunnel that it cannot be read; not more than once is it told.
async fn wait_told(world: &World, name: &str, field: &str) {
    world.wait_event(name, "Warning Unreadable").await;
    let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(world.client.clone(), &world.name);
    let events = events.list(&ListParams::default()).await.expect("they can be listed").items;
    let of = |e: &&k8s_openapi::api::events::v1::Event| {
        e.regarding.as_ref().is_some_and(|o| o.name.as_deref() == Some(name))
    };
    let notes: Vec<String> = events.iter().filter(of).filter_map(|e| e.note.clone()).collect();
    let told: Vec<_> = notes.iter().filter(|note| note.contains(&format!("({field}"))).collect();
    assert_eq!(told.len(), 1, "{name}: {notes:?}");
}

#[tokio::test]
async fn tunnels_that_cannot_be_read_are_told_and_stop_nobody() {
    let world = World::new().await;
    let bad = [
        ("timeout", json!({"timeout": "60"}), json!({}), "spec.timeout"),
        ("secrets", json!({"secrets": {"name": "a"}}), json!({}), "spec.secrets"),
        ("destination", json!({"destination": {"thingName": "a"}}), json!({}), "spec.destination"),
        ("policy", json!({"deletionPolicy": "Keep"}), json!({}), "spec.deletionPolicy"),
        ("times", json!({}), json!({"openedAt": "yesterday"}), "status.openedAt"),
        ("conditions", json!({}), json!({"conditions": [{"type": 7}]}), "status.conditions[0].type"),
        ("text", json!("ssh"), json!({}), "spec"),
    ];
    // Some are there when it starts, some come later.
    for (name, spec, status, _) in &bad[..4] {
        store_tunnel(&world, name, &stored(&world, name, spec, status)).await;
    }
    let operator = world.operator().await;
    for (name, spec, status, _) in &bad[4..] {
        store_tunnel(&world, name, &stored(&world, name, spec, status)).await;
    }
    world.apply(&plain("good")).await;
    world.wait_ready("good").await;
    for (name, _, _, field) in &bad {
        wait_told(&world, name, field).await;
        let log = operator.log();
        let line = log.lines().find(|l| l.contains(&format!("tunnel=\"{name}\"")) && l.contains(field));
        assert!(line.is_some_and(|l| l.contains("correct the field")), "{name}: {log}");
    }
    assert_eq!(world.aws.tunnels().len(), 1, "nothing was opened for them");

    // Corrected, it is a Tunnel as any other.
    let right = json!({"spec": {"secrets": [{"name": "right"}]}}).to_string();
    let said = world.kubectl(&["patch", "tunnel", "secrets", "--type=merge", "-p", &right]).await;
    assert!(said.ok, "{}", said.err);
    world.wait_ready("secrets").await;
    // What has no finalizer just goes.
    world.delete("timeout").await;
    world.wait_no_tunnel("timeout").await;
    for name in ["good", "secrets"] {
        world.delete(name).await;
        world.wait_no_tunnel(name).await;
    }
    assert_eq!(world.aws.tunnels().len(), 2);
}

#[tokio::test]
async fn a_tunnel_that_cannot_be_read_any_more_keeps_its_tunnel_and_goes_on_when_it_can() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&plain("a")).await;
    let tunnel = world.wait_ready("a").await;
    spoil(&world, "a", "status", "secrets", json!("all of them")).await;
    wait_told(&world, "a", "status.secrets").await;
    operator.kill();
    let operator = world.operator().await;
    world.apply(&plain("b")).await;
    world.wait_ready("b").await;
    assert!(operator.log().contains("status.secrets"), "told again by the next one");

    let names = json!(status(&tunnel).secrets);
    spoil(&world, "a", "status", "secrets", names).await;
    world.secrets().delete("a-tokens", &Default::default()).await.expect("it is there");
    let renewed = |t: &Tunnel| status(t).token_generation > status(&tunnel).token_generation;
    let after = world.wait_for("a", "new tokens", renewed).await;
    assert_eq!(status(&after).tunnel_id, status(&tunnel).tunnel_id);
    assert_eq!(world.aws.tunnels().len(), 2, "one for each");
}

fn any(world: &World) -> Api<DynamicObject> {
    Api::namespaced_with(world.client.clone(), &world.name, &ApiResource::erase::<Tunnel>(&()))
}

async fn delete(world: &World, name: &str) {
    any(world).delete(name, &Default::default()).await.expect("it is there");
}

async fn wait_gone(world: &World, name: &str) {
    let deadline = Instant::now() + LIMIT;
    while let Some(tunnel) = any(world).get_opt(name).await.expect("the API server answers") {
        assert!(Instant::now() < deadline, "it does not go: {:?} {:?}", tunnel.metadata, tunnel.data);
        sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_closed(world: &World, tunnel: &Tunnel) {
    let id = status(tunnel).tunnel_id.as_deref().expect("an ID");
    let deadline = Instant::now() + LIMIT;
    while !world.aws.tunnels().iter().any(|t| t.tunnel_id == id && t.status == TunnelStatus::Closed) {
        assert!(Instant::now() < deadline, "tunnel {id} is not closed");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_tunnel_that_cannot_be_read_is_closed_and_goes_when_it_is_deleted() {
    let world = World::new().await;
    let _operator = world.operator().await;
    for (name, part, field, value) in [
        ("policy", "spec", "deletionPolicy", json!("Keep")),
        ("secrets", "spec", "secrets", json!({"name": "a"})),
        ("status", "status", "expiresAt", json!("tomorrow")),
    ] {
        world.apply(&plain(name)).await;
        let tunnel = world.wait_ready(name).await;
        spoil(&world, name, part, field, value).await;
        wait_told(&world, name, &format!("{part}.{field}")).await;
        delete(&world, name).await;
        wait_gone(&world, name).await;
        wait_closed(&world, &tunnel).await;
    }
    assert_eq!(world.aws.tunnels().len(), 3);
}

/// A rule of the CRD reads the field, so the API server takes no write of the object, not even of metadata.
#[tokio::test]
async fn where_the_api_server_takes_no_write_of_it_its_tunnel_is_closed_all_the_same() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&plain("timeout")).await;
    let tunnel = world.wait_ready("timeout").await;
    spoil(&world, "timeout", "spec", "timeout", json!("60")).await;
    wait_told(&world, "timeout", "spec.timeout").await;
    delete(&world, "timeout").await;
    wait_closed(&world, &tunnel).await;
    world.apply(&plain("other")).await;
    world.wait_ready("other").await;
    let deadline = Instant::now() + LIMIT;
    while !operator.log().contains("cannot take its finalizer off") {
        assert!(Instant::now() < deadline, "the API server's refusal is not logged");
        sleep(Duration::from_millis(50)).await;
    }
    // An administrator mends it (or loosens the CRD).
    spoil(&world, "timeout", "spec", "timeout", json!({})).await;
    world.wait_no_tunnel("timeout").await;
}

#[tokio::test]
async fn one_that_becomes_unreadable_while_its_tokens_are_in_hand_is_closed_and_goes_when_it_is_deleted() {
    let world = World::new().await;
    let aws = AwsProxy::start(&world.aws, None).await;
    let mut held = aws.hold(Point::AfterCommit, |request| request.calls("OpenTunnel"));
    let settings = world.settings().env("AWS_ENDPOINT_URL", aws.endpoint()).flag("--aws-timeout", "20s");
    let _operator = world.operator_with(&settings.flag("--recovery-grace", "26s")).await;
    world.apply(&plain("a")).await;
    held.reached().await;
    spoil(&world, "a", "spec", "secrets", json!({"name": "a"})).await;
    wait_told(&world, "a", "spec.secrets").await;
    held.pass();
    delete(&world, "a").await;
    wait_gone(&world, "a").await;
    let tunnels = world.aws.tunnels();
    assert_eq!(tunnels.iter().map(|t| t.status).collect::<Vec<_>>(), [TunnelStatus::Closed]);
}
