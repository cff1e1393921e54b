//! How connections end, as `session` documents it.

use crate::support::interop::{Ability, case};
use crate::support::proxy::{End, Proxy, connect, echo, rest};
use crate::support::service::{Service, unused_port};
use crate::support::tunnel::Tunnel;
use opentunnel_proxy::Side;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// More than all buffers on the way but the sessions' hold; AWS's program ends when 4 MiB wait for a reader.
const MIB: usize = 1 << 20;

async fn both(port: u16) -> (Tunnel, Proxy, Proxy) {
    let tunnel = Tunnel::open(&["SSH"]).await;
    let destination = tunnel.destination(&[port]).run().await;
    let source = tunnel.source().run().await;
    (tunnel, source, destination)
}

#[tokio::test]
async fn a_client_that_has_closed_its_side_gets_all_of_the_reply() {
    case(&[Ability::HalfClose.at(Side::Source)], async {
        // It knows where the request ends without its end, as in HTTP.
        let service = Service::start(async |mut stream: TcpStream| {
            stream.read_exact(&mut [0; 7]).await.expect("a request");
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(&[7; MIB]).await.expect("a reply");
        });
        let (_tunnel, source, _destination) = both(service.port()).await;
        let mut client = connect(source.only_address()).await;
        client.write_all(b"request").await.expect("sent");
        client.shutdown().await.expect("its side");
        let (bytes, end) = rest(&mut client).await;
        assert_eq!((bytes.len(), end), (MIB, End::Closed));
    })
    .await;
}

#[tokio::test]
async fn a_service_sees_the_end_of_a_client_that_waits_in_vain() {
    case(&[], async {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let service = Service::start(move |mut stream: TcpStream| {
            let sender = sender.clone();
            async move { sender.send(rest(&mut stream).await).expect("the test") }
        });
        let (_tunnel, source, _destination) = both(service.port()).await;
        let mut client = connect(source.only_address()).await;
        client.write_all(&[1; MIB]).await.expect("sent");
        client.shutdown().await.expect("its side");
        let (bytes, end) = receiver.recv().await.expect("a connection");
        assert_eq!((bytes.len(), end), (MIB, End::Closed));
        assert_eq!(rest(&mut client).await, (Vec::new(), End::Closed));
    })
    .await;
}

#[tokio::test]
async fn a_client_reads_all_that_a_service_has_sent_before_its_end() {
    case(&[], async {
        let service = Service::start(async |mut stream: TcpStream| {
            stream.write_all(&[9; MIB]).await.expect("sent");
            stream.shutdown().await.expect("its side");
            let _ = stream.read(&mut [0]).await;
        });
        let (_tunnel, source, _destination) = both(service.port()).await;
        let mut client = connect(source.only_address()).await;
        let (bytes, end) = rest(&mut client).await;
        assert_eq!((bytes.len(), end), (MIB, End::Closed));
    })
    .await;
}

#[tokio::test]
async fn a_service_gets_all_that_a_client_has_sent_before_it_went() {
    case(&[], async {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let service = Service::start(move |mut stream: TcpStream| {
            let sender = sender.clone();
            async move { sender.send(rest(&mut stream).await.0.len()).expect("the test") }
        });
        let (_tunnel, source, _destination) = both(service.port()).await;
        let mut client = connect(source.only_address()).await;
        client.write_all(&[1; MIB]).await.expect("sent");
        drop(client);
        assert_eq!(receiver.recv().await, Some(MIB));
    })
    .await;
}

/// The protocol has one message for both, so a client cannot be told which it was.
#[tokio::test]
async fn a_service_that_resets_ends_its_client_and_no_other() {
    case(&[], async {
        let service = Service::start(async |mut stream: TcpStream| {
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                if byte == *b"!" {
                    stream.set_zero_linger().expect("a socket");
                    return;
                }
                stream.write_all(&byte).await.expect("an echo");
            }
        });
        let (_tunnel, source, _destination) = both(service.port()).await;
        let mut other = connect(source.only_address()).await;
        echo(&mut other, b"a").await;
        let mut client = connect(source.only_address()).await;
        echo(&mut client, b"b").await;
        client.write_all(b"!").await.expect("sent");
        let begin = Instant::now();
        assert_eq!(rest(&mut client).await.0, b"");
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        echo(&mut other, b"c").await;
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_not_there_ends_its_client_and_no_other() {
    case(&[Ability::UnreachableIsTold.at(Side::Destination)], async {
        let tunnel = Tunnel::open(&["HERE", "NOT"]).await;
        let service = Service::echo();
        let destination = tunnel.destination(&[service.port(), unused_port()]).run().await;
        let source = tunnel.source().run().await;
        let mut other = connect(source.address("HERE")).await;
        echo(&mut other, b"a").await;
        for _ in 0..3 {
            let mut client = connect(source.address("NOT")).await;
            let begin = Instant::now();
            assert_eq!(rest(&mut client).await.0, b"");
            assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        }
        echo(&mut other, b"b").await;
        drop(destination);
    })
    .await;
}
