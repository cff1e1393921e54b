//! `--http-addr`: what kubelet and Prometheus are told.

use crate::support::exchange::Exchange;
use crate::support::interop::{Ability, case};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use crate::support::{PATIENCE, until};
use secure_tunneling_emulator::{DataFault, DataFaultKind, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const HTTP: [&str; 2] = ["--http-addr", "127.0.0.1:0"];

/// Status and body.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer").expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
}

async fn is_ready(address: SocketAddr, ready: bool) {
    let status = if ready { 200 } else { 503 };
    until(&format!("/readyz answers {status}"), async || get(address, "/readyz").await.0 == status).await;
}

#[tokio::test]
async fn readyz_follows_the_link_and_healthz_does_not() {
    case(&[Ability::Probes.of_both()], async {
        let tunnel = Tunnel::open(&["SSH"]).await;
        for (side, start) in [(Side::Source, tunnel.source()), (Side::Destination, tunnel.destination(&[1]))] {
            let refuse = DataFault::new(side, DataFaultKind::Refuse5xx);
            tunnel.emulator.set_data_faults([refuse.clone()]);
            let proxy = start.args(HTTP).spawn();
            let address = proxy.http_address().await;
            is_ready(address, false).await;
            tunnel.emulator.set_data_faults([]);
            is_ready(address, true).await;
            tunnel.emulator.set_data_faults([DataFault::new(side, DataFaultKind::Disconnect).times(1), refuse]);
            is_ready(address, false).await;
            assert_eq!(get(address, "/healthz").await.0, 200);
        }
    })
    .await;
}

#[tokio::test]
async fn metrics_count_connections_bytes_and_reconnects() {
    case(&[Ability::Probes.of_both()], async {
        let service = Service::exchanging("SSH");
        let tunnel = Tunnel::open(&["SSH"]).await;
        let destination = tunnel.destination(&[service.port()]).args(HTTP).run().await;
        let source = tunnel.source().args(HTTP).run().await;
        for seed in 0..3 {
            Exchange { service: "SSH", seed, up: 1000, down: 2000 }.complete(source.only_address()).await;
        }
        tunnel.emulator.set_data_faults([DataFault::new(Side::Source, DataFaultKind::Disconnect).times(1)]);
        // A head of 32 bytes and a SHA-256 of 32 come on top.
        let (up, down) = (3 * (1000 + 32), 3 * (2000 + 32));
        for (proxy, to_tunnel, from_tunnel, cuts) in [(&source, up, down, 1), (&destination, down, up, 0)] {
            let address = proxy.http_address().await;
            let expected = [
                "opentunnel_proxy_connections{service=\"SSH\"} 0".to_owned(),
                "opentunnel_proxy_connections_total{service=\"SSH\"} 3".to_owned(),
                format!("opentunnel_proxy_bytes_total{{service=\"SSH\",direction=\"to_tunnel\"}} {to_tunnel}"),
                format!("opentunnel_proxy_bytes_total{{service=\"SSH\",direction=\"from_tunnel\"}} {from_tunnel}"),
                format!("opentunnel_proxy_reconnects_total{{cause=\"lost\"}} {cuts}"),
                "opentunnel_proxy_connected 1".to_owned(),
            ];
            for line in expected {
                let counted = async || get(address, "/metrics").await.1.lines().any(|found| found == line);
                until(&line, counted).await;
            }
        }
    })
    .await;
}

/// The labels of each metric, each with its values.
type Metrics = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Read off a scrape.
fn served(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a series and a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let of = metrics.entry(name.to_owned()).or_default();
        for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once('=').expect("a label and a value");
            of.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
    metrics
}

fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_metrics_are_those_of_the_docs() {
    case(&[Ability::Probes.of_both()], async {
        let service = Service::exchanging("SSH");
        let tunnel = Tunnel::open(&["SSH"]).await;
        let _destination = tunnel.destination(&[service.port()]).run().await;
        let source = tunnel.source().args(HTTP).run().await;
        // A service has its series from its first connection on.
        Exchange { service: "SSH", seed: 0, up: 1, down: 1 }.complete(source.only_address()).await;
        let address = source.http_address().await;
        let served = served(&get(address, "/metrics").await.1);
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/proxy.md");
        let docs = std::fs::read_to_string(docs).expect("docs/proxy.md");
        let (_, section) = docs.split_once("\n## Probes and metrics\n").expect("a section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
        let mut written = BTreeMap::new();
        for row in rows {
            let (name, row) = row.split_once("` | ").expect("a metric's row");
            let (labels, words) = row.split_once('|').expect("labels and words");
            written.insert(name.to_owned(), quoted(labels));
            // What it names is a value of a label.
            let values: BTreeSet<_> =
                served.get(name).into_iter().flat_map(BTreeMap::values).flatten().cloned().collect();
            assert!(quoted(words).is_subset(&values), "{name}: {words} and {values:?}");
        }
        let names = |labels: BTreeMap<String, _>| labels.into_keys().collect::<BTreeSet<_>>();
        let served: BTreeMap<_, _> = served.into_iter().map(|(name, labels)| (name, names(labels))).collect();
        assert_eq!(written, served);
    })
    .await;
}
