//! The control API over HTTP.

use secure_tunneling_emulator::{Call, Operation};
use serde_json::{Value, json};

use crate::client::{call, control, describe, emulator, open_id, refusal, sdk};

async fn done(emulator: &secure_tunneling_emulator::Emulator, method: &str, path: &str, body: Value) {
    let answer = control(emulator, method, path, &body).await;
    assert_eq!((answer.status, answer.body), (200, json!({})), "{method} {path} {body}");
}

#[tokio::test]
async fn calls_tells_every_call_and_no_token() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let opened = client.open_tunnel().send().await.expect("OpenTunnel");
    let id = opened.tunnel_id().expect("an ID");
    let arn = opened.tunnel_arn().expect("an ARN");
    let rotate = client.rotate_tunnel_access_token().tunnel_id(id).client_mode("ALL".into());
    let rotated = rotate.send().await.expect("Rotate");
    client.list_tags_for_resource().resource_arn(arn).send().await.expect("ListTags");
    client.describe_tunnel().tunnel_id("gone").send().await.expect_err("not found");
    call(&emulator, "DescribeTunnel", json!({"tunnelId": "not/an/id"})).await;
    client.list_tunnels().send().await.expect("ListTunnels");

    let answer = control(&emulator, "GET", "/calls", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let told: Vec<_> = answer
        .body
        .as_array()
        .expect("a list")
        .iter()
        .map(|call| {
            let at = call["at"].as_str().expect("a time");
            let parsed: jiff::Timestamp = at.parse().expect("RFC 3339");
            assert_eq!(format!("{parsed:.3}"), at, "milliseconds");
            (call["operation"].clone(), call["outcome"].clone(), call["tunnelId"].clone())
        })
        .collect();
    let expected = [
        ("OpenTunnel", "ok", json!(id)),
        ("RotateTunnelAccessToken", "ok", json!(id)),
        ("ListTagsForResource", "ok", json!(id)),
        ("DescribeTunnel", "ResourceNotFoundException", json!("gone")),
        ("DescribeTunnel", "ValidationException", json!(null)),
        ("ListTunnels", "ok", json!(null)),
    ];
    assert_eq!(told, expected.map(|(operation, outcome, id)| (json!(operation), json!(outcome), id)));
    assert_eq!(json!(emulator.calls()), answer.body);
    assert!(emulator.calls()[0].succeeded() && !emulator.calls()[3].succeeded());

    let tunnels = control(&emulator, "GET", "/tunnels", "").await.body;
    for told in [answer.body.to_string(), tunnels.to_string(), format!("{:?}", emulator.calls())] {
        for token in [
            opened.source_access_token(),
            opened.destination_access_token(),
            rotated.source_access_token(),
            rotated.destination_access_token(),
        ] {
            assert!(!told.contains(token.expect("a token")));
        }
    }
}

#[tokio::test]
async fn tunnels_tells_all_of_a_tunnel_newest_first() {
    let emulator = emulator().await;
    open_id(&sdk(&emulator)).await;
    let body = json!({
        "description": "d", "destinationConfig": {"thingName": "t", "services": ["B", "A"]},
        "tags": [{"key": "k", "value": "v"}], "timeoutConfig": {"maxLifetimeTimeoutMinutes": 10},
    });
    let opened = call(&emulator, "OpenTunnel", body).await.body;
    let body = json!({"tunnelId": opened["tunnelId"], "clientMode": "SOURCE"});
    call(&emulator, "RotateTunnelAccessToken", body).await;
    let told = control(&emulator, "GET", "/tunnels", "").await.body;
    assert_eq!(told, json!(emulator.tunnels()));
    let time = |name: &str| -> jiff::Timestamp { told[0][name].as_str().expect("a time").parse().expect("RFC 3339") };
    let lifetime = time("expiresAt").duration_since(time("createdAt"));
    assert_eq!(lifetime.as_secs(), 600);
    assert_eq!(
        told[0],
        json!({
            "tunnelId": opened["tunnelId"], "tunnelArn": opened["tunnelArn"], "status": "OPEN",
            "description": "d", "thingName": "t", "services": ["B", "A"], "tags": {"k": "v"},
            "createdAt": told[0]["createdAt"], "lastUpdatedAt": told[0]["lastUpdatedAt"],
            "expiresAt": told[0]["expiresAt"],
            "sourceTokensIssued": 2, "destinationTokensIssued": 1,
        })
    );
    let plain = &told[1];
    assert_eq!((&plain["description"], &plain["thingName"]), (&Value::Null, &Value::Null));
    assert_eq!((&plain["services"], &plain["tags"]), (&json!([]), &json!({})));
}

#[tokio::test]
async fn quotas_faults_clock_and_connections_are_set() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    done(&emulator, "PUT", "/quotas", json!({"CloseTunnel": 0.0001, "maxOpenTunnels": 1})).await;
    let id = open_id(&client).await;
    assert_eq!(refusal(client.open_tunnel().send().await).0, "LimitExceededException");
    client.close_tunnel().tunnel_id("x").send().await.expect_err("not found");
    assert_eq!(refusal(client.close_tunnel().tunnel_id("x").send().await).0, "ThrottlingException");
    done(&emulator, "PUT", "/quotas", json!({})).await;
    let other = open_id(&client).await;

    let fault = json!([{"operation": "ListTunnels", "kind": "Throttling", "times": 1, "delayMs": 0}]);
    done(&emulator, "PUT", "/faults", fault).await;
    assert_eq!(refusal(client.list_tunnels().send().await).0, "ThrottlingException");
    client.list_tunnels().send().await.expect("once only");

    let path = format!("/tunnels/{id}/connections");
    done(&emulator, "POST", &path, json!({"source": "CONNECTED", "destination": "CONNECTED"})).await;
    done(&emulator, "POST", &path, json!({"destination": "DISCONNECTED"})).await;
    let tunnel = describe(&client, &id).await;
    let status = |side: Option<&aws_sdk_iotsecuretunneling::types::ConnectionState>| {
        side.and_then(|side| side.status()).expect("a status").as_str().to_owned()
    };
    assert_eq!(status(tunnel.source_connection_state()), "CONNECTED");
    assert_eq!(status(tunnel.destination_connection_state()), "DISCONNECTED");

    done(&emulator, "POST", "/clock", json!({"advanceSeconds": 43_200})).await;
    done(&emulator, "POST", "/clock", json!({"advanceSeconds": 0.5})).await;
    assert_eq!(describe(&client, &other).await.status().map(|s| s.as_str()), Some("CLOSED"));
    let answer = control(&emulator, "POST", &path, json!({"source": "CONNECTED"})).await;
    let message = json!({"message": format!("tunnel {id} is CLOSED")});
    assert_eq!((answer.status, answer.body), (409, message));
}

#[tokio::test]
async fn reset_empties_everything() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let before = emulator.now();
    let id = open_id(&client).await;
    done(&emulator, "PUT", "/quotas", json!({"OpenTunnel": 0.0001, "maxOpenTunnels": 0})).await;
    done(&emulator, "PUT", "/faults", json!([{"operation": "OpenTunnel", "kind": "AccessDenied"}])).await;
    done(&emulator, "POST", "/clock", json!({"advanceSeconds": 60})).await;
    control(&emulator, "POST", "/reset", "").await;
    assert!(emulator.calls().is_empty() && emulator.tunnels().is_empty());
    assert!(emulator.now().duration_since(before).as_secs() < 50, "the clock is the machine's again");
    assert!(emulator.live_tokens(&id).is_none());
    open_id(&client).await;
    open_id(&client).await;
}

#[tokio::test]
async fn a_request_that_is_not_understood_is_refused_with_the_reason_and_changes_nothing() {
    let emulator = emulator().await;
    let id = open_id(&sdk(&emulator)).await;
    let connections = format!("/tunnels/{id}/connections");
    let cases = [
        ("PUT", "/quotas", "{", "EOF while parsing"),
        ("PUT", "/quotas", r#"{"OpenTunnels": 1}"#, "unknown variant `OpenTunnels`"),
        ("PUT", "/quotas", r#"{"OpenTunnel": -1}"#, "OpenTunnel: -1 calls per second: must not be negative"),
        ("PUT", "/quotas", r#"{"OpenTunnel": "1"}"#, "invalid type: string"),
        ("PUT", "/quotas", r#"{"maxOpenTunnels": -1}"#, "invalid value"),
        ("PUT", "/faults", "{}", "invalid type: map, expected a sequence"),
        ("PUT", "/faults", r#"[{"operation": "Open", "kind": "Delay"}]"#, "unknown variant `Open`"),
        ("PUT", "/faults", r#"[{"operation": "OpenTunnel", "kind": "Drop"}]"#, "unknown variant `Drop`"),
        ("PUT", "/faults", r#"[{"kind": "DropAfter"}]"#, "missing field `operation`"),
        ("PUT", "/faults", r#"[{"operation": "OpenTunnel", "kind": "DropAfter", "time": 1}]"#, "unknown field `time`"),
        ("PUT", "/faults", r#"[{"operation": "OpenTunnel", "kind": "Delay"}]"#, "needs delayMs"),
        ("POST", "/clock", "", "EOF while parsing"),
        ("POST", "/clock", "{}", "missing field `advanceSeconds`"),
        ("POST", "/clock", r#"{"advanceSeconds": -1}"#, "advanceSeconds must be 0 to"),
        ("POST", "/clock", r#"{"advanceSeconds": 1e300}"#, "advanceSeconds must be 0 to"),
        ("POST", &connections, r#"{"source": "connected"}"#, "unknown variant `connected`"),
        ("POST", &connections, r#"{"sink": "CONNECTED"}"#, "unknown field `sink`"),
    ];
    let before = emulator.tunnels();
    for (method, path, body, reason) in cases {
        let answer = control(&emulator, method, path, body).await;
        let message = answer.body["message"].as_str().expect("a message");
        assert_eq!(answer.status, 400, "{path} {body}");
        assert!(message.contains(reason), "{path} {body}: {message}");
    }
    assert_eq!(emulator.tunnels(), before);
    open_id(&sdk(&emulator)).await;
}

#[tokio::test]
async fn unknown_paths_methods_and_tunnels_are_told_apart() {
    let emulator = emulator().await;
    for (method, path, status, message) in [
        ("GET", "/nothing", 404, "/_emulator/nothing is no path of the control API"),
        ("GET", "", 404, "/_emulator is no path of the control API"),
        ("POST", "/tunnels//connections", 404, "there is no tunnel "),
        ("POST", "/calls", 405, "this path takes GET"),
        ("POST", "/quotas", 405, "this path takes PUT"),
        ("GET", "/reset", 405, "this path takes POST"),
        ("POST", "/tunnels/x/connections", 404, "there is no tunnel x"),
    ] {
        let answer = control(&emulator, method, path, "{}").await;
        assert_eq!((answer.status, &answer.body), (status, &json!({"message": message})), "{method} {path}");
    }
    assert!(emulator.calls().is_empty(), "the control API is not the service");
}

#[tokio::test]
async fn waiting_ends_with_the_call_that_was_waited_for() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let opened =
        |calls: &[Call]| calls.iter().filter(|c| c.operation == Operation::OpenTunnel.name() && c.succeeded()).count();
    let waiting = emulator.wait_calls(|calls| opened(calls) == 3);
    let calling = async {
        for _ in 0..3 {
            client.list_tunnels().send().await.expect("ListTunnels");
            open_id(&client).await;
        }
    };
    let both = async { tokio::join!(waiting, calling) };
    tokio::time::timeout(crate::client::PATIENCE, both).await.expect("the wait to end");
    emulator.wait_calls(|calls| opened(calls) == 3).await;
    emulator.wait_tunnels(|tunnels| tunnels.len() == 3).await;
}
