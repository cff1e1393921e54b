//! What is counted, and how Prometheus is told: docs/metrics.md has each metric in words.
//!
//! Labels are bounded by their type: a value is a `&'static str`, so it stands in the code, and no name,
//! ID or message of anybody's can become one. What can be read off when it is asked for is not kept here
//! (`live`). Every series is there from the start, with 0: a counter that first shows up with 1 hides
//! its first increase.

mod live;
pub mod scrape;

use crate::tunnels::{CallError, CallErrorKind, Operation};
pub use live::{ByReason, Queue, Snapshot};
use live::{Live, Process};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The media type of [`Metrics::render`]: Prometheus' text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds, from a quick answer to the default limit of one AWS call, in seconds.
const CALL_BUCKETS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
/// Upper bounds, from a look that finds nothing to do to one that waits for an AWS call, in seconds.
const RECONCILE_BUCKETS: [f64; 11] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];
/// Upper bounds, from an empty queue to one of an hour, in seconds.
const WAIT_BUCKETS: [f64; 11] = [0.01, 0.1, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];

/// The operations that a pacer spaces.
const PACED: [Operation; 4] =
    [Operation::OpenTunnel, Operation::CloseTunnel, Operation::RotateTunnelAccessToken, Operation::TagResource];

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms = Family<Labels<1>, Histogram, fn() -> Histogram>;

/// Why a reconcile failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReconcileError {
    /// The API server refused: HTTP status 4xx.
    Api4xx,
    /// The API server failed: HTTP status 5xx.
    Api5xx,
    /// The API server could not be reached, the connection broke, or the answer cannot be read.
    ApiNoAnswer,
    /// The API server did not answer in time.
    ApiTimeout,
    /// The Tunnel cannot be read.
    Incomplete,
    /// A bug of the operator's.
    Bug,
}

impl ReconcileError {
    const ALL: [Self; 6] =
        [Self::Api4xx, Self::Api5xx, Self::ApiNoAnswer, Self::ApiTimeout, Self::Incomplete, Self::Bug];

    fn name(self) -> &'static str {
        match self {
            Self::Api4xx => "Api4xx",
            Self::Api5xx => "Api5xx",
            Self::ApiNoAnswer => "ApiNoAnswer",
            Self::ApiTimeout => "ApiTimeout",
            Self::Incomplete => "Incomplete",
            Self::Bug => "Bug",
        }
    }
}

/// A counter as Prometheus' text format has it. The library writes OpenMetrics, whose `# TYPE` line has
/// the name without `_total`: read as the text format, that is a counter without samples, beside samples
/// without a type (and `promtool check metrics` says so). Written like a gauge, the name is the same in all.
#[derive(Clone, Debug, Default)]
struct Total(Counter);

impl TypedMetric for Total {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Total {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.get())
    }
    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    live: Arc<Live>,
    reconciles: Histogram,
    reconcile_errors: Family<Labels<1>, Total>,
    calls: Family<Labels<2>, Total>,
    call_durations: Histograms,
    waits: Histograms,
    opened: Total,
    adopted: Total,
    rotated: Total,
    closed: Total,
    orphans: Gauge,
    orphans_closed: Total,
}

impl Metrics {
    /// The metrics of a process that starts now.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            live: Arc::default(),
            reconciles: Histogram::new(RECONCILE_BUCKETS),
            reconcile_errors: Family::default(),
            calls: Family::default(),
            call_durations: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            waits: Family::new_with_constructor(|| Histogram::new(WAIT_BUCKETS)),
            opened: Total::default(),
            adopted: Total::default(),
            rotated: Total::default(),
            closed: Total::default(),
            orphans: Gauge::default(),
            orphans_closed: Total::default(),
        };
        metrics.register();
        for error in ReconcileError::ALL {
            drop(metrics.reconcile_errors.get_or_create(&reason(error)));
        }
        for operation in Operation::ALL {
            drop(metrics.call_durations.get_or_create(&of(operation)));
            for outcome in OUTCOMES {
                drop(metrics.calls.get_or_create(&call(operation, outcome)));
            }
        }
        for operation in PACED {
            drop(metrics.waits.get_or_create(&of(operation)));
        }
        metrics
    }

    fn register(&mut self) {
        let Self { registry: r, live, reconciles, reconcile_errors, calls, call_durations, waits, .. } = self;
        let build = Family::<Labels<1>, ConstGauge<u64>, _>::new_with_constructor(|| ConstGauge::new(1));
        drop(build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]));
        r.register("opentunnel_build_info", "The operator's version; always 1", build);
        r.register("opentunnel_reconcile_duration_seconds", "Time that a reconcile took", reconciles.clone());
        let help = "Reconciles that failed and are tried again, by reason";
        r.register("opentunnel_reconcile_errors_total", help, reconcile_errors.clone());
        let help = "Calls to AWS that have ended, by operation and outcome";
        r.register("opentunnel_aws_calls_total", help, calls.clone());
        let help = "Time that a call to AWS took, whatever its outcome";
        r.register("opentunnel_aws_call_duration_seconds", help, call_durations.clone());
        let help = "Time that a call to AWS waited for its turn";
        r.register("opentunnel_queue_wait_seconds", help, waits.clone());
        let totals = [
            ("opentunnel_tunnels_opened_total", "Tunnels opened in AWS, each of which costs money", &self.opened),
            ("opentunnel_tunnels_adopted_total", "Open tunnels found by their owner tag and adopted", &self.adopted),
            ("opentunnel_tunnels_closed_total", "Tunnels closed in AWS by the operator", &self.closed),
            ("opentunnel_token_rotations_total", "Rotations of access tokens", &self.rotated),
            ("opentunnel_orphans_closed_total", "Tunnels closed that no Tunnel owned", &self.orphans_closed),
        ];
        for (name, help, total) in totals {
            r.register(name, help, total.clone());
        }
        let help = "Open tunnels of this cluster's that no Tunnel owns, by the last round";
        r.register("opentunnel_orphans", help, self.orphans.clone());
        r.register_collector(Box::new(live.clone()));
        r.register_collector(Box::new(Process::starts_now()));
    }

    /// From now on `snapshot` tells what is there.
    pub fn go_live(&self, snapshot: impl Fn() -> Snapshot + Send + Sync + 'static) {
        self.live.set(Box::new(snapshot));
    }

    /// A reconcile has ended.
    pub fn reconciled(&self, took: Duration, error: Option<ReconcileError>) {
        self.reconciles.observe(took.as_secs_f64());
        if let Some(error) = error {
            self.reconcile_errors.get_or_create(&reason(error)).0.inc();
        }
    }

    /// A call to AWS has ended.
    pub fn called<T>(&self, operation: Operation, took: Duration, outcome: &Result<T, CallError>) {
        self.call_durations.get_or_create(&of(operation)).observe(took.as_secs_f64());
        let error = outcome.as_ref().err().map(|e| e.kind);
        self.calls.get_or_create(&call(operation, error)).0.inc();
        let total = match operation {
            Operation::OpenTunnel => &self.opened,
            Operation::CloseTunnel => &self.closed,
            Operation::RotateTunnelAccessToken => &self.rotated,
            _ => return,
        };
        if error.is_none() {
            total.0.inc();
        }
    }

    /// A tunnel was adopted.
    pub fn adopted(&self) {
        self.adopted.0.inc();
    }

    /// So many tunnels that no Tunnel owns are open.
    pub fn orphans(&self, count: usize) {
        self.orphans.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// One of them was closed.
    pub fn orphan_closed(&self) {
        self.orphans_closed.0.inc();
    }

    /// Where the pacer of an operation notes how long each call waited, in seconds.
    pub fn waits(&self, operation: Operation) -> Histogram {
        self.waits.get_or_create_owned(&of(operation))
    }

    /// All metrics in Prometheus' text format, see [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// A number is too large for the library.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// How a call can end; `None`: well.
const OUTCOMES: [Option<CallErrorKind>; 8] = [
    None,
    Some(CallErrorKind::LimitExceeded),
    Some(CallErrorKind::Throttled),
    Some(CallErrorKind::AccessDenied),
    Some(CallErrorKind::InvalidRequest),
    Some(CallErrorKind::NotFound),
    Some(CallErrorKind::Unreachable),
    Some(CallErrorKind::Doubt),
];

fn kind(kind: CallErrorKind) -> &'static str {
    match kind {
        CallErrorKind::LimitExceeded => "LimitExceeded",
        CallErrorKind::Throttled => "Throttled",
        // As in conditions.
        CallErrorKind::AccessDenied | CallErrorKind::NoCredentials => "AccessDenied",
        CallErrorKind::InvalidRequest => "InvalidRequest",
        CallErrorKind::NotFound => "NotFound",
        CallErrorKind::Unreachable => "Unreachable",
        CallErrorKind::Doubt => "Doubt",
    }
}

fn call(operation: Operation, error: Option<CallErrorKind>) -> Labels<2> {
    [("operation", operation.name()), ("outcome", error.map_or("ok", kind))]
}

fn of(operation: Operation) -> Labels<1> {
    [("operation", operation.name())]
}

fn reason(error: ReconcileError) -> Labels<1> {
    [("reason", error.name())]
}

#[cfg(test)]
mod tests;
