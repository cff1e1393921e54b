//! A reader that stands still.

use crate::support::exchange::Exchange;
use crate::support::interop::{Ability, case};
use crate::support::proxy::{End, connect, rest};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use futures_util::future::join_all;
use opentunnel_proxy::Side;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far above what a proxy needs here (some 10 MiB), far below what the service has sent when nothing holds it back.
const BOUND_KIB: u64 = 64 << 10;

/// Sends without an end, or as many MiB as the first byte says.
fn pouring() -> Service {
    Service::start(async |mut stream: TcpStream| {
        let Ok(mib) = stream.read_u8().await else { return };
        let mut left = if mib == 0 { usize::MAX } else { usize::from(mib) << 4 };
        while left > 0 && stream.write_all(&[5; 64 << 10]).await.is_ok() {
            left -= 1;
        }
    })
}

#[tokio::test]
async fn others_go_on_and_who_stands_still_is_reset_alone() {
    case(&[Ability::StallTimeout.of_both()], async {
        let (poured, exchanged) = (pouring(), Service::exchanging("B"));
        let tunnel = Tunnel::open(&["A", "B"]).await;
        let destination = tunnel.destination(&[poured.port(), exchanged.port()]).run().await;
        let source = tunnel.source().args(["--stall-timeout", "1s"]).run().await;
        let mut still = connect(source.address("A")).await;
        still.write_all(&[0]).await.expect("sent");
        let exchange = |seed| Exchange { service: "B", seed, up: 200_000, down: 200_000 };
        let mut highest = 0;
        for round in 0..6 {
            join_all((0..4).map(|nth| exchange(4 * round + nth).complete(source.address("B")))).await;
            highest = highest.max(source.process.resident()).max(destination.process.resident());
        }
        println!("figure: proxy stall | at most {highest} KiB resident with a reader that stands still");
        assert!(highest < BOUND_KIB, "{highest} KiB");
        // What was on the way to it is in the sockets' buffers.
        assert_eq!(rest(&mut still).await.1, End::Reset);
        source.process.logged("its reader took nothing").await;
    })
    .await;
}

#[tokio::test]
async fn who_stands_still_for_a_while_gets_all_bytes() {
    case(&[Ability::SlowClients.at(Side::Source)], async {
        let service = pouring();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let destination = tunnel.destination(&[service.port()]).run().await;
        let source = tunnel.source().run().await;
        let mut client = connect(source.only_address()).await;
        client.write_all(&[48]).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(700)).await;
        let resident = [&source, &destination].map(|proxy| proxy.process.resident());
        assert!(resident.iter().all(|kib| *kib < BOUND_KIB), "{resident:?} KiB");
        let (bytes, end) = rest(&mut client).await;
        assert_eq!((bytes.len(), end), (48 << 20, End::Closed));
    })
    .await;
}

/// The other way: a service that does not read.
#[tokio::test]
async fn a_service_that_stands_still_is_reset_alone() {
    case(&[Ability::StallTimeout.of_both()], async {
        let silent = Service::start(|stream| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(stream);
        });
        let exchanged = Service::exchanging("B");
        let tunnel = Tunnel::open(&["A", "B"]).await;
        let ports = [silent.port(), exchanged.port()];
        let destination = tunnel.destination(&ports).args(["--stall-timeout", "1s"]).run().await;
        let source = tunnel.source().run().await;
        let client = connect(source.address("A")).await;
        let (mut reader, mut writer) = client.into_split();
        let pour = async { while writer.write_all(&[5; 64 << 10]).await.is_ok() {} };
        let exchanges = async {
            for seed in 0..4 {
                Exchange { service: "B", seed, up: 200_000, down: 200_000 }.complete(source.address("B")).await;
            }
        };
        // It ends with the connection.
        tokio::join!(pour, exchanges);
        assert!(!matches!(reader.read(&mut [0]).await, Ok(1..)));
        for proxy in [&source, &destination] {
            let resident = proxy.process.resident();
            assert!(resident < BOUND_KIB, "{resident} KiB");
        }
    })
    .await;
}
