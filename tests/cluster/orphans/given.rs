//! What the tests of the sweep begin with, and what they look at.

use crate::support::api_proxy::Request;
use crate::support::operator::{Operator, Settings, http_get};
use crate::support::{LIMIT, World};
use aws_sdk_iotsecuretunneling::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_iotsecuretunneling::types::Tag;
use aws_sdk_iotsecuretunneling::{Client, Config};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use opentunnel_api::OWNER_TAG;
use secure_tunneling_emulator::{Call, TunnelStatus};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// The least Tunnel.
pub const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
/// The operators' cluster ID.
pub const CLUSTER: &str = "this-cluster";
/// More than five minutes.
pub const OLD: Duration = Duration::from_secs(301);

/// Settings with [`CLUSTER`].
pub fn settings(world: &World) -> Settings {
    world.settings().flag("--cluster-id", CLUSTER)
}

/// Somebody else's client of AWS.
pub fn sdk(world: &World) -> Client {
    let config = Config::builder().behavior_version(BehaviorVersion::latest()).endpoint_url(world.aws.endpoint());
    let credentials = Credentials::new("any", "any", None, None, "test");
    Client::from_conf(config.region(Region::new("us-east-1")).credentials_provider(credentials).build())
}

/// Opens a tunnel as somebody else, with this owner tag or none. Returns its ID.
pub async fn open(world: &World, owner: Option<&str>) -> String {
    let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build().expect("a tag");
    let tags = owner.map(|owner| tag(OWNER_TAG, owner)).into_iter().chain([tag("team", "edge")]);
    let opened = sdk(world).open_tunnel().set_tags(Some(tags.collect())).send().await.expect("it is opened");
    opened.tunnel_id.expect("an ID")
}

/// Opens one of a Tunnel of the world's namespace that is gone, or never was.
pub async fn open_orphan(world: &World) -> String {
    open(world, Some(&format!("{CLUSTER}/{}/{}/a", world.name, Uuid::new_v4()))).await
}

/// AWS's clock goes on, and AWS tells its time: by a tunnel of somebody else's.
pub async fn grow_old(world: &World) {
    world.aws.advance_clock(OLD);
    open(world, None).await;
}

pub fn is_open(world: &World, id: &str) -> bool {
    world.aws.tunnels().iter().any(|t| t.tunnel_id == id && t.status == TunnelStatus::Open)
}

pub async fn wait_closed(world: &World, id: &str) {
    let closed =
        world.aws.wait_tunnels(|all| all.iter().any(|t| t.tunnel_id == id && t.status == TunnelStatus::Closed));
    assert!(timeout(LIMIT, closed).await.is_ok(), "{id} is not closed: {:#?}", world.aws.calls());
}

pub fn count(calls: &[Call], operation: &str) -> usize {
    calls.iter().filter(|c| c.operation == operation).count()
}

/// How often each tunnel was described.
pub fn described(world: &World) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for call in world.aws.calls().into_iter().filter(|c| c.operation == "DescribeTunnel") {
        *times.entry(call.tunnel_id.expect("an ID")).or_default() += 1;
    }
    times
}

/// The same, but for those that are a Tunnel's own, or were: these are described now and then.
pub fn described_but(world: &World, own: &[&str]) -> BTreeMap<String, usize> {
    let mut times = described(world);
    times.retain(|id, _| !own.contains(&id.as_str()));
    times
}

pub async fn wait_described(world: &World, ids: &[String]) {
    let is = |calls: &[Call], id: &String| {
        calls.iter().any(|c| c.operation == "DescribeTunnel" && c.tunnel_id.as_ref() == Some(id))
    };
    let all = world.aws.wait_calls(|calls| ids.iter().all(|id| is(calls, id)));
    timeout(LIMIT, all).await.expect("each is described");
}

/// Returns after so many more rounds of the poller's, each of which could have led to something.
pub async fn rounds(world: &World, more: usize) {
    let wanted = count(&world.aws.calls(), "ListTunnels") + more;
    let rounds = world.aws.wait_calls(|calls| count(calls, "ListTunnels") >= wanted);
    timeout(LIMIT, rounds).await.expect("the poller polls");
}

/// Events about orphans: reason, name and UID of the Tunnel, note.
pub async fn events(world: &World) -> Vec<(String, String, String, String)> {
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

pub async fn wait_events(world: &World, count: usize) -> Vec<(String, String, String, String)> {
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
pub async fn metric(operator: &mut Operator, name: &str) -> f64 {
    let text = http_get(operator.address().await, "/metrics").await.expect("it answers");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("there is no {name}")).parse().expect("a number")
}

pub async fn wait_metric(operator: &mut Operator, name: &str, value: f64) {
    let deadline = Instant::now() + LIMIT;
    while metric(operator, name).await != value {
        assert!(Instant::now() < deadline, "{name} is never {value}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether it is the sweep's: a list of Tunnels, neither one of a watch nor out of a cache.
pub fn is_look(request: &Request) -> bool {
    let of_watch = ["watch=", "limit=", "resourceVersion="].iter().any(|part| request.query.contains(part));
    request.method == "GET" && request.path.ends_with("/tunnels") && !of_watch
}
