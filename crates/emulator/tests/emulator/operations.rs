use aws_sdk_iotsecuretunneling::types::{
    ClientMode, ConnectionStatus as SdkConnection, DestinationConfig, Tag, TimeoutConfig, TunnelStatus,
};
use secure_tunneling_emulator::{ConnectionStatus, Connections, ControlError};

use crate::client::{describe, emulator, millis, open, open_id, refusal, sdk, sdk_in};

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build().expect("a tag")
}

fn destination(thing: Option<&str>, services: &[&str]) -> DestinationConfig {
    DestinationConfig::builder()
        .set_thing_name(thing.map(str::to_owned))
        .set_services(Some(services.iter().map(|s| (*s).to_owned()).collect()))
        .build()
        .expect("a destination")
}

#[tokio::test]
async fn an_opened_tunnel_is_described_as_it_was_asked_for() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let opened = client
        .open_tunnel()
        .description("ssh to sensor 42")
        .destination_config(destination(Some("sensor-42"), &["SSH", "HTTP"]))
        .tags(tag("team", "edge"))
        .tags(tag("empty", ""))
        .timeout_config(TimeoutConfig::builder().max_lifetime_timeout_minutes(60).build())
        .send()
        .await
        .expect("OpenTunnel");
    let id = opened.tunnel_id().expect("an ID");
    let arn = format!("arn:aws:iot:us-east-1:123456789012:tunnel/{id}");
    assert_eq!(opened.tunnel_arn(), Some(arn.as_str()));

    let tunnel = describe(&client, id).await;
    assert_eq!(tunnel.tunnel_id(), Some(id));
    assert_eq!(tunnel.tunnel_arn(), Some(arn.as_str()));
    assert_eq!(tunnel.status(), Some(&TunnelStatus::Open));
    assert_eq!(tunnel.description(), Some("ssh to sensor 42"));
    assert_eq!(tunnel.destination_config(), Some(&destination(Some("sensor-42"), &["SSH", "HTTP"])));
    assert_eq!(tunnel.tags(), [tag("empty", ""), tag("team", "edge")]);
    let timeout = tunnel.timeout_config().expect("a timeout");
    assert_eq!(timeout.max_lifetime_timeout_minutes(), Some(60));
    assert_eq!(tunnel.created_at(), tunnel.last_updated_at());
    let off_by = emulator.now().as_millisecond() - millis(tunnel.created_at());
    assert!((0..10_000).contains(&off_by), "created {off_by} ms ago");
    for side in [tunnel.source_connection_state(), tunnel.destination_connection_state()] {
        assert_eq!(side.expect("a state").status(), Some(&SdkConnection::Disconnected));
    }
}

#[tokio::test]
async fn a_tunnel_opened_with_nothing_lives_720_minutes_and_has_nothing() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let tunnel = describe(&client, &open_id(&client).await).await;
    assert_eq!(tunnel.description(), None);
    assert_eq!(tunnel.destination_config(), None);
    assert!(tunnel.tags().is_empty());
    let timeout = tunnel.timeout_config().expect("a timeout");
    assert_eq!(timeout.max_lifetime_timeout_minutes(), Some(720));
}

#[tokio::test]
async fn the_tokens_of_an_open_tunnel_are_the_live_ones_and_look_like_aws_s() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let opened = open(&client).await;
    let live = emulator.live_tokens(opened.tunnel_id().expect("an ID")).expect("live tokens");
    assert_eq!(opened.source_access_token(), Some(live.source.as_str()));
    assert_eq!(opened.destination_access_token(), Some(live.destination.as_str()));
    assert_ne!(live.source, live.destination);
    for token in [&live.source, &live.destination] {
        assert_eq!(token.len(), 256);
        assert!(token.chars().all(|c| c.is_ascii_alphanumeric() || "+/".contains(c)));
    }
    assert_eq!(format!("{live:?}"), "LiveTokens(..)");
}

#[tokio::test]
async fn the_same_request_twice_opens_two_tunnels() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let (one, two) = (open(&client).await, open(&client).await);
    assert_ne!(one.tunnel_id(), two.tunnel_id());
    assert_ne!(one.source_access_token(), two.source_access_token());
    let listed = client.list_tunnels().send().await.expect("ListTunnels");
    assert_eq!(listed.tunnel_summaries().len(), 2);
}

#[tokio::test]
async fn a_summary_tells_what_the_tunnel_is_without_its_tags() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let opened = client.open_tunnel().description("d").tags(tag("k", "v")).send().await.expect("open");
    let listed = client.list_tunnels().send().await.expect("ListTunnels");
    let [summary] = listed.tunnel_summaries() else { panic!("one tunnel, not {listed:?}") };
    assert_eq!(summary.tunnel_id(), opened.tunnel_id());
    assert_eq!(summary.tunnel_arn(), opened.tunnel_arn());
    assert_eq!(summary.status(), Some(&TunnelStatus::Open));
    assert_eq!(summary.description(), Some("d"));
    let tunnel = describe(&client, opened.tunnel_id().expect("an ID")).await;
    assert_eq!(summary.created_at(), tunnel.created_at());
    assert_eq!(summary.last_updated_at(), tunnel.last_updated_at());
}

#[tokio::test]
async fn a_closed_tunnel_is_closed_once_and_accepts_no_token() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_id(&client).await;
    emulator.advance_clock(std::time::Duration::from_secs(30));
    client.close_tunnel().tunnel_id(&id).send().await.expect("CloseTunnel");
    let closed = describe(&client, &id).await;
    assert_eq!(closed.status(), Some(&TunnelStatus::Closed));
    assert!(millis(closed.last_updated_at()) - millis(closed.created_at()) >= 30_000);
    assert!(emulator.live_tokens(&id).is_none());

    emulator.advance_clock(std::time::Duration::from_secs(30));
    client.close_tunnel().tunnel_id(&id).send().await.expect("a second CloseTunnel");
    assert_eq!(describe(&client, &id).await.last_updated_at(), closed.last_updated_at());
}

#[tokio::test]
async fn delete_removes_an_open_or_closed_tunnel_at_once() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let (open, closed) = (open_id(&client).await, open_id(&client).await);
    client.close_tunnel().tunnel_id(&closed).delete(false).send().await.expect("CloseTunnel");
    for id in [&open, &closed] {
        client.close_tunnel().tunnel_id(id).delete(true).send().await.expect("CloseTunnel");
        let (error, _) = refusal(client.describe_tunnel().tunnel_id(id).send().await);
        assert_eq!(error, "ResourceNotFoundException");
    }
    let listed = client.list_tunnels().send().await.expect("ListTunnels");
    assert!(listed.tunnel_summaries().is_empty());
    assert!(emulator.live_tokens(&open).is_none());
}

#[tokio::test]
async fn tags_are_added_replaced_and_removed() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let opened = client.open_tunnel().tags(tag("a", "1")).tags(tag("b", "1")).send().await.expect("open");
    let arn = opened.tunnel_arn().expect("an ARN");
    let tags = async || {
        let listed = client.list_tags_for_resource().resource_arn(arn).send().await.expect("listed");
        listed.tags().to_vec()
    };
    assert_eq!(tags().await, [tag("a", "1"), tag("b", "1")]);
    let request = client.tag_resource().resource_arn(arn).tags(tag("b", "2")).tags(tag("c", "2"));
    request.send().await.expect("TagResource");
    assert_eq!(tags().await, [tag("a", "1"), tag("b", "2"), tag("c", "2")]);
    let request = client.untag_resource().resource_arn(arn).tag_keys("a").tag_keys("never set");
    request.send().await.expect("UntagResource");
    assert_eq!(tags().await, [tag("b", "2"), tag("c", "2")]);
    assert_eq!(describe(&client, opened.tunnel_id().expect("an ID")).await.tags(), tags().await);
}

#[tokio::test]
async fn a_tunnel_has_200_tags_at_most() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let many = (0..200).map(|n| tag(&format!("k{n}"), "v")).collect();
    let opened = client.open_tunnel().set_tags(Some(many)).send().await.expect("OpenTunnel");
    let arn = opened.tunnel_arn().expect("an ARN");
    let request = |key| client.tag_resource().resource_arn(arn).tags(tag(key, "new")).send();
    request("k7").await.expect("replacing one of them");
    assert_eq!(refusal(request("another").await).0, "ValidationException");
    assert_eq!(emulator.tunnels()[0].tags.len(), 200);
}

#[tokio::test]
async fn what_does_not_exist_is_not_found_by_any_operation() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let arn = open(&client).await.tunnel_arn().expect("an ARN").to_owned();
    let foreign = arn.replace("123456789012", "999999999999");
    let id = "no-such-tunnel";
    let rotate = client.rotate_tunnel_access_token().tunnel_id(id).client_mode(ClientMode::All);
    let mut refusals = vec![
        refusal(client.describe_tunnel().tunnel_id(id).send().await),
        refusal(client.close_tunnel().tunnel_id(id).send().await),
        refusal(rotate.send().await),
    ];
    for arn in [foreign.as_str(), "arn:aws:iot:us-east-1:123456789012:tunnel/nope", "nonsense"] {
        refusals.push(refusal(client.list_tags_for_resource().resource_arn(arn).send().await));
        refusals.push(refusal(client.tag_resource().resource_arn(arn).tags(tag("k", "v")).send().await));
        refusals.push(refusal(client.untag_resource().resource_arn(arn).tag_keys("k").send().await));
    }
    for (error, message) in refusals {
        assert_eq!(error, "ResourceNotFoundException", "{message}");
    }
}

#[tokio::test]
async fn a_tunnel_is_seen_in_the_region_that_the_call_was_signed_for() {
    let emulator = emulator().await;
    let (here, there) = (sdk(&emulator), sdk_in(&emulator, "eu-central-1"));
    let opened = open(&there).await;
    let (id, arn) = (opened.tunnel_id().expect("an ID"), opened.tunnel_arn().expect("an ARN"));
    assert_eq!(arn, format!("arn:aws:iot:eu-central-1:123456789012:tunnel/{id}"));
    assert_eq!(refusal(here.describe_tunnel().tunnel_id(id).send().await).0, "ResourceNotFoundException");
    let tags = here.list_tags_for_resource().resource_arn(arn);
    assert_eq!(refusal(tags.send().await).0, "ResourceNotFoundException");
    assert!(here.list_tunnels().send().await.expect("listed").tunnel_summaries().is_empty());
    assert_eq!(there.list_tunnels().send().await.expect("listed").tunnel_summaries().len(), 1);
}

#[tokio::test]
async fn connections_are_told_until_the_tunnel_closes() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_id(&client).await;
    emulator.advance_clock(std::time::Duration::from_secs(10));
    let connected = Connections { source: Some(ConnectionStatus::Connected), destination: None };
    emulator.set_connections(&id, connected).expect("set");
    let tunnel = describe(&client, &id).await;
    let source = tunnel.source_connection_state().expect("a state");
    assert_eq!(source.status(), Some(&SdkConnection::Connected));
    assert!(millis(source.last_updated_at()) - millis(tunnel.created_at()) >= 10_000);
    assert_eq!(tunnel.last_updated_at(), source.last_updated_at());
    let other = tunnel.destination_connection_state().expect("a state");
    assert_eq!(other.status(), Some(&SdkConnection::Disconnected));

    emulator.close(&id).expect("closed");
    let tunnel = describe(&client, &id).await;
    let source = tunnel.source_connection_state().expect("a state");
    assert_eq!(source.status(), Some(&SdkConnection::Disconnected));
    assert_eq!(source.last_updated_at(), tunnel.last_updated_at());
    assert_eq!(emulator.set_connections(&id, connected), Err(ControlError::TunnelClosed(id)));
    let nobody = "nobody".to_owned();
    assert_eq!(emulator.set_connections("nobody", connected), Err(ControlError::NoSuchTunnel(nobody)));
}

#[tokio::test]
async fn a_third_party_closes_and_deletes_without_a_call() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_id(&client).await;
    emulator.close(&id).expect("closed");
    assert_eq!(describe(&client, &id).await.status(), Some(&TunnelStatus::Closed));
    emulator.delete(&id).expect("deleted");
    assert_eq!(refusal(client.describe_tunnel().tunnel_id(&id).send().await).0, "ResourceNotFoundException");
    assert_eq!(emulator.close(&id), Err(ControlError::NoSuchTunnel(id.clone())));
    assert_eq!(emulator.delete(&id), Err(ControlError::NoSuchTunnel(id)));
    assert!(emulator.calls().iter().all(|call| call.operation != "CloseTunnel"));
}
