//! What is counted, and how Prometheus is told.
//!
//! Whoever counts has a handle of his own: an atomic number, shared with [`Stats`].

use crate::connect::ConnectError;
use crate::link::LinkError;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use std::fmt;

/// The media type of [`Stats::render`]: Prometheus' text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels<const N: usize> = [(&'static str, String); N];

/// A counter, named in Prometheus' text format as it is written here. (The library writes OpenMetrics, whose `# TYPE`
/// line lacks `_total`: read as the text format, that is a counter without samples.)
#[derive(Clone, Debug, Default)]
pub struct Total(Counter);

impl Total {
    /// One more.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.inc_by(count);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

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

/// Why a connection to the service ended that is to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReconnectCause {
    /// It broke.
    Lost,
    /// No ping was answered.
    Silent,
    /// The service closed it.
    Closed,
    /// What came is not the protocol.
    Protocol,
}

impl ReconnectCause {
    const ALL: [Self; 4] = [Self::Lost, Self::Silent, Self::Closed, Self::Protocol];

    fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
        }
    }
}

impl From<&LinkError> for ReconnectCause {
    fn from(error: &LinkError) -> Self {
        match error {
            LinkError::Lost(_) => Self::Lost,
            LinkError::Silent(_) => Self::Silent,
            LinkError::Closed => Self::Closed,
            LinkError::TooLong | LinkError::Protocol(_) => Self::Protocol,
        }
    }
}

/// How an attempt to connect fails: the label `cause`.
fn failure(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Refused { .. } => "refused",
        ConnectError::NotNow { .. } => "not_now",
        ConnectError::Unreachable { .. } => "unreachable",
    }
}

/// The numbers of one service. Clones count the same.
#[derive(Clone, Debug)]
pub struct ServiceStats {
    /// Connections that are open.
    pub open: Gauge,
    /// Connections that were begun.
    pub connections: Total,
    /// Bytes that were read of local connections, for the tunnel.
    pub bytes_to_tunnel: Total,
    /// Bytes of the tunnel that were written to local connections.
    pub bytes_from_tunnel: Total,
    /// Connections that were reset because their reader stood still.
    pub stalls: Total,
}

/// The numbers of the process.
pub struct Stats {
    registry: Registry,
    connected: Gauge,
    peer: Gauge,
    open: Family<Labels<1>, Gauge>,
    connections: Family<Labels<1>, Total>,
    bytes: Family<Labels<2>, Total>,
    stalls: Family<Labels<1>, Total>,
    frames: Family<Labels<1>, Total>,
    reconnects: Family<Labels<1>, Total>,
    connect_failures: Family<Labels<1>, Total>,
    /// WebSocket messages from the service.
    pub frames_received: Total,
    /// WebSocket messages to the service.
    pub frames_sent: Total,
}

impl Stats {
    /// All is 0. Every series that has no service is there from the start: a counter that first shows up with 1 hides its
    /// first increase.
    pub fn new() -> Self {
        let frames = Family::<Labels<1>, Total>::default();
        let mut stats = Self {
            registry: Registry::default(),
            connected: Gauge::default(),
            peer: Gauge::default(),
            open: Family::default(),
            connections: Family::default(),
            bytes: Family::default(),
            stalls: Family::default(),
            frames_received: frames.get_or_create_owned(&of("direction", "from_tunnel")),
            frames_sent: frames.get_or_create_owned(&of("direction", "to_tunnel")),
            frames,
            reconnects: Family::default(),
            connect_failures: Family::default(),
        };
        for cause in ReconnectCause::ALL {
            drop(stats.reconnects.get_or_create(&of("cause", cause.name())));
        }
        for cause in ["refused", "not_now", "unreachable"] {
            drop(stats.connect_failures.get_or_create(&of("cause", cause)));
        }
        stats.register();
        stats
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        let build = Family::<Labels<1>, ConstGauge<u64>, _>::new_with_constructor(|| ConstGauge::new(1));
        drop(build.get_or_create(&of("version", env!("CARGO_PKG_VERSION"))));
        registry.register("opentunnel_proxy_build_info", "The proxy's version; always 1", build);
        let help = "Whether there is a connection to the service";
        registry.register("opentunnel_proxy_connected", help, self.connected.clone());
        let help = "Version of the protocol that the other side speaks, 1 to 3; 0: it has not said anything yet";
        registry.register("opentunnel_proxy_peer_protocol", help, self.peer.clone());
        let help = "Connections that are open, by service";
        registry.register("opentunnel_proxy_connections", help, self.open.clone());
        let help = "Connections that were begun, by service";
        registry.register("opentunnel_proxy_connections_total", help, self.connections.clone());
        let help = "Bytes of connections, by service and direction";
        registry.register("opentunnel_proxy_bytes_total", help, self.bytes.clone());
        let help = "Connections that were reset because their reader stood still, by service";
        registry.register("opentunnel_proxy_stalls_total", help, self.stalls.clone());
        let help = "WebSocket messages, by direction";
        registry.register("opentunnel_proxy_frames_total", help, self.frames.clone());
        let help = "Connections to the service that ended and were to be made again, by cause";
        registry.register("opentunnel_proxy_reconnects_total", help, self.reconnects.clone());
        let help = "Attempts to connect to the service that failed, by cause";
        registry.register("opentunnel_proxy_connect_failures_total", help, self.connect_failures.clone());
    }

    /// The numbers of a service; the same ones for the same service.
    pub fn service(&self, id: &str) -> ServiceStats {
        let service = of("service", id);
        let bytes = |direction: &str| {
            self.bytes.get_or_create_owned(&[("service", id.to_owned()), ("direction", direction.to_owned())])
        };
        ServiceStats {
            open: self.open.get_or_create_owned(&service),
            connections: self.connections.get_or_create_owned(&service),
            bytes_to_tunnel: bytes("to_tunnel"),
            bytes_from_tunnel: bytes("from_tunnel"),
            stalls: self.stalls.get_or_create_owned(&service),
        }
    }

    /// Says whether there is a connection to the service: what `/readyz` tells.
    pub fn set_connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    /// Whether there is a connection to the service.
    pub fn is_connected(&self) -> bool {
        self.connected.get() != 0
    }

    /// Says what the other side speaks: 1 to 3; 0: it is not known.
    pub fn set_peer_protocol(&self, version: u8) {
        self.peer.set(version.into());
    }

    /// A connection to the service has ended and is to be made again.
    pub fn reconnects(&self, cause: ReconnectCause) {
        self.reconnects.get_or_create(&of("cause", cause.name())).inc();
    }

    /// An attempt to connect has failed.
    pub fn connect_failed(&self, error: &ConnectError) {
        self.connect_failures.get_or_create(&of("cause", failure(error))).inc();
    }

    /// All numbers in Prometheus' text format, see [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// A number is too large for the library.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

fn of(name: &'static str, value: &str) -> Labels<1> {
    [(name, value.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        let stats = Stats::new();
        let service = stats.service("SSH");
        service.open.inc();
        service.connections.add(2);
        service.bytes_to_tunnel.add(3);
        stats.service("SSH").bytes_from_tunnel.add(4);
        service.stalls.inc();
        stats.frames_sent.inc();
        stats.set_connected(true);
        stats.set_peer_protocol(3);
        stats.reconnects(ReconnectCause::from(&LinkError::TooLong));
        let text = stats.render().expect("text");
        for line in [
            "# TYPE opentunnel_proxy_connections_total counter",
            "opentunnel_proxy_connected 1",
            "opentunnel_proxy_peer_protocol 3",
            "opentunnel_proxy_connections{service=\"SSH\"} 1",
            "opentunnel_proxy_connections_total{service=\"SSH\"} 2",
            "opentunnel_proxy_bytes_total{service=\"SSH\",direction=\"to_tunnel\"} 3",
            "opentunnel_proxy_bytes_total{service=\"SSH\",direction=\"from_tunnel\"} 4",
            "opentunnel_proxy_stalls_total{service=\"SSH\"} 1",
            "opentunnel_proxy_frames_total{direction=\"to_tunnel\"} 1",
            "opentunnel_proxy_frames_total{direction=\"from_tunnel\"} 0",
            "opentunnel_proxy_reconnects_total{cause=\"protocol\"} 1",
            "opentunnel_proxy_reconnects_total{cause=\"silent\"} 0",
            "opentunnel_proxy_connect_failures_total{cause=\"refused\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
