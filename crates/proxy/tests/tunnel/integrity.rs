//! Nothing is lost, doubled, changed or misdirected.

use crate::support::exchange::{self, Exchange};
use crate::support::interop::{Program, case};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use secure_tunneling_emulator::{DataFault, DataFaultKind, Side};

/// Around the longest payload of a message.
const SIZES: [usize; 7] = [0, 1, 100, 64_511, 64_512, 64_513, 200_000];

/// 50 at once, of two services.
async fn fifty(tunnel: &Tunnel) {
    let servers = [Service::exchanging("A"), Service::exchanging("B")];
    let _destination = tunnel.destination(&servers.each_ref().map(Service::port)).run().await;
    let source = tunnel.source().run().await;
    // AWS's program ends when 4 MiB wait for a reader.
    let longest = if Program::all_ours() { 3 << 20 } else { 1 << 20 };
    let exchanges = (0..50).map(|nth: usize| {
        let service = if nth.is_multiple_of(2) { "A" } else { "B" };
        let (up, down) = match nth {
            7 => (longest, 0),
            8 => (1, longest),
            _ => (SIZES[nth % SIZES.len()], SIZES[(nth * 3 + 1) % SIZES.len()]),
        };
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
