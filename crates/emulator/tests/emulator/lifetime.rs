//! Expiry and retention, by the service's clock.

use std::time::Duration;

use aws_sdk_iotsecuretunneling::Client;
use aws_sdk_iotsecuretunneling::types::{ClientMode, TimeoutConfig, TunnelStatus};
use secure_tunneling_emulator::{ConnectionStatus, Connections};

use crate::client::{describe, emulator, millis, open_id, refusal, sdk};

/// Real time passes while a test runs: edges are tried this far from them.
const MARGIN: Duration = Duration::from_secs(15);
const RETENTION: Duration = Duration::from_secs(3 * 3600);

async fn open_for_minutes(client: &Client, minutes: i32) -> String {
    let timeout = TimeoutConfig::builder().max_lifetime_timeout_minutes(minutes).build();
    let opened = client.open_tunnel().timeout_config(timeout).send().await.expect("OpenTunnel");
    opened.tunnel_id().expect("an ID").to_owned()
}

#[tokio::test]
async fn a_tunnel_expires_when_its_lifetime_is_over_and_not_before() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_for_minutes(&client, 60).await;
    let before = emulator.tunnels();
    emulator.advance_clock(Duration::from_secs(3600) - MARGIN);
    assert_eq!(describe(&client, &id).await.status(), Some(&TunnelStatus::Open));
    assert_eq!(emulator.tunnels(), before, "the clock rewrites nothing");
    emulator.advance_clock(MARGIN);
    let tunnel = describe(&client, &id).await;
    assert_eq!(tunnel.status(), Some(&TunnelStatus::Closed));
    assert_eq!(millis(tunnel.last_updated_at()) - millis(tunnel.created_at()), 3_600_000);
    let listed = client.list_tunnels().send().await.expect("ListTunnels");
    assert_eq!(listed.tunnel_summaries()[0].status(), Some(&TunnelStatus::Closed));
    assert_eq!(listed.tunnel_summaries()[0].last_updated_at(), tunnel.last_updated_at());
    assert!(emulator.live_tokens(&id).is_none());
    let rotate = client.rotate_tunnel_access_token().tunnel_id(&id).client_mode(ClientMode::All);
    assert_eq!(refusal(rotate.send().await).0, "ResourceNotFoundException");
}

#[tokio::test]
async fn closing_an_expired_tunnel_leaves_its_time_of_closing() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_for_minutes(&client, 1).await;
    emulator.advance_clock(Duration::from_secs(600));
    client.close_tunnel().tunnel_id(&id).send().await.expect("CloseTunnel");
    let tunnel = describe(&client, &id).await;
    assert_eq!(millis(tunnel.last_updated_at()) - millis(tunnel.created_at()), 60_000);
}

#[tokio::test]
async fn the_connections_of_an_expired_tunnel_ended_with_it() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_for_minutes(&client, 1).await;
    let connected = Connections { destination: Some(ConnectionStatus::Connected), source: None };
    emulator.set_connections(&id, connected).expect("set");
    emulator.advance_clock(Duration::from_secs(60));
    let tunnel = describe(&client, &id).await;
    let side = tunnel.destination_connection_state().expect("a state");
    assert_eq!(side.status().map(|s| s.as_str()), Some("DISCONNECTED"));
    assert_eq!(side.last_updated_at(), tunnel.last_updated_at());
}

#[tokio::test]
async fn a_closed_tunnel_is_visible_for_three_hours_after_its_closing() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let (closed, expired) = (open_id(&client).await, open_for_minutes(&client, 60).await);
    let stays = open_id(&client).await;
    emulator.advance_clock(Duration::from_secs(3600));
    client.close_tunnel().tunnel_id(&closed).send().await.expect("CloseTunnel");
    emulator.advance_clock(RETENTION - MARGIN);
    for id in [&closed, &expired] {
        assert_eq!(describe(&client, id).await.status(), Some(&TunnelStatus::Closed));
    }
    assert_eq!(emulator.tunnels().len(), 3);
    emulator.advance_clock(MARGIN);
    for id in [&closed, &expired] {
        assert_eq!(refusal(client.describe_tunnel().tunnel_id(id).send().await).0, "ResourceNotFoundException");
        assert_eq!(refusal(client.close_tunnel().tunnel_id(id).send().await).0, "ResourceNotFoundException");
    }
    let listed = client.list_tunnels().send().await.expect("ListTunnels");
    let ids: Vec<_> = listed.tunnel_summaries().iter().map(|s| s.tunnel_id().expect("an ID")).collect();
    assert_eq!(ids, [stays.as_str()]);
    assert_eq!(emulator.tunnels().len(), 1);
}

#[tokio::test]
async fn the_clock_is_the_machine_s_plus_all_advances_and_stops_at_the_end_of_time() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let machine = jiff::Timestamp::now().as_second();
    let first = emulator.now();
    assert!((first.as_second() - machine).abs() < 10);
    emulator.advance_clock(Duration::from_secs(86_400));
    emulator.advance_clock(Duration::from_millis(500));
    let advanced = emulator.now().as_millisecond() - first.as_millisecond();
    assert!((86_400_500..86_410_500).contains(&advanced), "{advanced}");
    emulator.advance_clock(Duration::MAX);
    emulator.advance_clock(Duration::MAX);
    assert_eq!(emulator.now().to_string(), "9999-12-30T00:00:00Z");
    open_for_minutes(&client, 720).await;
    assert_eq!(emulator.tunnels()[0].expires_at.to_string(), "9999-12-30T12:00:00Z");
}
