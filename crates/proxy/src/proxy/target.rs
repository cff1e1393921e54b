//! A destination's connections to the services.

use super::local::Local;
use crate::config::Target;
use crate::connect::tcp::{TcpError, connect_by};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// How long a service has to take a connection.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// Why there is no connection to a service.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error(transparent)]
    Tcp(#[from] TcpError),
    #[error("no connection to {0}: {1}")]
    Unix(String, io::Error),
    #[error("the local address {0} cannot be resolved: {1}")]
    Bind(String, io::Error),
    #[error("no answer within {} s", TIME_LIMIT.as_secs())]
    Slow,
}

/// Connects, from a local address if one is given.
pub(super) async fn connect(target: &Target, bind: Option<&str>) -> Result<Local, TargetError> {
    let connect = async {
        match target {
            Target::Tcp { host, port } => {
                let from = match bind {
                    Some(bind) => {
                        let addresses = lookup_host((bind, 0)).await;
                        addresses.map_err(|error| TargetError::Bind(bind.to_owned(), error))?.collect()
                    }
                    None => Vec::new(),
                };
                let attempt = |address: SocketAddr| attempt(address, from.clone());
                Ok(Local::Tcp(connect_by(host, *port, attempt).await?))
            }
            #[cfg(unix)]
            Target::Unix(path) => match tokio::net::UnixStream::connect(path).await {
                Ok(stream) => Ok(Local::Unix(stream)),
                Err(error) => Err(TargetError::Unix(target.to_string(), error)),
            },
            #[cfg(not(unix))]
            Target::Unix(_) => Err(TargetError::Unix(target.to_string(), io::ErrorKind::Unsupported.into())),
        }
    };
    timeout(TIME_LIMIT, connect).await.unwrap_or(Err(TargetError::Slow))
}

async fn attempt(address: SocketAddr, from: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let socket = match address.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if !from.is_empty() {
        let same_family = from.into_iter().find(|from| from.is_ipv4() == address.is_ipv4());
        let no_family = || io::Error::new(io::ErrorKind::AddrNotAvailable, "the local address is of another family");
        socket.bind(same_family.ok_or_else(no_family)?)?;
    }
    // What is sent is sent together already: waiting for more would only be late.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}
