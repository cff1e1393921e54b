//! Thousands of connections at once.

use crate::support::interop::{Ability, case};
use crate::support::proxy::{connect, echo};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use futures_util::future::join_all;
use opentunnel_proxy::Side;
use tokio::time::Instant;

const MANY: usize = 2000;

/// Open files that this process may have, and the programs that it starts.
fn file_limit() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|soft| soft.parse().ok()).unwrap_or(1024)
}

#[tokio::test]
async fn thousands_of_connects_at_once_are_all_served() {
    case(&[Ability::ManyClients.at(Side::Source)], async {
        let service = Service::echo();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let _destination = tunnel.destination(&[service.port()]).run().await;
        let source = tunnel.source().run().await;
        // Two here for each connection, its client's and its service's; other tests need some as well.
        let count = MANY.min(file_limit().saturating_sub(200) / 2);
        let begin = Instant::now();
        let clients = (0..count).map(async |nth| {
            let mut client = connect(source.only_address()).await;
            echo(&mut client, &nth.to_le_bytes()).await;
            client
        });
        let mut clients = join_all(clients).await;
        let served = begin.elapsed().as_millis();
        println!("figure: proxy connects | {count} at once, all served after {served} ms");
        // All are open still.
        join_all(clients.iter_mut().enumerate().map(|(nth, client)| async move {
            echo(client, &(nth ^ 0x5555).to_le_bytes()).await;
        }))
        .await;
        assert_eq!(service.accepted(), count);
    })
    .await;
}
