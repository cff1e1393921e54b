//! The end of a tunnel, and its rotation.

use std::time::Duration;

use secure_tunneling_emulator::Side;
use serde_json::json;

use super::client::{Ask, Client, Pair, connected, data, reset, tunnel};
use crate::client::{call, control, describe, emulator, millis, sdk};

async fn both_are_closed(mut pair: Pair, code: u16, reason: &str) {
    for client in [&mut pair.source, &mut pair.destination] {
        assert_eq!(client.closed().await, (code, reason.to_owned()));
    }
}

#[tokio::test]
async fn closing_ends_both_sides_and_says_so() {
    let emulator = emulator().await;
    for delete in [false, true] {
        let pair = Pair::open(&emulator).await;
        call(&emulator, "CloseTunnel", json!({"tunnelId": pair.id, "delete": delete})).await;
        both_are_closed(pair, 1000, "Tunnel is closed").await;
    }
    let pair = Pair::open(&emulator).await;
    let id = pair.id.clone();
    emulator.close(&id).expect("closed");
    both_are_closed(pair, 1000, "Tunnel is closed").await;
    assert_eq!(emulator.connections(&id), Some(connected(false, false)));
    let tunnel = describe(&sdk(&emulator), &id).await;
    let state = tunnel.source_connection_state().expect("a state");
    assert_eq!(millis(state.last_updated_at()), millis(tunnel.last_updated_at()));
}

#[tokio::test]
async fn expiry_by_the_service_s_clock_ends_both_sides_and_says_so() {
    let emulator = emulator().await;
    let other = Pair::open(&emulator).await;
    emulator.advance_clock(Duration::from_secs(6 * 3600));
    let pair = Pair::open(&emulator).await;
    emulator.advance_clock(Duration::from_secs(6 * 3600));
    both_are_closed(other, 1000, "Tunnel is closed: its lifetime is over").await;
    // The other tunnel has six hours left.
    let mut pair = pair;
    pair.source.send(&[data("SSH", 7, &b"x"[..])]).await;
    assert_eq!(pair.destination.message().await, data("SSH", 7, &b"x"[..]));
    // And then a moment, which passes by itself.
    emulator.advance_clock(Duration::from_millis(6 * 3600 * 1000 - 800));
    both_are_closed(pair, 1000, "Tunnel is closed: its lifetime is over").await;
}

#[tokio::test]
async fn a_lifetime_that_ends_by_itself_ends_the_connections_also_if_the_first_of_them_came_late() {
    let emulator = emulator().await;
    let body = json!({"timeoutConfig": {"maxLifetimeTimeoutMinutes": 1}});
    let id = call(&emulator, "OpenTunnel", body).await.body["tunnelId"].as_str().expect("an ID").to_owned();
    emulator.advance_clock(Duration::from_millis(58_500));
    let tokens = emulator.live_tokens(&id).expect("tokens");
    let mut source = Client::join(&emulator, Side::Source, &tokens.source).await;
    assert_eq!(source.closed().await, (1000, "Tunnel is closed: its lifetime is over".to_owned()));
}

#[tokio::test]
async fn a_reset_of_the_emulator_ends_all_connections() {
    let emulator = emulator().await;
    let pair = Pair::open(&emulator).await;
    assert_eq!(control(&emulator, "POST", "/reset", "").await.status, 200);
    both_are_closed(pair, 1001, "The emulator was reset").await;
    // And leaves nothing of them.
    let pair = Pair::open(&emulator).await;
    assert_eq!(emulator.connections(&pair.id), Some(connected(true, true)));
}

#[tokio::test]
async fn stopping_the_emulator_ends_all_connections_and_frees_the_port() {
    let emulator = emulator().await;
    let addr = emulator.data_addr();
    let mut pair = Pair::open(&emulator).await;
    emulator.stop().await;
    assert!(pair.source.frame().await.is_none());
    tokio::net::TcpListener::bind(addr).await.expect("the port");
}

#[tokio::test]
async fn rotation_leaves_who_is_connected_alone_until_the_new_token_comes() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    call(&emulator, "RotateTunnelAccessToken", json!({"tunnelId": pair.id, "clientMode": "ALL"})).await;
    pair.source.send(&[data("SSH", 7, &b"still there"[..])]).await;
    assert_eq!(pair.destination.message().await.payload, &b"still there"[..]);
    let old = super::client::with_client_token(Side::Source, &pair.tokens.source).send(&emulator).await;
    assert_eq!(old.refusal().await, (400, "Invalid access token".to_owned()));
    let tokens = emulator.live_tokens(&pair.id).expect("tokens");
    let _new = Client::join(&emulator, Side::Source, &tokens.source).await;
    assert_eq!(pair.source.closed().await.0, 1008);
    assert_eq!(pair.destination.message().await, reset("SSH", 7));
    // The new token is used up like the first.
    assert_eq!(Ask::new(Side::Source, &tokens.source).send(&emulator).await.status, 400);
}

#[tokio::test]
async fn a_client_that_does_not_answer_a_close_frame_is_left_alone() {
    let emulator = emulator().await;
    let (id, tokens) = tunnel(&emulator, &["SSH"]).await;
    let mut answer = Ask::new(Side::Source, &tokens.source).send(&emulator).await;
    emulator.close(&id).expect("closed");
    let mut bytes = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut answer.stream, &mut bytes);
    tokio::time::timeout(crate::client::PATIENCE, reading).await.expect("the end").expect("the end");
    assert!(bytes.ends_with(b"Tunnel is closed"));
}
