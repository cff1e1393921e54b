//! The tunnel is closed, or its lifetime is over.

use crate::support::directory::Directory;
use crate::support::interop::{Ability, case};
use crate::support::proxy::{Proxy, connect, echo, rest, secret};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use std::time::Duration;
use tokio::time::Instant;

async fn both_end(tunnel: Tunnel, end: impl FnOnce(&Tunnel)) {
    let (service, mut ends) = Service::telling();
    let destination = tunnel.destination(&[service.port()]).run().await;
    let source = tunnel.source().run().await;
    let mut client = connect(source.only_address()).await;
    echo(&mut client, b"before").await;
    end(&tunnel);
    let begin = Instant::now();
    rest(&mut client).await;
    ends.recv().await.expect("an end");
    assert!(begin.elapsed() < Duration::from_secs(2), "connections lived on for {:?}", begin.elapsed());
    for Proxy { mut process, .. } in [source, destination] {
        let (status, output) = process.exited().await;
        assert_eq!(status, Some(3), "{output}");
        assert!(output.contains("Tunnel is closed"), "{output}");
    }
}

#[tokio::test]
async fn both_ends_of_a_closed_tunnel_end_their_connections_and_say_why() {
    case(&[Ability::ExitStatus.of_both()], async {
        let close = |tunnel: &Tunnel| tunnel.emulator.close(&tunnel.id).expect("a tunnel");
        both_end(Tunnel::open(&["SSH"]).await, close).await;
    })
    .await;
}

#[tokio::test]
async fn both_ends_of_an_expired_tunnel_end_their_connections_and_say_why() {
    case(&[Ability::ExitStatus.of_both()], async {
        let expire = |tunnel: &Tunnel| tunnel.emulator.advance_clock(Duration::from_secs(13 * 3600));
        both_end(Tunnel::open(&["SSH"]).await, expire).await;
    })
    .await;
}

#[tokio::test]
async fn with_a_directory_of_tokens_it_waits_for_the_next_tunnel() {
    case(&[Ability::TokenDir.of_both()], async {
        let (tunnel, secrets) = (Tunnel::open(&["SSH"]).await, Directory::new());
        let files = secret(&tunnel.tokens());
        let files: Vec<_> = files.iter().map(|(name, value)| (*name, value.as_str())).collect();
        secrets.mount("first", &files);
        let mut source = tunnel.source().token_dir(secrets.path()).run().await;
        tunnel.emulator.close(&tunnel.id).expect("a tunnel");
        source.process.logged("waiting for other tokens").await;
        assert!(source.process.is_running());
        assert!(source.process.output().contains("Tunnel is closed"));
    })
    .await;
}
