//! Every version of the protocol that a source is told to speak, towards a destination that follows.

use crate::support::exchange::{self, Exchange};
use crate::support::interop::{Ability, case};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use opentunnel_proxy::Side;

/// `count` connections at once for each service. V1 and V2 take them one after the other.
async fn carries(services: &[&'static str], version: &[&str], count: u64) {
    let tunnel = Tunnel::open(services).await;
    let names = if services.is_empty() { &["ONLY"] } else { services };
    let servers: Vec<_> = names.iter().map(|name| Service::exchanging(name)).collect();
    let ports: Vec<_> = servers.iter().map(Service::port).collect();
    let _destination = tunnel.destination(&ports).run().await;
    let source = tunnel.source().args(version.iter().copied()).run().await;
    let exchanges = names.iter().enumerate().flat_map(|(nth, service)| {
        let address = source.address(services.get(nth).copied().unwrap_or_default());
        let of = move |seed| Exchange { service, seed: 100 * nth as u64 + seed, up: 100_000, down: 150_000 };
        (0..count).map(move |seed| (of(seed), address))
    });
    exchange::all(exchanges).await;
    assert!(servers.iter().all(|server| server.accepted() == count as usize));
}

#[tokio::test]
async fn v1_carries_one_connection_after_the_other() {
    case(&[Ability::FollowsV1.at(Side::Destination)], async {
        for _ in 0..2 {
            carries(&["SSH"], &["-y", "V1"], 1).await;
        }
    })
    .await;
}

#[tokio::test]
async fn v1_lets_further_clients_wait() {
    case(
        &[Ability::Queues.at(Side::Source), Ability::FollowsV1.at(Side::Destination)],
        carries(&["SSH"], &["-y", "V1"], 6),
    )
    .await;
}

#[tokio::test]
async fn v1_needs_no_services_name() {
    case(&[], carries(&[], &["-y", "V1"], 1)).await;
}

#[tokio::test]
async fn v2_carries_one_connection_for_each_service() {
    case(&[Ability::TwoOfV2.at(Side::Source)], carries(&["HTTP", "SSH"], &["-y", "V2"], 1)).await;
}

#[tokio::test]
async fn v2_lets_further_clients_wait() {
    case(&[Ability::Queues.at(Side::Source)], carries(&["HTTP", "SSH"], &["-y", "V2"], 6)).await;
}

#[tokio::test]
async fn v3_carries_many_connections_for_each_service() {
    case(&[], carries(&["HTTP", "SSH"], &[], 6)).await;
}

#[tokio::test]
async fn v3_needs_no_services_name() {
    case(&[], carries(&[], &[], 6)).await;
}
