//! AWS JSON 1.1 as bytes: what an SDK does not show.

use serde_json::{Value, json};

use crate::client::{call, emulator, http};

#[tokio::test]
async fn an_answer_has_aws_s_content_type_and_a_request_id_of_its_own() {
    let emulator = emulator().await;
    let (one, two) = (call(&emulator, "ListTunnels", "{}").await, call(&emulator, "ListTunnels", "{}").await);
    assert_eq!(one.status, 200);
    assert_eq!(one.header("content-type"), Some("application/x-amz-json-1.1"));
    assert_eq!(one.header("x-amzn-requestid").expect("an ID").len(), 36);
    assert_ne!(one.header("x-amzn-requestid"), two.header("x-amzn-requestid"));
    assert_eq!(one.header("x-amzn-errortype"), None);
    assert_eq!(one.body, json!({"tunnelSummaries": []}));
}

#[tokio::test]
async fn absent_fields_are_left_out_and_times_are_seconds_with_milliseconds() {
    let emulator = emulator().await;
    let opened = call(&emulator, "OpenTunnel", "{}").await.body;
    let id = opened["tunnelId"].as_str().expect("an ID");
    let arn = opened["tunnelArn"].as_str().expect("an ARN");
    let created_at = emulator.tunnels()[0].created_at.as_millisecond() as f64 / 1000.0;
    let summary = json!({
        "tunnelId": id, "tunnelArn": arn, "status": "OPEN",
        "createdAt": created_at, "lastUpdatedAt": created_at,
    });
    let listed = call(&emulator, "ListTunnels", "{}").await.body;
    assert_eq!(listed, json!({"tunnelSummaries": [summary]}));

    let side = json!({"status": "DISCONNECTED", "lastUpdatedAt": created_at});
    let mut tunnel = summary;
    tunnel["sourceConnectionState"] = side.clone();
    tunnel["destinationConnectionState"] = side;
    tunnel["timeoutConfig"] = json!({"maxLifetimeTimeoutMinutes": 720});
    let described = call(&emulator, "DescribeTunnel", json!({"tunnelId": id})).await.body;
    assert_eq!(described, json!({"tunnel": tunnel}));

    let body = json!({"resourceArn": arn});
    assert_eq!(call(&emulator, "ListTagsForResource", body).await.body, json!({"tags": []}));
    let body = json!({"tunnelId": id, "clientMode": "SOURCE"});
    let rotated = call(&emulator, "RotateTunnelAccessToken", body).await.body;
    let keys: Vec<_> = rotated.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["sourceAccessToken", "tunnelArn"]);
    assert_eq!(call(&emulator, "CloseTunnel", json!({"tunnelId": id})).await.body, json!({}));
}

#[tokio::test]
async fn null_is_absent_and_unknown_members_are_ignored() {
    let emulator = emulator().await;
    let body = json!({"description": null, "tags": null, "destinationConfig": null, "somethingNew": [1]});
    assert_eq!(call(&emulator, "OpenTunnel", body).await.status, 200);
    assert_eq!(call(&emulator, "OpenTunnel", "").await.status, 200);
}

#[tokio::test]
async fn what_has_the_wrong_type_is_a_serialization_exception_before_any_constraint() {
    let emulator = emulator().await;
    let cases = [
        ("OpenTunnel", json!({"description": 5}), "NUMBER_VALUE can not be converted to String"),
        ("OpenTunnel", json!({"description": {}}), "Start of structure or map found where not expected."),
        ("OpenTunnel", json!({"tags": "x"}), "STRING_VALUE can not be converted to List"),
        ("OpenTunnel", json!({"tags": [null]}), "NULL_VALUE can not be converted to Structure"),
        ("OpenTunnel", json!({"tags": [{"key": true}]}), "TRUE_VALUE can not be converted to String"),
        ("OpenTunnel", json!({"destinationConfig": ["t", ["SSH"]]}), "Start of list found where not expected"),
        (
            "OpenTunnel",
            json!({"description": "", "timeoutConfig": {"maxLifetimeTimeoutMinutes": "60"}}),
            "STRING_VALUE can not be converted to Integer",
        ),
        ("ListTunnels", json!({"maxResults": 1.5}), "NUMBER_VALUE can not be converted to Integer"),
        ("ListTunnels", json!({"maxResults": 3_000_000_000_u64}), "NUMBER_VALUE can not be converted to Integer"),
        ("CloseTunnel", json!({"delete": "true"}), "STRING_VALUE can not be converted to Boolean"),
        ("ListTunnels", json!([]), "Start of list found where not expected"),
    ];
    for (operation, body, message) in cases {
        let answer = call(&emulator, operation, &body).await;
        assert_eq!(answer.error(), ("SerializationException", message), "{operation} {body}");
        assert_eq!(answer.status, 400);
    }
    for broken in ["{", "not json", "{} {}", "\u{1}"] {
        let answer = call(&emulator, "ListTunnels", broken).await;
        assert_eq!(answer.error().0, "SerializationException", "{broken}");
    }
    assert!(emulator.tunnels().is_empty());
}

#[tokio::test]
async fn an_unknown_operation_is_refused_and_logged() {
    let emulator = emulator().await;
    let answer = call(&emulator, "ReopenTunnel", "{}").await;
    assert_eq!(answer.error(), ("UnknownOperationException", "Unknown operation: ReopenTunnel"));
    let [call] = &emulator.calls()[..] else { panic!("one call") };
    assert_eq!(call.operation, "ReopenTunnel");
    assert_eq!(call.outcome.as_deref(), Some("UnknownOperationException"));

    for headers in ["", "X-Amz-Target: OtherService.OpenTunnel\r\n", "X-Amz-Target: OpenTunnel\r\n"] {
        let answer = http(&emulator, "POST", "/", headers, "{}").await;
        assert_eq!(answer.error().0, "UnknownOperationException");
        assert_eq!(answer.status, 400);
    }
}

#[tokio::test]
async fn only_post_to_the_root_is_the_service() {
    let emulator = emulator().await;
    for (method, path) in [("GET", "/"), ("PUT", "/"), ("POST", "/tunnels")] {
        let target = "X-Amz-Target: IoTSecuredTunneling.OpenTunnel\r\n";
        let answer = http(&emulator, method, path, target, "{}").await;
        assert_eq!((answer.status, answer.error().0), (404, "UnknownOperationException"));
    }
    assert!(emulator.tunnels().is_empty());
}

#[tokio::test]
async fn the_largest_valid_request_is_accepted_and_a_much_larger_one_refused() {
    let emulator = emulator().await;
    let escaped = |c: &str, n: usize| c.repeat(n);
    let tag = |n: usize| {
        let key = format!("{n:03}{}", escaped(r"\ud835\udd38", 125));
        format!(r#"{{"key":"{key}","value":"{}"}}"#, escaped(r"\ud835\udd38", 256))
    };
    let tags: Vec<_> = (0..200).map(tag).collect();
    let body = format!(r#"{{"tags":[{}]}}"#, tags.join(","));
    assert_eq!(call(&emulator, "OpenTunnel", body).await.status, 200);
    let answer = call(&emulator, "OpenTunnel", format!(r#"{{"x":"{}"}}"#, "x".repeat(2 << 20))).await;
    assert_eq!((answer.status, answer.error().0), (413, "RequestEntityTooLargeException"));
}

#[tokio::test]
async fn the_region_is_the_credential_scope_s_and_else_the_configured_one() {
    let emulator = emulator().await;
    let target = "X-Amz-Target: IoTSecuredTunneling.OpenTunnel\r\n";
    let signed = |scope: &str| {
        format!("{target}Authorization: AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0\r\n")
    };
    let cases = [
        (target.to_owned(), "us-east-1"),
        (signed("AKID/20261123/eu-west-3/IoTSecuredTunneling/aws4_request"), "eu-west-3"),
        (signed("AKID"), "us-east-1"),
        (signed("AKID/20261123/no region/IoTSecuredTunneling/aws4_request"), "us-east-1"),
        (signed("AKID/20261123//IoTSecuredTunneling/aws4_request"), "us-east-1"),
    ];
    for (headers, region) in cases {
        let opened: Value = http(&emulator, "POST", "/", &headers, "{}").await.body;
        let arn = opened["tunnelArn"].as_str().expect("an ARN");
        assert!(arn.starts_with(&format!("arn:aws:iot:{region}:123456789012:tunnel/")), "{arn}");
    }
}
