//! The sweep of orphans: it closes what no Tunnel owns, and nothing else, whatever the API server says.

use crate::support::api_proxy::{Point, Request, failure};
use crate::support::namespace::status;
use crate::support::operator::{Operator, Settings, http_get};
use crate::support::{LIMIT, World};
use aws_sdk_iotsecuretunneling::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_iotsecuretunneling::types::Tag;
use aws_sdk_iotsecuretunneling::{Client, Config};
use axum::http::StatusCode;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use opentunnel_operator::crd::{OWNER_TAG, Tunnel};
use secure_tunneling_emulator::{Call, Fault, FaultKind, Operation, TunnelStatus};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
const CLUSTER: &str = "this-cluster";
/// More than five minutes.
const OLD: Duration = Duration::from_secs(301);

fn settings(world: &World) -> Settings {
    world.settings().flag("--cluster-id", CLUSTER)
}

fn sdk(world: &World) -> Client {
    let config = Config::builder().behavior_version(BehaviorVersion::latest()).endpoint_url(world.aws.endpoint());
    let credentials = Credentials::new("any", "any", None, None, "test");
    Client::from_conf(config.region(Region::new("us-east-1")).credentials_provider(credentials).build())
}

/// Opens a tunnel as somebody else, with this owner tag or none. Returns its ID.
async fn open(world: &World, owner: Option<&str>) -> String {
    let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build().expect("a tag");
    let tags = owner.map(|owner| tag(OWNER_TAG, owner)).into_iter().chain([tag("team", "edge")]);
    let opened = sdk(world).open_tunnel().set_tags(Some(tags.collect())).send().await.expect("it is opened");
    opened.tunnel_id.expect("an ID")
}

/// Opens one of a Tunnel of the world's namespace that is gone, or never was.
async fn open_orphan(world: &World) -> String {
    open(world, Some(&format!("{CLUSTER}/{}/{}/a", world.name, Uuid::new_v4()))).await
}

/// AWS's clock goes on, and AWS tells its time: by a tunnel of somebody else's.
async fn grow_old(world: &World) {
    world.aws.advance_clock(OLD);
    open(world, None).await;
}

fn is_open(world: &World, id: &str) -> bool {
    world.aws.tunnels().iter().any(|t| t.tunnel_id == id && t.status == TunnelStatus::Open)
}

async fn wait_closed(world: &World, id: &str) {
    let closed =
        world.aws.wait_tunnels(|all| all.iter().any(|t| t.tunnel_id == id && t.status == TunnelStatus::Closed));
    assert!(timeout(LIMIT, closed).await.is_ok(), "{id} is not closed: {:#?}", world.aws.calls());
}

fn count(calls: &[Call], operation: &str) -> usize {
    calls.iter().filter(|c| c.operation == operation).count()
}

/// How often each tunnel was described.
fn described(world: &World) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for call in world.aws.calls().into_iter().filter(|c| c.operation == "DescribeTunnel") {
        *times.entry(call.tunnel_id.expect("an ID")).or_default() += 1;
    }
    times
}

async fn wait_described(world: &World, ids: &[String]) {
    let is = |calls: &[Call], id: &String| {
        calls.iter().any(|c| c.operation == "DescribeTunnel" && c.tunnel_id.as_ref() == Some(id))
    };
    let all = world.aws.wait_calls(|calls| ids.iter().all(|id| is(calls, id)));
    timeout(LIMIT, all).await.expect("each is described");
}

/// Returns after so many more rounds of the poller's, each of which could have led to something.
async fn rounds(world: &World, more: usize) {
    let wanted = count(&world.aws.calls(), "ListTunnels") + more;
    let rounds = world.aws.wait_calls(|calls| count(calls, "ListTunnels") >= wanted);
    timeout(LIMIT, rounds).await.expect("the poller polls");
}

/// Events about orphans: reason, name and UID of the Tunnel, note.
async fn events(world: &World) -> Vec<(String, String, String, String)> {
    let api: Api<Event> = Api::namespaced(world.client.clone(), &world.name);
    let list = api.list(&Default::default()).await.expect("Events can be listed");
    let told = list.into_iter().filter_map(|event| {
        let reason = event.reason.filter(|reason| reason.starts_with("Orphan"))?;
        let tunnel = event.regarding.expect("a Tunnel");
        let (name, uid) = (tunnel.name.unwrap_or_default(), tunnel.uid.unwrap_or_default());
        Some((reason, name, uid, event.note.unwrap_or_default()))
    });
    told.collect()
}

async fn wait_events(world: &World, count: usize) -> Vec<(String, String, String, String)> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let events = events(world).await;
        if events.len() >= count {
            return events;
        }
        assert!(Instant::now() < deadline, "{count} Events, not {events:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The value of a metric without labels.
async fn metric(operator: &mut Operator, name: &str) -> f64 {
    let text = http_get(operator.address().await, "/metrics").await.expect("it answers");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("there is no {name}")).parse().expect("a number")
}

async fn wait_metric(operator: &mut Operator, name: &str, value: f64) {
    let deadline = Instant::now() + LIMIT;
    while metric(operator, name).await != value {
        assert!(Instant::now() < deadline, "{name} is never {value}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether it is the sweep's: a list of Tunnels, neither one of a watch nor out of a cache.
fn is_look(request: &Request) -> bool {
    let of_watch = ["watch=", "limit=", "resourceVersion="].iter().any(|part| request.query.contains(part));
    request.method == "GET" && request.path.ends_with("/tunnels") && !of_watch
}

#[tokio::test]
async fn what_no_tunnel_owns_is_closed_and_all_else_stays() {
    let world = World::new().await;
    let nowhere = format!("{}-gone", world.name);
    let watched = format!("{},{nowhere}", world.name);
    let mut operator = world.operator_with(&settings(&world).flag("--watch-namespace", &watched)).await;
    world.apply(PLAIN).await;
    let plain = world.wait_ready("plain").await;
    let (uid, own) = (plain.uid().expect("a UID"), status(&plain).tunnel_id.clone().expect("an ID"));
    world.apply(&PLAIN.replace("{name: plain}}", "{name: retained}, spec: {deletionPolicy: Retain}}")).await;
    let retained = status(&world.wait_ready("retained").await).tunnel_id.clone().expect("an ID");
    world.delete("retained").await;
    world.wait_no_tunnel("retained").await;

    let tag = |cluster: &str, namespace: &str, uid: &str| format!("{cluster}/{namespace}/{uid}/b");
    let (gone_uid, name) = (Uuid::new_v4().to_string(), world.name.as_str());
    let gone = open(&world, Some(&tag(CLUSTER, name, &gone_uid))).await;
    let surplus = open(&world, Some(&tag(CLUSTER, name, &uid))).await;
    let namespace_gone = open(&world, Some(&tag(CLUSTER, &nowhere, &gone_uid))).await;
    let mut stay = vec![retained];
    for owner in [
        None,
        Some(tag("another-cluster", name, &gone_uid)),
        Some(tag("", name, &gone_uid)),
        Some(tag(CLUSTER, "default", &gone_uid)),
        Some(tag(CLUSTER, "..", &gone_uid)),
        Some(tag(CLUSTER, "", &gone_uid)),
        Some(format!("{CLUSTER}/{name}/{gone_uid}")),
        Some(CLUSTER.to_owned()),
    ] {
        stay.push(open(&world, owner.as_deref()).await);
    }
    world.aws.advance_clock(OLD);
    let young = open_orphan(&world).await;
    stay.push(young.clone());
    for id in [&gone, &surplus, &namespace_gone] {
        wait_closed(&world, id).await;
    }
    wait_described(&world, &stay).await;
    rounds(&world, 10).await;
    for id in stay.iter().chain([&own]) {
        assert!(is_open(&world, id), "{id} was closed: {:#?}", world.aws.tunnels());
    }
    let plain = world.wait_ready("plain").await;
    assert_eq!(status(&plain).tunnel_id.as_ref(), Some(&own));

    // What is described is remembered; what is closed is asked for once more, just before.
    let mut wanted: BTreeMap<String, usize> = stay.iter().map(|id| (id.clone(), 1)).collect();
    wanted.extend([&gone, &surplus, &namespace_gone].map(|id| (id.clone(), 2)));
    assert_eq!(described(&world), wanted);
    let told: BTreeSet<_> = wait_events(&world, 2).await.into_iter().collect();
    let closed = "OrphanClosed".to_owned();
    let of_gone = format!(
        "closed tunnel {gone}: the Tunnel that it was opened for (UID {gone_uid}, in namespace {name}) is gone"
    );
    let of_surplus = format!("closed tunnel {surplus}: it was opened for Tunnel plain, which has tunnel {own}");
    let expected = [(closed.clone(), String::new(), gone_uid, of_gone), (closed, "plain".to_owned(), uid, of_surplus)];
    assert_eq!(told, BTreeSet::from(expected));
    assert_eq!(metric(&mut operator, "opentunnel_orphans_closed_total").await, 3.0);
    assert_eq!(metric(&mut operator, "opentunnel_orphans").await, 0.0);

    // It is a matter of age.
    grow_old(&world).await;
    wait_closed(&world, &young).await;
    assert_eq!(count(&world.aws.calls(), "CloseTunnel"), 4);
    println!("figure: orphans | 4 closed, {} others stayed; each of these described once", stay.len());
}

#[tokio::test]
async fn a_tunnel_whose_finalizer_was_taken_off_while_no_operator_ran_is_closed_later() {
    let world = World::new().await;
    let first = world.operator_with(&settings(&world)).await;
    world.apply(PLAIN).await;
    let id = status(&world.wait_ready("plain").await).tunnel_id.clone().expect("an ID");
    first.kill();
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    world.tunnels().patch("plain", &PatchParams::default(), &none).await.expect("it can be patched");
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    // There is no Tunnel at all by now: nothing else makes the operator look.
    let _second = world.operator_with(&settings(&world)).await;
    grow_old(&world).await;
    wait_closed(&world, &id).await;
    let calls = world.aws.calls();
    let (lists, describes) = (count(&calls, "ListTunnels"), count(&calls, "DescribeTunnel"));
    println!("figure: orphans, finalizer taken off by hand | closed after {lists} lists and {describes} describes");
}

#[tokio::test]
async fn foreign_tunnels_are_described_once_however_often_they_are_listed_or_searched() {
    const FOREIGN: usize = 30;
    let world = World::new().await;
    let identity = world.identity().await;
    let _operator = world.operator_with(&settings(&world).with_identity(&identity)).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    world.wait_event("plain", "Normal Opened").await;
    let written = world.writes_by(&identity).await.len();
    let mut foreign = Vec::new();
    for _ in 0..FOREIGN {
        foreign.push(open(&world, None).await);
    }
    wait_described(&world, &foreign).await;
    rounds(&world, 10).await;
    let once: BTreeMap<_, _> = foreign.iter().map(|id| (id.clone(), 1)).collect();
    assert_eq!(described(&world), once);
    assert_eq!(world.writes_by(&identity).await.len(), written);
    // A Tunnel that comes with a finalizer may have been opened before: it is searched for.
    let searched = PLAIN.replace("{name: plain}", "{name: other, finalizers: [opentunnel.dev/close-tunnel]}");
    world.apply(&searched).await;
    world.wait_ready("other").await;
    let mut described = described(&world);
    described.retain(|id, _| foreign.contains(id));
    assert_eq!(described, once);
    let calls = world.aws.calls();
    let rounds = count(&calls, "ListTunnels");
    // Never more than a fifth of AWS's quota.
    let at: Vec<_> = calls.iter().filter(|c| c.operation == "DescribeTunnel").map(|c| c.at).collect();
    assert!(at.windows(2).all(|two| two[1].duration_since(two[0]).as_millis() >= 480), "{at:?}");
    println!(
        "figure: orphans, foreign tunnels | {FOREIGN} tunnels, {rounds} rounds, {FOREIGN} DescribeTunnel, 0 writes"
    );
}

#[tokio::test]
async fn a_tunnel_of_a_tunnel_that_records_none_is_adopted_and_not_closed() {
    let world = World::new().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::HangAfter)]);
    let slow = settings(&world).flag("--aws-timeout", "20s").flag("--recovery-grace", "26s");
    let first = world.operator_with(&slow).await;
    world.apply(PLAIN).await;
    let opened = world.aws.wait_calls(|calls| calls.iter().any(|c| c.operation == "OpenTunnel" && c.outcome.is_some()));
    timeout(LIMIT, opened).await.expect("it is opened");
    first.kill();
    world.aws.set_faults([]);
    let id = world.aws.tunnels()[0].tunnel_id.clone();
    // While the Secret's name is taken, nothing is searched for.
    world.apply("{apiVersion: v1, kind: Secret, metadata: {name: plain-tokens}}").await;
    let _second = world.operator_with(&settings(&world)).await;
    world.wait_condition("plain", ("Ready", "False", "SecretConflict")).await;
    grow_old(&world).await;
    wait_described(&world, std::slice::from_ref(&id)).await;
    rounds(&world, 3).await;
    assert!(is_open(&world, &id));
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    // That Secret was nobody's, so the watch of Secrets does not tell.
    assert!(world.kubectl(&["label", "tunnel", "plain", "looked=at"]).await.ok);
    let adopted = |t: &Tunnel| status(t).tunnel_id.as_ref() == Some(&id);
    world.wait_for("plain", "the tunnel adopted", adopted).await;
    world.wait_ready("plain").await;
    assert_eq!(count(&world.aws.calls(), "CloseTunnel"), 0);
}

#[tokio::test]
async fn while_the_api_server_refuses_nothing_is_closed() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut operator = world.operator_with(&settings(&world).via(&proxy)).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let orphan = open_orphan(&world).await;
    // 404 is what it says where the CRD is gone: that is no word on a Tunnel.
    let refusals = [
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
        StatusCode::GONE,
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    proxy.answer(refusals[0], failure(refusals[0], "no"), is_look);
    grow_old(&world).await;
    for refusal in refusals {
        proxy.answer_no_more();
        proxy.answer(refusal, failure(refusal, "no"), is_look);
        let before = proxy.count(is_look);
        let deadline = Instant::now() + LIMIT;
        while proxy.count(is_look) < before + 3 {
            assert!(Instant::now() < deadline, "it is not tried again after {refusal}");
            sleep(Duration::from_millis(50)).await;
        }
        assert!(is_open(&world, &orphan), "{refusal}");
    }
    assert_eq!(metric(&mut operator, "opentunnel_orphans").await, 0.0);
    proxy.answer_no_more();
    wait_closed(&world, &orphan).await;
    println!("figure: orphans, API server refuses | {} refusals, 3 looks each, 0 closed", refusals.len());
}

#[tokio::test]
async fn a_tunnel_whose_tag_was_taken_off_since_stays() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let _operator = world.operator_with(&settings(&world).via(&proxy)).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let orphan = open_orphan(&world).await;
    let arn = world.aws.tunnels().into_iter().find(|t| t.tunnel_id == orphan).expect("it is there").tunnel_arn;
    let mut look = proxy.hold(Point::BeforeForward, is_look);
    grow_old(&world).await;
    look.reached().await;
    let untag = sdk(&world).untag_resource().resource_arn(arn).tag_keys(OWNER_TAG);
    untag.send().await.expect("it is untagged");
    look.pass();
    let asked_again = |calls: &[Call]| {
        calls.iter().filter(|c| c.operation == "DescribeTunnel" && c.tunnel_id.as_ref() == Some(&orphan)).count() >= 2
    };
    timeout(LIMIT, world.aws.wait_calls(asked_again)).await.expect("it is asked for once more");
    rounds(&world, 5).await;
    assert!(is_open(&world, &orphan));
    assert_eq!(described(&world)[&orphan], 2, "it is nobody's by now");
}

#[tokio::test]
async fn a_dry_run_tells_once_and_closes_nothing_and_false_does_not_even_look() {
    let world = World::new().await;
    let identity = world.identity().await;
    let writes = async || world.writes_by(&identity).await.len();
    world.apply(PLAIN).await;
    let mut off = world.operator_with(&settings(&world).flag("--close-orphans", "false")).await;
    let plain = world.wait_ready("plain").await;
    let gone = open_orphan(&world).await;
    let tag = format!("{CLUSTER}/{}/{}/b", world.name, plain.uid().expect("a UID"));
    let surplus = open(&world, Some(&tag)).await;
    grow_old(&world).await;
    rounds(&world, 12).await;
    assert_eq!(metric(&mut off, "opentunnel_orphans").await, 0.0);
    assert_eq!(described(&world), BTreeMap::new());
    off.kill();

    let dry = settings(&world).with_identity(&identity).env("OPENTUNNEL_CLOSE_ORPHANS", "dry-run");
    let mut dry = world.operator_with(&dry).await;
    wait_metric(&mut dry, "opentunnel_orphans", 2.0).await;
    let told: BTreeSet<_> = wait_events(&world, 2).await.into_iter().map(|(reason, name, ..)| (reason, name)).collect();
    let found = "OrphanFound".to_owned();
    assert_eq!(told, BTreeSet::from([(found.clone(), String::new()), (found, "plain".into())]));
    rounds(&world, 10).await;
    assert_eq!(writes().await, 2, "one Event each, and nothing else");
    assert_eq!(dry.log().matches("--close-orphans=true would close").count(), 2);
    assert_eq!(metric(&mut dry, "opentunnel_orphans").await, 2.0);
    assert_eq!(metric(&mut dry, "opentunnel_orphans_closed_total").await, 0.0);
    assert_eq!(count(&world.aws.calls(), "CloseTunnel"), 0);
    dry.kill();

    let _for_real = world.operator_with(&settings(&world)).await;
    for id in [&gone, &surplus] {
        wait_closed(&world, id).await;
    }
}

#[tokio::test]
async fn deletions_do_not_wait_for_orphans_to_be_closed() {
    const ORPHANS: usize = 12;
    let world = World::new().await;
    // Of another namespace: namespaces take turns, but for them.
    let elsewhere = format!("{}-gone", world.name);
    let watched = format!("{},{elsewhere}", world.name);
    let settings = settings(&world).flag("--watch-namespace", &watched).flag("--close-rate", "2");
    let _operator = world.operator_with(&settings).await;
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    world.apply(&names.map(|name| PLAIN.replace("plain", name)).join("\n---\n")).await;
    for name in names {
        world.wait_ready(name).await;
    }
    let mut orphans = Vec::new();
    for _ in 0..ORPHANS {
        orphans.push(open(&world, Some(&format!("{CLUSTER}/{elsewhere}/{}/a", Uuid::new_v4()))).await);
    }
    wait_described(&world, &orphans).await;
    grow_old(&world).await;
    let begun = world.aws.wait_calls(|calls| count(calls, "CloseTunnel") >= 1);
    timeout(LIMIT, begun).await.expect("the sweep begins");
    let before = count(&world.aws.calls(), "CloseTunnel");
    for name in names {
        world.delete(name).await;
    }
    for name in names {
        world.wait_no_tunnel(name).await;
    }
    for id in &orphans {
        wait_closed(&world, id).await;
    }
    let calls = world.aws.calls();
    let closes: Vec<_> = calls.iter().filter(|c| c.operation == "CloseTunnel").collect();
    let is_orphan = |call: &&Call| call.tunnel_id.as_ref().is_some_and(|id| orphans.contains(id));
    let (last, _) = closes.iter().enumerate().rfind(|(_, c)| !is_orphan(c)).expect("deletions");
    let between = closes[before..=last].iter().filter(|c| is_orphan(c)).count();
    // One has its turn already, and each deletion takes a moment to come into the queue.
    assert!(between <= names.len() / 2, "{between} orphans were closed while {} deletions waited", names.len());
    assert_eq!(closes.len(), ORPHANS + names.len());
    println!(
        "figure: orphans, beside deletions | {ORPHANS} orphans, {} deletions, {between} orphans closed before the last of these",
        names.len()
    );
}
