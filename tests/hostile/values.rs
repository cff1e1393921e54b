//! A Tunnel and a Secret that are whole, and what may become of any part of them.

use super::entry::CANARY;
use proptest::prelude::*;
use serde_json::{Value, json};

/// With every field that there is.
pub fn tunnel() -> Value {
    let condition = |type_: &str| {
        json!({"type": type_, "status": "True", "observedGeneration": 1, "reason": "Open", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    json!({
        "apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel",
        "metadata": {
            "generation": 1, "resourceVersion": "7", "finalizers": ["opentunnel.dev/close-tunnel"],
            "annotations": {"opentunnel.dev/opening": "8f1c3d2e-uid/attempt"},
        },
        "spec": {
            "description": "ssh", "destination": {"thingName": "sensor-42", "services": ["SSH", "RDP"]},
            "tags": [{"key": "team", "value": "edge"}], "timeout": {"maxLifetimeTimeoutMinutes": 60},
            "secrets": [
                {"name": "a", "clientMode": "SOURCE", "labels": {"team": "edge"}, "annotations": {"a.b/c": "d"}},
                {"name": "b", "clientMode": "ALL"},
            ],
            "deletionPolicy": "Retain",
        },
        "status": {
            "observedGeneration": 1, "tunnelId": "id", "tunnelArn": "arn:aws:iot:us-east-1:123456789012:tunnel/id",
            "state": "OPEN", "openedAt": "2027-01-15T07:00:00Z", "expiresAt": "2027-01-15T08:30:00Z",
            "secrets": [{"name": "a", "sha256": "0".repeat(64)}, {"name": "b", "sha256": "0".repeat(64)}],
            "tokenGeneration": 3,
            "conditions": [condition("Ready"), condition("Reconciling")],
        },
    })
}

/// A token Secret of the Tunnel's.
pub fn secret() -> Value {
    // base64 of the canary does not hold it: what is decoded does.
    let token = json!(k8s_openapi::ByteString(CANARY.as_bytes().to_vec()));
    let owner = json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "name": "sensor-42",
        "uid": "8f1c3d2e-uid", "controller": true});
    json!({
        "metadata": {
            "name": "sensor-42-tokens", "namespace": "edge", "uid": "u", "resourceVersion": "9",
            "labels": {"app.kubernetes.io/managed-by": "opentunnel-operator", "opentunnel.dev/secret": "tokens"},
            "ownerReferences": [owner],
            "annotations": {"opentunnel.dev/token-generation": "3", "opentunnel.dev/tunnel-id": "id",
                "opentunnel.dev/data-sha256": "0".repeat(64)},
            "deletionTimestamp": null,
        },
        "type": "opentunnel.dev/tunnel-tokens", "immutable": false,
        "data": {"sourceAccessToken": token, "sourceClientToken": token, "destinationAccessToken": token,
            "destinationClientToken": token, "tunnelId": "aWQ=", "region": "dXMtZWFzdC0x"},
    })
}

/// `opentunnel.dev/opening`, in every shape.
pub fn claim() -> impl Strategy<Value = String> {
    let uid = prop_oneof![Just("8f1c3d2e-uid".to_owned()), Just(String::new()), any::<String>()];
    let attempt = prop_oneof![Just("attempt".to_owned()), Just("x".repeat(200_000)), any::<String>()];
    prop_oneof![
        4 => (uid, attempt).prop_map(|(uid, attempt)| format!("{uid}/{attempt}")),
        1 => any::<String>(),
        1 => Just("/".repeat(10_000)),
    ]
}

/// What no schema expects.
fn value() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec![
        "",
        "x",
        "/",
        "OPEN",
        "CLOSED",
        "ALL",
        "True",
        "Open",
        "Rotating",
        "9999-12-31T23:59:59Z",
        "0000-01-01T00:00:00Z",
        "-009999-01-01T00:00:00Z",
        "2027-01-15T08:00:60Z",
        "2027-01-15T08:00:00+25:00",
        "9223372036854775807",
        "-1",
        "NaN",
        "\u{0}\n\u{1b}[2J",
        "\u{202e}",
        "8f1c3d2e-uid",
        "opentunnel.dev/owner",
    ]);
    let number = prop::sample::select(vec![
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e300),
        json!(0.5),
        json!(721),
        json!(i32::MAX),
        json!(i64::MAX / 2),
    ]);
    let leaf = prop_oneof![
        4 => text.prop_map(Value::from),
        2 => any::<String>().prop_map(Value::from),
        1 => (1_usize..100_000).prop_map(|n| json!("ü".repeat(n))),
        3 => number,
        1 => any::<bool>().prop_map(Value::from),
        2 => Just(Value::Null),
    ];
    leaf.prop_recursive(6, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::btree_map("[a-zA-Z]{0,12}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Up to five parts replaced, taken out, doubled or put in.
pub fn spoilt(whole: Value) -> impl Strategy<Value = Value> {
    let change = (any::<prop::sample::Index>(), 0..5, value());
    prop::collection::vec(change, 0..6).prop_map(move |changes| {
        let mut spoilt = whole.clone();
        for (index, how, value) in changes {
            let mut places = Vec::new();
            pointers(&spoilt, String::new(), &mut places);
            if places.is_empty() {
                break;
            }
            let place = &places[index.index(places.len())];
            let (parent, name) = place.rsplit_once('/').unwrap_or_default();
            match (how, spoilt.pointer_mut(parent)) {
                (0, Some(Value::Object(map))) => drop(map.remove(&unescaped(name))),
                (1, Some(Value::Array(items))) => items.push(items[0].clone()),
                (2, Some(Value::Object(map))) => {
                    drop(map.insert("deletionTimestamp".into(), json!("2027-01-15T07:59:00Z")))
                }
                _ => *spoilt.pointer_mut(place).expect("it is there") = value,
            }
        }
        spoilt
    })
}

fn unescaped(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

/// Every place in it, as JSON pointers.
fn pointers(value: &Value, at: String, places: &mut Vec<String>) {
    let mut place = |name: String, value: &Value| {
        let place = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        places.push(place.clone());
        pointers(value, place, places);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| place(name.clone(), value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(n, value)| place(n.to_string(), value)),
        _ => {}
    }
}
