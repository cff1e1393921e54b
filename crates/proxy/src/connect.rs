//! A connection to the data plane of AWS's service: TCP, an HTTP proxy if there is one, TLS, the HTTP request with the
//! tokens, and what AWS says where it refuses.

mod exchange;
pub(crate) mod tcp;
mod tls;
mod web_proxy;

pub use exchange::ExchangeError;
pub use tcp::TcpError;
pub use tls::{HostVerification, Trust};
pub use web_proxy::{WebProxy, WebProxyError};

use crate::Side;
use crate::config::{Endpoint, Scheme, bracketed};
use crate::link::{self, Keepalive, LinkReader, LinkWriter};
use crate::tokens::Tokens;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE, USER_AGENT};
use hyper::{Request, StatusCode};
use std::fmt;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use web_proxy::WebProxyScheme;

/// What is offered to the service; what the other side speaks is another matter. AWS's proxy offers the same, whatever
/// its `-y` says.
const SUBPROTOCOL: &str = "aws.iot.securetunneling-3.0";
/// From the first packet to the service's answer.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// TLS asks for 4 KiB at a time: they come out of this instead of from the system.
const READ_BUFFER: usize = 64 * 1024;
/// Characters of what the service says, at most.
const MAX_WORDS: usize = 300;

/// A stream of bytes both ways.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// What connects to one endpoint.
pub struct Connector {
    endpoint: Endpoint,
    web_proxy: Option<WebProxy>,
    /// Of the endpoint and of an HTTP proxy that is spoken to by TLS. `None`: neither needs it.
    tls: Option<TlsConnector>,
    keepalive: Keepalive,
    time_limit: Duration,
}

impl Connector {
    /// Reads the CA certificates that are trusted.
    ///
    /// # Errors
    /// There are none: a text for people.
    pub fn new(
        endpoint: Endpoint,
        web_proxy: Option<WebProxy>,
        trust: &Trust,
        keepalive: Keepalive,
    ) -> Result<Self, String> {
        let tls = match endpoint.scheme {
            Scheme::Wss => Some(trust.connector()?),
            Scheme::Ws => None,
        };
        Ok(Self { endpoint, web_proxy, tls, keepalive, time_limit: TIME_LIMIT })
    }

    /// The same, with another limit for the time that one [`Connector::connect`] may take.
    pub fn with_time_limit(self, time_limit: Duration) -> Self {
        Self { time_limit, ..self }
    }

    /// Where it connects to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Connects one side of a tunnel. With an access token that has no client token, this can succeed once.
    ///
    /// # Errors
    /// The service refuses, or cannot be reached.
    pub async fn connect(&self, side: Side, tokens: &Tokens) -> Result<(LinkReader, LinkWriter), ConnectError> {
        let deadline = Instant::now() + self.time_limit;
        let connection = self.reach(deadline).await.map_err(|reason| self.unreachable(reason))?;
        let key = key();
        let request = self.request(side, tokens, &key).map_err(|reason| self.unreachable(reason))?;
        let asked = async {
            let answer = exchange::send(connection, request).await?;
            let status = answer.status();
            if status != StatusCode::SWITCHING_PROTOCOLS {
                let reason = answer.headers().get("x-status-reason").cloned();
                let text =
                    if reason.is_none() && !is_html(answer.headers()) { answer.text().await } else { String::new() };
                return Ok(Err((status, without_tokens(words(status, reason.as_ref(), &text), tokens))));
            }
            check(answer.headers(), &key)?;
            let channel =
                answer.headers().get("channel-id").map(|id| printable(&String::from_utf8_lossy(id.as_bytes())));
            Ok::<_, Unreachable>(Ok((answer.upgrade().await?, channel)))
        };
        let answer =
            within(deadline, "the service's answer", asked).await.map_err(|reason| self.unreachable(reason))?;
        let (connection, channel) = answer.map_err(|(status, words)| self.refusal(status, words))?;
        tracing::info!(endpoint = %self.endpoint, %side, channel = channel.as_deref().unwrap_or("-"), "connected");
        Ok(link::open(connection, self.keepalive))
    }

    /// The connection on which the service is asked.
    async fn reach(&self, deadline: Instant) -> Result<Box<dyn Connection>, Unreachable> {
        let (host, port) = match &self.web_proxy {
            Some(proxy) => (&*proxy.host, proxy.port),
            None => (&*self.endpoint.host, self.endpoint.port),
        };
        let tcp = within(deadline, "the TCP connection", async { Ok(tcp::connect(host, port).await?) }).await?;
        let mut connection: Box<dyn Connection> = Box::new(BufReader::with_capacity(READ_BUFFER, tcp));
        if let Some(proxy) = &self.web_proxy {
            if proxy.scheme == WebProxyScheme::Https {
                connection = self.encrypt(deadline, connection, &proxy.host).await?;
            }
            let through = async {
                let through = proxy.connect_through(connection, &self.endpoint).await;
                through.map_err(|error| Unreachable::WebProxy { proxy: proxy.to_string(), error })
            };
            connection = within(deadline, "the HTTP proxy's answer", through).await?;
        }
        match self.endpoint.scheme {
            Scheme::Wss => self.encrypt(deadline, connection, &self.endpoint.host).await,
            Scheme::Ws => Ok(connection),
        }
    }

    async fn encrypt(
        &self,
        deadline: Instant,
        connection: Box<dyn Connection>,
        host: &str,
    ) -> Result<Box<dyn Connection>, Unreachable> {
        let failed = |error: String| Unreachable::Tls { host: host.to_owned(), error };
        let Some(tls) = &self.tls else { return Err(failed("there are no CA certificates".to_owned())) };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
        let handshake = async { tls.connect(name, connection).await.map_err(|error| failed(tls::explain(&error))) };
        Ok(Box::new(within(deadline, "the TLS handshake", handshake).await?))
    }

    fn request(&self, side: Side, tokens: &Tokens, key: &str) -> Result<Request<Empty<bytes::Bytes>>, Unreachable> {
        // Without the port where it is the usual one, as every HTTP client has it.
        let host = match (self.endpoint.scheme, self.endpoint.port) {
            (Scheme::Wss, 443) | (Scheme::Ws, 80) => bracketed(&self.endpoint.host),
            _ => self.endpoint.authority(),
        };
        let secret = |text: &str| {
            let mut value = HeaderValue::from_str(text)?;
            value.set_sensitive(true);
            Ok::<_, hyper::http::Error>(value)
        };
        let built = || {
            let mut request = Request::builder()
                .uri(format!("/tunnel?local-proxy-mode={side}"))
                .header(HOST, host)
                .header(UPGRADE, "websocket")
                .header(CONNECTION, "Upgrade")
                .header("sec-websocket-key", key)
                .header("sec-websocket-version", "13")
                .header("sec-websocket-protocol", SUBPROTOCOL)
                .header("access-token", secret(tokens.access.reveal())?)
                .header(USER_AGENT, concat!("opentunnel-proxy/", env!("CARGO_PKG_VERSION")));
            if let Some(client) = &tokens.client {
                request = request.header("client-token", secret(client.reveal())?);
            }
            request.body(Empty::new())
        };
        built().map_err(|error: hyper::http::Error| ExchangeError::Request(error.to_string()).into())
    }

    fn unreachable(&self, reason: Unreachable) -> ConnectError {
        ConnectError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }

    fn refusal(&self, status: StatusCode, words: String) -> ConnectError {
        match status.as_u16() {
            // Which the client may do again, whatever AWS's guides say of 4xx: nothing is wrong with the token.
            408 | 425 | 429 => ConnectError::NotNow { status, words },
            400..500 => ConnectError::Refused { status, words },
            500..600 => ConnectError::NotNow { status, words },
            _ => self.unreachable(Unreachable::Answer(format!("it answers {}: {words}", status.as_u16()))),
        }
    }
}

/// Neither the certificates nor the HTTP proxy's password.
impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("endpoint", &self.endpoint)
            .field("web_proxy", &self.web_proxy)
            .finish_non_exhaustive()
    }
}

/// Why there is no connection. No text of it holds a token.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// HTTP 4xx: these tokens will not be taken, however often they are tried.
    #[error("the service refuses the connection ({}): {words}", status.as_u16())]
    Refused {
        /// HTTP's.
        status: StatusCode,
        /// Why, in AWS's words.
        words: String,
    },
    /// HTTP 5xx (and 408, 425, 429): it may take them later.
    #[error("the service cannot take the connection now ({}): {words}", status.as_u16())]
    NotNow {
        /// HTTP's.
        status: StatusCode,
        /// Why, in AWS's words.
        words: String,
    },
    /// Nobody who knows the tokens has answered: it may do later.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Where to.
        endpoint: Endpoint,
        /// Why.
        reason: Unreachable,
    },
}

/// Why the service cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// DNS or TCP.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// The HTTP proxy on the way (HTTPS_PROXY) does not let through.
    #[error("the HTTP proxy {proxy} does not let through: {error}")]
    WebProxy {
        /// Its URL, without the password.
        proxy: String,
        /// Why.
        error: WebProxyError,
    },
    /// There is no TLS, or it is not who it should be.
    #[error("TLS with {host} fails: {error}")]
    Tls {
        /// With whom.
        host: String,
        /// Why.
        error: String,
    },
    /// The answer is none.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The answer is not one of the service's.
    #[error("this is not AWS's service: {0}")]
    Answer(String),
    /// It takes too long.
    #[error("{0} did not come in time")]
    Timeout(&'static str),
}

async fn within<T>(
    deadline: Instant,
    what: &'static str,
    step: impl Future<Output = Result<T, Unreachable>>,
) -> Result<T, Unreachable> {
    timeout_at(deadline, step).await.unwrap_or(Err(Unreachable::Timeout(what)))
}

/// A WebSocket's key: 16 bytes that the answer must have seen.
fn key() -> String {
    let bytes: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    BASE64_STANDARD.encode(bytes)
}

/// RFC 6455, section 4.1: what the answer must have.
fn check(headers: &HeaderMap, key: &str) -> Result<(), Unreachable> {
    let value = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wrong = |reason: &str| Err(Unreachable::Answer(reason.to_owned()));
    if !value(UPGRADE).eq_ignore_ascii_case("websocket") {
        return wrong("it answers 101 without Upgrade: websocket");
    }
    let digest = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    if value(HeaderName::from_static("sec-websocket-accept")) != BASE64_STANDARD.encode(digest) {
        return wrong("its Sec-WebSocket-Accept does not belong to what was asked");
    }
    let protocol = value(HeaderName::from_static("sec-websocket-protocol"));
    if !protocol.starts_with("aws.iot.securetunneling-") {
        return wrong("it answers 101 without one of AWS's protocols in Sec-WebSocket-Protocol");
    }
    tracing::debug!(protocol, "the service takes the WebSocket");
    Ok(())
}

fn is_html(headers: &HeaderMap) -> bool {
    headers.get(hyper::header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"))
}

/// What the other side says: in AWS's header, else in the body, else what the status means.
fn words(status: StatusCode, reason: Option<&HeaderValue>, body: &str) -> String {
    let reason = reason.map(|value| printable(&String::from_utf8_lossy(value.as_bytes()))).unwrap_or_default();
    [reason, printable(body)]
        .into_iter()
        .find(|words| !words.is_empty())
        .unwrap_or_else(|| status.canonical_reason().unwrap_or("it does not say why").to_owned())
}

/// One line that a terminal may be shown.
fn printable(text: &str) -> String {
    let clean = text.replace(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER, " ");
    let mut words = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(MAX_WORDS) {
        words.truncate(end);
        words.push('…');
    }
    words
}

/// Whoever answers might say what was sent.
fn without_tokens(words: String, tokens: &Tokens) -> String {
    let words = words.replace(tokens.access.reveal(), "(access token)");
    match &tokens.client {
        Some(client) => words.replace(client.reveal(), "(client token)"),
        None => words,
    }
}
