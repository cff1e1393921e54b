//! The sweep of orphans: it closes what no Tunnel owns, and nothing else, whatever the API server says.

mod given;

use crate::support::api_proxy::{Point, failure};
use crate::support::namespace::status;
use crate::support::{LIMIT, World};
use axum::http::StatusCode;
use given::*;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use opentunnel_api::{OWNER_TAG, Tunnel};
use secure_tunneling_emulator::{Call, Fault, FaultKind, Operation};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

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
    let mut stay = vec![retained.clone()];
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
    let others = stay.iter().filter(|id| **id != retained);
    let mut wanted: BTreeMap<String, usize> = others.map(|id| (id.clone(), 1)).collect();
    wanted.extend([&gone, &surplus, &namespace_gone].map(|id| (id.clone(), 2)));
    assert_eq!(described_but(&world, &[&own, &retained]), wanted);
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
    let own = status(&world.tunnel("plain").await).tunnel_id.clone().expect("an ID");
    assert_eq!(described_but(&world, &[&own]), once);
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
async fn a_tunnel_that_comes_to_light_while_a_name_is_waited_for_is_adopted() {
    let world = World::new().await;
    world.apply("{apiVersion: v1, kind: Secret, metadata: {name: plain-tokens}}").await;
    let _operator = world.operator_with(&settings(&world)).await;
    world.apply(PLAIN).await;
    let waiting = world.wait_condition("plain", ("Ready", "False", "SecretConflict")).await;
    let uid = waiting.uid().expect("a UID");
    rounds(&world, 2).await;
    // A call that was under way when its claim was wiped, of a process that has died, is carried out now.
    let late = open(&world, Some(&format!("{CLUSTER}/{}/{uid}/b", world.name))).await;
    grow_old(&world).await;
    let named = |tunnel: &Tunnel| status(tunnel).tunnel_id.as_ref() == Some(&late);
    world.wait_for("plain", "the late tunnel", named).await;
    assert!(is_open(&world, &late));
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    let ready = world.wait_ready("plain").await;
    assert!(named(&ready));
    let opened = world.aws.tunnels().iter().filter(|t| t.tags.get(OWNER_TAG).is_some_and(|o| o.contains(&uid))).count();
    assert_eq!(opened, 1, "nothing was opened beside it");
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
    let own = status(&plain).tunnel_id.clone().expect("an ID");
    assert_eq!(described_but(&world, &[&own]), BTreeMap::new());
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
