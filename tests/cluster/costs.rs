//! What a Tunnel costs, counted exactly: all that an operator writes, anywhere in the cluster, from the
//! API server's audit log, and all that it asks of AWS, from the emulator's call log.

use crate::support::api_proxy::Request;
use crate::support::namespace::{main_condition, status};
use crate::support::operator::Operator;
use crate::support::world::Identity;
use crate::support::{LIMIT, World};
use kube::api::{ListParams, Patch, PatchParams};
use opentunnel_api::Tunnel;
use secure_tunneling_emulator::{Call, Fault, FaultKind, Operation, Quotas};
use serde_json::json;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

/// Everything that the operator wrote, as `patch tunnels/status`.
async fn writes(world: &World, identity: &Identity) -> Vec<String> {
    let all = world.writes_by(identity).await.into_iter();
    all.map(|w| format!("{} {}", w.verb, w.resource)).filter(|w| !w.ends_with(" leases")).collect()
}

/// All calls of AWS but the poll and the rolling refresh.
fn calls(world: &World) -> Vec<String> {
    let calls = world.aws.calls().into_iter().map(|call| call.operation);
    calls.filter(|operation| !["ListTunnels", "DescribeTunnel"].contains(&operation.as_str())).collect()
}

fn polls(calls: &[Call]) -> usize {
    calls.iter().filter(|c| c.operation == "ListTunnels").count()
}

async fn wait_polls(world: &World, count: usize) {
    timeout(LIMIT, world.aws.wait_calls(|calls| polls(calls) >= count)).await.expect("the poller polls");
}

#[tokio::test]
async fn an_opening_costs_two_writes_one_for_each_secret_one_event_and_one_call() {
    let two = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}, spec: {secrets: [
        {name: a, clientMode: SOURCE}, {name: b, clientMode: DESTINATION}]}}";
    for (manifest, secrets) in [(PLAIN, 1), (two, 2)] {
        let world = World::new().await;
        let identity = world.identity().await;
        let _operator = world.operator_with(&world.settings().with_identity(&identity)).await;
        world.apply(manifest).await;
        world.wait_ready("plain").await;
        world.wait_event("plain", "Normal Opened").await;
        wait_polls(&world, polls(&world.aws.calls()) + 3).await;
        // A dry run comes first, once for the namespace.
        let mut wanted = vec!["create secrets", "patch tunnels"];
        wanted.extend(vec!["create secrets"; secrets]);
        wanted.extend(["patch tunnels/status", "create events"]);
        assert_eq!(writes(&world, &identity).await, wanted);
        assert_eq!(calls(&world), ["OpenTunnel"]);
        println!("a Tunnel with {secrets} Secrets: {} writes, 1 call", wanted.len() - 1);
    }
}

#[tokio::test]
async fn a_crash_in_an_opening_costs_one_write_and_one_event_more_and_no_second_tunnel() {
    let world = World::new().await;
    let identity = world.identity().await;
    let settings = world.settings().with_identity(&identity);
    let operator = world.operator_with(&settings).await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::HangAfter)]);
    world.apply(PLAIN).await;
    let opened = |calls: &[Call]| calls.iter().any(|c| c.operation == "OpenTunnel");
    timeout(LIMIT, world.aws.wait_calls(opened)).await.expect("a tunnel is opened");
    operator.kill();
    let _operator = world.operator_with(&settings).await;
    world.wait_ready("plain").await;
    world.wait_event("plain", "Normal TokensRotated").await;
    // After the dry run and the claim, the operator is dead. The next one adopts, and makes new tokens.
    let event = "create events";
    let adopted = ["patch tunnels/status", event, "create secrets", "patch tunnels/status", event];
    assert_eq!(writes(&world, &identity).await, [&["create secrets", "patch tunnels"][..], &adopted].concat());
    assert_eq!(calls(&world), ["OpenTunnel", "TagResource", "RotateTunnelAccessToken"]);
}

#[tokio::test]
async fn at_rest_a_minute_costs_no_write_and_no_call_but_the_poll() {
    let world = World::new().await;
    let identity = world.identity().await;
    let settings = world.settings().with_identity(&identity).flag("--poll-interval", "10s");
    let _operator = world.operator_with(&settings).await;
    for name in ["a", "b", "c"] {
        world.apply(&PLAIN.replace("plain", name)).await;
        world.wait_ready(name).await;
        world.wait_event(name, "Normal Opened").await;
    }
    let (written, called, polled) = (writes(&world, &identity).await, calls(&world), polls(&world.aws.calls()));
    // A minute is what is measured: there is nothing to wait for.
    sleep(Duration::from_secs(60)).await;
    assert_eq!(writes(&world, &identity).await, written);
    assert_eq!(calls(&world), called);
    let polled = polls(&world.aws.calls()) - polled;
    assert!((4..=7).contains(&polled), "one ListTunnels each 10 s, not {polled} in a minute");
    println!("in 60 s at rest: 0 writes, 0 calls, {polled} rounds of ListTunnels");
}

#[tokio::test]
#[ignore = "minutes: make costs"]
async fn a_thousand_open_tunnels_at_rest_cost_ten_lists_a_round_and_two_describes_a_second_at_most() {
    const COUNT: usize = 1000;
    const REST: Duration = Duration::from_secs(60);
    let world = World::new().await;
    let identity = world.identity().await;
    let settings = world.settings().with_identity(&identity).flag("--poll-interval", "10s");
    let _operator = world.operator_with(&settings).await;
    let manifests: Vec<_> = (0..COUNT).map(|n| PLAIN.replace("plain", &format!("t{n}"))).collect();
    world.apply(&manifests.join("\n---\n")).await;
    let ready = |tunnel: &Tunnel| main_condition(tunnel).is_some_and(|c| c.reason == "Open");
    let deadline = Instant::now() + 5 * LIMIT;
    while world.tunnels().list(&ListParams::default()).await.expect("a list").iter().filter(|t| ready(t)).count()
        < COUNT
    {
        assert!(Instant::now() < deadline, "not all of {COUNT} Tunnels are Ready");
        sleep(Duration::from_secs(1)).await;
    }
    // The last Events: that a destination has not connected is told after two minutes.
    let mut written = writes(&world, &identity).await.len();
    loop {
        sleep(Duration::from_secs(130)).await;
        match writes(&world, &identity).await.len() {
            same if same == written => break,
            more => written = more,
        }
    }
    let called = world.aws.calls().len();
    sleep(REST).await;
    let calls = world.aws.calls();
    let count = |operation: &str| calls[called..].iter().filter(|call| call.operation == operation).count();
    let (lists, describes) = (count("ListTunnels"), count("DescribeTunnel"));
    println!("figure: {COUNT} open Tunnels at rest, {REST:?} | {lists} ListTunnels, {describes} DescribeTunnel");
    assert_eq!(writes(&world, &identity).await.len(), written);
    assert_eq!(lists + describes, calls.len() - called, "no other call");
    // A list takes a second, so that a round takes eleven.
    assert!((40..=70).contains(&lists), "{lists} ListTunnels");
    assert!(describes <= 2 * REST.as_secs() as usize + 1, "{describes} DescribeTunnel");
}

/// Returns once the operator has looked at as many Tunnels, and waits.
async fn all_reconciled(operator: &Operator, count: usize) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let log = operator.log();
        let at_rest = log.lines().filter(|line| line.contains("step=Wait("));
        let names: HashSet<_> = at_rest.filter_map(|line| line.split("tunnel=\"").nth(1)?.split('"').next()).collect();
        if names.len() >= count {
            return;
        }
        assert!(Instant::now() < deadline, "{} of {count} Tunnels were looked at", names.len());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_restart_with_200_open_tunnels_writes_nothing_and_lists_tunnels_twice() {
    const COUNT: usize = 200;
    let world = World::new().await;
    let quiet = world.settings().flag("--poll-interval", "1h");
    let first = world.operator_with(&quiet).await;
    let names: Vec<String> = (0..COUNT).map(|n| format!("t{n}")).collect();
    let manifests: Vec<_> = names.iter().map(|name| PLAIN.replace("plain", name)).collect();
    world.apply(&manifests.join("\n---\n")).await;
    for name in &names {
        world.wait_ready(name).await;
        world.wait_event(name, "Normal Opened").await;
    }
    first.kill();
    let identity = world.identity().await;
    let before = world.aws.calls().len();
    let second = world.operator_with(&quiet.with_identity(&identity)).await;
    all_reconciled(&second, COUNT).await;
    let lists = COUNT.div_ceil(100);
    timeout(LIMIT, world.aws.wait_calls(|calls| calls.len() >= before + lists)).await.expect("the poller polls");
    assert_eq!(writes(&world, &identity).await, [""; 0]);
    let called: Vec<_> = world.aws.calls()[before..].iter().map(|call| call.operation.clone()).collect();
    // The rolling refresh has begun.
    assert!(called.iter().filter(|operation| *operation == "ListTunnels").count() == lists, "{called:?}");
    assert!(called.iter().all(|operation| ["ListTunnels", "DescribeTunnel"].contains(&operation.as_str())));
    println!("a restart with {COUNT} open Tunnels: 0 writes, {lists} ListTunnels");
}

#[tokio::test]
async fn a_restart_reads_no_secret_that_nobody_has_touched() {
    const COUNT: usize = 10;
    let world = World::new().await;
    let first = world.operator().await;
    let names: Vec<String> = (0..COUNT).map(|n| format!("t{n}")).collect();
    for name in &names {
        world.apply(&PLAIN.replace("plain", name)).await;
        world.wait_ready(name).await;
    }
    // Another controller adds a key, which is no edit.
    let added = json!({"data": {"added": "YQ=="}});
    world.secrets().patch("t3-tokens", &PatchParams::default(), &Patch::Merge(added)).await.expect("it is there");
    first.kill();
    let proxy = world.api_proxy().await;
    let second = world.operator_with(&world.settings().via(&proxy)).await;
    all_reconciled(&second, COUNT).await;
    // The watches have begun by now; what else was asked for Tunnels or Secrets by name?
    let by_name = |r: &Request| r.path.contains("/secrets/") || r.path.contains("/tunnels/");
    assert_eq!(proxy.count(|r| by_name(r) && !r.path.ends_with("/t3-tokens")), 0, "no request for each Tunnel");
    assert_eq!(proxy.count(by_name), 1, "what was touched is looked at once");

    // What is wanted of a Secret is still noticed.
    world.secrets().delete("t5-tokens", &Default::default()).await.expect("it is there");
    world.wait_event("t5", "Normal TokensRotated").await;
    let edit = json!({"stringData": {"sourceAccessToken": "edited"}});
    world.secrets().patch("t3-tokens", &PatchParams::default(), &Patch::Merge(edit)).await.expect("it is there");
    world.wait_event("t3", "Normal TokensRotated").await;
    for name in ["t3", "t5"] {
        world.wait_ready(name).await;
    }
}

#[tokio::test]
async fn a_search_describes_no_tunnel_that_this_process_has_opened_for_another() {
    let world = World::new().await;
    // After the first, which finds nothing, there is no round but for searches.
    let _operator = world.operator_with(&world.settings().flag("--poll-interval", "3600s")).await;
    let plain = |name: &str| PLAIN.replace("plain", name);
    for name in ["a", "b", "c"] {
        world.apply(&plain(name)).await;
        world.wait_ready(name).await;
    }
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::LimitExceeded).times(u32::MAX)]);
    world.apply(&plain("late")).await;
    world.wait_condition("late", ("Ready", "False", "LimitExceeded")).await;
    let wiped = json!({"metadata": {"annotations": {opentunnel_api::OPENING_ANNOTATION: null}}});
    world.tunnels().patch("late", &PatchParams::default(), &Patch::Merge(&wiped)).await.unwrap();
    world.aws.set_faults([]);
    world.wait_ready("late").await;
    let calls = world.aws.calls();
    assert!(polls(&calls) > 0, "it was searched for");
    assert_eq!(calls.iter().filter(|c| c.operation == "DescribeTunnel").count(), 0, "those of a, b and c are known");
}

#[tokio::test]
async fn a_tunnel_that_waits_writes_why_once_and_nothing_more() {
    let world = World::new().await;
    let identity = world.identity().await;
    world.aws.set_quotas(&Quotas::none().max_open_tunnels(0));
    let _operator = world.operator_with(&world.settings().with_identity(&identity)).await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "LimitExceeded")).await;
    assert!(main_condition(&tunnel).is_some_and(|c| c.message.contains("LimitExceededException")));
    world.wait_event("plain", "Warning LimitExceeded").await;
    let wanted = ["create secrets", "patch tunnels", "patch tunnels/status", "create events"];
    assert_eq!(writes(&world, &identity).await, wanted);
    let tried = calls(&world).len();
    let more = world.aws.wait_calls(|calls| calls.iter().filter(|c| c.operation == "OpenTunnel").count() >= tried + 3);
    timeout(LIMIT, more).await.expect("it is tried again");
    assert_eq!(writes(&world, &identity).await, wanted);
    // Once there is room it goes on with the claim that stands.
    world.aws.set_quotas(&Quotas::none());
    world.wait_ready("plain").await;
    world.wait_event("plain", "Normal Opened").await;
    let opened = ["create secrets", "patch tunnels/status", "create events"];
    assert_eq!(writes(&world, &identity).await, [&wanted[..], &opened].concat());
}

#[tokio::test]
async fn a_deletion_an_end_and_a_lost_secret_cost_what_they_must() {
    let world = World::new().await;
    let identity = world.identity().await;
    let _operator = world.operator_with(&world.settings().with_identity(&identity)).await;
    let mut seen = 0;
    let mut since = async || {
        let all = writes(&world, &identity).await;
        let new = all[seen..].to_vec();
        seen = all.len();
        new
    };
    for name in ["plain", "other"] {
        world.apply(&PLAIN.replace("plain", name)).await;
        world.wait_ready(name).await;
        world.wait_event(name, "Normal Opened").await;
    }
    since().await;

    world.secrets().delete("plain-tokens", &Default::default()).await.expect("it is there");
    world.wait_event("plain", "Normal TokensRotated").await;
    // The trial whether a Secret would be taken changes nothing: a dry run.
    let rotation =
        ["create secrets", "patch tunnels/status", "create secrets", "patch tunnels/status", "create events"];
    assert_eq!(since().await, rotation);

    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    world.wait_event("plain", "Normal Closed").await;
    assert_eq!(since().await, ["create events", "patch tunnels"]);

    let other = world.tunnel("other").await;
    world.aws.close(status(&other).tunnel_id.as_ref().expect("an ID")).expect("it is open");
    world.wait_event("other", "Normal Closed").await;
    assert_eq!(since().await, ["delete secrets", "patch tunnels/status", "create events"]);
    let expected = ["OpenTunnel", "OpenTunnel", "TagResource", "RotateTunnelAccessToken", "CloseTunnel"];
    assert_eq!(calls(&world), expected);
}

#[tokio::test]
async fn a_secret_more_and_one_of_two_that_is_lost_cost_what_they_must() {
    let world = World::new().await;
    let identity = world.identity().await;
    let _operator = world.operator_with(&world.settings().with_identity(&identity)).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    world.wait_event("plain", "Normal Opened").await;
    let before = writes(&world, &identity).await.len();
    // A side that the present one holds.
    let two = PLAIN.replace("{name: plain}}", "{name: plain}, spec: {secrets: [{name: plain-tokens}, {name: more}]}}");
    world.apply(&two).await;
    world.wait_event("plain", "Normal SecretsUpdated").await;
    let more = ["create secrets", "create secrets", "patch tunnels/status", "create events"];
    assert_eq!(writes(&world, &identity).await[before..], more, "a trial, the Secret, the status, the Event");

    let other = two.replace("plain", "other").replace("name: more", "name: third");
    world.apply(&other).await;
    world.wait_ready("other").await;
    world.wait_event("other", "Normal Opened").await;
    let before = writes(&world, &identity).await.len();
    world.secrets().delete("third", &Default::default()).await.expect("it is there");
    world.wait_event("other", "Normal TokensRotated").await;
    let claim = "patch tunnels/status";
    let lost = ["create secrets", claim, "update secrets", "create secrets", "patch tunnels/status", "create events"];
    assert_eq!(
        writes(&world, &identity).await[before..],
        lost,
        "a trial, the claim, each Secret, the status, the Event"
    );
    assert_eq!(calls(&world), ["OpenTunnel", "OpenTunnel", "TagResource", "RotateTunnelAccessToken"]);
}
