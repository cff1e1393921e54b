//! A forward proxy (HTTP CONNECT), as companies have one, and AWS behind it: whatever host is asked for,
//! a server with a certificate for it answers, which is the emulator.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority of a test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "opentunnel test CA");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn acceptor(&self, host: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([host.to_owned()]).expect("a host's name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], key).expect("they fit");
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A running proxy.
pub struct ConnectProxy {
    /// Its URL.
    pub url: String,
    /// The certificate of the authority that vouches for the servers behind it, as PEM.
    pub authority: String,
    asked: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl ConnectProxy {
    /// Starts one. What comes through it goes to `aws`.
    pub async fn start(aws: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        // By a name, so that NO_PROXY=127.0.0.1 speaks of the API server and not of the proxy.
        let url = format!("http://localhost:{}", listener.local_addr().expect("an address").port());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let authority = Arc::new(Authority::new());
        let (pem, noted) = (authority.pem.clone(), asked.clone());
        let server = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (authority, noted) = (authority.clone(), noted.clone());
                // A client that goes away ends its connection, and nothing else.
                tokio::spawn(async move { drop(serve(connection, &authority, &noted, aws).await) });
            }
        });
        Self { url, authority: pem, asked, server }
    }

    /// The hosts and ports that were asked for, each once.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        asked.sort();
        asked.dedup();
        asked
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    connection: TcpStream,
    authority: &Authority,
    asked: &Mutex<Vec<String>>,
    aws: SocketAddr,
) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let target = lines.first().and_then(|line| line.strip_prefix("CONNECT "));
    let Some(target) = target.and_then(|line| line.split(' ').next()) else {
        return connection.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").await;
    };
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(target.to_owned());
    let host = target.split(':').next().unwrap_or_default();
    connection.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    let mut inside = authority.acceptor(host).accept(connection).await?;
    let mut emulator = TcpStream::connect(aws).await?;
    copy_bidirectional(&mut inside, &mut emulator).await.map(drop)
}
