//! The main job: apply a Tunnel, get its tokens in a Secret, delete it.

use crate::support::World;
use crate::support::audit::Write;
use crate::support::manifests::manifest;
use crate::support::namespace::{secret_names, status};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use opentunnel_api::{SecretStatus, Tunnel, TunnelState};
use secure_tunneling_emulator::{LiveTokens, TunnelInfo, TunnelStatus};
use serde_json::json;
use std::collections::BTreeMap;

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

/// A Tunnel called `a` with these `spec.secrets`.
fn with_secrets(secrets: &str) -> String {
    format!(
        "{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: a}}, spec: {{secrets: {secrets}}}}}"
    )
}

/// The only tunnel that AWS has, and its tokens.
fn only_tunnel(world: &World) -> (TunnelInfo, LiveTokens) {
    let tunnels = world.aws.tunnels();
    assert_eq!(tunnels.len(), 1, "{tunnels:#?}");
    let live = world.aws.live_tokens(&tunnels[0].tunnel_id).expect("it is open");
    (tunnels[0].clone(), live)
}

/// AWS's calls, but for the poll.
fn calls(world: &World) -> Vec<String> {
    let calls = world.aws.calls().into_iter().map(|call| call.operation);
    calls.filter(|operation| !["ListTunnels", "DescribeTunnel"].contains(&operation.as_str())).collect()
}

/// The keys of a Secret's data; the values are checked: tokens are the live ones, client tokens are what
/// AWS takes for one (`^[a-zA-Z0-9-]{32,128}$`) and no two are alike.
fn checked_keys(data: &BTreeMap<String, String>, id: &str, live: &LiveTokens) -> Vec<String> {
    let source_alone = !data.contains_key("destinationAccessToken");
    let (token, client) = match source_alone {
        true => (&live.source, data.get("sourceClientToken")),
        false => (&live.destination, data.get("destinationClientToken")),
    };
    for (key, value) in data {
        let ok = match key.as_str() {
            "sourceAccessToken" => *value == live.source,
            "destinationAccessToken" => *value == live.destination,
            "sourceClientToken" | "destinationClientToken" => {
                let chars = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
                chars && (32..=128).contains(&value.len()) && data.values().filter(|v| *v == value).count() <= 2
            }
            "AWSIOT_TUNNEL_ACCESS_TOKEN" => value == token,
            "AWSIOT_TUNNEL_CLIENT_TOKEN" => Some(value) == client,
            "AWSIOT_TUNNEL_REGION" | "region" => value == "us-east-1",
            "tunnelId" => value == id,
            _ => false,
        };
        assert!(ok, "{key} has not the value that it should have");
    }
    data.keys().cloned().collect()
}

#[tokio::test]
async fn an_applied_tunnel_is_opened_as_written_and_its_tokens_come_into_a_secret() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&manifest("full.yaml").replace("clientMode: SOURCE", "clientMode: ALL")).await;
    let tunnel = world.wait_ready("sensor-42").await;
    let (opened, live) = only_tunnel(&world);

    assert_eq!(opened.description.as_deref(), Some("ssh to sensor 42"));
    assert_eq!(opened.thing_name.as_deref(), Some("sensor-42"));
    assert_eq!(opened.services, ["SSH", "HTTP"]);
    let uid = tunnel.metadata.uid.as_deref().expect("a UID");
    let owner = &opened.tags["opentunnel.dev/owner"];
    let part: Vec<&str> = owner.split('/').collect();
    assert_eq!((part.len(), part[1], part[2]), (4, world.name.as_str(), uid), "{owner}");
    let tags: Vec<_> = opened.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let own = [("opentunnel.dev/generation", "1"), ("opentunnel.dev/owner", owner.as_str())];
    assert_eq!(tags, [&own[..], &[("site", "Zürich"), ("team", "edge")]].concat());
    assert_eq!(opened.expires_at.duration_since(opened.created_at).as_mins(), 60);

    let data = world.secret_data("sensor-42-tokens").await.expect("a Secret");
    let keys = [
        "destinationAccessToken",
        "destinationClientToken",
        "region",
        "sourceAccessToken",
        "sourceClientToken",
        "tunnelId",
    ];
    assert_eq!(checked_keys(&data, &opened.tunnel_id, &live), keys);
    let log = operator.log();
    let logged = |key: &str| log.contains(&data[key]);
    assert!(!logged("sourceClientToken") && !logged("destinationClientToken"), "a client token is in the log");
}

#[tokio::test]
async fn the_secret_says_what_it_is_and_whose() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_ready("plain").await;
    let secret = world.secrets().get("plain-tokens").await.expect("a Secret");
    assert_eq!(secret.type_.as_deref(), Some("opentunnel.dev/tunnel-tokens"));
    let labels = [
        ("app.kubernetes.io/managed-by", "opentunnel-operator"),
        ("opentunnel.dev/secret", "tokens"),
        ("velero.io/exclude-from-backup", "true"),
    ];
    assert_eq!(*secret.labels(), labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let owners = secret.owner_references();
    assert_eq!(owners.len(), 1);
    assert_eq!((owners[0].kind.as_str(), Some(&owners[0].uid)), ("Tunnel", tunnel.metadata.uid.as_ref()));
    assert_eq!(owners[0].controller, Some(true));
    let annotations = secret.annotations();
    assert_eq!(Some(&annotations["opentunnel.dev/tunnel-id"]), status(&tunnel).tunnel_id.as_ref());
    assert_eq!(annotations["opentunnel.dev/token-generation"], "1");
    assert_eq!(annotations["opentunnel.dev/data-sha256"].len(), 64);
}

#[tokio::test]
async fn the_status_tells_all_about_the_tunnel_but_its_tokens() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("full.yaml")).await;
    let tunnel = world.wait_ready("sensor-42").await;
    let (opened, live) = only_tunnel(&world);
    let status = status(&tunnel);
    assert_eq!(status.observed_generation, tunnel.metadata.generation);
    assert_eq!(status.tunnel_id.as_ref(), Some(&opened.tunnel_id));
    assert_eq!(status.tunnel_arn.as_ref(), Some(&opened.tunnel_arn));
    assert_eq!(status.state, Some(TunnelState::Open));
    assert_eq!(status.token_generation, Some(1));
    let secret = world.secrets().get("sensor-42-tokens").await.expect("a Secret");
    let sha256 = secret.annotations()["opentunnel.dev/data-sha256"].clone();
    assert_eq!(sha256.len(), 64);
    let (name, resource_version) = ("sensor-42-tokens".into(), secret.resource_version());
    assert_eq!(status.secrets, Some(vec![SecretStatus { name, sha256, resource_version }]));
    let opened_at = status.opened_at.expect("openedAt");
    assert!(opened_at.duration_since(opened.created_at).abs().as_secs() <= 2, "{opened_at}");
    assert_eq!(status.expires_at.expect("expiresAt").duration_since(opened_at).as_mins(), 60);
    assert_eq!(status.closed_at, None);
    let conditions = status.conditions.as_ref().expect("conditions");
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    assert_eq!(conditions[0].observed_generation, tunnel.metadata.generation);
    assert!(conditions[0].message.contains(&opened.tunnel_id));
    let text = json!(tunnel).to_string();
    assert!(!text.contains(&live.source) && !text.contains(&live.destination), "a token is in the Tunnel");
}

#[tokio::test]
async fn a_secret_for_one_side_has_the_names_that_the_local_proxy_reads() {
    let sides = [("SOURCE", "source"), ("DESTINATION", "destination")];
    for (mode, side) in sides {
        let world = World::new().await;
        let _operator = world.operator().await;
        world.apply(&with_secrets(&format!("[{{name: one, clientMode: {mode}}}]"))).await;
        world.wait_ready("a").await;
        let (opened, live) = only_tunnel(&world);
        let data = world.secret_data("one").await.expect("a Secret");
        let mut keys = ["AWSIOT_TUNNEL_ACCESS_TOKEN", "AWSIOT_TUNNEL_CLIENT_TOKEN", "AWSIOT_TUNNEL_REGION"]
            .map(String::from)
            .to_vec();
        keys.extend([format!("{side}AccessToken"), format!("{side}ClientToken"), "region".into(), "tunnelId".into()]);
        keys.sort();
        assert_eq!(checked_keys(&data, &opened.tunnel_id, &live), keys);
        assert_eq!(world.secret_data("a-tokens").await, None, "no other Secret");
    }
}

#[tokio::test]
async fn several_secrets_share_one_tunnel_and_its_tokens() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&with_secrets("[{name: device, clientMode: DESTINATION}, {name: client, clientMode: SOURCE}, {name: both}, {name: client-2, clientMode: SOURCE}]")).await;
    let tunnel = world.wait_ready("a").await;
    let (opened, live) = only_tunnel(&world);
    assert_eq!(secret_names(&tunnel), ["device", "client", "both", "client-2"]);
    let mut data = BTreeMap::new();
    for (name, keys) in [("device", 7), ("client", 7), ("both", 6), ("client-2", 7)] {
        let one = world.secret_data(name).await.expect("a Secret");
        assert_eq!(checked_keys(&one, &opened.tunnel_id, &live).len(), keys, "{name}");
        data.insert(name, one);
    }
    assert!(data["client"] == data["client-2"], "the same tokens, the same client token");
    assert!(data["client"]["sourceClientToken"] == data["both"]["sourceClientToken"]);
    assert!(data["device"]["destinationClientToken"] == data["both"]["destinationClientToken"]);
    assert!(data["both"]["sourceClientToken"] != data["both"]["destinationClientToken"], "each side has its own");
}

#[tokio::test]
async fn kubectl_waits_for_ready_and_shows_the_tunnel() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("full.yaml")).await;
    let wait = ["wait", "--for=condition=Ready", "tunnel/sensor-42", "--timeout=60s"];
    let said = world.kubectl(&wait).await;
    assert!(said.ok, "{}", said.err);
    let (opened, _) = only_tunnel(&world);
    let get = world.kubectl(&["get", "tunnel", "sensor-42", "-o", "wide", "--no-headers"]).await.out;
    let columns: Vec<&str> = get.split_whitespace().collect();
    assert_eq!(columns[..5], ["sensor-42", "sensor-42", "OPEN", "True", "Open"], "{get}");
    assert!(columns[5].ends_with('Z') && columns[7] == opened.tunnel_id, "{get}");
    world.wait_event("sensor-42", "Normal Opened").await;
    let describe = world.kubectl(&["describe", "tunnel", "sensor-42"]).await.out;
    let event = describe.lines().find(|line| line.contains("Normal") && line.contains("Opened"));
    assert!(event.is_some_and(|line| line.contains(&opened.tunnel_id)), "{describe}");
}

#[tokio::test]
async fn while_a_secret_is_somebody_elses_nothing_is_opened_and_once_it_is_gone_all_goes_on() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let theirs = json!({"metadata": {"name": "plain-tokens"}, "stringData": {"theirs": "x"}});
    let theirs: Secret = serde_json::from_value(theirs).expect("a Secret");
    world.secrets().create(&PostParams::default(), &theirs).await.expect("it can be made");
    world.apply(PLAIN).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "SecretConflict")).await;
    let conditions = status(&tunnel).conditions.as_ref().expect("conditions");
    assert!(conditions[0].message.contains("plain-tokens"), "{}", conditions[0].message);
    let types: Vec<_> = conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
    assert_eq!(types, [("Ready", "False"), ("Stalled", "True")]);
    // Another one, that comes later, is opened: this one is not.
    world.apply(&PLAIN.replace("plain", "other")).await;
    world.wait_ready("other").await;
    assert_eq!(calls(&world), ["OpenTunnel"], "the other one's");
    let data = world.secret_data("plain-tokens").await.expect("it stays");
    assert_eq!(data.into_iter().collect::<Vec<_>>(), [("theirs".into(), "x".into())]);
    world.wait_event("plain", "Warning SecretConflict").await;
    let touched = |w: &Write| w.resource == "secrets" && w.name == "plain-tokens";
    assert!(!world.writes().await.iter().any(touched));

    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it can be deleted");
    // Nobody tells the operator: it looks again every 5 s.
    let wait = ["wait", "--for=condition=Ready", "tunnel/plain", "--timeout=120s"];
    assert!(world.kubectl(&wait).await.ok);
    let tunnel = world.wait_ready("plain").await;
    let conditions = status(&tunnel).conditions.as_ref().expect("conditions");
    assert_eq!(conditions.len(), 1, "Stalled is gone");
    let id = status(&tunnel).tunnel_id.as_ref().expect("an ID");
    let live = world.aws.live_tokens(id).expect("it is open");
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    assert_eq!(checked_keys(&data, id, &live).len(), 6);
    assert_eq!(calls(&world), ["OpenTunnel", "OpenTunnel"]);
}

#[tokio::test]
async fn a_deleted_tunnel_is_closed_and_goes_with_its_secret() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let said = world.kubectl(&["delete", "tunnel", "plain", "--timeout=60s"]).await;
    assert!(said.ok, "{}", said.err);
    let tunnels = world.aws.tunnels();
    assert_eq!((tunnels.len(), tunnels[0].status), (1, TunnelStatus::Closed), "closed before it goes");
    world.wait_no_secret("plain-tokens").await;
    assert_eq!(calls(&world), ["OpenTunnel", "CloseTunnel"]);
    assert_eq!(world.events("plain").await, ["Normal Opened", "Normal Closed"]);
}

#[tokio::test]
async fn a_tunnel_that_is_made_again_under_its_name_is_opened_again() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let mut seen: Vec<Tunnel> = Vec::new();
    for _ in 0..2 {
        world.apply(PLAIN).await;
        seen.push(world.wait_ready("plain").await);
        world.delete("plain").await;
        world.wait_no_tunnel("plain").await;
    }
    assert_ne!(status(&seen[0]).tunnel_id, status(&seen[1]).tunnel_id);
    assert_eq!(calls(&world), ["OpenTunnel", "CloseTunnel", "OpenTunnel", "CloseTunnel"]);
}
