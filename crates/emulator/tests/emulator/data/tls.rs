//! wss://

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use secure_tunneling_emulator::{Config, DataTls, Emulator, Quotas, Side};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::client::{Ask, Client, data, start, tunnel, with_client_token};
use crate::client::start as start_emulator;

async fn with(data_tls: DataTls) -> Emulator {
    start_emulator(Config { quotas: Quotas::none(), data_tls, ..Config::default() }).await
}

/// The handshake of TLS by a client that trusts this certificate alone.
async fn connect(
    emulator: &Emulator,
    trusted: &str,
    name: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).expect("PEM")).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(emulator.data_addr()).await.expect("a connection");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn a_certificate_of_its_own_is_for_localhost_by_name_and_address() {
    let emulator = with(DataTls::SelfSigned).await;
    assert_eq!(emulator.data_endpoint(), format!("wss://{}", emulator.data_addr()));
    let ca = emulator.data_ca_pem().expect("a certificate").to_owned();
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    for name in ["localhost", "127.0.0.1", "::1"] {
        let stream = connect(&emulator, &ca, name).await.expect("a connection");
        let answer = with_client_token(Side::Source, &tokens.source).send_on(stream).await;
        assert_eq!(Client::on(answer).message().await.available_service_ids, ["SSH"]);
    }
    connect(&emulator, &ca, "example.org").await.expect_err("another name");
    let other = with(DataTls::SelfSigned).await;
    connect(&other, &ca, "localhost").await.expect_err("another authority");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_over_tls() {
    let emulator = with(DataTls::SelfSigned).await;
    let ca = emulator.data_ca_pem().expect("a certificate").to_owned();
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let mut clients = Vec::new();
    for (side, token) in [(Side::Source, &tokens.source), (Side::Destination, &tokens.destination)] {
        let stream = connect(&emulator, &ca, "localhost").await.expect("a connection");
        let mut client = Client::on(Ask::new(side, token).send_on(stream).await);
        client.message().await;
        clients.push(client);
    }
    let (mut destination, mut source) = (clients.pop().expect("two"), clients.pop().expect("two"));
    let messages: Vec<_> = (0..100).map(|n| data("SSH", 1, vec![n; 60_000])).collect();
    source.send(&[start("SSH", 1)]).await;
    assert_eq!(destination.message().await, start("SSH", 1));
    let sending = async {
        for message in &messages {
            source.send(std::slice::from_ref(message)).await;
        }
    };
    let reading = async {
        for message in &messages {
            assert!(destination.message().await == *message);
        }
    };
    tokio::join!(sending, reading);
}

/// A directory that is removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("emulator-tls-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_certificate_that_there_is_is_used_and_a_wrong_one_is_an_error_that_names_the_file() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["tunnel.example".to_owned()]).expect("a certificate");
    let other = generate_simple_self_signed(["tunnel.example".to_owned()]).expect("a certificate");
    let directory = Directory::new();
    let chain = directory.write("cert.pem", &cert.pem());
    let key = directory.write("key.pem", &signing_key.serialize_pem());
    let other_key = directory.write("other.pem", &other.signing_key.serialize_pem());
    let empty = directory.write("empty.pem", "");
    let missing = directory.0.join("missing.pem");

    let emulator = with(DataTls::Certificate { chain: chain.clone(), key: key.clone() }).await;
    assert_eq!(emulator.data_ca_pem(), None);
    connect(&emulator, &cert.pem(), "tunnel.example").await.expect("a connection");

    for (chain, key, named) in [
        (&missing, &key, &missing),
        (&chain, &missing, &missing),
        (&chain, &empty, &empty),
        (&empty, &key, &empty),
        (&chain, &other_key, &chain),
    ] {
        let data_tls = DataTls::Certificate { chain: chain.clone(), key: key.clone() };
        let error = Emulator::start(Config { data_tls, ..Config::default() }).await.expect_err("a wrong file");
        assert!(error.to_string().contains(&named.display().to_string()), "{error}");
    }
}
