//! `--http-addr`: what kubelet and Prometheus are told.

use crate::support::exchange::Exchange;
use crate::support::interop::{Ability, case};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use crate::support::{PATIENCE, until};
use secure_tunneling_emulator::{DataFault, DataFaultKind, Side};
use std::net::SocketAddr;
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
