//! TCP: all addresses of a host are tried, soon one after the other, and the first that answers is taken.

use socket2::{SockRef, TcpKeepalive};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long one address has before the next is tried beside it: RFC 8305, section 5.
const NEXT_ATTEMPT: Duration = Duration::from_millis(250);
/// Addresses of a host that are tried, at most.
const MAX_ADDRESSES: usize = 16;
/// An idle connection is probed after this, so that one whose other side is gone does not stay; and it is what a probe
/// or data may go unanswered.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// Why there is no TCP connection.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The name has no address.
    #[error("the name {host} cannot be resolved: {error}")]
    Resolve {
        /// Which.
        host: String,
        /// In the system's words.
        error: io::Error,
    },
    /// No address takes the connection.
    #[error("no connection to {host}: {errors}")]
    Connect {
        /// Where to.
        host: String,
        /// Each address, and why.
        errors: String,
    },
}

/// Connects to a host: a name or an IP address, IPv6 without brackets.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, TcpError> {
    connect_by(host, port, attempt).await
}

/// The same, with another way to connect to one address.
pub(crate) async fn connect_by<F: Future<Output = io::Result<TcpStream>> + Send + 'static>(
    host: &str,
    port: u16,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<TcpStream, TcpError> {
    let addresses =
        lookup_host((host, port)).await.map_err(|error| TcpError::Resolve { host: host.to_owned(), error })?;
    let mut addresses: VecDeque<_> = families_in_turn(addresses).into();
    let mut attempts = JoinSet::new();
    let mut errors = Vec::new();
    loop {
        if let Some(address) = addresses.pop_front() {
            let attempt = attempt(address);
            attempts.spawn(async move { attempt.await.map_err(|error| format!("{address}: {error}")) });
        } else if attempts.is_empty() {
            return Err(TcpError::Connect { host: host.to_owned(), errors: errors.join("; ") });
        }
        // One that fails makes room for the next at once; while one is slow, the next begins.
        tokio::select! {
            Some(done) = attempts.join_next() => match done {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => errors.push(error),
                Err(error) => errors.push(error.to_string()),
            },
            () = sleep(NEXT_ATTEMPT), if !addresses.is_empty() => {}
        }
    }
}

/// The first family is the one that the system prefers; the other has its turn as early as possible.
fn families_in_turn(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let addresses: Vec<_> = addresses.take(MAX_ADDRESSES).collect();
    let preferred = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == preferred);
    let mut ordered = Vec::new();
    while !first.is_empty() || !second.is_empty() {
        ordered.extend(first.pop_front());
        ordered.extend(second.pop_front());
    }
    ordered
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // What is sent is sent together already: waiting for more would only be late.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let probes = TcpKeepalive::new().with_time(DEAD_AFTER).with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let addresses = |list: &[&str]| list.iter().map(|text| text.parse().expect("an address")).collect::<Vec<_>>();
        let (a, b, c, d) = ("[::1]:1", "[::2]:1", "127.0.0.1:1", "127.0.0.2:1");
        for (given, expected) in
            [([a, b, c, d], [a, c, b, d]), ([c, a, b, d], [c, a, d, b]), ([c, d, a, b], [c, a, d, b])]
        {
            assert_eq!(families_in_turn(addresses(&given).into_iter()), addresses(&expected));
        }
    }
}
