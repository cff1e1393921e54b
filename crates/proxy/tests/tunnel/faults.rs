//! What a service and a network do wrong.

use crate::support::exchange::{self, Exchange};
use crate::support::interop::{Ability, case};
use crate::support::proxy::{End, Proxy, connect, echo, rest, served};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use secure_tunneling_emulator::{DataFault, DataFaultKind, Side};
use std::time::Duration;
use tokio::time::Instant;

const SIDES: [Side; 2] = [Side::Source, Side::Destination];

struct Pair {
    tunnel: Tunnel,
    source: Proxy,
    _destination: Proxy,
    service: Service,
}

impl Pair {
    async fn with(service: Service) -> Self {
        let tunnel = Tunnel::open(&["SSH"]).await;
        let _destination = tunnel.destination(&[service.port()]).run().await;
        let source = tunnel.source().run().await;
        Self { tunnel, source, _destination, service }
    }
}

#[tokio::test]
async fn a_link_that_is_cut_resets_its_connections_and_is_made_again() {
    case(&[Ability::Resets.at(opentunnel_proxy::Side::Source)], async {
        for side in SIDES {
            let Pair { tunnel, source, _destination, service: _service } = Pair::with(Service::echo()).await;
            let mut client = connect(source.only_address()).await;
            echo(&mut client, b"before").await;
            tunnel.emulator.set_data_faults([DataFault::new(side, DataFaultKind::Disconnect).times(1)]);
            assert_eq!(rest(&mut client).await, (Vec::new(), End::Reset));
            let back = served(source.only_address()).await;
            println!("figure: proxy cut | served {} ms after the {side:?} was cut", back.as_millis());
        }
    })
    .await;
}

#[tokio::test]
async fn a_link_that_is_cut_within_a_message_loses_nothing_of_later_connections() {
    case(&[Ability::CutWithinMessage.of_both()], async {
        for (side, bytes) in [(Side::Source, 1), (Side::Source, 70_001), (Side::Destination, 131_075)] {
            let pair = Pair::with(Service::exchanging("SSH")).await;
            let cut = DataFault::new(side, DataFaultKind::Disconnect).times(1).after_bytes(bytes);
            pair.tunnel.emulator.set_data_faults([cut]);
            let address = pair.source.only_address();
            // What it cuts may not be wrong either.
            Exchange { service: "SSH", seed: 1, up: 500_000, down: 500_000 }.run(address).await;
            let retry = Exchange { service: "SSH", seed: 2, up: 0, down: 0 };
            let complete = async || matches!(retry.run(address).await, crate::support::exchange::Outcome::Complete);
            crate::support::until("it is served again", complete).await;
            Exchange { service: "SSH", seed: 3, up: 500_000, down: 500_000 }.complete(address).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_reset_ends_what_was_open_and_the_next_connection_works() {
    case(&[Ability::SessionReset.of_both()], async {
        for side in SIDES {
            let pair = Pair::with(Service::echo()).await;
            let mut client = connect(pair.source.only_address()).await;
            echo(&mut client, b"before").await;
            pair.tunnel.emulator.set_data_faults([DataFault::new(side, DataFaultKind::SessionReset).times(1)]);
            rest(&mut client).await;
            let mut client = connect(pair.source.only_address()).await;
            echo(&mut client, b"after").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_link_that_stands_still_for_a_second_goes_on_where_it_was() {
    case(&[], async {
        for side in SIDES {
            let pair = Pair::with(Service::exchanging("SSH")).await;
            let stall = DataFault::new(side, DataFaultKind::Stall).times(1).after_bytes(50_000).delay_ms(1000);
            pair.tunnel.emulator.set_data_faults([stall]);
            let begin = Instant::now();
            let exchange = |seed| Exchange { service: "SSH", seed, up: 300_000, down: 300_000 };
            exchange::all((0..4).map(|seed| (exchange(seed), pair.source.only_address()))).await;
            assert!(begin.elapsed() >= Duration::from_secs(1), "it did not stand still");
            assert_eq!(pair.service.accepted(), 4);
        }
    })
    .await;
}

#[tokio::test]
async fn a_narrow_link_is_slow_and_right() {
    case(&[], async {
        let pair = Pair::with(Service::exchanging("SSH")).await;
        let narrow = |side| DataFault::new(side, DataFaultKind::Bandwidth).bytes_per_second(800_000);
        pair.tunnel.emulator.set_data_faults(SIDES.map(narrow));
        let begin = Instant::now();
        let exchange = |seed| Exchange { service: "SSH", seed, up: 100_000, down: 100_000 };
        exchange::all((0..4).map(|seed| (exchange(seed), pair.source.only_address()))).await;
        assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}: it was not narrow", begin.elapsed());
    })
    .await;
}

#[tokio::test]
async fn a_service_that_cannot_now_is_tried_again() {
    case(&[], async {
        let tunnel = Tunnel::open(&["SSH"]).await;
        let refuse = |side| DataFault::new(side, DataFaultKind::Refuse5xx).times(1);
        tunnel.emulator.set_data_faults(SIDES.map(refuse));
        let service = Service::echo();
        let begin = Instant::now();
        let _destination = tunnel.destination(&[service.port()]).run().await;
        let source = tunnel.source().run().await;
        // One that knocks all the time would be part of the trouble.
        assert!(begin.elapsed() >= Duration::from_millis(400), "it did not wait");
        served(source.only_address()).await;
        assert!(source.process.output().contains("A fault of the emulator refuses this connection"));
    })
    .await;
}

#[tokio::test]
async fn a_service_that_will_not_is_not_tried_again() {
    case(&[Ability::ExitStatus.of_both()], async {
        for side in SIDES {
            let tunnel = Tunnel::open(&["SSH"]).await;
            tunnel.emulator.set_data_faults([DataFault::new(side, DataFaultKind::Refuse4xx).times(1)]);
            let start = if side == Side::Source { tunnel.source() } else { tunnel.destination(&[1]) };
            let output = start.outcome().await;
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{log}");
            assert!(log.contains("A fault of the emulator refuses this connection"), "{log}");
        }
    })
    .await;
}
