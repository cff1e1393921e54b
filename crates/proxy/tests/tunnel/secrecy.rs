//! Tokens stand nowhere.

use crate::support::interop::{Ability, case};
use crate::support::process::Process;
use crate::support::proxy::{client_token, connect, echo, rest, served};
use crate::support::service::Service;
use crate::support::tunnel::Tunnel;
use opentunnel_proxy::Side;
use secure_tunneling_emulator::{DataFault, DataFaultKind};

fn assert_secret(process: &Process, tokens: &[String]) {
    let output = process.output();
    let line = process.proc("cmdline");
    for token in tokens {
        // A part of it would be half a secret.
        let part = &token[..token.len().min(24)];
        assert!(!output.contains(part), "a token was printed");
        assert!(!line.contains(part), "a token is an argument");
    }
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.id())).unwrap_or_default();
    assert_eq!(children, "", "it has started something");
}

#[tokio::test]
async fn tokens_stand_in_no_output_and_no_argument_whatever_happens() {
    case(&[Ability::Secrecy.of_both()], async {
        let service = Service::echo();
        let tunnel = Tunnel::open(&["SSH"]).await;
        let mut tokens = vec![tunnel.token(Side::Source), tunnel.token(Side::Destination)];
        tokens.extend([client_token(Side::Source), client_token(Side::Destination)].map(str::to_owned));
        let destination = tunnel.destination(&[service.port()]).args(["-v", "6"]).run().await;
        let source = tunnel.source().args(["-v", "6"]).run().await;
        let mut client = connect(source.only_address()).await;
        echo(&mut client, b"before").await;
        use secure_tunneling_emulator::Side as Of;
        for (side, kind) in [(Of::Destination, DataFaultKind::Disconnect), (Of::Source, DataFaultKind::Disconnect)] {
            tunnel.emulator.set_data_faults([
                DataFault::new(side, kind).times(1),
                DataFault::new(side, DataFaultKind::Refuse5xx).times(1),
            ]);
            rest(&mut client).await;
            served(source.only_address()).await;
            client = connect(source.only_address()).await;
            echo(&mut client, b"after").await;
        }
        for process in [&source.process, &destination.process] {
            assert!(process.output().len() > 1000, "-v 6 says more: {}", process.output());
            assert_secret(process, &tokens);
        }
        tunnel.emulator.close(&tunnel.id).expect("a tunnel");
        for mut proxy in [source, destination] {
            let (_, output) = proxy.process.exited().await;
            assert!(tokens.iter().all(|token| !output.contains(&token[..24])), "a token was printed");
        }
    })
    .await;
}
