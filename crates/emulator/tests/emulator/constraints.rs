//! Every constraint of the service model at both of its edges.

use secure_tunneling_emulator::Emulator;
use serde_json::{Value, json};

use crate::client::{call, emulator};

/// The part of a message that names one violation.
fn violation(value: &str, at: &str, must: &str) -> String {
    format!("Value {value} at '{at}' failed to satisfy constraint: Member must {must}")
}

async fn accepted(emulator: &Emulator, operation: &str, body: Value) {
    let answer = call(emulator, operation, &body).await;
    assert_eq!(answer.status, 200, "{operation} {body} was answered {}", answer.body);
}

/// The call is refused for exactly these violations, in this order.
async fn refused(emulator: &Emulator, operation: &str, body: Value, violations: &[String]) {
    let answer = call(emulator, operation, &body).await;
    let errors = if violations.len() == 1 { "error" } else { "errors" };
    let message = format!("{} validation {errors} detected: {}", violations.len(), violations.join("; "));
    assert_eq!(answer.error(), ("ValidationException", message.as_str()), "{operation} {body}");
    assert_eq!(answer.status, 400);
}

fn services(names: &[&str]) -> Value {
    json!({"destinationConfig": {"services": names}})
}

fn tags(tags: &[(&str, &str)]) -> Value {
    json!({"tags": tags.iter().map(|(k, v)| json!({"key": k, "value": v})).collect::<Vec<_>>()})
}

#[tokio::test]
async fn a_description_has_1_to_2048_code_points_and_no_control_characters() {
    let emulator = emulator().await;
    // 2048 code points that are 8192 bytes and 4096 UTF-16 units.
    for good in ["x".to_owned(), "😀".repeat(2048), "é\u{a0}\u{3000} ü".to_owned()] {
        accepted(&emulator, "OpenTunnel", json!({"description": good})).await;
    }
    // Cc, Cf, Co and Cn; surrogates (Cs) cannot be sent.
    for bad in ["", "a\nb", "\u{200b}", "\u{e000}", "\u{378}", &"x".repeat(2049)] {
        let must = r"satisfy regular expression pattern: [^\p{C}]{1,2048}";
        let expected = violation(&format!("'{bad}'"), "description", must);
        refused(&emulator, "OpenTunnel", json!({"description": bad}), &[expected]).await;
    }
}

#[tokio::test]
async fn a_thing_name_has_1_to_128_plain_characters() {
    let emulator = emulator().await;
    let with = |thing: &str| json!({"destinationConfig": {"thingName": thing, "services": ["SSH"]}});
    for good in ["a", "aZ09:_-", &"x".repeat(128)] {
        accepted(&emulator, "OpenTunnel", with(good)).await;
        accepted(&emulator, "ListTunnels", json!({"thingName": good})).await;
    }
    let pattern = "satisfy regular expression pattern: [a-zA-Z0-9:_-]+";
    let long = "x".repeat(129);
    let cases = [
        ("", vec![pattern, "have length greater than or equal to 1"]),
        ("a b", vec![pattern]),
        ("ä", vec![pattern]),
        (long.as_str(), vec!["have length less than or equal to 128"]),
    ];
    for (bad, musts) in cases {
        let at = |path| musts.iter().map(|must| violation(&format!("'{bad}'"), path, must)).collect::<Vec<_>>();
        refused(&emulator, "OpenTunnel", with(bad), &at("destinationConfig.thingName")).await;
        refused(&emulator, "ListTunnels", json!({"thingName": bad}), &at("thingName")).await;
    }
    let missing = violation("null", "destinationConfig.services", "not be null");
    refused(&emulator, "OpenTunnel", json!({"destinationConfig": {"thingName": "a"}}), &[missing]).await;
}

#[tokio::test]
async fn services_are_at_least_one_and_each_has_1_to_128_plain_characters() {
    let emulator = emulator().await;
    let longest: Vec<_> = (0..100).map(|n| format!("{n:-<128}")).collect();
    let longest: Vec<_> = longest.iter().map(String::as_str).collect();
    accepted(&emulator, "OpenTunnel", services(&longest)).await;
    assert_eq!(emulator.tunnels()[0].services, longest);
    accepted(&emulator, "OpenTunnel", services(&["a"])).await;

    let at = "destinationConfig.services";
    let none = violation("'[]'", at, "have length greater than or equal to 1");
    refused(&emulator, "OpenTunnel", services(&[]), &[none]).await;
    let long = "x".repeat(129);
    for bad in ["", "a b", "ä", long.as_str()] {
        let must = "satisfy constraint: [Member must have length less than or equal to 128, \
                    Member must have length greater than or equal to 1, \
                    Member must satisfy regular expression pattern: [a-zA-Z0-9:_-]+]";
        let expected = violation(&format!("'[SSH, {bad}]'"), at, must);
        refused(&emulator, "OpenTunnel", services(&["SSH", bad]), &[expected]).await;
    }
}

#[tokio::test]
async fn a_lifetime_is_1_to_720_minutes() {
    let emulator = emulator().await;
    let with = |minutes: i32| json!({"timeoutConfig": {"maxLifetimeTimeoutMinutes": minutes}});
    for good in [1, 720] {
        accepted(&emulator, "OpenTunnel", with(good)).await;
    }
    accepted(&emulator, "OpenTunnel", json!({"timeoutConfig": {}})).await;
    for (bad, must) in [
        (0, "have value greater than or equal to 1"),
        (-5, "have value greater than or equal to 1"),
        (721, "have value less than or equal to 720"),
    ] {
        let at = "timeoutConfig.maxLifetimeTimeoutMinutes";
        refused(&emulator, "OpenTunnel", with(bad), &[violation(&format!("'{bad}'"), at, must)]).await;
    }
}

#[tokio::test]
async fn tags_are_1_to_200_with_keys_of_1_to_128_and_values_of_0_to_256() {
    let emulator = emulator().await;
    let (key, value) = ("ж".repeat(128), "𝔸".repeat(256));
    accepted(&emulator, "OpenTunnel", tags(&[(&key, &value), ("k _.:/=+-@٣\u{2028}", "")])).await;
    let many: Vec<_> = (0..201).map(|n| format!("k{n}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), "v")).collect();
    accepted(&emulator, "OpenTunnel", tags(&many[..200])).await;

    let shown: Vec<_> = many.iter().map(|(k, v)| format!("Tag(key={k}, value={v})")).collect();
    let must = "have length less than or equal to 200";
    let expected = violation(&format!("'[{}]'", shown.join(", ")), "tags", must);
    refused(&emulator, "OpenTunnel", tags(&many), &[expected]).await;
    let none = violation("'[]'", "tags", "have length greater than or equal to 1");
    refused(&emulator, "OpenTunnel", tags(&[]), &[none]).await;

    let pattern = r"satisfy regular expression pattern: ^([\p{L}\p{Z}\p{N}_.:/=+\-@]*)$";
    let (long_key, long_value) = ("k".repeat(129), "v".repeat(257));
    let cases = [
        ("", "v", vec![("key", "", "have length greater than or equal to 1")]),
        (&long_key, "v", vec![("key", long_key.as_str(), "have length less than or equal to 128")]),
        ("k!", "v", vec![("key", "k!", pattern)]),
        ("k", "v\n", vec![("value", "v\n", pattern)]),
        ("k", &long_value, vec![("value", long_value.as_str(), "have length less than or equal to 256")]),
        ("k#", "v#", vec![("key", "k#", pattern), ("value", "v#", pattern)]),
    ];
    for (key, value, musts) in cases {
        let one =
            |(of, bad, must): &(&str, &str, &str)| violation(&format!("'{bad}'"), &format!("tags.2.member.{of}"), must);
        let expected: Vec<_> = musts.iter().map(one).collect();
        refused(&emulator, "OpenTunnel", tags(&[("ok", "ok"), (key, value)]), &expected).await;
    }
    let half = json!({"tags": [{}]});
    let expected = [
        violation("null", "tags.1.member.key", "not be null"),
        violation("null", "tags.1.member.value", "not be null"),
    ];
    refused(&emulator, "OpenTunnel", half, &expected).await;
}

#[tokio::test]
async fn reserved_and_doubled_tag_keys_are_refused() {
    let emulator = emulator().await;
    accepted(&emulator, "OpenTunnel", json!({})).await;
    let arn = emulator.tunnels()[0].tunnel_arn.clone();
    for bad in ["aws:x", "AWS:x", "aWs:"] {
        for operation in ["OpenTunnel", "TagResource"] {
            let mut body = tags(&[(bad, "v")]);
            body["resourceArn"] = json!(arn);
            let answer = call(&emulator, operation, body).await;
            let (error, message) = answer.error();
            assert_eq!(error, "ValidationException");
            assert!(message.contains("aws:") && message.contains(bad), "{message}");
        }
    }
    accepted(&emulator, "OpenTunnel", tags(&[("awsome:x", "v"), ("aws", "v")])).await;
    let answer = call(&emulator, "OpenTunnel", tags(&[("k", "1"), ("k", "2")])).await;
    assert_eq!(answer.error(), ("ValidationException", "Duplicate tag key found: 'k'"));
    assert_eq!(emulator.tunnels().len(), 2);
}

#[tokio::test]
async fn a_tunnel_id_has_1_to_128_characters_of_its_alphabet() {
    let emulator = emulator().await;
    for operation in ["DescribeTunnel", "CloseTunnel", "RotateTunnelAccessToken"] {
        let with = |id: Value| json!({"tunnelId": id, "clientMode": "ALL"});
        for good in ["a", "Az09_-+=:", &"x".repeat(128)] {
            let answer = call(&emulator, operation, with(json!(good))).await;
            assert_eq!(answer.error().0, "ResourceNotFoundException");
        }
        for bad in ["", "a/b", "ä", &"x".repeat(129)] {
            let must = r"satisfy regular expression pattern: [a-zA-Z0-9_\-+=:]{1,128}";
            let expected = violation(&format!("'{bad}'"), "tunnelId", must);
            refused(&emulator, operation, with(json!(bad)), &[expected]).await;
        }
        refused(&emulator, operation, with(json!(null)), &[violation("null", "tunnelId", "not be null")]).await;
    }
}

#[tokio::test]
async fn a_client_mode_is_one_of_three_words() {
    let emulator = emulator().await;
    let must = "satisfy enum value set: [SOURCE, DESTINATION, ALL]";
    for bad in ["source", ""] {
        let body = json!({"tunnelId": "a", "clientMode": bad});
        let expected = violation(&format!("'{bad}'"), "clientMode", must);
        refused(&emulator, "RotateTunnelAccessToken", body, &[expected]).await;
    }
    let missing = [violation("null", "tunnelId", "not be null"), violation("null", "clientMode", "not be null")];
    refused(&emulator, "RotateTunnelAccessToken", json!({}), &missing).await;
}

#[tokio::test]
async fn a_page_has_1_to_100_results_and_its_token_an_alphabet() {
    let emulator = emulator().await;
    for good in [1, 100] {
        accepted(&emulator, "ListTunnels", json!({"maxResults": good})).await;
    }
    for (bad, must) in [(0, "have value greater than or equal to 1"), (101, "have value less than or equal to 100")] {
        let expected = violation(&format!("'{bad}'"), "maxResults", must);
        refused(&emulator, "ListTunnels", json!({"maxResults": bad}), &[expected]).await;
    }
    for bad in ["", "a+b", &"x".repeat(4097)] {
        let must = "satisfy regular expression pattern: [a-zA-Z0-9_=-]{1,4096}";
        let expected = violation(&format!("'{bad}'"), "nextToken", must);
        refused(&emulator, "ListTunnels", json!({"nextToken": bad}), &[expected]).await;
    }
}

#[tokio::test]
async fn a_resource_arn_has_1_to_1011_code_points() {
    let emulator = emulator().await;
    for operation in ["TagResource", "UntagResource", "ListTagsForResource"] {
        let with = |arn: Value| json!({"resourceArn": arn, "tags": [{"key": "k", "value": "v"}], "tagKeys": ["k"]});
        let answer = call(&emulator, operation, with(json!("ж".repeat(1011)))).await;
        assert_eq!(answer.error().0, "ResourceNotFoundException");
        for (bad, must) in [
            (String::new(), "have length greater than or equal to 1"),
            ("a".repeat(1012), "have length less than or equal to 1011"),
        ] {
            let expected = violation(&format!("'{bad}'"), "resourceArn", must);
            refused(&emulator, operation, with(json!(bad)), &[expected]).await;
        }
        let missing = violation("null", "resourceArn", "not be null");
        refused(&emulator, operation, with(json!(null)), &[missing]).await;
    }
}

#[tokio::test]
async fn tag_keys_to_remove_are_0_to_200_and_the_lists_of_tags_are_required() {
    let emulator = emulator().await;
    accepted(&emulator, "OpenTunnel", json!({})).await;
    let arn = emulator.tunnels()[0].tunnel_arn.clone();
    let with = |keys: Value| json!({"resourceArn": arn, "tagKeys": keys});
    let many: Vec<_> = (0..201).map(|n| format!("k{n}")).collect();
    accepted(&emulator, "UntagResource", with(json!([]))).await;
    accepted(&emulator, "UntagResource", with(json!(many[..200]))).await;
    let must = "have length less than or equal to 200";
    let expected = violation(&format!("'[{}]'", many.join(", ")), "tagKeys", must);
    refused(&emulator, "UntagResource", with(json!(many)), &[expected]).await;
    let must = "satisfy constraint: [Member must have length less than or equal to 128, \
                Member must have length greater than or equal to 1, \
                Member must satisfy regular expression pattern: ^([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)$]";
    refused(&emulator, "UntagResource", with(json!(["!"])), &[violation("'[!]'", "tagKeys", must)]).await;
    let missing = violation("null", "tagKeys", "not be null");
    refused(&emulator, "UntagResource", json!({"resourceArn": arn}), &[missing]).await;
    let missing = violation("null", "tags", "not be null");
    refused(&emulator, "TagResource", json!({"resourceArn": arn}), &[missing]).await;
}

#[tokio::test]
async fn all_violations_of_a_request_are_told_and_nothing_is_done() {
    let emulator = emulator().await;
    let body = json!({
        "description": "\t",
        "timeoutConfig": {"maxLifetimeTimeoutMinutes": 1000},
    });
    let pattern = r"satisfy regular expression pattern: [^\p{C}]{1,2048}";
    let expected = [
        violation("'\t'", "description", pattern),
        violation("'1000'", "timeoutConfig.maxLifetimeTimeoutMinutes", "have value less than or equal to 720"),
    ];
    refused(&emulator, "OpenTunnel", body, &expected).await;
    assert!(emulator.tunnels().is_empty());
}
