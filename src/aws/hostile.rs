//! Any answer to the real SDK client: never a panic, never a token in a text, and nothing comes of it that the API
//! server would not take.

use super::*;
use crate::telemetry::tests::{Written, with_subscriber};
use axum::body::{Body, Bytes};
use axum::response::Response;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Mutex;
use tracing_subscriber::layer::SubscriberExt;

/// Stands in every token that the server gives.
const CANARY: &str = "CANARYcanary0123456789";

/// Hostile values, by kind.
fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just(String::new()),
        Just("../../etc/passwd".to_owned()),
        Just("a\u{0}b\n\u{1b}[2J\u{202e}".to_owned()),
        Just("x".repeat(2000)),
        Just("y".repeat(1 << 20)),
        Just("OPEN".to_owned()),
        Just("arn:aws:iot:us-east-1:123456789012:tunnel/x".to_owned()),
        any::<String>(),
    ];
    let number = prop_oneof![
        Just(json!(0)),
        Just(json!(-1)),
        Just(json!(1e300)),
        Just(json!(-1e300)),
        Just(json!(253_402_300_800_i64)),
        Just(json!(i64::MIN)),
        Just(json!(u64::MAX)),
        any::<f64>().prop_map(|f| json!(f)),
    ];
    let leaf =
        prop_oneof![3 => text.prop_map(Value::String), 2 => number, 1 => Just(Value::Null), 1 => Just(json!(true))];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("[a-zA-Z]{0,12}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Every member that an answer may have, each as it should be.
fn whole() -> Value {
    let tunnel = json!({
        "tunnelId": "id", "tunnelArn": "arn:aws:iot:us-east-1:123456789012:tunnel/id", "status": "OPEN",
        "createdAt": 1.8e9, "lastUpdatedAt": 1.8e9, "description": "d",
        "sourceConnectionState": {"status": "CONNECTED", "lastUpdatedAt": 1.8e9},
        "destinationConfig": {"services": ["SSH"]}, "timeoutConfig": {"maxLifetimeTimeoutMinutes": 1},
        "tags": [{"key": "opentunnel.dev/owner", "value": "c/n/u/a"}],
    });
    let mut whole = tunnel.clone();
    whole["tunnel"] = tunnel.clone();
    whole["tunnelSummaries"] = json!([tunnel, tunnel]);
    whole["sourceAccessToken"] = json!(CANARY);
    whole["destinationAccessToken"] = json!(format!("{CANARY}{CANARY}"));
    whole
}

/// Members of JSON, wherever they stand, that are replaced or taken out.
fn spoilt() -> impl Strategy<Value = Value> {
    let change = (any::<prop::sample::Index>(), prop::option::weighted(0.8, value()));
    prop::collection::vec(change, 0..4).prop_map(|changes| {
        let mut spoilt = whole();
        for (index, to) in changes {
            let mut places = Vec::new();
            pointers(&spoilt, String::new(), &mut places);
            let place = &places[index.index(places.len())];
            let (parent, name) = place.rsplit_once('/').unwrap_or_default();
            match (spoilt.pointer_mut(parent), to) {
                (Some(Value::Object(map)), None) => drop(map.remove(name)),
                (Some(_), Some(to)) => spoilt.pointer_mut(place).map(|v| *v = to).unwrap_or_default(),
                _ => {}
            }
        }
        spoilt
    })
}

fn pointers(value: &Value, at: String, places: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().filter(|(n, _)| !n.contains(['/', '~'])).for_each(|(name, value)| {
            places.push(format!("{at}/{name}"));
            pointers(value, format!("{at}/{name}"), places);
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(n, value)| {
            places.push(format!("{at}/{n}"));
            pointers(value, format!("{at}/{n}"), places);
        }),
        _ => {}
    }
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let error = (any::<String>(), value())
        .prop_map(|(kind, message)| json!({"__type": kind, "message": message, "Message": CANARY[..1]}));
    prop_oneof![
        8 => spoilt().prop_map(|json| json.to_string().into_bytes()),
        2 => error.prop_map(|json| json.to_string().into_bytes()),
        2 => (spoilt(), any::<prop::sample::Index>()).prop_map(|(json, cut)| {
            let text = json.to_string().into_bytes();
            text[..cut.index(text.len())].to_vec()
        }),
        1 => prop::collection::vec(any::<u8>(), 0..200),
        1 => Just([b"[".repeat(100_000), b"]".repeat(100_000)].concat()),
        1 => Just(format!("{{\"sourceAccessToken\": \"{CANARY}\\ud800{CANARY}\", \"x\": NaN}}").into_bytes()),
    ]
}

/// All that the operator would log, with everything logged that may be.
fn logged<T>(run: impl FnOnce() -> T) -> (T, String) {
    let log = Written::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
    let ours = tracing_subscriber::filter::filter_fn(crate::telemetry::may_be_logged);
    let outcome = with_subscriber(tracing_subscriber::registry().with(lines).with(ours), run);
    (outcome, log.text())
}

/// A server with one answer for everything, and a client of it. Made once for a thread: the client's TLS takes time.
struct Bench {
    runtime: tokio::runtime::Runtime,
    aws: Aws,
    answer: Arc<Mutex<(u16, Bytes)>>,
}

thread_local! {
    static BENCH: Bench = Bench::new();
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = Arc::new(Mutex::new((200, Bytes::new())));
        let told = answer.clone();
        let tell = move || {
            let (status, body) = told.lock().unwrap().clone();
            async move { Response::builder().status(status).body(Body::from(body)).unwrap() }
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, axum::Router::new().fallback(tell)).await });
        let config = sdk::Config::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .region(sdk::config::Region::new("us-east-1"))
            .credentials_provider(aws_credential_types::Credentials::new("key", "secret", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(20)).build())
            .endpoint_url(url)
            .build();
        let (client, metrics) = (sdk::Client::from_conf(config), Arc::new(Metrics::new()));
        let aws = Aws { client, region: "us-east-1".into(), account: Arc::default(), metrics };
        Self { runtime, aws, answer }
    }
}

/// What each operation makes of one answer: its own Debug text, and how it failed; and all that is logged.
fn answered(status: u16, body: Vec<u8>) -> (Vec<(String, Option<CallError>)>, String) {
    BENCH.with(|bench| {
        *bench.answer.lock().unwrap() = (status, body.into());
        logged(|| bench.runtime.block_on(all(&bench.aws)))
    })
}

async fn all(aws: &Aws) -> Vec<(String, Option<CallError>)> {
    let request = OpenRequest { description: None, destination: None, tags: Vec::new(), lifetime_minutes: None };
    let attempt = crate::tunnels::Attempt::random();
    let owner = Owner { cluster: "c".into(), namespace: "n".into(), uid: "u".into(), attempt };
    let id = TunnelId("id".into());
    let mut outcomes = Vec::new();

    let opened = aws.open(&request, &Tags::new(), &owner, 1).await;
    if let Ok((tunnel, tokens)) = &opened {
        assert!(fits(tunnel) && tokens.have(ClientMode::All), "{tunnel:?}");
        for side in [&tokens.source, &tokens.destination].into_iter().flatten() {
            let token = side.access_token.expose();
            assert!(!token.is_empty() && token.len() <= TOKEN_LIMIT && !token.contains(char::is_control));
        }
    }
    outcomes.push((format!("{opened:?}"), opened.err()));
    for mode in [ClientMode::Source, ClientMode::Destination, ClientMode::All] {
        let rotated = aws.rotate(&id, mode, None).await;
        assert!(rotated.as_ref().is_ok_and(|tokens| tokens.have(mode)) || rotated.is_err());
        outcomes.push((format!("{rotated:?}"), rotated.err()));
    }
    let described = aws.describe(&id).await;
    if let Ok(Description { life, tunnel, .. }) = &described {
        assert!(tunnel.as_ref().map_or(*life == Life::NotFound, fits), "{described:?}");
        if let Life::Open { created_at } | Life::Closed { created_at, .. } = life {
            assert!((Timestamp::UNIX_EPOCH..LATEST).contains(created_at));
        }
    }
    outcomes.push((format!("{described:?}"), described.err()));
    let listed = aws.list(None).await;
    assert!(listed.as_ref().map_or(true, |page| page.summaries.iter().all(|s| fits(&s.tunnel))));
    outcomes.push((format!("{listed:?}"), listed.err()));
    let tags = Tags::from([("key".into(), "value".into())]);
    // Their answers have nothing in them: 200 is enough.
    for done in [aws.close(&id).await, aws.tag("arn", &tags).await, aws.untag("arn", &["key".into()]).await] {
        outcomes.push((format!("{done:?}"), done.err()));
    }
    outcomes
}

/// As the CRD has it.
fn fits(tunnel: &TunnelRef) -> bool {
    (1..=128).contains(&tunnel.id.0.chars().count()) && (1..=1600).contains(&tunnel.arn.chars().count())
}

proptest! {
    #[test]
    fn any_answer_of_aws_is_an_answer_or_a_failure_that_can_be_told(
        status in prop::sample::select(vec![200_u16, 200, 200, 200, 204, 301, 400, 400, 403, 404, 408, 429, 500, 503]),
        body in body(),
    ) {
        let (outcomes, log) = answered(status, body);
        prop_assert!(!log.contains(CANARY), "a token in the log");
        for (debug, error) in outcomes {
            prop_assert!(!debug.contains(CANARY), "a token in a text");
            let Some(error) = error else { continue };
            let text = error.to_string();
            prop_assert!(!text.is_empty() && text.len() <= MESSAGE_LIMIT && !text.contains(char::is_control), "{text:?}");
            // Only a 4xx with a code is known to have had no effect.
            prop_assert!(error.kind == CallErrorKind::Doubt || (400..500).contains(&status), "{status}: {error:?}");
        }
    }
}

/// The spoilt answers must not hide that a good one is read.
#[test]
fn a_whole_answer_is_read_by_every_operation() {
    let (outcomes, log) = answered(200, whole().to_string().into_bytes());
    assert!(log.contains("resolving endpoint"), "the AWS SDK is logged: {log}");
    for (debug, error) in outcomes {
        assert_eq!(error, None, "{debug}");
        assert!(!debug.contains(CANARY));
    }
}

#[test]
fn an_answer_to_open_tunnel_without_what_it_must_have_is_doubt() {
    for (member, value) in [
        ("tunnelId", Value::Null),
        ("tunnelId", json!("../x")),
        ("tunnelId", json!("x".repeat(129))),
        ("tunnelArn", json!("x".repeat(1601))),
        ("sourceAccessToken", json!("")),
        ("destinationAccessToken", json!("x".repeat(1 << 20))),
    ] {
        let mut answer = whole();
        answer[member] = value;
        let opened = answered(200, answer.to_string().into_bytes()).0.swap_remove(0);
        assert_eq!(opened.1.map(|e| e.kind), Some(CallErrorKind::Doubt), "{member}");
    }
}
