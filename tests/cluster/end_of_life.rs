//! How a tunnel ends: by deletion, by its lifetime, by somebody else, and where AWS is away.

use crate::support::namespace::status;
use crate::support::{LIMIT, World};
use kube::api::{ListParams, Patch, PatchParams};
use secure_tunneling_emulator::{Fault, FaultKind, Operation, TunnelStatus};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

fn manifest(spec: &str) -> String {
    format!("{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: plain}}, spec: {spec}}}")
}

/// An operator, and the ID of the tunnel of a Tunnel that is Ready.
async fn ready(world: &World, spec: &str) -> String {
    world.apply(&manifest(spec)).await;
    let tunnel = world.wait_ready("plain").await;
    status(&tunnel).tunnel_id.clone().expect("an ID")
}

async fn assert_gone(world: &World) {
    world.wait_no_tunnel("plain").await;
    world.wait_no_secret("plain-tokens").await;
}

#[tokio::test]
async fn deletion_closes_the_tunnel_first() {
    let world = World::new().await;
    let _operator = world.operator().await;
    ready(&world, "{}").await;
    world.delete("plain").await;
    assert_gone(&world).await;
    assert_eq!(world.aws.tunnels()[0].status, TunnelStatus::Closed);
    assert_eq!(world.calls_of("CloseTunnel"), 1);
    assert_eq!(world.events("plain").await, ["Normal Opened", "Normal Closed"]);
}

#[tokio::test]
async fn a_deletion_during_the_opening_waits_for_its_answer_and_no_longer() {
    let world = World::new().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::Delay).times(1).delay_ms(600)]);
    let _operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    let opening = world.aws.wait_calls(|calls| calls.iter().any(|c| c.operation == "OpenTunnel"));
    timeout(LIMIT, opening).await.expect("OpenTunnel is called");
    world.delete("plain").await;
    assert_gone(&world).await;
    assert_eq!(world.aws.tunnels()[0].status, TunnelStatus::Closed);
    assert_eq!(world.calls_of("ListTunnels"), 0, "what was opened is known: it is not searched for");
    let writes: Vec<String> = world.writes().await.iter().map(ToString::to_string).collect();
    // A dry run whether a Secret would be taken, the claim, the Event, the finalizer.
    let trial = "create secrets plain-tokens: 201";
    assert_eq!(writes, [trial, "patch tunnels plain: 200", "create events : 201", "patch tunnels plain: 200"]);
}

/// Nobody would find a Secret of the old name: it is written nowhere.
#[tokio::test]
async fn a_secret_that_is_renamed_during_the_opening_is_written_under_its_new_name_alone() {
    let world = World::new().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::Delay).times(1).delay_ms(600)]);
    let _operator = world.operator_with(&world.settings().flag("--watch-secrets", "false")).await;
    world.apply(&manifest("{secrets: [{name: before}]}")).await;
    let opening = world.aws.wait_calls(|calls| calls.iter().any(|c| c.operation == "OpenTunnel"));
    timeout(LIMIT, opening).await.expect("OpenTunnel is called");
    // (Without kubectl, which takes longer than the call.)
    let edit = Patch::Merge(json!({"spec": {"secrets": [{"name": "after"}]}}));
    world.tunnels().patch("plain", &PatchParams::default(), &edit).await.expect("it is accepted");
    world.wait_ready("plain").await;
    let writes: Vec<String> = world.writes().await.iter().map(ToString::to_string).collect();
    let secrets: Vec<_> = writes.iter().filter(|write| write.contains("secrets")).collect();
    // The first is the dry run.
    assert_eq!(secrets, ["create secrets before: 201", "create secrets after: 201"]);
    assert_eq!(world.secrets().list_metadata(&ListParams::default()).await.expect("a list").items.len(), 1);
    assert_eq!(world.calls_of("RotateTunnelAccessToken"), 0);
}

#[tokio::test]
async fn a_retained_tunnel_stays_open_without_an_owner() {
    let world = World::new().await;
    let _operator = world.operator().await;
    ready(&world, "{deletionPolicy: Retain, tags: [{key: team, value: edge}]}").await;
    world.delete("plain").await;
    assert_gone(&world).await;
    let tunnel = &world.aws.tunnels()[0];
    assert_eq!(tunnel.status, TunnelStatus::Open);
    assert_eq!(tunnel.tags.keys().collect::<Vec<_>>(), ["team"]);
    assert_eq!(world.calls_of("CloseTunnel"), 0);
}

#[tokio::test]
async fn the_deletion_policy_may_be_changed_until_the_end() {
    let world = World::new().await;
    let _operator = world.operator().await;
    ready(&world, "{deletionPolicy: Retain}").await;
    world.apply(&manifest("{deletionPolicy: Close}")).await;
    world.wait_for("plain", "the new generation observed", |t| status(t).observed_generation == Some(2)).await;
    world.delete("plain").await;
    assert_gone(&world).await;
    assert_eq!(world.aws.tunnels()[0].status, TunnelStatus::Closed);
}

#[tokio::test]
async fn a_tunnel_closed_by_somebody_else_has_ended_and_its_secret_is_gone() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let id = ready(&world, "{}").await;
    world.aws.close(&id).expect("it can be closed");
    let tunnel = world.wait_condition("plain", ("Ended", "True", "Closed")).await;
    assert_eq!(status(&tunnel).state.map(|s| format!("{s:?}")), Some("Closed".into()));
    assert!(status(&tunnel).closed_at.is_some());
    world.wait_no_secret("plain-tokens").await;
    assert_eq!(world.calls_of("OpenTunnel"), 1, "it is not opened again");
    // It is known to be closed: deletion needs no call.
    world.delete("plain").await;
    assert_gone(&world).await;
    assert_eq!(world.calls_of("CloseTunnel"), 0);
}

#[tokio::test]
async fn a_tunnel_that_aws_does_not_know_any_more_has_ended() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let id = ready(&world, "{}").await;
    world.aws.delete(&id).expect("it can be deleted");
    // Not before it is older than the recovery grace (6 s here).
    world.wait_condition("plain", ("Ended", "True", "Closed")).await;
    world.wait_no_secret("plain-tokens").await;
}

#[tokio::test]
async fn awss_word_tells_that_a_lifetime_ran_out() {
    let world = World::new().await;
    let _operator = world.operator().await;
    ready(&world, "{timeout: {maxLifetimeTimeoutMinutes: 60}}").await;
    world.aws.advance_clock(Duration::from_secs(3601));
    world.wait_condition("plain", ("Ended", "True", "Expired")).await;
    world.wait_no_secret("plain-tokens").await;
    assert_eq!(world.events("plain").await, ["Normal Opened", "Normal Expired"]);
}

#[tokio::test]
async fn at_expires_at_a_timer_asks_aws_once() {
    let world = World::new().await;
    let _operator = world.operator_with(&world.settings().flag("--poll-interval", "1h")).await;
    ready(&world, "{timeout: {maxLifetimeTimeoutMinutes: 1}}").await;
    world.wait_condition("plain", ("Ended", "True", "Expired")).await;
    world.wait_no_secret("plain-tokens").await;
    assert_eq!(world.calls_of("DescribeTunnel"), 1);
}

#[tokio::test]
async fn a_deletion_waits_while_aws_is_away() {
    let world = World::new().await;
    let _operator = world.operator().await;
    ready(&world, "{}").await;
    world.aws.set_faults([Fault::new(Operation::CloseTunnel, FaultKind::DropBefore)]);
    world.delete("plain").await;
    world.wait_condition("plain", ("Ready", "False", "AwsUnavailable")).await;
    world.aws.set_faults([]);
    assert_gone(&world).await;
    assert_eq!(world.aws.tunnels()[0].status, TunnelStatus::Closed);
}

#[tokio::test]
async fn a_deletion_hangs_no_longer_than_the_tunnel_lives() {
    let world = World::new().await;
    let _operator = world.operator().await;
    ready(&world, "{timeout: {maxLifetimeTimeoutMinutes: 1}}").await;
    world.aws.set_faults(Operation::ALL.map(|operation| Fault::new(operation, FaultKind::DropBefore)));
    world.delete("plain").await;
    world.wait_condition("plain", ("Ready", "False", "AwsUnavailable")).await;
    assert_gone(&world).await;
}

#[tokio::test]
async fn a_refused_opening_is_stalled_and_goes_on_when_aws_allows_it() {
    let world = World::new().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::AccessDenied)]);
    let _operator = world.operator().await;
    world.apply(&manifest("{}")).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "AccessDenied")).await;
    let conditions = status(&tunnel).conditions.clone().unwrap_or_default();
    assert!(conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True"), "{conditions:?}");
    world.aws.set_faults([]);
    world.wait_ready("plain").await;
    assert_eq!(world.events("plain").await, ["Warning AccessDenied", "Normal Opened"]);
}
