//! Who is let in, and with what words others are refused.

use std::time::Duration;

use secure_tunneling_emulator::{Config, Quotas, Side};
use serde_json::json;

use super::client::{Ask, Client, Pair, V1, V3, tunnel, wait_connected, with_client_token};
use crate::client::{call, emulator, start};

const USED: &str = "Invalid access token: The access token was previously used and cannot be used again";
const OTHER_CLIENT_TOKEN: &str =
    "Invalid client token: The provided client token does not match the client token that was previously set.";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

#[tokio::test]
async fn a_client_is_answered_as_the_protocol_guide_says() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let answer = Ask::new(Side::Source, &tokens.source).send(&emulator).await;
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("connection"), Some("upgrade"));
    // RFC 6455's own example.
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answer.header("sec-websocket-protocol"), Some(V3));
    assert!(answer.header("channel-id").is_some_and(|id| !id.is_empty()));
}

#[tokio::test]
async fn the_latest_version_that_the_client_offers_is_spoken() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &[]).await;
    for (offered, spoken) in [
        ("aws.iot.securetunneling-1.0", "aws.iot.securetunneling-1.0"),
        ("aws.iot.securetunneling-1.0, aws.iot.securetunneling-2.0", "aws.iot.securetunneling-2.0"),
        ("aws.iot.securetunneling-4.0,aws.iot.securetunneling-3.0", "aws.iot.securetunneling-3.0"),
    ] {
        let answer = with_client_token(Side::Source, &tokens.source).speaking(offered).send(&emulator).await;
        assert_eq!((answer.status, answer.header("sec-websocket-protocol")), (101, Some(spoken)));
    }
}

#[tokio::test]
async fn a_token_comes_in_a_header_or_in_a_cookie() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &[]).await;
    let cookie = format!("theme=dark; awsiot-tunnel-token={}", tokens.source);
    let ask = Ask::new(Side::Source, "").without("access-token").with("Cookie", &cookie);
    assert_eq!(ask.send(&emulator).await.status, 101);
}

#[tokio::test]
async fn what_is_no_proper_request_is_refused_and_uses_no_token_up() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let ask = || with_client_token(Side::Source, &tokens.source);
    let path = |path: &str| Ask { path: path.to_owned(), ..ask() };
    let cookie = format!("awsiot-tunnel-token={}", tokens.source);
    let long = "x".repeat(4096);
    let not_websocket = "The request is no WebSocket handshake of version 13";
    let mode = "Invalid local-proxy-mode: it must be source or destination";
    let protocol = "Invalid Sec-WebSocket-Protocol: no version of aws.iot.securetunneling that is known";
    let two_tokens = "Invalid access token: The request has more than one";
    let client_token = "Invalid client token: It does not match ^[a-zA-Z0-9-]{32,128}$";
    let without_client_token = || Ask::new(Side::Source, &tokens.source);
    for (ask, status, reason) in [
        (path("/other?local-proxy-mode=source"), 400, "The data plane answers GET /tunnel only"),
        (path("/tunnel"), 400, mode),
        (path("/tunnel?local-proxy-mode=both"), 400, mode),
        (path("/tunnel?local-proxy-mode=source&local-proxy-mode=source"), 400, mode),
        (ask().without("Upgrade"), 400, not_websocket),
        (ask().without("Connection"), 400, not_websocket),
        (ask().without("Sec-WebSocket-Key"), 400, not_websocket),
        (ask().without("Sec-WebSocket-Version"), 400, not_websocket),
        (ask().without("Sec-WebSocket-Protocol"), 400, protocol),
        (ask().speaking("aws.iot.securetunneling-9.0"), 400, protocol),
        (ask().without("access-token"), 400, "Invalid access token: The request has none"),
        (ask().with("access-token", &tokens.source), 400, two_tokens),
        (ask().with("Cookie", &cookie), 400, two_tokens),
        (ask().with("client-token", OTHER), 400, "Invalid client token: The request has more than one"),
        (without_client_token().with("client-token", "short"), 400, client_token),
        (without_client_token().with("client-token", &"x".repeat(129)), 400, client_token),
        (without_client_token().with("client-token", &"_".repeat(32)), 400, client_token),
        (ask().with("User-Agent", &long), 431, "The request is longer than 4096 bytes"),
    ] {
        assert_eq!(ask.send(&emulator).await.refusal().await, (status, reason.to_owned()));
    }
    assert_eq!(without_client_token().send(&emulator).await.status, 101);
}

#[tokio::test]
async fn a_token_serves_once() {
    let emulator = emulator().await;
    let (id, tokens) = tunnel(&emulator, &["SSH"]).await;
    let client = Client::join(&emulator, Side::Source, &tokens.source).await;
    for _ in 0..2 {
        let again = Ask::new(Side::Source, &tokens.source).send(&emulator).await;
        assert_eq!(again.refusal().await, (400, USED.to_owned()));
    }
    drop(client);
    wait_connected(&emulator, &id, false, false).await;
    for ask in [Ask::new(Side::Source, &tokens.source), with_client_token(Side::Source, &tokens.source)] {
        assert_eq!(ask.send(&emulator).await.refusal().await, (400, USED.to_owned()));
    }
}

#[tokio::test]
async fn a_client_token_lets_the_same_client_in_again_and_no_other() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let ask = || with_client_token(Side::Destination, &tokens.destination);
    for _ in 0..3 {
        assert_eq!(ask().send(&emulator).await.status, 101);
    }
    let without = Ask::new(Side::Destination, &tokens.destination);
    assert_eq!(without.send(&emulator).await.refusal().await, (400, USED.to_owned()));
    let other = Ask::new(Side::Destination, &tokens.destination).with("client-token", OTHER);
    assert_eq!(other.send(&emulator).await.refusal().await, (400, OTHER_CLIENT_TOKEN.to_owned()));
    assert_eq!(ask().send(&emulator).await.status, 101);
}

#[tokio::test]
async fn tokens_that_are_unknown_revoked_or_of_the_other_side_are_refused() {
    let emulator = emulator().await;
    let (id, tokens) = tunnel(&emulator, &["SSH"]).await;
    let unknown = "Invalid access token".to_owned();
    for token in ["", "x", &tokens.source[1..]] {
        let answer = Ask::new(Side::Source, token).send(&emulator).await;
        assert_eq!(answer.refusal().await, (400, unknown.clone()));
    }
    for (side, token, mode) in
        [(Side::Source, &tokens.destination, "source"), (Side::Destination, &tokens.source, "destination")]
    {
        let reason = format!("Invalid access token: It is not for local-proxy-mode {mode}");
        assert_eq!(Ask::new(side, token).send(&emulator).await.refusal().await, (400, reason));
    }
    call(&emulator, "RotateTunnelAccessToken", json!({"tunnelId": id, "clientMode": "SOURCE"})).await;
    let revoked = Ask::new(Side::Source, &tokens.source).send(&emulator).await;
    assert_eq!(revoked.refusal().await, (400, unknown));
    let rotated = emulator.live_tokens(&id).expect("tokens");
    assert_eq!(Ask::new(Side::Source, &rotated.source).send(&emulator).await.status, 101);
    assert_eq!(Ask::new(Side::Destination, &tokens.destination).send(&emulator).await.status, 101);
}

#[tokio::test]
async fn a_tunnel_that_is_closed_or_expired_lets_nobody_in() {
    let emulator = emulator().await;
    let closed = Pair::new(&emulator).await;
    let (_, expired) = tunnel(&emulator, &["SSH"]).await;
    emulator.close(&closed.id).expect("closed");
    let refused = (400, "Tunnel is closed".to_owned());
    let again = with_client_token(Side::Source, &closed.tokens.source).send(&emulator).await;
    assert_eq!(again.refusal().await, refused);
    emulator.advance_clock(Duration::from_secs(12 * 3600));
    let answer = Ask::new(Side::Destination, &expired.destination).send(&emulator).await;
    assert_eq!(answer.refusal().await, refused);
}

#[tokio::test]
async fn many_ask_at_once_and_half_a_request_holds_nobody_up() {
    let emulator = start(Config { quotas: Quotas::none(), ..Config::default() }).await;
    let _idle = tokio::net::TcpStream::connect(emulator.data_addr()).await.expect("a connection");
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let asked = (0..50).map(|_| Ask::new(Side::Source, &tokens.source).speaking(V1).send(&emulator));
    let answers = futures_util::future::join_all(asked).await;
    // One token, one client.
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [&[101][..], &[400; 49]].concat());
}
