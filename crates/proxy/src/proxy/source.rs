//! A source's listeners, which stay while links come and go.

use super::hub::{Hub, LocalEnd};
use super::local::Local;
use super::{Ends, Shared, relay};
use crate::config::{ListenAddress, Services};
use crate::listening::Listening;
use crate::session::ServiceIndex;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Connections that wait to be accepted; the system may allow fewer. Thousands may come at once.
const BACKLOG: i32 = 4096;
/// How long a client waits for a link, from when the last one was lost. Then it is told that there is none.
const LINK_WAIT: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(5) };
/// How long nothing is accepted after the system could not: file descriptors come back as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The link, as those see it who wait for one.
#[derive(Clone)]
pub(super) enum LinkState {
    Down(Instant),
    Up(Arc<Link>),
}

pub(super) struct Link {
    pub hub: Arc<Hub>,
    /// The session's, in its order.
    pub services: Vec<String>,
}

/// An address where nothing can be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct ListenError {
    address: ListenAddress,
    error: io::Error,
}

/// A service's listening sockets: one for each address of the host. No service: the one that there is.
pub(super) struct Listener {
    service: Option<String>,
    sockets: Vec<TcpListener>,
}

/// A source's listening sockets. A destination has none.
pub(super) struct Listeners<'a> {
    /// Not served yet.
    bound: Vec<Listener>,
    served: Vec<Served>,
    announce: &'a (dyn Fn(&[Listening]) + Sync),
}

/// A service whose clients are accepted, as long as this is there.
struct Served {
    service: Option<String>,
    addresses: Vec<Listening>,
    accepting: JoinSet<()>,
}

/// Listens on what is known before the tunnel's services are.
pub(super) async fn bind(services: &Services<ListenAddress>) -> Result<Vec<Listener>, ListenError> {
    match services {
        Services::Only(address) => Ok(vec![Listener::bind(None, address).await?]),
        Services::Exactly(addresses) => {
            let mut listeners = Vec::new();
            for (service, address) in addresses {
                listeners.push(Listener::bind(Some(service.clone()), address).await?);
            }
            Ok(listeners)
        }
        // Those that the tunnel does not have are not listened for.
        Services::Among(_) => Ok(Vec::new()),
    }
}

impl<'a> Listeners<'a> {
    pub fn new(bound: Vec<Listener>, announce: &'a (dyn Fn(&[Listening]) + Sync)) -> Self {
        Self { bound, served: Vec::new(), announce }
    }

    /// Accepts on what is listened on.
    pub fn serve(&mut self, shared: &Arc<Shared>) {
        for listener in std::mem::take(&mut self.bound) {
            let (service, addresses) = (listener.service.clone(), listener.addresses().collect());
            let mut accepting = JoinSet::new();
            for socket in listener.sockets {
                let (shared, service) = (Arc::clone(shared), service.clone());
                accepting.spawn(async move { accept(socket, service.as_deref(), &shared).await });
            }
            self.served.push(Served { service, addresses, accepting });
        }
        if !self.served.is_empty() {
            (self.announce)(&self.served.iter().flat_map(|served| served.addresses.clone()).collect::<Vec<_>>());
        }
    }

    /// Listens for each service of the tunnel where that was left to it: where it is mapped to, else on a free port. Other
    /// tokens may be another tunnel's, with other services: one that is there no more is listened for no longer.
    pub async fn services_known(&mut self, shared: &Arc<Shared>, tunnel: &[String]) -> Result<(), ListenError> {
        let Ends::Source(Services::Among(addresses), defaults) = &shared.ends else { return Ok(()) };
        let is_of = |served: &Served, service: &String| served.service.as_ref() == Some(service);
        let mut changed = false;
        for gone in self.served.extract_if(.., |served| !tunnel.iter().any(|service| is_of(served, service))) {
            changed = true;
            let mut accepting = gone.accepting;
            // Its port may be that of another one now.
            accepting.shutdown().await;
        }
        for service in tunnel {
            if self.served.iter().any(|served| is_of(served, service)) {
                continue;
            }
            changed = true;
            let free = || ListenAddress { host: defaults.bind.clone(), port: 0 };
            let address = addresses.get(service).cloned().unwrap_or_else(free);
            self.bound.push(Listener::bind(Some(service.clone()), &address).await?);
        }
        if changed {
            self.serve(shared);
        }
        Ok(())
    }

    /// Listens no more: clients are refused.
    pub fn close(&mut self) {
        self.served.iter_mut().for_each(|served| served.accepting.abort_all());
    }
}

impl Listener {
    async fn bind(service: Option<String>, address: &ListenAddress) -> Result<Self, ListenError> {
        let named = |error| ListenError { address: address.clone(), error };
        let addresses = lookup_host((address.host.as_str(), address.port)).await.map_err(named)?;
        let mut sockets: Vec<TcpListener> = Vec::new();
        let mut failed = None;
        for mut candidate in addresses {
            // The same free port for IPv4 and IPv6.
            if let Some(Ok(first)) = sockets.first().map(TcpListener::local_addr) {
                candidate.set_port(first.port());
            }
            if sockets.iter().any(|socket| socket.local_addr().is_ok_and(|bound| bound == candidate)) {
                continue;
            }
            match listen(candidate) {
                Ok(socket) => sockets.push(socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(named(error)),
                // `localhost` has an IPv6 address on many machines that have no IPv6.
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if sockets.is_empty() => Err(named(error)),
            None if sockets.is_empty() => Err(named(io::ErrorKind::NotFound.into())),
            _ => Ok(Self { service, sockets }),
        }
    }

    fn addresses(&self) -> impl Iterator<Item = Listening> {
        let service = self.service.clone().unwrap_or_default();
        let addresses = self.sockets.iter().filter_map(|socket| socket.local_addr().ok());
        addresses.map(move |address| Listening { service: service.clone(), address })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Whatever the system's default is: IPv4 is listened on by itself where it was asked for.
        socket.set_only_v6(true)?;
    }
    // So that a restarted proxy has its port at once. On Windows that would share the port with others.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, service: Option<&str>, shared: &Arc<Shared>) {
    let mut link = shared.link.subscribe();
    let mut failing = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept connections: trying on");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        // What is sent is sent together already: waiting for more would only be late. It fails where the client has gone.
        let _ = stream.set_nodelay(true);
        let local = Local::Tcp(stream);
        match open(service, &mut link).await {
            Some((end, id)) => {
                let stats = shared.stats.service(&id);
                tokio::spawn(async move { relay::run(end, local, &id, stats).await });
            }
            None => {
                tracing::debug!("a client is reset: there is no connection to the service");
                local.reset();
            }
        }
    }
}

/// A connection for a client, once there is a link and the session takes one. `None`: there is none soon enough.
async fn open(service: Option<&str>, link: &mut watch::Receiver<LinkState>) -> Option<(LocalEnd, String)> {
    loop {
        let state = link.borrow_and_update().clone();
        let up = match state {
            LinkState::Up(up) => up,
            LinkState::Down(since) => {
                tokio::select! {
                    changed = link.changed() => changed.ok()?,
                    () = sleep_until(since + LINK_WAIT) => return None,
                }
                continue;
            }
        };
        let position = match service {
            None => 0,
            // Other tokens may be another tunnel's.
            Some(service) => up.services.iter().position(|id| id == service)?,
        };
        let mut may_open = std::pin::pin!(up.hub.may_open.notified());
        may_open.as_mut().enable();
        match up.hub.open(ServiceIndex(position)) {
            Ok(Ok(end)) => return Some((end, up.services.get(position).cloned().unwrap_or_default())),
            // The peer takes one at a time, or a bound is reached.
            Ok(Err(_)) => {
                tokio::select! {
                    () = may_open => {}
                    changed = link.changed() => changed.ok()?,
                }
            }
            Err(_) => link.changed().await.ok()?,
        }
    }
}
