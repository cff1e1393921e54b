//! SIGTERM.

use crate::support::interop::{Ability, case};
use crate::support::proxy::{End, connect, echo, rest};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use crate::support::until;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

#[tokio::test]
async fn open_connections_may_end_and_new_ones_are_refused() {
    case(&[Ability::Drain.of_both()], async {
        let service = Service::echo();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let mut destination = tunnel.destination(&[service.port()]).args(["--drain", "20s"]).run().await;
        let mut source = tunnel.source().args(["--drain", "20s"]).run().await;
        let mut client = connect(source.only_address()).await;
        echo(&mut client, b"before").await;
        source.process.terminate().await;
        until("new ones are refused", async || TcpStream::connect(source.only_address()).await.is_err()).await;
        echo(&mut client, b"after").await;
        destination.process.terminate().await;
        destination.process.logged("asked to stop").await;
        echo(&mut client, b"still").await;
        // A client that only closes might wait for more: its connection would end later.
        client.set_zero_linger().expect("a socket");
        drop(client);
        let begin = Instant::now();
        assert_eq!(source.process.exited().await.0, Some(0));
        assert_eq!(destination.process.exited().await.0, Some(0));
        assert!(begin.elapsed() < Duration::from_secs(5), "it waits for nobody: {:?}", begin.elapsed());
    })
    .await;
}

#[tokio::test]
async fn what_is_open_after_the_time_is_reset() {
    case(&[Ability::Drain.of_both()], async {
        let (service, mut ends) = Service::telling();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let mut destination = tunnel.destination(&[service.port()]).run().await;
        let mut source = tunnel.source().args(["--drain", "300ms"]).run().await;
        let mut client = connect(source.only_address()).await;
        echo(&mut client, b"before").await;
        source.process.terminate().await;
        let begin = Instant::now();
        assert_eq!(rest(&mut client).await, (Vec::new(), End::Reset));
        assert!(begin.elapsed() >= Duration::from_millis(250), "{:?}: it had no time", begin.elapsed());
        assert_eq!(source.process.exited().await.0, Some(0));
        ends.recv().await.expect("the other end is told");
        // Nothing is open any more.
        destination.process.terminate().await;
        let begin = Instant::now();
        assert_eq!(destination.process.exited().await.0, Some(0));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    })
    .await;
}
