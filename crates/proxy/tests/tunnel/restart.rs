//! A side that is killed, and started again.

use crate::support::interop::{Ability, case};
use crate::support::proxy::{End, connect, echo, rest, served};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use opentunnel_proxy::Side;
use secure_tunneling_emulator::ConnectionStatus;
use std::time::Duration;
use tokio::time::Instant;

/// What is promised is 2 s; a test machine may be busy.
const SOON: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_killed_source_is_back_at_once() {
    case(&[Ability::Resets.at(Side::Destination)], async {
        let (service, mut ends) = Service::telling();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let _destination = tunnel.destination(&[service.port()]).run().await;
        let mut source = tunnel.source().run().await;
        let mut client = connect(source.only_address()).await;
        echo(&mut client, b"before").await;
        source.process.kill().await;
        let begin = Instant::now();
        let source = tunnel.source().run().await;
        served(source.only_address()).await;
        let back = begin.elapsed();
        println!("figure: proxy restart | source back after {} ms", back.as_millis());
        assert!(back < SOON, "{back:?}");
        // The kernel has closed the old one; the service's side was told by the tunnel.
        rest(&mut client).await;
        assert_eq!(ends.recv().await, Some(End::Reset));
    })
    .await;
}

#[tokio::test]
async fn a_killed_destination_is_back_at_once() {
    case(&[Ability::Resets.at(Side::Source)], async {
        let service = Service::echo();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let mut destination = tunnel.destination(&[service.port()]).run().await;
        let source = tunnel.source().run().await;
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client = connect(source.only_address()).await;
            echo(&mut client, b"before").await;
            clients.push(client);
        }
        destination.process.kill().await;
        for client in &mut clients {
            assert_eq!(rest(client).await, (Vec::new(), End::Reset));
        }
        let begin = Instant::now();
        let _destination = tunnel.destination(&[service.port()]).run().await;
        served(source.only_address()).await;
        let back = begin.elapsed();
        println!("figure: proxy restart | destination back after {} ms", back.as_millis());
        assert!(back < SOON, "{back:?}");
    })
    .await;
}

#[tokio::test]
async fn without_a_client_token_a_used_token_ends_it_with_3_and_aws_words() {
    case(&[Ability::ExitStatus.of_both()], async {
        for side in [Side::Source, Side::Destination] {
            let tunnel = Tunnel::open(&["SSH"]).await;
            let start = || if side == Side::Source { tunnel.source() } else { tunnel.destination(&[1]) };
            let mut first = start().without_client_token().run().await;
            first.process.kill().await;
            tunnel.is(side, ConnectionStatus::Disconnected).await;
            let output = start().without_client_token().outcome().await;
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(3), "{log}");
            let words = "Invalid access token: The access token was previously used and cannot be used again";
            assert!(log.contains(words), "{log}");
        }
    })
    .await;
}
