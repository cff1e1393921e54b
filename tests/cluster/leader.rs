//! Two replicas: one works, the other stands by, and takes over when the first ends, dies or cannot renew its
//! lease. (That nothing is opened twice meanwhile is shown by `matrix/pauses.rs`.)

use crate::support::World;
use crate::support::api_proxy::{Point, Request, failure};
use crate::support::aws_proxy::AwsProxy;
use crate::support::namespace::status;
use crate::support::operator::{Operator, Settings, http_get, http_status};
use crate::support::world::Identity;
use axum::http::StatusCode;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::DeleteParams;
use opentunnel_api::Tunnel;
use opentunnel_operator::leader::LEASE;
use opentunnel_operator::leader::TIMING;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
const OTHER: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: other}}";

/// A replica with a credential and a way to AWS of its own: what it does can be told from what the other does.
struct Replica {
    operator: Operator,
    identity: Identity,
    aws: AwsProxy,
}

impl Replica {
    /// One that is ready.
    async fn start(world: &World) -> Self {
        let (identity, aws) = (world.identity().await, AwsProxy::start(&world.aws, None).await);
        let settings = world.electing().await.with_identity(&identity).env("AWS_ENDPOINT_URL", aws.endpoint());
        Self { operator: world.operator_with(&settings).await, identity, aws }
    }

    /// Its writes (those of the Lease do not count as such), and its calls to AWS.
    async fn work(&self, world: &World) -> (Vec<String>, usize) {
        let writes = world.writes_by(&self.identity).await;
        let asks = |resource: &str| resource == "selfsubjectaccessreviews";
        let writes = writes.iter().filter(|write| !asks(&write.resource)).map(ToString::to_string).collect();
        (writes, self.aws.count(|_| true))
    }

    async fn leads(&mut self) -> bool {
        leads(&mut self.operator).await
    }
}

/// What its metrics say.
async fn leads(operator: &mut Operator) -> bool {
    let metrics = http_get(operator.address().await, "/metrics").await.expect("an answer");
    let line = metrics.lines().find(|line| line.starts_with("opentunnel_leader ")).expect("a metric");
    line.ends_with(" 1")
}

/// Returns once it does lead, or does not; how long it took.
async fn until_leads(operator: &mut Operator, is: bool) -> Duration {
    let begun = Instant::now();
    while leads(operator).await != is {
        assert!(begun.elapsed() < TIMING.lease * 4, "leads: {is} is not reached");
        sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

fn is_lease(request: &Request) -> bool {
    request.path.contains("/leases")
}

fn leases(world: &World) -> Api<Lease> {
    Api::namespaced(world.client.clone(), &world.name)
}

#[tokio::test]
async fn of_two_replicas_one_works_and_the_other_is_ready_and_does_nothing() {
    let world = World::new().await;
    let mut leader = Replica::start(&world).await;
    assert!(leader.leads().await, "nobody held the lease before");
    let mut standby = Replica::start(&world).await;
    let address = standby.operator.address().await;
    assert_eq!(http_status(address, "/readyz").await, Some(200));
    world.apply(PLAIN).await;
    let tunnel = world.wait_ready("plain").await;
    let secrets = DeleteParams::default();
    world.secrets().delete("plain-tokens", &secrets).await.expect("it is there");
    world.wait_for("plain", "new tokens", |t| t.status.as_ref().is_some_and(|s| s.token_generation == Some(2))).await;
    world.wait_ready("plain").await;
    world.aws.close(tunnel.status.and_then(|s| s.tunnel_id).as_ref().expect("an ID")).expect("it is open");
    world.wait_condition("plain", ("Ended", "True", "Closed")).await;
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    assert!(leader.leads().await && !standby.leads().await);
    assert_eq!(standby.work(&world).await, (Vec::new(), 0));
    let (writes, calls) = leader.work(&world).await;
    assert!(writes.len() > 5 && calls >= 3, "{calls} calls, {writes:?}");
    let metrics = http_get(address, "/metrics").await.expect("an answer");
    assert!(metrics.contains("opentunnel_reconcile_errors_total{reason=\"Api4xx\"} 0"));
}

#[tokio::test]
async fn a_leader_that_is_terminated_hands_over_within_three_seconds() {
    let world = World::new().await;
    let leader = Replica::start(&world).await;
    let before = world.holder().await.expect("it leads");
    let mut standby = Replica::start(&world).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    leader.operator.signal("TERM");
    let (_, took) = world.next_holder(Some(&before)).await;
    println!("figure: handover after SIGTERM of the leader | {} ms", took.as_millis());
    assert!(took < Duration::from_secs(3), "{took:?}");
    let mut ended = leader.operator;
    assert_eq!(ended.end().await.code(), Some(0));
    until_leads(&mut standby.operator, true).await;
    world.apply(OTHER).await;
    world.wait_ready("other").await;
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    assert_eq!(world.aws.tunnels().len(), 2, "each was opened once");
}

#[tokio::test]
async fn a_call_that_hangs_does_not_hold_up_the_handover_and_its_answer_is_written() {
    let world = World::new().await;
    let settings = world.electing().await.flag("--aws-timeout", "8s").flag("--recovery-grace", "20s");
    let aws = AwsProxy::start(&world.aws, None).await;
    let mut held = aws.hold(Point::AfterCommit, |request: &Request| request.calls("OpenTunnel"));
    let leader = world.operator_with(&settings.clone().env("AWS_ENDPOINT_URL", aws.endpoint())).await;
    let before = world.holder().await.expect("it leads");
    let _standby = world.operator_with(&settings).await;
    world.apply(PLAIN).await;
    held.reached().await;
    leader.signal("TERM");
    let (_, took) = world.next_holder(Some(&before)).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    held.pass();
    let tunnel = world.wait_ready("plain").await;
    assert_eq!(tunnel.status.and_then(|s| s.token_generation), Some(1), "nobody had to adopt it");
    assert_eq!(world.aws.tunnels().len(), 1);
    let mut leader = leader;
    assert_eq!(leader.end().await.code(), Some(0));
}

#[tokio::test]
async fn when_the_leader_is_killed_the_other_takes_over_when_the_lease_has_run_out() {
    let world = World::new().await;
    let leader = Replica::start(&world).await;
    let before = world.holder().await.expect("it leads");
    let _standby = Replica::start(&world).await;
    leader.operator.kill();
    world.apply(PLAIN).await;
    let (_, took) = world.next_holder(Some(&before)).await;
    println!("figure: takeover after SIGKILL of the leader | {:.1} s", took.as_secs_f64());
    assert!(took > TIMING.lease - TIMING.renew * 2, "{took:?}: its lease had not run out");
    world.wait_ready("plain").await;
    assert_eq!(world.aws.tunnels().len(), 1);
}

/// Recreate, whose leader dies when AWS has carried this call out and before it has the answer.
async fn recreated_by_two_leaders(operation: &'static str) {
    let world = World::new().await;
    let aws = AwsProxy::start(&world.aws, None).await;
    let settings = world.electing().await;
    let leader = world.operator_with(&settings.clone().env("AWS_ENDPOINT_URL", aws.endpoint())).await;
    let before = world.holder().await.expect("it leads");
    let _standby = world.operator_with(&settings).await;
    let spec = |description: &str| PLAIN.replacen('{', &format!("{{spec: {{{description}}}, "), 1);
    world.apply(&spec("updatePolicy: Recreate, description: one")).await;
    let first = world.wait_ready("plain").await;
    let mut held = aws.hold(Point::AfterCommit, move |request: &Request| request.calls(operation));
    world.apply(&spec("updatePolicy: Recreate, description: two")).await;
    held.reached().await;
    leader.kill();
    world.next_holder(Some(&before)).await;
    let new = |t: &Tunnel| status(t).tunnel_id.is_some() && status(t).tunnel_id != status(&first).tunnel_id;
    world.wait_for("plain", "another tunnel", new).await;
    let second = world.wait_ready("plain").await;
    world.assert_live(&second, "plain-tokens").await;
    assert_eq!(status(&second).observed_generation, Some(2), "{operation}");
    let tunnels = world.aws.tunnels();
    let two = tunnels.iter().filter(|tunnel| tunnel.description.as_deref() == Some("two")).count();
    assert_eq!((tunnels.len(), two, world.calls_of("OpenTunnel")), (2, 1, 2), "{operation}: each was opened once");
}

#[tokio::test]
async fn recreate_is_finished_by_the_next_leader() {
    tokio::join!(recreated_by_two_leaders("CloseTunnel"), recreated_by_two_leaders("OpenTunnel"));
}

#[tokio::test]
async fn a_lease_that_is_deleted_by_hand_comes_back_and_no_two_lead() {
    let world = World::new().await;
    let mut leader = Replica::start(&world).await;
    let mut standby = Replica::start(&world).await;
    for _ in 0..3 {
        leases(&world).delete(LEASE, &DeleteParams::default()).await.expect("it is there");
        world.next_holder(None).await;
        assert!(!(leader.leads().await && standby.leads().await));
    }
    // Whoever of both made it anew: one leads in the end.
    let begun = Instant::now();
    while leader.leads().await == standby.leads().await {
        assert!(begun.elapsed() < TIMING.lease * 3, "not one of them leads");
        sleep(Duration::from_millis(50)).await;
    }
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    assert_eq!(world.aws.tunnels().len(), 1);
}

/// The leader's renewals fail in this way: it stands by before the other takes over.
async fn steps_down(refuses: impl AsyncFnOnce(&crate::support::api_proxy::ApiProxy)) -> String {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let electing = world.electing().await;
    let mut leader = world.operator_with(&electing.clone().via(&proxy)).await;
    let before = world.holder().await.expect("it leads");
    let mut standby = world.operator_with(&electing).await;
    refuses(&proxy).await;
    until_leads(&mut leader, false).await;
    assert!(!leads(&mut standby).await, "the other leads only later");
    assert_eq!(http_status(leader.address().await, "/readyz").await, Some(200));
    world.next_holder(Some(&before)).await;
    until_leads(&mut standby, true).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    assert!(!leads(&mut leader).await);
    leader.log()
}

#[tokio::test]
async fn a_leader_that_may_not_renew_stands_by_before_another_leads_and_says_what_to_grant() {
    let log = steps_down(async |proxy| {
        let denied = failure(StatusCode::FORBIDDEN, "leases.coordination.k8s.io is forbidden");
        proxy.answer(StatusCode::FORBIDDEN, denied, |r| is_lease(r) && r.method == "PUT");
    })
    .await;
    assert!(log.contains("is forbidden") && log.contains("grant get, create and update on leases"), "{log}");
}

#[tokio::test]
async fn a_leader_whose_renewals_fail_stands_by_before_another_leads() {
    steps_down(async |proxy| {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        proxy.answer(unavailable, failure(unavailable, "later"), is_lease);
    })
    .await;
}

#[tokio::test]
async fn an_answer_to_a_renewal_that_is_lost_is_no_end_of_leading() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut leader = world.operator_with(&world.electing().await.via(&proxy)).await;
    let puts = |r: &Request| is_lease(r) && r.method == "PUT";
    for lost in 1..=3 {
        proxy.lose_answer(puts);
        let begun = Instant::now();
        while proxy.count(puts) < lost * 2 {
            assert!(begun.elapsed() < TIMING.lease, "no renewal");
            assert!(leads(&mut leader).await);
            sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(leader.log().matches("leading").count(), 1);
}

#[tokio::test]
async fn a_container_that_is_restarted_in_its_pod_does_not_wait_for_the_lease_of_the_one_before() {
    let world = World::new().await;
    let settings = world.electing().await.env("POD_NAME", "operator-0").env("POD_UID", "1b4e28ba");
    let first = world.operator_with(&settings).await;
    let before = world.holder().await.expect("it leads");
    // Of the same name, as where a node was lost and the Pod is made anew elsewhere: the old one may still run.
    let other = world.operator_with(&settings.clone().env("POD_UID", "6ba7b810")).await;
    assert!(other.log().contains("standby") && !other.log().contains("leading"), "{}", other.log());
    assert_eq!(other.terminate().await.code(), Some(0));
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    first.kill();
    let _second = world.spawn(&settings);
    let (_, took) = world.next_holder(Some(&before)).await;
    println!("figure: the leader's container is restarted in its Pod | leads after {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5), "{took:?}");
    world.apply(OTHER).await;
    world.wait_ready("other").await;
    assert_eq!(world.calls_of("OpenTunnel"), 2);
}

#[tokio::test]
async fn without_the_rights_on_the_lease_it_ends_and_says_how_to_do_without() {
    let world = World::new().await;
    let settings: Settings = world.settings().flag("--leader-elect", "true").env("POD_NAMESPACE", &world.name);
    let mut operator = world.spawn(&settings);
    assert_eq!(operator.end().await.code(), Some(1));
    let log = operator.log();
    let denied = "no right to get, create, update the Lease opentunnel-operator";
    for words in [denied, &world.name, "POD_NAMESPACE", "--leader-elect=false"] {
        assert!(log.contains(words), "{words:?} is not told:\n{log}");
    }
}
