//! Traces by OTLP: one for each opening, sent to a collector that the environment names, and to nobody else.

use crate::support::connect_proxy::ConnectProxy;
use crate::support::log::has_token;
use crate::support::operator::{Operator, Settings};
use crate::support::{LIMIT, World};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message;
use secure_tunneling_emulator::{Fault, FaultKind, Operation, Quotas};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

/// What a collector was sent.
#[derive(Clone, Default)]
struct Received {
    spans: Vec<Span>,
    resource: Vec<KeyValue>,
    headers: HeaderMap,
    /// As it came.
    bytes: Vec<u8>,
    requests: usize,
}

/// A collector by OTLP over HTTP.
struct Collector {
    address: SocketAddr,
    url: String,
    received: watch::Receiver<Received>,
    answers: watch::Sender<StatusCode>,
}

type Shared = (Arc<watch::Sender<Received>>, watch::Receiver<StatusCode>);

async fn take(State((received, answers)): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let status = *answers.borrow();
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("it is OTLP");
    received.send_modify(|received| {
        received.requests += 1;
        if status != StatusCode::OK {
            return;
        }
        received.headers = headers;
        received.bytes.extend(&body);
        for spans in request.resource_spans {
            received.resource = spans.resource.expect("a resource").attributes;
            received.spans.extend(spans.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    });
    status
}

impl Collector {
    async fn new() -> Self {
        let (sender, received) = watch::channel(Received::default());
        let (answers, answered) = watch::channel(StatusCode::OK);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let app = Router::new().route("/v1/traces", post(take)).with_state((Arc::new(sender), answered));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, url: format!("http://{address}"), received, answers }
    }

    async fn wait(&self, what: &str, is: impl Fn(&Received) -> bool) -> Received {
        let mut received = self.received.clone();
        let waited = timeout(LIMIT, received.wait_for(|received| is(received))).await;
        waited.unwrap_or_else(|_| panic!("{what}")).expect("it runs").clone()
    }
}

fn tracing_to(world: &World, url: &str) -> Settings {
    world.settings().env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_BSP_SCHEDULE_DELAY", "100")
}

fn root(received: &Received) -> Option<&Span> {
    received.spans.iter().find(|span| span.parent_span_id.is_empty())
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let value = attributes.iter().find(|attribute| attribute.key == key).and_then(|a| a.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?} in {attributes:?}"),
    }
}

fn status(span: &Span) -> SpanStatus {
    span.status.as_ref().map_or(SpanStatus::Unset, |status| status.code())
}

/// The time of `root` in which none of `children` was under way.
fn uncovered(root: &Span, children: &[&Span]) -> Duration {
    let mut children: Vec<_> = children.iter().map(|c| (c.start_time_unix_nano, c.end_time_unix_nano)).collect();
    children.sort_unstable();
    let (mut covered, mut gaps) = (root.start_time_unix_nano, 0);
    for (start, end) in children {
        gaps += start.saturating_sub(covered);
        covered = covered.max(end);
    }
    Duration::from_nanos(gaps + root.end_time_unix_nano.saturating_sub(covered))
}

#[tokio::test]
async fn an_opening_is_one_trace_that_tells_what_it_waited_for_and_no_token() {
    let world = World::new().await;
    let collector = Collector::new().await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::LimitExceeded).times(1)]);
    let settings = tracing_to(&world, &collector.url)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=edge")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    let operator = world.operator_with(&settings).await;
    let manifest = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain},
        spec: {description: to the bridge, tags: [{key: cost-centre, value: x-4711}]}}";
    world.apply(manifest).await;
    let tunnel = world.wait_ready("plain").await;
    // What comes after it is in no trace.
    let rotate = ["annotate", "tun", "plain", "opentunnel.dev/rotate-at=now"];
    world.kubectl(&rotate).await;
    let old = world.secret_data("plain-tokens").await.expect("a Secret");
    world.wait_event("plain", "Normal TokensRotated").await;
    assert!(operator.terminate().await.success());
    let received = collector.wait("the end sends what there is", |received| root(received).is_some()).await;

    let root = root(&received).expect("it is there");
    let children: Vec<_> = received.spans.iter().filter(|span| span.span_id != root.span_id).collect();
    for child in &children {
        assert_eq!((&child.trace_id, &child.parent_span_id), (&root.trace_id, &root.span_id), "{child:#?}");
        let within = child.start_time_unix_nano >= root.start_time_unix_nano
            && child.end_time_unix_nano <= root.end_time_unix_nano;
        assert!(within, "it is no part of the opening: {child:#?}");
    }
    let timeline: Vec<_> = children
        .iter()
        .map(|c| {
            (c.start_time_unix_nano - root.start_time_unix_nano, c.end_time_unix_nano - c.start_time_unix_nano, &c.name)
        })
        .collect();
    let gaps = uncovered(root, &children);
    println!("{timeline:#?}\n{gaps:?} of {:?}", root.end_time_unix_nano - root.start_time_unix_nano);
    assert!(gaps < Duration::from_millis(200), "the children do not cover it: {gaps:?} {timeline:#?}");
    let named = |name: &str| children.iter().filter(|span| span.name == name).copied().collect::<Vec<_>>();
    for name in ["wait for a reconcile", "claim the opening", "wait for AWS's limit", "create the Secret"] {
        assert!(!named(name).is_empty(), "{name}: {timeline:#?}");
    }
    assert_eq!(named("write its status").len(), 1, "{timeline:#?}");

    let [refused, opened] = named("IoTSecureTunneling.OpenTunnel")[..] else { panic!("two calls: {timeline:#?}") };
    assert_eq!(text(&refused.attributes, "error.type"), "LimitExceededException");
    assert_eq!((status(refused), status(opened)), (SpanStatus::Error, SpanStatus::Unset));
    for call in [refused, opened] {
        let told = ["rpc.system", "rpc.service", "rpc.method", "cloud.region"].map(|key| text(&call.attributes, key));
        assert_eq!(told, ["aws-api", "IoTSecureTunneling", "OpenTunnel", "us-east-1"]);
        assert!(!text(&call.attributes, "aws.request_id").is_empty());
    }

    let told = tunnel.status.as_ref().expect("a status");
    let (name, uid) = (world.name.as_str(), tunnel.metadata.uid.as_deref().expect("a UID"));
    let expected = [
        ("k8s.namespace.name", name),
        ("opentunnel.tunnel.name", "plain"),
        ("opentunnel.tunnel.uid", uid),
        ("opentunnel.tunnel.id", told.tunnel_id.as_deref().expect("an ID")),
        ("cloud.resource_id", told.tunnel_arn.as_deref().expect("an ARN")),
        ("opentunnel.outcome", "Ready"),
        ("opentunnel.condition.reason", "Open"),
    ];
    for (key, value) in expected {
        assert_eq!(text(&root.attributes, key), value, "{key}");
    }
    assert_eq!(status(root), SpanStatus::Ok);
    assert_eq!(text(&received.resource, "service.name"), "opentunnel-operator");
    assert_eq!(text(&received.resource, "deployment.environment.name"), "test");
    assert_eq!(received.headers["x-tenant"], "edge");

    let sent = String::from_utf8_lossy(&received.bytes);
    assert!(sent.contains("LimitExceededException"), "it is what was sent");
    let new = world.secret_data("plain-tokens").await.expect("a Secret");
    let tokens = old.iter().chain(&new).filter(|(key, _)| key.ends_with("Token")).map(|(_, token)| token.as_str());
    for secret in tokens.chain(["to the bridge", "cost-centre", "x-4711"]) {
        assert!(!sent.contains(secret), "what is nobody's business was sent");
    }
    assert!(!has_token(&sent));
}

#[tokio::test]
async fn a_trace_ends_with_its_tunnel_or_with_the_operator() {
    let world = World::new().await;
    let collector = Collector::new().await;
    world.aws.set_quotas(&Quotas::none().max_open_tunnels(0));
    let operator = world.operator_with(&tracing_to(&world, &collector.url)).await;
    world.apply(PLAIN).await;
    world.apply(&PLAIN.replace("plain", "other")).await;
    world.wait_condition("plain", ("Ready", "False", "LimitExceeded")).await;
    world.wait_condition("other", ("Ready", "False", "LimitExceeded")).await;
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    let end = |received: &Received, name: &str, outcome: &str| {
        let roots = received.spans.iter().filter(|span| span.parent_span_id.is_empty());
        let of = |root: &&Span| text(&root.attributes, "opentunnel.tunnel.name") == name;
        let ends: Vec<_> =
            roots.filter(of).map(|root| (text(&root.attributes, "opentunnel.outcome"), status(root))).collect();
        ends == [(outcome, SpanStatus::Error)]
    };
    collector.wait("its end", |received| end(received, "plain", "Deleted")).await;
    assert!(operator.terminate().await.success());
    let received = collector.wait("the end of both", |received| end(received, "other", "Stopped")).await;
    assert!(end(&received, "plain", "Deleted"), "it ends once");
    // Another operator finds it unopened, and goes on.
    world.aws.set_quotas(&Quotas::none());
    let operator = world.operator_with(&tracing_to(&world, &collector.url)).await;
    world.wait_ready("other").await;
    assert!(operator.terminate().await.success());
    let received = collector.wait("a trace of its own", |received| {
        received.spans.iter().any(|span| span.parent_span_id.is_empty() && status(span) == SpanStatus::Ok)
    });
    assert_eq!(received.await.spans.iter().filter(|span| span.parent_span_id.is_empty()).count(), 3);
}

#[tokio::test]
async fn a_collector_is_reached_by_https_and_through_a_proxy() {
    let world = World::new().await;
    let collector = Collector::new().await;
    let proxy = ConnectProxy::start(collector.address).await;
    let authority = world.file("pem");
    fs::write(&authority, &proxy.authority).expect("a file can be written");
    let settings = tracing_to(&world, "https://user:secret@otel.example:4318")
        .env("HTTPS_PROXY", &proxy.url)
        .env("NO_PROXY", "127.0.0.1")
        .env("SSL_CERT_FILE", authority);
    let operator = world.operator_with(&settings).await;
    world.apply(PLAIN).await;
    collector.wait("it is sent", |received| root(received).is_some()).await;
    assert_eq!(proxy.asked(), ["otel.example:4318"]);
    assert!(!operator.log().contains("secret@"), "{}", operator.log());
}

#[tokio::test]
async fn a_collector_that_refuses_is_told_once_and_costs_spans_only() {
    let world = World::new().await;
    let collector = Collector::new().await;
    collector.answers.send_replace(StatusCode::FORBIDDEN);
    let operator = world.operator_with(&tracing_to(&world, &collector.url)).await;
    let warnings = |operator: &Operator| operator.log().matches("takes no spans").count();
    for name in ["first", "second"] {
        let before = collector.received.borrow().requests;
        world.apply(&PLAIN.replace("plain", name)).await;
        world.wait_ready(name).await;
        collector.wait("it is tried", |received| received.requests > before).await;
    }
    // The next request is made when the answer to the one before was read.
    collector.answers.send_replace(StatusCode::OK);
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    collector.wait("it is sent", |received| root(received).is_some()).await;
    let log = operator.log();
    assert_eq!(warnings(&operator), 1, "{log}");
    assert!(log.contains("it answered HTTP status 403"), "{log}");
    assert!(operator.terminate().await.success());
    assert!(world.logs().concat().contains("takes spans again"));
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_neither_an_opening_nor_the_end() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let operator = world.operator_with(&tracing_to(&world, &url)).await;
    world.apply(PLAIN).await;
    let (mut connection, _) = timeout(LIMIT, listener.accept()).await.expect("it is tried").expect("a connection");
    timeout(LIMIT, connection.read_u8()).await.expect("it is tried").expect("a request");
    world.wait_ready("plain").await;
    let begun = Instant::now();
    assert!(operator.terminate().await.success());
    let took = begun.elapsed();
    println!("the end took {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn nothing_is_sent_where_nobody_asks_for_it() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let disabled = tracing_to(&world, &url).env("OTEL_SDK_DISABLED", "true");
    let unnamed = tracing_to(&world, "");
    let other = tracing_to(&world, &url).env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    for (name, settings) in [("disabled", disabled), ("unnamed", unnamed), ("other", other)] {
        let operator = world.operator_with(&settings).await;
        world.apply(&PLAIN.replace("plain", name)).await;
        world.wait_ready(name).await;
        let log = operator.log();
        assert!(!log.contains("a trace of each opening"), "{log}");
        assert_eq!(log.contains("no traces are sent"), name == "other", "{log}");
        let threads = fs::read_dir(format!("/proc/{}/task", operator.pid())).expect("its threads");
        let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        assert!(!names.into_iter().any(|name| name.starts_with("OpenTelemetry")), "no thread sends spans");
        assert!(operator.terminate().await.success());
    }
    let connected = futures::FutureExt::now_or_never(listener.accept());
    assert!(connected.is_none(), "it has connected");
}
