//! A tunnel's whole life: suspended and resumed, made anew, opened again; its tags, its connections, and new tokens on
//! demand.

use crate::support::namespace::{main_condition, status};
use crate::support::{LIMIT, World};
use opentunnel_api::{ConnectionStatus, Tunnel};
use secure_tunneling_emulator::{
    ConnectionStatus as Connected, Connections, Fault, FaultKind, Operation, TunnelInfo, TunnelStatus,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{sleep, timeout};

fn manifest(spec: &str) -> String {
    format!("{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: plain}}, spec: {spec}}}")
}

fn open(world: &World) -> Vec<TunnelInfo> {
    world.aws.tunnels().into_iter().filter(|t| t.status == TunnelStatus::Open).collect()
}

fn id(tunnel: &Tunnel) -> String {
    status(tunnel).tunnel_id.clone().expect("an ID")
}

async fn annotate(world: &World, annotations: &[&str]) {
    let said = world.kubectl(&[&["annotate", "--overwrite", "tun", "plain"], annotations].concat()).await;
    assert!(said.ok, "{}", said.err);
}

async fn wait_generation(world: &World, generation: i64) -> Tunnel {
    let what = format!("Ready with tokens of generation {generation}");
    let is = |t: &Tunnel| {
        status(t).token_generation == Some(generation) && main_condition(t).is_some_and(|c| c.reason == "Open")
    };
    world.wait_for("plain", &what, is).await
}

#[tokio::test]
async fn a_suspended_tunnel_is_closed_and_a_resumed_one_is_a_new_one() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    let first = world.wait_ready("plain").await;
    world.apply(&manifest("{suspend: true}")).await;
    let suspended = world.wait_condition("plain", ("Ended", "True", "Suspended")).await;
    world.wait_no_secret("plain-tokens").await;
    assert_eq!(open(&world), []);
    assert_eq!(status(&suspended).tunnel_id, status(&first).tunnel_id, "the status says which it was");
    world.apply(&manifest("{suspend: false}")).await;
    let second = world.wait_ready("plain").await;
    assert_ne!(id(&first), id(&second));
    world.assert_live(&second, "plain-tokens").await;
    assert_eq!(status(&second).token_generation, Some(2), "a Secret is never written over a newer one");
    assert_eq!((world.calls_of("OpenTunnel"), world.calls_of("CloseTunnel")), (2, 1));
    let events = world.events("plain").await;
    assert_eq!(events, ["Normal Opened", "Normal Suspended", "Normal Opened"]);
}

#[tokio::test]
async fn a_tunnel_that_is_created_suspended_is_opened_when_it_is_resumed() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&manifest("{suspend: true}")).await;
    world.wait_condition("plain", ("Ended", "True", "Suspended")).await;
    assert_eq!(world.calls_of("OpenTunnel"), 0);
    operator.kill();
    let _operator = world.operator().await;
    world.apply(&manifest("{suspend: false}")).await;
    world.wait_ready("plain").await;
    assert_eq!(world.calls_of("OpenTunnel"), 1);
}

#[tokio::test]
async fn a_suspension_during_the_opening_leaves_nothing_open_also_after_a_crash() {
    let world = World::new().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::HangAfter).times(1)]);
    let operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    timeout(LIMIT, world.aws.wait_tunnels(|tunnels| tunnels.len() == 1)).await.expect("one is opened");
    operator.kill();
    world.apply(&manifest("{suspend: true}")).await;
    let _operator = world.operator().await;
    world.wait_condition("plain", ("Ended", "True", "Suspended")).await;
    assert_eq!(open(&world), []);
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    assert_eq!(world.calls_of("OpenTunnel"), 1);
}

#[tokio::test]
async fn a_suspended_tunnel_is_deleted_at_once_also_after_a_restart() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    world.wait_ready("plain").await;
    world.apply(&manifest("{suspend: true}")).await;
    world.wait_condition("plain", ("Ended", "True", "Suspended")).await;
    operator.kill();
    let _operator = world.operator().await;
    let before = world.calls_of("ListTunnels");
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    assert_eq!(world.calls_of("CloseTunnel"), 1);
    assert!(world.calls_of("ListTunnels") <= before + 2, "nothing is searched for");
}

#[tokio::test]
async fn recreate_closes_the_tunnel_and_opens_one_with_the_new_spec() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let spec = |thing: &str, policy: &str| {
        manifest(&format!("{{updatePolicy: {policy}, destination: {{thingName: {thing}, services: [SSH]}}}}"))
    };
    world.apply(&spec("first", "Immutable")).await;
    let first = world.wait_ready("plain").await;
    let refused = world.try_apply(&spec("second", "Immutable")).await;
    assert!(!refused.ok && refused.err.contains("set spec.updatePolicy to Recreate"), "{}", refused.err);
    // One apply may set it and change a field.
    world.apply(&spec("second", "Recreate")).await;
    let new = |t: &Tunnel| status(t).tunnel_id != status(&first).tunnel_id;
    world.wait_for("plain", "another tunnel", new).await;
    let second = world.wait_ready("plain").await;
    world.assert_live(&second, "plain-tokens").await;
    assert_eq!(open(&world)[0].thing_name.as_deref(), Some("second"));
    assert_eq!((world.calls_of("OpenTunnel"), world.calls_of("CloseTunnel")), (2, 1));
    assert_eq!(status(&second).observed_generation, Some(2));
    // The order of the services, and a policy alone, are no change.
    world.apply(&spec("second", "Immutable")).await;
    world.wait_for("plain", "observed", |t| status(t).observed_generation == Some(3)).await;
    assert_eq!(world.calls_of("OpenTunnel"), 2);
}

#[tokio::test]
async fn recreate_while_aws_is_full_waits_and_says_so() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("{updatePolicy: Recreate, description: one}")).await;
    world.wait_ready("plain").await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::LimitExceeded).times(1000)]);
    world.apply(&manifest("{updatePolicy: Recreate, description: two}")).await;
    world.wait_condition("plain", ("Ready", "False", "LimitExceeded")).await;
    assert_eq!(open(&world), [], "never two at once");
    world.aws.set_faults([]);
    let second = world.wait_ready("plain").await;
    world.assert_live(&second, "plain-tokens").await;
    assert_eq!(open(&world)[0].description.as_deref(), Some("two"));
}

#[tokio::test]
async fn an_expired_tunnel_is_opened_again_where_the_policy_wants_it() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("{reopenPolicy: OnExpiry, timeout: {maxLifetimeTimeoutMinutes: 1}}")).await;
    let first = world.wait_ready("plain").await;
    world.aws.advance_clock(Duration::from_secs(61));
    let new = |t: &Tunnel| status(t).tunnel_id != status(&first).tunnel_id;
    world.wait_for("plain", "another tunnel", new).await;
    let second = world.wait_ready("plain").await;
    world.assert_live(&second, "plain-tokens").await;
    assert_eq!(world.calls_of("OpenTunnel"), 2);
}

#[tokio::test]
async fn a_tunnel_that_somebody_closes_stays_closed_unless_the_policy_is_always() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&manifest("{reopenPolicy: OnExpiry}")).await;
    let first = world.wait_ready("plain").await;
    world.aws.close(&id(&first)).expect("it is open");
    world.wait_condition("plain", ("Ended", "True", "Closed")).await;
    world.wait_no_secret("plain-tokens").await;
    // The policy may be changed afterwards.
    world.apply(&manifest("{reopenPolicy: Always}")).await;
    let second = world.wait_ready("plain").await;
    world.assert_live(&second, "plain-tokens").await;

    world.aws.close(&id(&second)).expect("it is open");
    let backs_off = world.wait_condition("plain", ("Ready", "False", "Opening")).await;
    let reopen = status(&backs_off).reopen.clone().expect("it is told when");
    assert_eq!(reopen.count, 1);
    let pause = reopen.not_before.expect("a pause").duration_since(status(&backs_off).closed_at.expect("closed"));
    assert!((59..=75).contains(&pause.as_secs()), "{pause:?}");
    // It survives a restart.
    operator.kill();
    let _operator = world.operator().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.calls_of("OpenTunnel"), 2, "not before its time");
    let backs_off = world.tunnel("plain").await;
    assert_eq!(status(&backs_off).reopen, Some(reopen));
    world.apply(&manifest("{reopenPolicy: Never}")).await;
    world.wait_condition("plain", ("Ended", "True", "Closed")).await;
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    assert_eq!(open(&world), []);
}

#[tokio::test]
async fn a_crash_in_a_second_opening_neither_doubles_nor_loses_a_tunnel() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    let first = world.wait_ready("plain").await;
    world.apply(&manifest("{suspend: true}")).await;
    world.wait_condition("plain", ("Ended", "True", "Suspended")).await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::HangAfter).times(1)]);
    world.apply(&manifest("{suspend: false}")).await;
    timeout(LIMIT, world.aws.wait_tunnels(|tunnels| tunnels.len() == 2)).await.expect("another is opened");
    operator.kill();
    let _operator = world.operator().await;
    let second = world.wait_ready("plain").await;
    assert_ne!(id(&first), id(&second));
    world.assert_live(&second, "plain-tokens").await;
    assert_eq!(world.calls_of("OpenTunnel"), 2, "what was opened is found and adopted");
}

fn tags(world: &World) -> BTreeMap<String, String> {
    let open = open(world);
    let tags = open[0].tags.clone().into_iter();
    tags.filter(|(key, _)| !key.starts_with("opentunnel.dev/")).collect()
}

fn expected(tags: Value) -> BTreeMap<String, String> {
    serde_json::from_value(tags).expect("tags")
}

/// Returns once the tags are so, with the operator's status in step.
async fn wait_tags(world: &World, tags_are: Value, keys: Value) {
    let is = expected(tags_are);
    let keys: Vec<String> = serde_json::from_value(keys).expect("keys");
    let tagged = world.aws.wait_tunnels(|tunnels| {
        let mut open = tunnels.iter().filter(|t| t.status == TunnelStatus::Open);
        let own = |(key, _): &(&String, &String)| !key.starts_with("opentunnel.dev/");
        open.any(|t| t.tags.iter().filter(own).eq(&is))
    });
    timeout(LIMIT, tagged).await.expect("the tags get so");
    let in_step = |t: &Tunnel| {
        status(t).tag_keys.clone().unwrap_or_default() == keys && status(t).observed_generation == t.metadata.generation
    };
    world.wait_for("plain", "tagKeys in step", in_step).await;
}

#[tokio::test]
async fn tags_follow_the_spec_both_ways_and_those_of_others_stay() {
    let world = World::new().await;
    let settings = world.settings().flag("--default-tag", "cost=iot,team=nobody");
    let _operator = world.operator_with(&settings).await;
    world.apply(&manifest("{tags: [{key: team, value: edge}]}")).await;
    let tunnel = world.wait_ready("plain").await;
    assert_eq!(tags(&world), expected(json!({"team": "edge", "cost": "iot"})));
    assert_eq!(status(&tunnel).tag_keys.as_deref(), Some(&["cost".to_owned(), "team".to_owned()][..]));

    world.aws.tag(&id(&tunnel), "theirs", Some("1")).expect("it is open");
    world.apply(&manifest("{tags: [{key: team, value: core}, {key: new, value: x}]}")).await;
    wait_tags(
        &world,
        json!({"team": "core", "new": "x", "cost": "iot", "theirs": "1"}),
        json!(["cost", "new", "team"]),
    )
    .await;
    assert_eq!((world.calls_of("TagResource"), world.calls_of("UntagResource")), (1, 0), "a change is one call");
    world.apply(&manifest("{}")).await;
    wait_tags(&world, json!({"team": "nobody", "cost": "iot", "theirs": "1"}), json!(["cost", "team"])).await;
    assert_eq!(world.calls_of("RotateTunnelAccessToken"), 0, "tokens have nothing to do with it");

    // Somebody else changes one of the operator's: it is put right by the next refresh.
    world.aws.tag(&id(&tunnel), "team", None).expect("it is open");
    wait_tags(&world, json!({"team": "nobody", "cost": "iot", "theirs": "1"}), json!(["cost", "team"])).await;
}

#[tokio::test]
async fn tags_that_were_taken_off_come_back_also_where_a_search_has_seen_it_before() {
    let world = World::new().await;
    let settings = world.settings().flag("--default-tag", "cost=iot");
    let operator = world.operator_with(&settings).await;
    world.apply(&manifest("{tags: [{key: team, value: edge}]}")).await;
    let tunnel = world.wait_ready("plain").await;
    operator.kill();
    for key in ["team", "cost"] {
        world.aws.tag(&id(&tunnel), key, None).expect("it is open");
    }
    // It is searched for, and for that the other one's tunnel is described.
    world.apply(&manifest("{}").replace("plain", "other")).await;
    let _operator = world.operator_with(&settings).await;
    world.wait_ready("other").await;
    wait_tags(&world, json!({"team": "edge", "cost": "iot"}), json!(["cost", "team"])).await;
}

#[tokio::test]
async fn tags_that_aws_refuses_leave_the_tunnel_ready() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    world.wait_ready("plain").await;
    world.aws.set_faults([Fault::new(Operation::TagResource, FaultKind::AccessDenied).times(1)]);
    world.apply(&manifest("{tags: [{key: team, value: edge}]}")).await;
    world.wait_event("plain", "Warning TagsNotSet").await;
    let tunnel = world.tunnel("plain").await;
    assert_eq!(main_condition(&tunnel).expect("one").reason, "Open");
    assert_eq!(status(&tunnel).observed_generation, Some(1), "the edit is not carried out yet");
    wait_tags(&world, json!({"team": "edge"}), json!(["team"])).await;
    assert_eq!(world.calls_of("RotateTunnelAccessToken"), 0);
}

#[tokio::test]
async fn an_annotation_rotates_once_per_value_and_only_the_side_that_it_names() {
    let world = World::new().await;
    let operator = world.operator().await;
    let source = "{secrets: [{name: plain-tokens, clientMode: SOURCE}], destination: {thingName: d, services: [SSH]}}";
    world.apply(&manifest(source)).await;
    let tunnel = world.wait_ready("plain").await;
    let before = world.aws.live_tokens(&id(&tunnel)).expect("open");
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    // The device was offline: it is sent a new token; the source's Pod is left in peace.
    annotate(&world, &["opentunnel.dev/rotate-at=1", "opentunnel.dev/rotate-client-mode=DESTINATION"]).await;
    let tunnel = wait_generation(&world, 2).await;
    let after = world.aws.live_tokens(&id(&tunnel)).expect("open");
    assert!(after.source == before.source && after.destination != before.destination);
    assert!(world.secret_data("plain-tokens").await.expect("a Secret") == data, "its data is as it was");
    assert_eq!(status(&tunnel).last_handled_rotate_at.as_deref(), Some("1"));
    operator.kill();
    let _operator = world.operator().await;
    annotate(&world, &["opentunnel.dev/rotate-at=2", "opentunnel.dev/rotate-client-mode=neither"]).await;
    world.wait_event("plain", "Warning RotationRefused").await;
    annotate(&world, &["opentunnel.dev/rotate-at=3", "opentunnel.dev/rotate-client-mode-"]).await;
    let tunnel = wait_generation(&world, 3).await;
    let last = world.aws.live_tokens(&id(&tunnel)).expect("open");
    assert!(last.source != after.source && last.destination != after.destination, "both, by default");
    assert_eq!(world.calls_of("RotateTunnelAccessToken"), 2);
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    assert!(data["sourceAccessToken"] == last.source, "the Secret has the new one");
}

#[tokio::test]
async fn a_value_that_was_there_at_the_opening_rotates_nothing() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let metadata = r#"{name: plain, annotations: {opentunnel.dev/rotate-at: "x"}}"#;
    world.apply(&format!("{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {metadata}}}")).await;
    let tunnel = world.wait_ready("plain").await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.calls_of("RotateTunnelAccessToken"), 0);
    assert_eq!(status(&tunnel).last_handled_rotate_at.as_deref(), Some("x"));
}

#[tokio::test]
async fn who_is_connected_stands_in_the_status_and_a_change_is_one_write() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    let tunnel = world.wait_ready("plain").await;
    let shown = |t: &Tunnel| {
        let of = |c: &Option<opentunnel_api::Connection>| c.as_ref().map(|c| c.status);
        (of(&status(t).source_connection), of(&status(t).destination_connection))
    };
    let disconnected = Some(ConnectionStatus::Disconnected);
    world.wait_for("plain", "nobody connected", |t| shown(t) == (disconnected, disconnected)).await;
    let writes = world.writes().await.len();
    let connections = Connections { source: None, destination: Some(Connected::Connected) };
    world.aws.set_connections(&id(&tunnel), connections).expect("it is open");
    world.wait_event("plain", "Normal Connected").await;
    let connected = world.tunnel("plain").await;
    assert_eq!(shown(&connected), (disconnected, Some(ConnectionStatus::Connected)));
    assert_eq!(main_condition(&connected).expect("one").reason, "Open");
    assert_eq!(world.writes().await.len(), writes + 2, "the status and the Event");
    let columns = world.kubectl(&["get", "tun", "plain", "-o", "wide"]).await.out;
    assert!(columns.contains("DISCONNECTED") && columns.contains(" CONNECTED"), "{columns}");
}

#[tokio::test]
async fn a_second_tunnel_for_a_thing_is_told_on_the_newer_one() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let tunnel = |name: &str| {
        manifest("{destination: {thingName: pump, services: [SSH]}}").replace("name: plain", &format!("name: {name}"))
    };
    world.apply(&tunnel("plain")).await;
    world.wait_ready("plain").await;
    // Two Tunnels of the same second are ordered by their UIDs.
    sleep(Duration::from_millis(1100)).await;
    world.apply(&tunnel("second")).await;
    world.wait_ready("second").await;
    world.wait_event("second", "Warning ThingHasTunnel").await;
    assert_eq!(world.events("plain").await, ["Normal Opened"]);
}
