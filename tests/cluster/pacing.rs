//! AWS's quotas are kept, the queue is fair, and a Tunnel that waits costs nothing.

use crate::support::namespace::{Namespace, main_condition};
use crate::support::{LIMIT, World};
use futures::future::{join_all, try_join_all};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use opentunnel_api::{Tunnel, TunnelSpec};
use secure_tunneling_emulator::{Call, Fault, FaultKind, Operation, Quotas, TunnelInfo};
use serde_json::json;
use std::collections::HashSet;
use tokio::time::timeout;

fn open_calls(world: &World) -> Vec<Call> {
    world.aws.calls().into_iter().filter(|c| c.operation == "OpenTunnel").collect()
}

/// The namespace of a tunnel's Tunnel, by its owner tag.
fn namespace(tunnel: &TunnelInfo) -> String {
    tunnel.tags["opentunnel.dev/owner"].split('/').nth(1).expect("a namespace").to_owned()
}

/// Tunnels t0, t1, … in a namespace.
async fn apply(namespace: &Namespace, count: usize) {
    let creates = (0..count).map(|number| {
        let api = namespace.tunnels();
        let tunnel = Tunnel::new(&format!("t{number}"), TunnelSpec::default());
        async move { api.create(&PostParams::default(), &tunnel).await.map(drop) }
    });
    try_join_all(creates).await.expect("they are accepted");
}

/// Five Tunnels in each of five namespaces.
async fn apply_25(world: &World, others: &[Namespace]) {
    join_all(std::iter::once(&**world).chain(others).map(|namespace| apply(namespace, 5))).await;
}

async fn four_more() -> Vec<Namespace> {
    let mut namespaces = Vec::new();
    for _ in 0..4 {
        namespaces.push(Namespace::new().await);
    }
    namespaces
}

fn watched(world: &World, others: &[Namespace]) -> String {
    std::iter::once(&world.name).chain(others.iter().map(|n| &n.name)).cloned().collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn twenty_five_tunnels_against_one_open_tunnel_a_second_all_get_through_in_turn() {
    let world = World::new().await;
    let others = four_more().await;
    world.aws.set_quotas(&Quotas::aws());
    let settings = world.settings().flag("--open-rate", "1").flag("--watch-namespace", &watched(&world, &others));
    // All are there before the first turn: whoever comes after it has its turn later.
    apply_25(&world, &others).await;
    let _operator = world.operator_with(&settings).await;
    let mut last_ready = Timestamp::MIN;
    for namespace in std::iter::once(&*world).chain(&others) {
        for number in 0..5 {
            let tunnel = namespace.wait_ready(&format!("t{number}")).await;
            last_ready = last_ready.max(main_condition(&tunnel).expect("Ready").last_transition_time);
        }
    }
    let calls = open_calls(&world);
    assert!(calls.len() <= 27, "{} OpenTunnel calls for 25 Tunnels", calls.len());
    let took = last_ready.duration_since(calls[0].at).as_secs();
    println!("{} OpenTunnel calls; the last one was Ready {took} s after the first call", calls.len());
    assert!(took <= 28, "the last one was Ready {took} s after the first call");
    let opened: Vec<_> = calls.iter().filter(|c| c.succeeded()).filter_map(|c| c.tunnel_id.clone()).collect();
    let tunnels = world.aws.tunnels();
    let of = |id: &String| namespace(tunnels.iter().find(|t| t.tunnel_id == *id).expect("listed"));
    let turns: Vec<String> = opened.iter().map(of).collect();
    let distinct = |turns: &[String]| turns.iter().collect::<HashSet<_>>().len();
    // Once all namespaces have come into the queue, none is two ahead of one that waits, or three where a turn has lapsed:
    // its holder was not ready within 5 s, on a machine that does much else.
    let come = (0..turns.len()).find(|at| distinct(&turns[..=*at]) == 5).expect("all of them");
    for at in come..turns.len() {
        let so_far = &turns[..=at];
        let count = |of: &String| so_far.iter().filter(|turn| *turn == of).count();
        let counts = turns[..=come].iter().map(count);
        let (least, most) = (counts.clone().min(), counts.max());
        assert!(most <= least.map(|least| least + 2), "each namespace has its turn: {turns:?}");
    }
}

#[tokio::test]
async fn a_crowd_in_one_namespace_holds_up_no_other_namespace_and_no_deletion() {
    const CROWD: usize = 150;
    let world = World::new().await;
    let other = Namespace::new().await;
    let watched = watched(&world, std::slice::from_ref(&other));
    let settings = world.settings().flag("--open-rate", "4").flag("--watch-namespace", &watched);
    apply(&world, CROWD).await;
    let _operator = world.operator_with(&settings).await;
    let opened =
        |count| world.aws.wait_calls(move |c| c.iter().filter(|c| c.operation == "OpenTunnel").count() >= count);
    timeout(LIMIT, opened(1)).await.expect("the crowd is being opened");
    let before = open_calls(&world).len();
    apply(&other, 3).await;
    for name in ["t0", "t1", "t2"] {
        other.wait_ready(name).await;
    }
    let tunnels = world.aws.tunnels();
    let theirs: HashSet<_> = tunnels.iter().filter(|t| namespace(t) == other.name).map(|t| &t.tunnel_id).collect();
    let calls = open_calls(&world);
    let own = |call: &Call| call.tunnel_id.as_ref().is_some_and(|id| theirs.contains(id));
    let first = calls.iter().position(own).expect("the first of them");
    let last = calls.iter().rposition(own).expect("the last of them");
    println!(
        "figure: fairness, 3 Tunnels of another namespace than {CROWD} | the first after {} openings, the last after {}",
        first - before,
        last - before
    );
    // Every second turn is theirs, once they are in the queue; turns of 2 s at most were given before.
    assert!(last - first <= 4 + 8, "{} openings, three of them their own", last - first + 1);
    assert!(first - before < CROWD / 3, "they wait behind the crowd: {} openings before the first", first - before);

    // The first of the crowd is open by now, and its deletion does not wait for the last.
    let tunnels = world.tunnels().list(&ListParams::default()).await.expect("a list");
    let open = tunnels.into_iter().find(|t| main_condition(t).is_some_and(|c| c.reason == "Open")).expect("one");
    let name = open.metadata.name.expect("a name");
    world.delete(&name).await;
    world.wait_no_tunnel(&name).await;
    assert!(open_calls(&world).len() < CROWD + 3, "the crowd waits still");
}

#[tokio::test]
async fn new_tags_of_many_tunnels_keep_to_awss_quota_and_hold_up_no_opening() {
    const CROWD: usize = 60;
    let world = World::new().await;
    let other = Namespace::new().await;
    let settings = world.settings().flag("--watch-namespace", &watched(&world, std::slice::from_ref(&other)));
    apply(&world, CROWD).await;
    let _operator = world.operator_with(&settings).await;
    let names: Vec<String> = (0..CROWD).map(|n| format!("t{n}")).collect();
    for name in &names {
        world.wait_ready(name).await;
    }
    world.aws.set_quotas(&Quotas::aws());
    let (api, params) = (world.tunnels(), PatchParams::default());
    let tag = Patch::Merge(json!({"spec": {"tags": [{"key": "team", "value": "edge"}]}}));
    try_join_all(names.iter().map(|name| api.patch(name, &params, &tag))).await.expect("they are accepted");
    apply(&other, 1).await;
    other.wait_ready("t0").await;
    let tagged = |calls: &[Call]| calls.iter().filter(|c| c.operation == "TagResource").count();
    assert!(tagged(&world.aws.calls()) < CROWD, "it waits behind the tags");
    timeout(LIMIT, world.aws.wait_tunnels(|all| all.iter().filter(|t| t.tags.contains_key("team")).count() == CROWD))
        .await
        .expect("all are tagged");
    let refused: Vec<Call> = world.aws.calls().into_iter().filter(|c| !c.succeeded()).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(tagged(&world.aws.calls()), CROWD);
}

#[tokio::test]
async fn a_crowd_that_waits_for_room_writes_why_once_each_and_nothing_more() {
    const CROWD: usize = 20;
    let world = World::new().await;
    world.aws.set_quotas(&Quotas::none().max_open_tunnels(0));
    let _operator = world.operator().await;
    apply(&world, CROWD).await;
    for n in 0..CROWD {
        world.wait_condition(&format!("t{n}"), ("Ready", "False", "LimitExceeded")).await;
        world.wait_event(&format!("t{n}"), "Warning LimitExceeded").await;
    }
    let before = (world.writes().await.len(), open_calls(&world).len());
    let more = world.aws.wait_calls(|c| c.iter().filter(|c| c.operation == "OpenTunnel").count() > before.1);
    timeout(LIMIT, more).await.expect("it is tried again");
    let writes = world.writes().await;
    // Why it waits, and the Event, each; the claims of those whose call had left; one trial of a Secret.
    assert!(writes.len() <= 3 * CROWD + 1, "{} writes", writes.len());
    assert_eq!(writes.len(), before.0, "{:#?}", &writes[before.0..]);
}

#[tokio::test]
async fn with_limit_exceeded_for_the_first_six_calls_all_get_through() {
    let world = World::new().await;
    let others = four_more().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::LimitExceeded).times(6)]);
    let settings = world.settings().flag("--open-rate", "20").flag("--watch-namespace", &watched(&world, &others));
    let _operator = world.operator_with(&settings).await;
    apply_25(&world, &others).await;
    for namespace in std::iter::once(&*world).chain(&others) {
        for number in 0..5 {
            namespace.wait_ready(&format!("t{number}")).await;
        }
    }
    let outcomes: Vec<_> = open_calls(&world).iter().map(Call::succeeded).collect();
    assert_eq!(outcomes.len(), 31, "six refused, 25 opened");
    assert_eq!(outcomes.iter().filter(|ok| **ok).count(), 25);
}

#[tokio::test]
async fn a_tunnel_that_waits_for_room_says_so_once_and_goes_on_when_there_is_room() {
    let world = World::new().await;
    world.aws.set_quotas(&Quotas::none().max_open_tunnels(1));
    let _operator = world.operator().await;
    let manifest = |name| format!("{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: {name}}}}}");
    world.apply(&manifest("first")).await;
    world.wait_ready("first").await;
    world.apply(&manifest("second")).await;
    let waiting = world.wait_condition("second", ("Ready", "False", "LimitExceeded")).await;
    let message = main_condition(&waiting).expect("a condition").message.clone();
    assert!(message.contains("LimitExceededException"), "AWS's words: {message}");
    // Two more probes go by without a write.
    let before = (world.writes().await.len(), open_calls(&world).len());
    timeout(LIMIT, world.aws.wait_calls(|c| c.iter().filter(|c| c.operation == "OpenTunnel").count() >= before.1 + 2))
        .await
        .expect("it is tried again");
    assert_eq!(world.writes().await.len(), before.0, "{:#?}", world.writes().await);
    assert_eq!(world.events("second").await, ["Warning LimitExceeded"]);
    world.delete("first").await;
    world.wait_ready("second").await;
    let own: Vec<_> = world.writes().await.into_iter().filter(|w| w.name == "second").map(|w| w.to_string()).collect();
    assert_eq!(own.len(), 3, "claim, LimitExceeded, Ready: {own:#?}");
}
