//! The bound: a relay that hands on bytes as they are, each connection by one of its own, TCP or TLS on either side. Three
//! of them in a row have the hops of a tunnel: source, service, destination.
//!
//! It is a process of its own, as a proxy is: this program, called with `relay ACCEPT CONNECT ADDRESS DIRECTORY`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Bytes that are handed on at once.
const AT_ONCE: usize = 64 << 10;
/// Bytes that are encrypted at once.
const ENCRYPTED_AT_ONCE: usize = 256 << 10;
/// Whom the certificate is for.
const HOST: &str = "localhost";

/// Writes the certificate of all relays, and its key, to a directory.
pub fn certify(directory: &Path) -> io::Result<()> {
    let certified = rcgen::generate_simple_self_signed([HOST.to_owned()]).map_err(io::Error::other)?;
    std::fs::write(directory.join("relay.pem"), certified.cert.pem())?;
    std::fs::write(directory.join("relay.key"), certified.signing_key.serialize_pem())
}

/// Relays for ever. Says first where it listens.
pub async fn run(arguments: &[String]) -> io::Result<()> {
    let [accept, connect, to, directory] = arguments else { return Err(io::ErrorKind::InvalidInput.into()) };
    let to: SocketAddr = to.parse().map_err(io::Error::other)?;
    let acceptor = (accept == "tls").then(|| acceptor(directory.as_ref())).transpose()?;
    let connector = (connect == "tls").then(|| connector(directory.as_ref())).transpose()?;
    let listener = crate::load::listen(None)?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, connector) = (acceptor.clone(), connector.clone());
        // An error ends this connection.
        tokio::spawn(async move { serve(stream, acceptor, connector, to).await });
    }
}

async fn serve(
    near: TcpStream,
    acceptor: Option<TlsAcceptor>,
    connector: Option<TlsConnector>,
    to: SocketAddr,
) -> io::Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    match (acceptor, connector) {
        (None, None) => relay(near, far).await,
        (None, Some(connector)) => relay(near, by_client(&connector, far).await?).await,
        (Some(acceptor), None) => relay(by_server(&acceptor, near).await?, far).await,
        (Some(acceptor), Some(connector)) => {
            let far = by_client(&connector, far).await?;
            relay(by_server(&acceptor, near).await?, far).await
        }
    }
}

async fn relay(
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    copy_bidirectional_with_sizes(&mut near, &mut far, AT_ONCE, AT_ONCE).await.map(drop)
}

// rustls asks for 4 KiB at a time: hence the BufReader.

async fn by_client(connector: &TlsConnector, stream: TcpStream) -> io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
    let limit = |session: &mut tokio_rustls::rustls::ClientConnection| {
        session.set_buffer_limit(Some(ENCRYPTED_AT_ONCE));
    };
    connector.connect_with(name, BufReader::with_capacity(AT_ONCE, stream), limit).await
}

async fn by_server(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let stream = BufReader::with_capacity(AT_ONCE, stream);
    acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(ENCRYPTED_AT_ONCE))).await
}

/// AES-128, as the emulator has it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn certificate(directory: &Path) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(directory.join("relay.pem")).map_err(io::Error::other)
}

fn acceptor(directory: &Path) -> io::Result<TlsAcceptor> {
    let key = PrivateKeyDer::from_pem_file(directory.join("relay.key")).map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(io::Error::other)?.with_no_client_auth();
    let config = config.with_single_cert(vec![certificate(directory)?], key).map_err(io::Error::other)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn connector(directory: &Path) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(directory)?).map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
