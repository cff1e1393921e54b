//! Which certificates are taken for which host.

use crate::directory::Directory;
use crate::server::{Authority, Peer, Server, connect, trust};
use opentunnel_proxy::config::Scheme;
use opentunnel_proxy::connect::{Connector, HostVerification, Trust};
use opentunnel_proxy::link::Keepalive;
use std::path::PathBuf;

/// Connects to a server with a certificate for `certified`, by the name or address `host`.
async fn outcome(
    authority: &Authority,
    listen: &str,
    certified: &str,
    host: &str,
    trust: &Trust,
) -> Result<(), String> {
    let acceptor = Some(authority.acceptor(certified));
    let server = Server::start(listen, acceptor, |peer: Peer| async { drop(peer.websocket().await) }).await;
    let connector = Connector::new(server.endpoint(Scheme::Wss, host), None, trust, Keepalive::default())?;
    connect(&connector).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_certificate_must_be_for_the_host_and_from_a_trusted_authority() {
    let (ours, other, twin) = (Authority::new(), Authority::named("another CA"), Authority::new());
    let files = Directory::new();
    let trusted = trust(Some(&files.write("ca.pem", &ours.pem)));
    let any_host = Trust { host_verification: HostVerification::Off, ..trusted.clone() };
    let (v4, v6) = ("127.0.0.1:0", "[::1]:0");
    let wrong_name = Some("connect by a name or address that the certificate has");
    let unknown = Some("its CA is not trusted here; name the CA with -c or SSL_CERT_FILE");
    for (authority, listen, certified, host, trust, error) in [
        (&ours, v4, "localhost", "localhost", &trusted, None),
        (&ours, v4, "127.0.0.1", "127.0.0.1", &trusted, None),
        (&ours, v6, "::1", "::1", &trusted, None),
        (&ours, v4, "example.com", "localhost", &trusted, wrong_name),
        (&ours, v4, "localhost", "127.0.0.1", &trusted, wrong_name),
        (&ours, v4, "127.0.0.2", "127.0.0.1", &trusted, wrong_name),
        (&ours, v6, "::2", "::1", &trusted, wrong_name),
        (&other, v4, "localhost", "localhost", &trusted, unknown),
        (&twin, v4, "localhost", "localhost", &trusted, unknown),
        (&ours, v4, "example.com", "localhost", &any_host, None),
        (&ours, v4, "localhost", "127.0.0.1", &any_host, None),
        // -k is for the name alone.
        (&other, v4, "localhost", "localhost", &any_host, unknown),
        (&twin, v4, "example.com", "localhost", &any_host, unknown),
    ] {
        let outcome = outcome(authority, listen, certified, host, trust).await;
        match error {
            None => assert_eq!(outcome, Ok(()), "{certified} for {host}"),
            Some(reason) => {
                let text = outcome.expect_err(host);
                assert!(text.contains(reason) && text.contains(&format!("TLS with {host} fails")), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn certificates_come_from_a_file_from_directories_and_from_one_more() {
    let (ours, other) = (Authority::new(), Authority::new());
    let files = Directory::new();
    let file = PathBuf::from(files.write("both.pem", format!("a comment\n{}{}", other.pem, ours.pem)));
    files.write("many/a.txt", &other.pem);
    files.write("many/ours.pem", &ours.pem);
    files.write("other/other.pem", &other.pem);
    files.write("empty/README", "no certificate");
    let path = |name: &str| files.path().join(name);
    let none = trust(None);
    for (trust, taken) in [
        (Trust { file: Some(file.clone()), ..none.clone() }, true),
        (Trust { directories: vec![path("other"), path("many")], ..none.clone() }, true),
        (Trust { additional: Some(path("many")), ..none.clone() }, true),
        (Trust { file: Some(path("other/other.pem")), additional: Some(path("many")), ..none.clone() }, true),
        (Trust { directories: vec![path("other")], ..none.clone() }, false),
        (Trust { additional: Some(path("other")), ..none.clone() }, false),
        (none.clone(), false),
    ] {
        let outcome = outcome(&ours, "127.0.0.1:0", "localhost", "localhost", &trust).await;
        assert_eq!(outcome.is_ok(), taken, "{trust:?}: {outcome:?}");
    }
    for (trust, reason) in [
        (Trust { file: Some(path("absent.pem")), ..none.clone() }, "SSL_CERT_FILE: there is no CA certificate"),
        (Trust { file: Some(path("empty/README")), ..none.clone() }, "SSL_CERT_FILE: there is no CA certificate"),
        (Trust { additional: Some(path("empty")), ..none.clone() }, "-c: there is no CA certificate"),
        (Trust { additional: Some(path("absent")), ..none.clone() }, "-c: there is no CA certificate"),
        (Trust { directories: vec![path("absent")], ..none.clone() }, "there is no CA certificate to check"),
    ] {
        let error = outcome(&ours, "127.0.0.1:0", "localhost", "localhost", &trust).await.expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
}
