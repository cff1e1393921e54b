//! Small servers: AWS's data plane as far as a handshake goes, with certificates of a test's own.

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use opentunnel_proxy::Side;
use opentunnel_proxy::config::{Endpoint, Scheme};
use opentunnel_proxy::connect::{ConnectError, Connector, HostVerification, Trust};
use opentunnel_proxy::link::{Keepalive, LinkReader, LinkWriter};
use opentunnel_proxy::tokens::{AccessToken, ClientToken, Tokens};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_websockets::{ServerBuilder, WebSocketStream};

pub const ACCESS: &str = "AQGAAXiVzSmRL1VaJ22G7eRb";
pub const CLIENT: &str = "2da438cf-9a30-4148-b236-c338182f243c";

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
pub type Stream = Box<dyn Io>;

/// A certificate authority of a test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        Self::named("opentunnel test CA")
    }

    pub fn named(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server with a certificate for a name or an IP address.
    pub fn acceptor(&self, host: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([host.to_owned()]).expect("a host's name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], key).expect("they fit");
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What a client has asked, and the connection.
pub struct Peer {
    /// The request's head, up to the empty line.
    pub head: String,
    pub stream: Stream,
}

impl Peer {
    /// The value of a header of the request.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// What takes a WebSocket, with more headers.
    pub fn switching(&self, headers: &str) -> String {
        let key = self.header("sec-websocket-key").unwrap_or_default();
        let input = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let accept = BASE64_STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, input.as_bytes()));
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{headers}\r\n"
        )
    }

    pub async fn answer(&mut self, text: impl AsRef<[u8]>) {
        // A client that has gone away has seen enough.
        let _ = self.stream.write_all(text.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// As AWS's service takes a WebSocket.
    pub async fn websocket(mut self) -> WebSocketStream<Stream> {
        let switching =
            self.switching("Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\nchannel-id: 0ea2b3fffe6adc0e\r\n");
        self.answer(switching).await;
        ServerBuilder::new().serve(self.stream)
    }
}

pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on `127.0.0.1:0` or `[::1]:0`, and gives each connection to `serve` when its request's head is there.
    pub async fn start<F, R>(listen: &str, tls: Option<TlsAcceptor>, serve: F) -> Self
    where
        F: Fn(Peer) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind(listen).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, noted, serve) = (tls.clone(), Arc::clone(&noted), serve.clone());
                tokio::spawn(async move {
                    let mut stream: Stream = match tls {
                        None => Box::new(tcp),
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => Box::new(stream),
                            // The client does not trust it.
                            Err(_) => return,
                        },
                    };
                    let Some(head) = head(&mut stream).await else { return };
                    noted.lock().expect("whole").push(head.clone());
                    serve(Peer { head, stream }).await;
                });
            }
        });
        Self { address, heads, task }
    }

    /// Answers all with a text, and closes.
    pub async fn saying(text: impl Into<Vec<u8>>) -> Self {
        let text: Arc<Vec<u8>> = Arc::new(text.into());
        Self::start("127.0.0.1:0", None, move |mut peer: Peer| {
            let text = Arc::clone(&text);
            async move { peer.answer(&*text).await }
        })
        .await
    }

    /// What was asked, in order.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("whole").clone()
    }

    pub fn endpoint(&self, scheme: Scheme, host: &str) -> Endpoint {
        Endpoint { scheme, host: host.to_owned(), port: self.address.port() }
    }

    /// Without TLS, by its address.
    pub fn plain(&self) -> Endpoint {
        self.endpoint(Scheme::Ws, &self.address.ip().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn head(stream: &mut Stream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

pub fn tokens() -> Tokens {
    Tokens {
        access: AccessToken::new(ACCESS).expect("a token"),
        client: Some(ClientToken::new(CLIENT).expect("a token")),
    }
}

/// What trusts nothing but an authority's certificate, if that.
pub fn trust(file: Option<&str>) -> Trust {
    Trust {
        file: file.map(Into::into),
        directories: Vec::new(),
        additional: None,
        host_verification: HostVerification::On,
    }
}

/// Waits for no longer than a test may.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs")
}

/// Connects as the source.
pub async fn connect(connector: &Connector) -> Result<(LinkReader, LinkWriter), ConnectError> {
    soon(connector.connect(Side::Source, &tokens())).await
}

/// Connects without TLS.
pub async fn connect_plain(server: &Server) -> Result<(LinkReader, LinkWriter), ConnectError> {
    let connector = Connector::new(server.plain(), None, &trust(None), Keepalive::default()).expect("a connector");
    connect(&connector).await
}
