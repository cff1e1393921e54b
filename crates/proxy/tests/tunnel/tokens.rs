//! Tokens in a directory that changes, as a mounted Secret does.

use crate::support::directory::Directory;
use crate::support::interop::{Ability, case};
use crate::support::proxy::{connect, echo, rest, secret, served};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use secure_tunneling_emulator::{ConnectionStatus, DataFault, DataFaultKind, Side};
use std::time::Duration;

fn mount(directory: &Directory, version: &str, tunnel: &Tunnel) {
    let files = secret(&tunnel.tokens());
    let files: Vec<_> = files.iter().map(|(name, value)| (*name, value.as_str())).collect();
    directory.mount(version, &files);
}

#[tokio::test]
async fn a_refused_token_is_waited_out_until_the_directory_has_another() {
    case(&[Ability::TokenDir.of_both()], async {
        let (service, tunnel, secrets) = (Service::echo(), Tunnel::open(&["SSH"]).await, Directory::new());
        mount(&secrets, "old", &tunnel);
        tunnel.rotate("ALL").await;
        let mut destination = tunnel.destination(&[service.port()]).token_dir(secrets.path()).spawn();
        let mut source = tunnel.source().token_dir(secrets.path()).spawn();
        for proxy in [&mut source, &mut destination] {
            proxy.process.logged("waiting for other tokens").await;
            assert!(proxy.process.is_running());
        }
        mount(&secrets, "new", &tunnel);
        tunnel.connected().await;
        source.listening().await;
        served(source.only_address()).await;
        for proxy in [&source, &destination] {
            let refusals = proxy.process.output().matches("Invalid access token").count();
            assert_eq!(refusals, 1, "a token that was refused was tried again: {}", proxy.process.output());
        }
    })
    .await;
}

#[tokio::test]
async fn a_rotated_token_leaves_the_link_alone_and_is_used_for_the_next_one() {
    case(&[Ability::TokenDir.of_both()], async {
        let (service, tunnel, secrets) = (Service::echo(), Tunnel::open(&["SSH"]).await, Directory::new());
        mount(&secrets, "old", &tunnel);
        let _destination = tunnel.destination(&[service.port()]).token_dir(secrets.path()).run().await;
        let mut source = tunnel.source().token_dir(secrets.path()).run().await;
        let mut client = connect(source.only_address()).await;
        echo(&mut client, b"before").await;
        tunnel.rotate("ALL").await;
        mount(&secrets, "new", &tunnel);
        // Longer than it takes to see the new one.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        echo(&mut client, b"after").await;
        for side in [Side::Source, Side::Destination] {
            tunnel.emulator.set_data_faults([DataFault::new(side, DataFaultKind::Disconnect).times(1)]);
            rest(&mut client).await;
            let back = served(source.only_address()).await;
            println!("figure: proxy rotation | served {} ms after the {side:?} was cut", back.as_millis());
            client = connect(source.only_address()).await;
            echo(&mut client, b"again").await;
        }
        assert!(source.process.is_running());
    })
    .await;
}

#[tokio::test]
async fn without_a_directory_a_rotated_token_is_refused_and_ends_it() {
    case(&[Ability::ExitStatus.at(opentunnel_proxy::Side::Source)], async {
        let tunnel = Tunnel::open(&["SSH"]).await;
        let mut source = tunnel.source().run().await;
        tunnel.rotate("SOURCE").await;
        tunnel.emulator.set_data_faults([DataFault::new(Side::Source, DataFaultKind::Disconnect).times(1)]);
        let (status, output) = source.process.exited().await;
        assert_eq!(status, Some(3), "{output}");
        assert!(output.contains("Invalid access token"), "{output}");
        tunnel.is(opentunnel_proxy::Side::Source, ConnectionStatus::Disconnected).await;
    })
    .await;
}
