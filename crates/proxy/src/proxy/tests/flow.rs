//! Many connections, slow ones, and back pressure from end to end.

use super::*;
use crate::session::{Bounds, Config};

/// What connection `number` sends at `place`.
fn byte(number: usize, place: usize) -> u8 {
    (number.wrapping_mul(131) ^ place.wrapping_mul(29) ^ (place >> 9)) as u8
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once_have_their_own_bytes() {
    const CONNECTIONS: usize = 300;
    let tunnel = Tunnel::with(TestService::cutting(&["SSH"], 5000), options()).await;
    let source = tunnel.source.listening[0].address;
    let server = tunnel.server;
    let echo = tokio::spawn(async move {
        let mut echoes = JoinHandles::default();
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = server.accept().await.expect("a connection");
            echoes.0.push(tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                tokio::io::copy(&mut reads, &mut writes).await.expect("an echo");
            }));
        }
        echoes
    });
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            tokio::spawn(async move {
                let length = 1 + number * 997 % 60_000;
                let mut stream = TcpStream::connect(source).await.expect("a connection");
                let (mut reads, mut writes) = stream.split();
                let sent: Vec<u8> = (0..length).map(|place| byte(number, place)).collect();
                let mut received = vec![0; length];
                let (wrote, read) = tokio::join!(writes.write_all(&sent), reads.read_exact(&mut received));
                wrote.expect("sent");
                read.expect("received");
                assert!(sent == received, "{number}");
            })
        })
        .collect();
    for client in clients {
        soon(client).await.expect("its own bytes");
    }
    drop(soon(echo).await.expect("all were accepted"));
}

#[derive(Default)]
struct JoinHandles(Vec<JoinHandle<()>>);

impl Drop for JoinHandles {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

fn small() -> Bounds {
    Bounds { receive_connection: 200_000, ..Bounds::default() }
}

#[tokio::test]
async fn a_reader_that_stands_still_holds_up_the_sender_and_loses_nothing() {
    const LENGTH: usize = 30 << 20;
    let session = Config { bounds: small(), ..Config::default() };
    let tunnel = Tunnel::with(TestService::new(&["SSH"]), Options { session, ..options() }).await;
    let (mut client, mut server) = tunnel.pair().await;
    let mut sent = 0;
    let piece: Vec<u8> = (0..65_536).map(|place| byte(1, place)).collect();
    // Until nothing goes any more.
    while let Ok(wrote) = timeout(Duration::from_millis(500), server.write(&piece[sent % piece.len()..])).await {
        sent += wrote.expect("sent");
        assert!(sent < LENGTH, "the sender is held up");
    }
    let reader = async {
        let mut received = 0;
        let mut buffer = vec![0; 65_536];
        while received < LENGTH {
            let length = soon(client.read(&mut buffer)).await.expect("bytes");
            for (nth, received_byte) in buffer[..length].iter().enumerate() {
                assert_eq!(*received_byte, byte(1, (received + nth) % 65_536));
            }
            received += length;
        }
        received
    };
    let writer = async {
        while sent < LENGTH {
            let most = (piece.len() - sent % piece.len()).min(LENGTH - sent);
            let begin = sent % piece.len();
            sent += soon(server.write(&piece[begin..begin + most])).await.expect("sent");
        }
    };
    let (received, ()) = tokio::join!(reader, writer);
    assert_eq!(received, LENGTH);
}

#[tokio::test]
async fn a_reader_that_stands_still_is_reset_alone() {
    let session = Config { bounds: small(), stall: Duration::from_millis(300), ..Config::default() };
    let tunnel = Tunnel::with(TestService::new(&["SSH"]), Options { session, ..options() }).await;
    let (mut other_client, mut other_server) = tunnel.pair().await;
    let (mut still, mut server) = tunnel.pair().await;
    let flood = tokio::spawn(async move {
        let piece = vec![0; 65_536];
        while server.write_all(&piece).await.is_ok() {}
    });
    // Its sender is ended, too.
    soon(flood).await.expect("no panic");
    let mut buffer = vec![0; 1 << 20];
    let error = soon(async {
        loop {
            if let Err(error) = still.read(&mut buffer).await {
                return error;
            }
        }
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(tunnel.source.stats.service("SSH").stalls.get(), 1);
    other_client.write_all(b"hello").await.expect("sent");
    assert_eq!(read_exactly(&mut other_server, 5).await, b"hello");
    other_server.write_all(b"world").await.expect("sent");
    assert_eq!(read_exactly(&mut other_client, 5).await, b"world");
}
