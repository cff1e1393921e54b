//! Nothing is lost, doubled, changed or misdirected.

use crate::support::exchange::{self, Exchange};
use crate::support::interop::case;
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use secure_tunneling_emulator::{DataFault, DataFaultKind, Side};

/// Around the longest payload of a message.
const SIZES: [usize; 8] = [0, 1, 100, 64_511, 64_512, 64_513, 200_000, 3 << 20];

/// 50 at once, of two services.
async fn fifty(tunnel: &Tunnel) {
    let servers = [Service::exchanging("A"), Service::exchanging("B")];
    let _destination = tunnel.destination(&servers.each_ref().map(Service::port)).run().await;
    let source = tunnel.source().run().await;
    let exchanges = (0..50).map(|nth: usize| {
        let service = if nth.is_multiple_of(2) { "A" } else { "B" };
        // The longest of some few alone.
        let sizes = if nth < 8 { SIZES.len() } else { SIZES.len() - 1 };
        let (up, down) = (SIZES[nth % sizes], SIZES[(nth * 3 + 1) % sizes]);
        (Exchange { service, seed: nth as u64, up, down }, source.address(service))
    });
    exchange::all(exchanges).await;
}

#[tokio::test]
async fn fifty_connections_of_two_services_at_once_have_each_their_bytes() {
    case(&[], async { fifty(&Tunnel::open(&["A", "B"]).await).await }).await;
}

#[tokio::test]
async fn messages_that_are_cut_and_joined_anywhere_are_the_same_bytes() {
    case(&[], async {
        let tunnel = Tunnel::open(&["A", "B"]).await;
        let reframe = |side| DataFault::new(side, DataFaultKind::Reframe);
        tunnel.emulator.set_data_faults([reframe(Side::Source), reframe(Side::Destination)]);
        fifty(&tunnel).await;
    })
    .await;
}
