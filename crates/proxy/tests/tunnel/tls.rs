//! The service's certificate.

use crate::support::directory::Directory;
use crate::support::exchange::Exchange;
use crate::support::interop::{Ability, Program, case};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use secure_tunneling_emulator::DataTls;

const EXCHANGE: Exchange = Exchange { service: "SSH", seed: 7, up: 300_000, down: 300_000 };

#[tokio::test]
async fn without_tls_bytes_pass() {
    case(&[Ability::PlainWebSocket.of_both()], async {
        let tunnel = Tunnel::open_with(&["SSH"], DataTls::Off).await;
        let service = Service::exchanging("SSH");
        let _destination = tunnel.destination(&[service.port()]).run().await;
        EXCHANGE.complete(tunnel.source().run().await.only_address()).await;
    })
    .await;
}

#[tokio::test]
async fn an_authority_is_trusted_by_ssl_cert_file_or_by_a_directory() {
    case(&[], async {
        let tunnel = Tunnel::open_with(&["SSH"], DataTls::SelfSigned).await;
        let service = Service::exchanging("SSH");
        let _destination = tunnel.destination(&[service.port()]).run().await;
        let directory = Directory::new();
        // AWS's program finds it by the hash of its subject alone, as `openssl rehash` names it.
        directory.write("ca.pem", tunnel.emulator.data_ca_pem().expect("an authority"));
        if !Program::all_ours() {
            let rehash = tokio::process::Command::new("openssl").args(["rehash", directory.text()]).status().await;
            assert!(rehash.expect("openssl is needed for AWS's program").success());
        }
        let source = tunnel.source().without("SSL_CERT_FILE").args(["-c", directory.text()]).run().await;
        EXCHANGE.complete(source.only_address()).await;
    })
    .await;
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_is_not_connected_to() {
    case(&[], async {
        let tunnel = Tunnel::open_with(&["SSH"], DataTls::SelfSigned).await;
        let source = tunnel.source().without("SSL_CERT_FILE").spawn();
        let says = |line: &str| line.to_lowercase().contains("certificate").then_some(());
        source.process.read_output("why it does not connect", says).await;
        let destination = tunnel.destination(&[1]).run().await;
        drop(destination);
        assert!(tunnel.emulator.connections(&tunnel.id).expect("a tunnel").source != CONNECTED);
    })
    .await;
}

const CONNECTED: Option<secure_tunneling_emulator::ConnectionStatus> =
    Some(secure_tunneling_emulator::ConnectionStatus::Connected);
