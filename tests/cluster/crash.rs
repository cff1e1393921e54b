//! A crash, a lost answer, a rival: however an opening, a rotation or a deletion is cut short, there is
//! one open tunnel, its live tokens are in the Secret, and nothing is left behind.

use crate::support::api_proxy::Point;
use crate::support::aws_proxy::AwsProxy;
use crate::support::namespace::status;
use crate::support::{LIMIT, World};
use kube::api::DeleteParams;
use opentunnel_api::Tunnel;
use secure_tunneling_emulator::{Fault, FaultKind, Operation, TunnelStatus};
use tokio::time::timeout;

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

/// The promise: Ready, one open tunnel and no other, tokens that AWS accepts; then silence.
async fn assert_promise_held(world: &World, opened: usize) {
    let tunnel = world.wait_ready("plain").await;
    let id = tunnel.status.as_ref().and_then(|s| s.tunnel_id.clone()).expect("an ID");
    let open: Vec<_> = world.aws.tunnels().into_iter().filter(|t| t.status == TunnelStatus::Open).collect();
    assert_eq!(open.len(), 1, "open tunnels: {open:#?}");
    assert_eq!(open[0].tunnel_id, id, "the Tunnel names the open tunnel");
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    let live = world.aws.live_tokens(&id).expect("live tokens");
    assert_eq!(data["tunnelId"], id);
    assert!(data["sourceAccessToken"] == live.source, "the source's token is dead");
    assert!(data["destinationAccessToken"] == live.destination, "the destination's token is dead");
    assert_eq!(opened_times(world), opened, "OpenTunnel calls: {:#?}", world.aws.calls());
}

/// OpenTunnel calls that opened a tunnel or may have: each costs money.
fn opened_times(world: &World) -> usize {
    world.aws.calls().iter().filter(|c| c.operation == "OpenTunnel" && c.tunnel_id.is_some()).count()
}

/// Waits until AWS has carried out a call whose answer never comes.
async fn carried_out(world: &World, operation: &str) {
    let done = world.aws.wait_calls(|calls| calls.iter().any(|c| c.operation == operation && c.outcome.is_some()));
    timeout(LIMIT, done).await.expect("AWS is called");
}

fn fault(world: &World, operation: Operation, kind: FaultKind) {
    world.aws.set_faults([Fault::new(operation, kind)]);
}

fn no_faults(world: &World) {
    world.aws.set_faults([]);
}

#[tokio::test]
async fn a_crash_after_the_claim_opens_one_tunnel() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut claim = proxy.hold(Point::AfterCommit, |r| r.is_claim());
    let operator = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    claim.reached().await;
    operator.kill();
    assert_eq!(opened_times(&world), 0, "nothing is opened before the claim is written");
    let _next = world.operator().await;
    assert_promise_held(&world, 1).await;
}

#[tokio::test]
async fn a_crash_after_open_adopts_the_tunnel() {
    let world = World::new().await;
    fault(&world, Operation::OpenTunnel, FaultKind::HangAfter);
    let operator =
        world.operator_with(&world.settings().flag("--aws-timeout", "20s").flag("--recovery-grace", "26s")).await;
    world.apply(PLAIN).await;
    carried_out(&world, "OpenTunnel").await;
    operator.kill();
    no_faults(&world);
    let _next = world.operator().await;
    assert_promise_held(&world, 1).await;
    assert_eq!(world.events("plain").await, ["Normal Adopted", "Normal TokensRotated"]);
}

#[tokio::test]
async fn a_crash_after_the_secret_replaces_its_tokens() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut secret = proxy.hold(Point::AfterCommit, |r| r.is_secret_write_in_earnest());
    let operator = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    secret.reached().await;
    operator.kill();
    assert!(world.secret_data("plain-tokens").await.is_some(), "the Secret was written");
    let _next = world.operator().await;
    assert_promise_held(&world, 1).await;
}

#[tokio::test]
async fn a_crash_before_the_status_adopts_the_tunnel() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut status = proxy.hold(Point::BeforeForward, |r| r.is_status("Open"));
    let operator = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    status.reached().await;
    operator.kill();
    let _next = world.operator().await;
    assert_promise_held(&world, 1).await;
}

#[tokio::test]
async fn crashes_in_a_rotation_end_with_live_tokens() {
    let world = World::new().await;
    fault(&world, Operation::OpenTunnel, FaultKind::DropAfter);
    let proxy = world.api_proxy().await;
    let mut claim = proxy.hold(Point::AfterCommit, |r| r.is_status("Rotating"));
    let first = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    // The lost answer is recovered from by a rotation. Its claim is written, its call is not made.
    claim.reached().await;
    first.kill();
    // Its call is carried out, its answer is lost.
    fault(&world, Operation::RotateTunnelAccessToken, FaultKind::HangAfter);
    let second = world.operator().await;
    carried_out(&world, "RotateTunnelAccessToken").await;
    second.kill();
    no_faults(&world);
    // Its tokens are in the Secret, the status does not say so.
    let mut ready = proxy.hold(Point::BeforeForward, |r| r.is_status("Open"));
    let third = world.operator_with(&world.settings().via(&proxy)).await;
    ready.reached().await;
    third.kill();
    let _last = world.operator().await;
    assert_promise_held(&world, 1).await;
}

#[tokio::test]
async fn a_crash_in_a_deletion_leaves_no_tunnel() {
    for kind in [FaultKind::HangBefore, FaultKind::HangAfter] {
        let world = World::new().await;
        let operator = world.operator().await;
        world.apply(PLAIN).await;
        assert_promise_held(&world, 1).await;
        fault(&world, Operation::CloseTunnel, kind);
        world.delete("plain").await;
        carried_out(&world, "CloseTunnel").await;
        operator.kill();
        no_faults(&world);
        let _next = world.operator().await;
        world.wait_no_tunnel("plain").await;
        world.wait_no_secret("plain-tokens").await;
        assert!(world.aws.tunnels().iter().all(|t| t.status == TunnelStatus::Closed), "a tunnel stays open");
    }
}

#[tokio::test]
async fn a_lost_answer_of_open_tunnel_is_recovered_from_without_a_second_call() {
    for kind in [FaultKind::DropAfter, FaultKind::HangAfter] {
        let world = World::new().await;
        world.aws.set_faults([Fault::new(Operation::OpenTunnel, kind).times(1)]);
        let _operator = world.operator().await;
        world.apply(PLAIN).await;
        assert_promise_held(&world, 1).await;
    }
}

#[tokio::test]
async fn a_call_that_aws_carries_out_late_is_found_within_the_grace() {
    let world = World::new().await;
    // The operator gives up after 0.9 s; AWS carries the call out after 2.5 s.
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::DropAfter).times(1).delay_ms(2500)]);
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    assert_promise_held(&world, 1).await;
}

#[tokio::test]
async fn lost_answers_of_the_api_server_change_nothing() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    proxy.lose_answer(|r| r.is_claim());
    proxy.lose_answer(|r| r.is_secret_write_in_earnest());
    proxy.lose_answer(|r| r.is_status("Open"));
    let _operator = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    assert_promise_held(&world, 1).await;
    let rotated = world.aws.calls().iter().filter(|c| c.operation == "RotateTunnelAccessToken").count();
    assert_eq!(rotated, 0, "the tokens in hand were kept");
}

#[tokio::test]
async fn two_operators_open_one_tunnel_each() {
    let world = World::new().await;
    let _a = world.operator().await;
    let _b = world.operator().await;
    let names: Vec<String> = (0..10).map(|n| format!("t{n}")).collect();
    let manifests = names.iter().map(|n| PLAIN.replace("plain", n)).collect::<Vec<_>>().join("\n---\n");
    world.apply(&manifests).await;
    for name in &names {
        world.wait_ready(name).await;
    }
    let open = world.aws.tunnels().into_iter().filter(|t| t.status == TunnelStatus::Open).count();
    assert_eq!((open, opened_times(&world)), (10, 10), "ten tunnels, ten calls");
    for name in &names {
        let data = world.secret_data(&format!("{name}-tokens")).await.expect("a Secret");
        let live = world.aws.live_tokens(&data["tunnelId"]).expect("an open tunnel");
        assert!(data["sourceAccessToken"] == live.source, "{name}'s token is dead");
    }
}

#[tokio::test]
async fn a_tunnel_that_a_user_replaces_while_it_is_opened_is_opened_once() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut secret = proxy.hold(Point::BeforeForward, |r| r.is_secret_write_in_earnest());
    let _operator = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    secret.reached().await;
    let said = world.kubectl_with(PLAIN, &["replace", "-f", "-"]).await;
    assert!(said.ok, "{}", said.err);
    secret.pass();
    assert_promise_held(&world, 1).await;
    let finalizers = world.wait_for("plain", "its finalizer", |t| t.metadata.finalizers.is_some()).await;
    assert_eq!(finalizers.metadata.finalizers.as_deref(), Some(&["opentunnel.dev/close-tunnel".to_owned()][..]));
}

#[tokio::test]
async fn a_tunnel_that_is_deleted_while_it_is_opened_leaves_nothing() {
    for kind in [FaultKind::HangAfter, FaultKind::HangBefore] {
        let world = World::new().await;
        world.aws.set_faults([Fault::new(Operation::OpenTunnel, kind).times(1)]);
        let operator =
            world.operator_with(&world.settings().flag("--aws-timeout", "20s").flag("--recovery-grace", "26s")).await;
        world.apply(PLAIN).await;
        carried_out(&world, "OpenTunnel").await;
        world.delete("plain").await;
        operator.kill();
        let _next = world.operator().await;
        world.wait_no_tunnel("plain").await;
        assert!(world.aws.tunnels().iter().all(|t| t.status == TunnelStatus::Closed), "a tunnel stays open");
        assert!(opened_times(&world) <= 1);
    }
}

#[tokio::test]
async fn a_stopped_operator_finishes_the_call_in_flight_and_writes_what_it_returned() {
    let world = World::new().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::Delay).times(1).delay_ms(600)]);
    let operator = world.operator().await;
    world.apply(PLAIN).await;
    let sent = world.aws.wait_calls(|calls| calls.iter().any(|c| c.operation == "OpenTunnel"));
    timeout(LIMIT, sent).await.expect("OpenTunnel is called");
    let status = operator.terminate().await;
    assert!(status.success(), "{status}");
    assert_promise_held(&world, 1).await;
}

#[tokio::test]
async fn a_tunnel_whose_opening_was_not_answered_does_not_wait_for_a_secrets_name() {
    let world = World::new().await;
    let aws = AwsProxy::start(&world.aws, None).await;
    let mut held = aws.hold(Point::AfterCommit, |request| request.calls("OpenTunnel"));
    let settings = world.settings().env("AWS_ENDPOINT_URL", aws.endpoint());
    let _operator = world.operator_with(&settings).await;
    world.apply(PLAIN).await;
    held.reached().await;
    let theirs = "{apiVersion: v1, kind: Secret, metadata: {name: plain-tokens}, stringData: {a: b}}";
    world.apply(theirs).await;
    held.cut();
    let conflict = ("Ready", "False", "SecretConflict");
    let known = |tunnel: &Tunnel| status(tunnel).tunnel_id.is_some();
    world.wait_for("plain", "its tunnel is known", |t| t.status.is_some() && known(t)).await;
    world.wait_condition("plain", conflict).await;
    assert_eq!(world.secret_data("plain-tokens").await.expect("theirs")["a"], "b");

    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    assert!(world.kubectl(&["annotate", "tunnel", "plain", "now=free"]).await.ok);
    world.wait_ready("plain").await;
    assert_eq!(world.aws.tunnels().len(), 1, "no second tunnel");
}
