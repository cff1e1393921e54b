//! The data plane: what AWS's proxy server speaks with both ends of a tunnel. A listener of its own, a handshake
//! (`handshake`) and a WebSocket for each side (`relay`), between which whole messages pass (`messages`, `link`).
//!
//! What AWS's [protocol guides](https://github.com/aws-samples/aws-iot-securetunneling-localproxy) leave open, and what
//! is done here:
//!
//! - Messages are forwarded as they are, with the serviceId and the connectionId that the sender gave them. Ends of
//!   different versions understand each other as far as they do so themselves. A tunnel with one service may have an end
//!   of V1, which neither sends nor needs a serviceId. Only STREAM_RESETs by the service are fitted: a side that
//!   negotiated `aws.iot.securetunneling-1.0` gets them without a serviceId, as its version has none, another one with
//!   the serviceId that the STREAM_START had.
//! - SERVICE_IDS is not in V1's guide. A side that negotiated 1.0 gets it marked as ignorable, which that guide lets it
//!   leave out.
//! - Nothing follows a STREAM_START or CONNECTION_START in its frame: AWS's local proxy as the destination leaves that
//!   until another frame comes.
//! - What comes while the other side is not connected is dropped. A STREAM_START is answered with STREAM_RESET:
//!   otherwise its sender would hold a stream for open that the other side, when it comes, does not know.
//! - A side that leaves, or connects again, has its messages that came whole delivered before the other side is sent
//!   STREAM_RESET.
//! - A side that stands still while the other connects again and again is ended: what waits for it has a bound.
//! - Rotation leaves who is connected alone.
//! - A SESSION_RESET, which only a fault makes, goes to one side; the other is sent STREAM_RESET for what was open.

pub(crate) mod faults;
mod handshake;
pub(crate) mod link;
mod messages;
mod relay;
pub(crate) mod tls;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub use faults::{DataFault, DataFaultKind};
pub(crate) use handshake::{ClientToken, Refusal};

use crate::shared::Shared;

/// A side of a tunnel, called as the query parameter `local-proxy-mode` calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where connections come from.
    Source,
    /// Where they go to: the device.
    Destination,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// Bytes that are read from a TCP connection at once. rustls asks for 4 KiB at a time.
const READ_AT_ONCE: usize = 64 << 10;

/// Bytes that are encrypted at once: a frame of the longest, or what waits behind shorter ones.
const WRITE_AT_ONCE: usize = 256 << 10;

/// How long a client may take for the handshake of TLS, and again for its request. AWS's limit is not documented.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Accepts connections for ever.
pub(crate) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small messages must not wait for the ACKs of others; harmless where refused.
                let _ = stream.set_nodelay(true);
                shared.tasks.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
            }
            // Out of file descriptors, most likely: they come back as connections end.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) {
    match tls {
        None => http(stream, shared).await,
        Some(acceptor) => {
            let stream = BufReader::with_capacity(READ_AT_ONCE, stream);
            // A frame is encrypted as a whole: by default rustls takes 64 KiB, a bit less than a frame with a full message.
            let accepted = acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(WRITE_AT_ONCE)));
            // An error ends this connection: the client does not like the certificate, most likely.
            if let Ok(Ok(stream)) = timeout(HANDSHAKE, accepted).await {
                http(stream, shared).await;
            }
        }
    }
}

async fn http(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, shared: Arc<Shared>) {
    let service = service_fn(|request| handshake::respond(request, &shared));
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(handshake::READ_REQUEST)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

/// Ends connections when their tunnel's lifetime is over.
pub(crate) async fn expire(shared: Arc<Shared>) -> Infallible {
    loop {
        // A moment more: a sleep has the precision of milliseconds.
        let left = shared.look(|state| state.service.end_expired()).map(|left| left + Duration::from_millis(1));
        let over = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            () = shared.expiries.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;
    use crate::shared::{Config, DataTls};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_come_to_an_end_with_its_handshake_is_let_go() {
        let tls = tls::Tls::new(&DataTls::SelfSigned, Ipv4Addr::LOCALHOST.into()).expect("a certificate");
        let tls = tls.map(|tls| tls.acceptor);
        for (tls, sent) in [(None, &b"GET /tunnel HTTP/1.1\r\nhost: loc"[..]), (tls, &[22, 3, 1])] {
            let (mut client, server) = tokio::io::duplex(4096);
            let begin = Instant::now();
            let serving = tokio::spawn(connection(server, tls, Arc::new(Shared::new(Config::default()))));
            client.write_all(sent).await.expect("sent");
            timeout(2 * HANDSHAKE, client.read_to_end(&mut Vec::new())).await.expect("an end").expect("closed");
            let waited = begin.elapsed();
            assert!(waited >= HANDSHAKE && waited < HANDSHAKE + Duration::from_secs(1), "{waited:?}");
            serving.await.expect("no panic");
        }
    }
}
