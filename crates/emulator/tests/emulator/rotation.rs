use std::time::Duration;

use aws_sdk_iotsecuretunneling::types::{ClientMode, DestinationConfig};

use crate::client::{emulator, open_id, refusal, sdk};

#[tokio::test]
async fn rotation_revokes_and_issues_the_tokens_of_the_client_mode() {
    for (mode, source, dest) in
        [(ClientMode::Source, true, false), (ClientMode::Destination, false, true), (ClientMode::All, true, true)]
    {
        let emulator = emulator().await;
        let client = sdk(&emulator);
        let id = open_id(&client).await;
        let before = emulator.live_tokens(&id).expect("live tokens");
        let rotate = client.rotate_tunnel_access_token().tunnel_id(&id).client_mode(mode.clone());
        let rotated = rotate.send().await.expect("RotateTunnelAccessToken");
        let live = emulator.live_tokens(&id).expect("live tokens");

        assert_eq!(rotated.source_access_token(), source.then_some(live.source.as_str()), "{mode}");
        assert_eq!(rotated.destination_access_token(), dest.then_some(live.destination.as_str()), "{mode}");
        assert_eq!(live.source != before.source, source, "{mode}");
        assert_eq!(live.destination != before.destination, dest, "{mode}");
        let tunnel = &emulator.tunnels()[0];
        assert_eq!(rotated.tunnel_arn(), Some(tunnel.tunnel_arn.as_str()));
        assert_eq!(tunnel.source_tokens_issued, 1 + u32::from(source), "{mode}");
        assert_eq!(tunnel.destination_tokens_issued, 1 + u32::from(dest), "{mode}");
    }
}

#[tokio::test]
async fn rotation_does_not_extend_the_tunnel_s_life() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_id(&client).await;
    let expires_at = emulator.tunnels()[0].expires_at;
    emulator.advance_clock(Duration::from_secs(3600));
    let rotate = client.rotate_tunnel_access_token().tunnel_id(&id).client_mode(ClientMode::All);
    rotate.send().await.expect("RotateTunnelAccessToken");
    assert_eq!(emulator.tunnels()[0].expires_at, expires_at);
}

#[tokio::test]
async fn a_destination_is_taken_when_its_side_rotates_and_refused_when_the_source_does() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_id(&client).await;
    let destination = DestinationConfig::builder().thing_name("thing").services("SSH").build();
    let destination = destination.expect("a destination");
    let rotate = |mode| {
        client
            .rotate_tunnel_access_token()
            .tunnel_id(&id)
            .client_mode(mode)
            .destination_config(destination.clone())
            .send()
    };
    rotate(ClientMode::Destination).await.expect("DESTINATION");
    rotate(ClientMode::All).await.expect("ALL");
    let before = emulator.live_tokens(&id);
    let (error, message) = refusal(rotate(ClientMode::Source).await);
    assert_eq!(error, "ValidationException");
    assert_eq!(message, "You can not use DestinationConfig with source clientMode.");
    assert_eq!(emulator.live_tokens(&id), before);
}

#[tokio::test]
async fn a_closed_tunnel_is_not_rotated() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_id(&client).await;
    emulator.close(&id).expect("closed");
    let rotate = client.rotate_tunnel_access_token().tunnel_id(&id).client_mode(ClientMode::All);
    assert_eq!(refusal(rotate.send().await).0, "ResourceNotFoundException");
    assert_eq!(emulator.tunnels()[0].source_tokens_issued, 1);
}
