//! The same side connects a second time.

use crate::support::interop::{Ability, case};
use crate::support::proxy::{End, connect, echo, rest, served};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use opentunnel_proxy::Side;

#[tokio::test]
async fn a_second_source_takes_the_place_of_the_first_which_is_told() {
    case(&[Ability::Resets.at(Side::Destination)], async {
        let (service, mut ends) = Service::telling();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let _destination = tunnel.destination(&[service.port()]).run().await;
        let mut first = tunnel.source().run().await;
        let mut client = connect(first.only_address()).await;
        echo(&mut client, b"before").await;
        let second = tunnel.source().run().await;
        // The other end's connections are reset, and the first one's with its link.
        assert_eq!(ends.recv().await, Some(End::Reset));
        rest(&mut client).await;
        first.process.kill().await;
        served(second.only_address()).await;
    })
    .await;
}

#[tokio::test]
async fn a_second_destination_takes_the_place_of_the_first_which_is_told() {
    case(&[Ability::Resets.at(Side::Source)], async {
        let (service, mut ends) = Service::telling();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let mut first = tunnel.destination(&[service.port()]).run().await;
        let source = tunnel.source().run().await;
        let mut client = connect(source.only_address()).await;
        echo(&mut client, b"before").await;
        let _second = tunnel.destination(&[service.port()]).run().await;
        assert_eq!(rest(&mut client).await, (Vec::new(), End::Reset));
        // The first one's connections to the service end with its link.
        ends.recv().await.expect("an end");
        first.process.kill().await;
        served(source.only_address()).await;
    })
    .await;
}

#[tokio::test]
async fn who_is_replaced_says_so() {
    case(&[], async {
        let tunnel = Tunnel::open(&["SSH"]).await;
        let first = tunnel.source().run().await;
        let _second = tunnel.source().run().await;
        let words = "Replaced by another connection of this side";
        first.process.read_output(words, |line| line.contains(words).then_some(())).await;
    })
    .await;
}
