//! How spans leave: by OTLP over HTTP, in batches, from a thread of their own. A collector that is away, or hangs,
//! costs the spans that its queue has no room for (OTEL_BSP_MAX_QUEUE_SIZE, 2048), and nothing else.

use crate::aws::Connector;
use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

/// The limit of one request to the collector.
const LIMIT: Duration = Duration::from_secs(5);
/// The name of the service, unless the environment has another.
const SERVICE: &str = env!("CARGO_PKG_NAME");

/// What the environment asks for. `None`: no traces.
pub(super) fn provider() -> Option<SdkTracerProvider> {
    let endpoint = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"].into_iter().find_map(set)?;
    let is = |name, value: &str| set(name).is_some_and(|set| set.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return None;
    }
    let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    let other = protocols.into_iter().find_map(set).filter(|protocol| protocol != "http/protobuf");
    if let Some(other) = other {
        tracing::warn!(
            "no traces are sent: OTEL_EXPORTER_OTLP_PROTOCOL is {other}, and this operator speaks http/protobuf (port 4318)"
        );
        return None;
    }
    let collector =
        Collector { connector: Connector::from_env(), runtime: Handle::current(), fails: AtomicBool::new(false) };
    let exporter = match SpanExporter::builder().with_http().with_http_client(collector).build() {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::warn!(%error, "no traces are sent: correct the variables OTEL_EXPORTER_OTLP_*");
            return None;
        }
    };
    tracing::info!("a trace of each opening is sent to {}", place(&endpoint));
    Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build())
}

/// An empty variable is none (OpenTelemetry's specification).
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn resource() -> Resource {
    let named = Resource::builder().build();
    let own =
        named.iter().any(|(key, name)| key.as_str() == "service.name" && !name.as_str().starts_with("unknown_service"));
    let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder_empty().with_attribute(version);
    let resource = if own { resource } else { resource.with_service_name(SERVICE) };
    // What the environment says wins.
    let told = named.iter().filter(|(key, _)| own || key.as_str() != "service.name");
    resource.with_attributes(told.map(|(key, value)| opentelemetry::KeyValue::new(key.clone(), value.clone()))).build()
}

/// A URL without the password that may be in it.
fn place(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, place)| place)
}

/// Sends in the operator's runtime, by the kind of client that AWS is called with: there is no second one in the program.
#[derive(Debug)]
struct Collector {
    connector: Connector,
    runtime: Handle,
    /// The last request failed: that was told.
    fails: AtomicBool,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let place = request.uri().host().unwrap_or_default().to_owned();
        let answer = self.connector.send(request);
        let answer = self.runtime.spawn(async { tokio::time::timeout(LIMIT, answer).await });
        let status = match answer.await? {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(words)) => Err(words),
            Err(_) => Err(format!("no answer within {LIMIT:?}")),
        };
        match &status {
            Ok(200..=299) => self.works(&place),
            Ok(status) => self.fails(&place, &format!("it answered HTTP status {status}")),
            Err(words) => self.fails(&place, words),
        }
        Ok(Response::builder().status(status?).body(Bytes::new())?)
    }
}

impl Collector {
    fn works(&self, place: &str) {
        if self.fails.swap(false, Ordering::Relaxed) {
            tracing::info!("the collector of traces at {place} takes spans again");
        }
    }

    /// Told once, until it works again.
    fn fails(&self, place: &str, error: &str) {
        if !self.fails.swap(true, Ordering::Relaxed) {
            tracing::warn!(error, "the collector of traces at {place} takes no spans: they are lost until it does");
        }
    }
}
