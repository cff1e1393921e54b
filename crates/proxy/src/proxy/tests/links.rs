//! Links that come and go.

use super::*;
use crate::tokens::TokenDirectory;
use hyper::StatusCode;
use std::path::{Path, PathBuf};

fn refused() -> ConnectError {
    ConnectError::Refused { status: StatusCode::BAD_REQUEST, words: "Tunnel is closed".to_owned() }
}

#[tokio::test]
async fn a_lost_link_resets_local_connections_and_is_made_anew_at_once() {
    for side in [Side::Source, Side::Destination] {
        let tunnel = Tunnel::new().await;
        let (mut client, mut server) = tunnel.pair().await;
        client.write_all(b"before").await.expect("sent");
        assert_eq!(read_exactly(&mut server, 6).await, b"before");
        tunnel.service.cut(side);
        let begin = Instant::now();
        assert_reset(&mut client).await;
        assert_reset(&mut server).await;
        // What begins while the destination is away is lost: the service has nobody to tell.
        connects(&tunnel.service, 3).await;
        let (mut client, mut server) = tunnel.pair().await;
        client.write_all(b"after").await.expect("sent");
        assert_eq!(read_exactly(&mut server, 5).await, b"after");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!(tunnel.service.connects(), 3);
    }
}

#[tokio::test]
async fn a_client_waits_for_a_link_and_is_told_when_there_is_none() {
    let service = TestService::new(&["SSH"]);
    let later = || ConnectError::NotNow { status: StatusCode::SERVICE_UNAVAILABLE, words: "later".to_owned() };
    service.refuse([later(), later(), later(), later(), later(), later()]);
    let source = Running::start(&service, source(Services::Only(listen("127.0.0.1", 0))), options()).await;
    let mut client = source.client().await;
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn a_client_that_comes_before_the_link_is_served() {
    let tunnel = Tunnel::new().await;
    tunnel.service.cut(Side::Source);
    // It is not known whether the proxy has noticed: either way it is served, or reset and comes again.
    soon(async {
        loop {
            let Ok(mut client) = TcpStream::connect(tunnel.source.listening[0].address).await else { continue };
            if client.write_all(b"hello").await.is_err() {
                continue;
            }
            let Ok(Ok((mut server, _))) = timeout(Duration::from_millis(500), tunnel.server.accept()).await else {
                continue;
            };
            let mut bytes = [0; 5];
            if server.read_exact(&mut bytes).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_the_end_where_none_other_can_come() {
    let service = TestService::new(&["SSH"]);
    service.refuse([refused()]);
    let mut source = Running::start(&service, source(Services::Only(listen("127.0.0.1", 0))), options()).await;
    let error = soon(&mut source.task).await.expect("no panic").expect_err("refused");
    assert!(matches!(error, ProxyError::Refused(_)) && error.to_string().contains("Tunnel is closed"), "{error}");
    assert_eq!(service.connects(), 1);
}

#[tokio::test]
async fn a_tunnel_with_other_services_is_named() {
    let service = TestService::new(&["A", "B"]);
    let mut source = Running::start(&service, source(Services::Only(listen("127.0.0.1", 0))), options()).await;
    let error = soon(&mut source.task).await.expect("no panic").expect_err("other services");
    assert!(matches!(error, ProxyError::Services(ServicesError::Several { .. })), "{error}");
}

#[tokio::test]
async fn open_connections_have_time_to_end_when_it_is_asked_to_stop() {
    let tunnel = Tunnel::new().await;
    let (mut client, mut server) = tunnel.pair().await;
    tunnel.source.stop.send_replace(true);
    let address = tunnel.source.listening[0].address;
    soon(async {
        while TcpStream::connect(address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    client.write_all(b"late").await.expect("sent");
    assert_eq!(read_exactly(&mut server, 4).await, b"late");
    server.write_all(b"reply").await.expect("sent");
    drop(server);
    assert_eq!(read_to_end(&mut client).await, b"reply");
    tunnel.source.stopped().await.expect("stopped");
}

#[tokio::test]
async fn connections_that_do_not_end_are_ended_after_the_drain() {
    let options = Options { drain: Duration::from_millis(100), ..options() };
    for side in [Side::Source, Side::Destination] {
        let tunnel = Tunnel::with(TestService::new(&["SSH"]), options.clone()).await;
        let (mut client, mut server) = tunnel.pair().await;
        match side {
            Side::Source => {
                tunnel.source.stopped().await.expect("stopped");
                assert_reset(&mut client).await;
                assert_eq!(read_to_end(&mut server).await, b"", "the peer is told");
            }
            Side::Destination => {
                tunnel.destination.stopped().await.expect("stopped");
                assert_reset(&mut server).await;
                assert_eq!(read_to_end(&mut client).await, b"", "the peer is told");
            }
        }
    }
}

/// A directory that is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path =
            std::env::temp_dir().join(format!("opentunnel-proxy-tokens-{}-{}", std::process::id(), fastrand::u64(..)));
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, token: &str) {
        std::fs::write(Path::new(&self.0).join("sourceAccessToken"), token).expect("written");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn source_with(service: &Arc<TestService>, directory: &Directory) -> Running {
    let tokens = TokenSource::Directory(TokenDirectory::open(directory.0.clone(), Side::Source));
    Running::start_with(service, source(Services::Only(listen("127.0.0.1", 0))), options(), tokens).await
}

async fn connects(service: &TestService, count: usize) {
    soon(async {
        while service.connects() < count {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_was_refused_is_not_tried_again_and_another_is_taken_at_once() {
    let (service, directory) = (TestService::new(&["SSH"]), Directory::new());
    service.rotate("second");
    directory.write("first");
    let source = source_with(&service, &directory).await;
    connects(&service, 1).await;
    // Longer than the first waits between two attempts would be.
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(service.connects(), 1);
    directory.write("second");
    source.connected().await;
    assert_eq!(service.connects(), 2);
}

#[tokio::test]
async fn a_token_that_changes_while_the_link_serves_is_taken_at_the_next_reconnect() {
    let (service, directory) = (TestService::new(&["SSH"]), Directory::new());
    directory.write("first");
    let source = source_with(&service, &directory).await;
    source.connected().await;
    service.rotate("second");
    directory.write("second");
    // The directory is looked at once a second.
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(service.connects(), 1);
    service.cut(Side::Source);
    connects(&service, 2).await;
    source.connected().await;
    assert_eq!(service.connects(), 2, "the first one was not tried again");
}

#[tokio::test]
async fn a_token_that_is_not_there_yet_is_waited_for() {
    let (service, directory) = (TestService::new(&["SSH"]), Directory::new());
    let source = source_with(&service, &directory).await;
    directory.write("first");
    source.connected().await;
}

#[tokio::test]
async fn another_tunnel_s_services_are_listened_for_in_the_place_of_the_last_one_s() {
    let (service, directory) = (TestService::new(&["A", "B"]), Directory::new());
    directory.write("first");
    service.rotate("first");
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port();
    // Of two tunnels, never of one.
    let ports = ["A", "C"].map(|id| (id.to_owned(), listen("127.0.0.1", port)));
    let tokens = TokenSource::Directory(TokenDirectory::open(directory.0.clone(), Side::Source));
    let ends = source(Services::Among(ports.into()));
    let mut source = Running::start_with(&service, ends, options(), tokens).await;
    assert_eq!(source.services(), ["A", "B"]);
    let kept = source.address("B");
    service.set_services(&["B", "C"]);
    service.rotate("second");
    service.cut(Side::Source);
    directory.write("second");
    source.listening = soon(source.told.recv()).await.expect("it listens");
    assert_eq!(source.services(), ["B", "C"]);
    assert_eq!((source.address("B"), source.address("C").port()), (kept, port));
    // The same again is nothing new.
    service.cut(Side::Source);
    connects(&service, service.connects() + 1).await;
    source.connected().await;
    assert!(source.told.try_recv().is_err());
}
