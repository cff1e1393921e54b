//! What people and probes see: the log, and the HTTP server of probes and metrics.

use crate::config::LogFormat;
use crate::metrics::{self, Metrics};
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Starts the log, on standard error. Other crates' TRACE is never logged, whatever the filter says:
/// some of them print what they send and receive, and tokens are in it.
///
/// # Errors
/// A text for people: the filter cannot be read.
pub fn start_log(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|e| format!("--log-filter {filter:?} cannot be read ({e}): try info, or opentunnel_operator=debug"))?;
    let stderr = std::io::stderr;
    let lines = match format {
        LogFormat::Text => {
            let ansi = stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(ansi).with_target(false).boxed()
        }
        LogFormat::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(stderr).boxed(),
    };
    // kube-client logs the whole body of an answer that it cannot read, of a Secret too; the error says it.
    // kube's own spans name the Tunnel once more; the operator's span names it already.
    let ours = tracing_subscriber::filter::filter_fn(|meta| {
        meta.target().starts_with("opentunnel_operator")
            || (!meta.is_span() && *meta.level() <= LevelFilter::DEBUG && !meta.target().starts_with("kube_client"))
    });
    tracing_subscriber::registry().with(lines.with_filter(ours)).with(filter).init();
    Ok(())
}

/// Serves the probes, `/healthz` (the process answers) and `/readyz` (all watches are synced), and
/// `/metrics` for Prometheus.
///
/// # Errors
/// The server ended.
pub async fn serve(listener: TcpListener, ready: Arc<AtomicBool>, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let readyz = move || async move {
        if ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the watches are not synced yet")
        }
    };
    let scrape = move || async move {
        let text = metrics.render().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        Ok::<_, StatusCode>(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape));
    axum::serve(listener, app).await
}
