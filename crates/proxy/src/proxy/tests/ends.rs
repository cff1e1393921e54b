//! How connections begin and end, and where.

use super::*;
use crate::session::Config;
use std::io::ErrorKind;

#[tokio::test]
async fn bytes_pass_both_ways_however_the_service_cuts_them() {
    for cut in [1, 7, 4096, 131_076] {
        let tunnel = Tunnel::with(TestService::cutting(&["SSH"], cut), options()).await;
        let (mut client, mut server) = tunnel.pair().await;
        let length = if cut == 1 { 5_000 } else { 300_000 };
        let request: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
        let reply: Vec<u8> = request.iter().rev().copied().collect();
        let (sent, received) = tokio::join!(client.write_all(&request), read_exactly(&mut server, length));
        sent.expect("sent");
        assert!(received == request, "{cut}");
        let (sent, received) = tokio::join!(server.write_all(&reply), read_exactly(&mut client, length));
        sent.expect("sent");
        assert!(received == reply, "{cut}");
        let service = tunnel.source.stats.service("SSH");
        assert_eq!((service.bytes_to_tunnel.get(), service.bytes_from_tunnel.get()), (length as u64, length as u64));
    }
}

#[tokio::test]
async fn a_service_that_closes_ends_the_clients_connection_behind_the_reply() {
    let tunnel = Tunnel::new().await;
    let (mut client, mut server) = tunnel.pair().await;
    let reply = vec![5; 1_000_000];
    client.write_all(b"GET").await.expect("sent");
    assert_eq!(read_exactly(&mut server, 3).await, b"GET");
    let send = async move {
        server.write_all(&reply).await.expect("sent");
        drop(server);
    };
    let ((), received) = tokio::join!(send, read_to_end(&mut client));
    assert_eq!(received.len(), 1_000_000);
}

#[tokio::test]
async fn what_a_client_sent_before_it_closed_arrives() {
    let tunnel = Tunnel::new().await;
    let (mut client, mut server) = tunnel.pair().await;
    let send = async move {
        client.write_all(&vec![5; 1_000_000]).await.expect("sent");
        // Nothing is unread: it is closed, not reset.
        client.shutdown().await.expect("closed");
        client
    };
    let (client, received) = tokio::join!(send, read_exactly(&mut server, 1_000_000));
    assert!(received.iter().all(|byte| *byte == 5));
    drop((client, server));
}

#[tokio::test]
async fn a_client_that_closes_its_side_has_its_reply() {
    let tunnel = Tunnel::new().await;
    let (mut client, mut server) = tunnel.pair().await;
    client.write_all(b"request").await.expect("sent");
    client.shutdown().await.expect("its side is closed");
    assert_eq!(read_exactly(&mut server, 7).await, b"request");
    sleep(Duration::from_millis(300)).await;
    server.write_all(b"reply").await.expect("sent");
    drop(server);
    assert_eq!(read_to_end(&mut client).await, b"reply");
}

#[tokio::test]
async fn a_service_sees_in_the_end_that_the_client_has_closed_its_side() {
    let session = Config { half_close: Duration::from_millis(200), ..Config::default() };
    let tunnel = Tunnel::with(TestService::new(&["SSH"]), Options { session, ..options() }).await;
    let (mut client, mut server) = tunnel.pair().await;
    client.write_all(b"upload").await.expect("sent");
    client.shutdown().await.expect("its side is closed");
    assert_eq!(read_to_end(&mut server).await, b"upload");
    assert_eq!(read_to_end(&mut client).await, b"");
}

#[tokio::test]
async fn a_client_of_a_service_that_cannot_be_reached_is_told() {
    let service = TestService::new(&["SSH"]);
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let ends = destination(Services::Only(target(closed)));
    let destination = Running::start(&service, ends, options()).await;
    let source = Running::start(&service, source(Services::Only(listen("127.0.0.1", 0))), options()).await;
    destination.connected().await;
    source.connected().await;
    let mut client = source.client().await;
    assert_eq!(read_to_end(&mut client).await, b"");
}

#[tokio::test]
async fn each_service_has_its_place_and_a_source_may_listen_anywhere() {
    let (first, second) = (TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await);
    let servers = [("A", first.expect("a port")), ("B", second.expect("a port"))];
    let targets =
        servers.iter().map(|(id, server)| ((*id).to_owned(), target(server.local_addr().expect("an address"))));
    let targets: BTreeMap<_, _> = targets.collect();
    let exactly: BTreeMap<_, _> = ["A", "B"].map(|id| (id.to_owned(), listen("127.0.0.1", 0))).into();
    for listening in [Services::Exactly(exactly), Services::Among(BTreeMap::new())] {
        let service = TestService::new(&["B", "A"]);
        let ends = destination(Services::Exactly(targets.clone()));
        let destination = Running::start(&service, ends, options()).await;
        let source = Running::start(&service, source(listening), options()).await;
        destination.connected().await;
        source.connected().await;
        for (id, server) in &servers {
            let mut client = TcpStream::connect(source.address(id)).await.expect("a connection");
            client.write_all(id.as_bytes()).await.expect("sent");
            let (mut served, _) = soon(server.accept()).await.expect("a connection");
            assert_eq!(read_exactly(&mut served, 1).await, id.as_bytes());
        }
    }
}

#[tokio::test]
async fn a_name_is_listened_on_with_all_its_addresses_and_one_port() {
    let service = TestService::new(&[]);
    let source = Running::start(&service, source(Services::Only(listen("localhost", 0))), options()).await;
    assert!(!source.listening.is_empty());
    for listening in &source.listening {
        assert!(listening.address.ip().is_loopback() && listening.address.port() == source.listening[0].address.port());
        TcpStream::connect(listening.address).await.expect("a connection");
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_before_a_token_is_used() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let ends = source(Services::Only(listen("127.0.0.1", port)));
    let error = Proxy::bind(ends, options(), Arc::default()).await.err().expect("it is taken").to_string();
    assert!(error.starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_destination_may_lead_to_a_unix_socket() {
    let directory = std::env::temp_dir().join(format!("opentunnel-proxy-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::create_dir(&directory).expect("a directory");
    let path = directory.join("socket");
    let server = tokio::net::UnixListener::bind(&path).expect("a socket");
    let service = TestService::new(&[]);
    let destination = Running::start(&service, destination(Services::Only(Target::Unix(path))), options()).await;
    let source = Running::start(&service, source(Services::Only(listen("127.0.0.1", 0))), options()).await;
    destination.connected().await;
    source.connected().await;
    let mut client = source.client().await;
    client.write_all(b"hello").await.expect("sent");
    let (mut served, _) = soon(server.accept()).await.expect("a connection");
    let mut bytes = [0; 5];
    soon(served.read_exact(&mut bytes)).await.expect("bytes");
    served.write_all(&bytes).await.expect("sent");
    drop(served);
    assert_eq!(read_to_end(&mut client).await, b"hello");
    std::fs::remove_dir_all(&directory).expect("removed");
}

#[tokio::test]
async fn a_destination_connects_from_the_address_that_it_is_given() {
    let service = TestService::new(&[]);
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let targets = Services::Only(target(server.local_addr().expect("an address")));
    let ends = Ends::Destination { targets, bind: Some("127.0.0.2".to_owned()) };
    let destination = Running::start(&service, ends, options()).await;
    let source = Running::start(&service, source(Services::Only(listen("127.0.0.1", 0))), options()).await;
    destination.connected().await;
    source.connected().await;
    let _client = source.client().await;
    let (_served, from) = soon(server.accept()).await.expect("a connection");
    assert_eq!(from.ip().to_string(), "127.0.0.2");
}

#[tokio::test]
async fn towards_a_v1_peer_the_second_client_waits_for_the_first() {
    let session = Config { peer: Some(Version::V1), ..Config::default() };
    let tunnel = Tunnel::with(TestService::new(&["SSH"]), Options { session, ..options() }).await;
    let (mut first, mut first_served) = tunnel.pair().await;
    let mut second = tunnel.source.client().await;
    second.write_all(b"second").await.expect("sent");
    first.write_all(b"first").await.expect("sent");
    assert_eq!(read_exactly(&mut first_served, 5).await, b"first");
    assert!(timeout(Duration::from_millis(100), tunnel.server.accept()).await.is_err());
    drop(first_served);
    assert_eq!(read_to_end(&mut first).await, b"");
    let (mut second_served, _) = soon(tunnel.server.accept()).await.expect("its turn");
    assert_eq!(read_exactly(&mut second_served, 6).await, b"second");
}

#[tokio::test]
async fn a_connection_that_is_reset_at_one_end_ends_at_the_other() {
    let tunnel = Tunnel::new().await;
    let (client, mut server) = tunnel.pair().await;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("set");
    drop(client);
    let mut byte = [0];
    let end = soon(server.read(&mut byte)).await;
    assert!(
        matches!(&end, Ok(0)) || end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "{end:?}"
    );
}
