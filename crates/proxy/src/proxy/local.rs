//! A local connection: TCP, or a Unix socket.

use socket2::SockRef;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

pub(super) enum Local {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Local {
    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
            #[cfg(unix)]
            Self::Unix(stream) => stream.poll_read_ready(context),
        }
    }

    pub fn try_read(&self, buffer: &mut impl bytes::BufMut) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(buffer),
            #[cfg(unix)]
            Self::Unix(stream) => stream.try_read_buf(buffer),
        }
    }

    pub fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            #[cfg(unix)]
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    /// Nothing more is written.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown().await,
            #[cfg(unix)]
            Self::Unix(stream) => stream.shutdown().await,
        }
    }

    /// Closes so that the other side sees that it was cut: a reset, where there is one.
    pub fn reset(self) {
        if let Self::Tcp(stream) = &self {
            // If that fails the connection is over already.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}
