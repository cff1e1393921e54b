//! The emulator as a Rust value: the control API without HTTP.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;

use crate::calls::Call;
use crate::control::{self, Connections, ControlError};
use crate::data::tls::Tls;
use crate::data::{self, DataFault};
use crate::faults::Fault;
use crate::notifications::Notification;
use crate::quotas::Quotas;
use crate::server;
use crate::shared::{Config, Shared};
use crate::tunnel::{LiveTokens, TunnelInfo};

/// A running emulator. Its tunnels live in memory and end with it.
///
/// Runs on the tokio runtime that it was started on. Dropping it stops it: connections,
/// hung calls included, are closed. [`Emulator::stop`] also waits until that is done.
pub struct Emulator {
    shared: Arc<Shared>,
    addr: SocketAddr,
    data_addr: SocketAddr,
    data_tls: bool,
    data_ca_pem: Option<String>,
}

impl Emulator {
    /// Starts an emulator that answers as soon as this returns.
    ///
    /// # Errors
    /// When an address cannot be listened on, most often because it is in use, or the data plane's certificate cannot
    /// be used. The message says which.
    pub async fn start(config: Config) -> io::Result<Self> {
        let listener = bind(config.listen).await?;
        let data_listener = bind(config.data_listen).await?;
        let tls = Tls::new(&config.data_tls, config.data_listen.ip())?;
        let (addr, data_addr) = (listener.local_addr()?, data_listener.local_addr()?);
        let (acceptor, data_ca_pem) = tls.map(|tls| (tls.acceptor, tls.ca_pem)).unzip();
        let data_tls = acceptor.is_some();
        let shared = Arc::new(Shared::new(config));
        let serving = server::serve(listener, Arc::clone(&shared));
        shared.tasks.spawn(async move { match serving.await {} });
        let serving = data::serve(data_listener, acceptor, Arc::clone(&shared));
        shared.tasks.spawn(async move { match serving.await {} });
        let expiring = data::expire(Arc::clone(&shared));
        shared.tasks.spawn(async move { match expiring.await {} });
        Ok(Self { shared, addr, data_addr, data_tls, data_ca_pem: data_ca_pem.flatten() })
    }

    /// Stops it and returns when its ports are free again, for another emulator to be
    /// started there.
    pub async fn stop(self) {
        if let Some(mut tasks) = self.shared.tasks.abort() {
            while tasks.join_next().await.is_some() {}
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL to give to an SDK (`endpoint_url`, `AWS_ENDPOINT_URL_IOTSECURETUNNELING`),
    /// as `http://127.0.0.1:4570`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where its data plane listens.
    pub fn data_addr(&self) -> SocketAddr {
        self.data_addr
    }

    /// The URL to give to a local proxy, as `ws://127.0.0.1:4571`, or `wss://…` with TLS.
    pub fn data_endpoint(&self) -> String {
        let scheme = if self.data_tls { "wss" } else { "ws" };
        format!("{scheme}://{}", self.data_addr)
    }

    /// What a client of the data plane must trust with [`DataTls::SelfSigned`](crate::DataTls::SelfSigned): a
    /// certificate as PEM.
    pub fn data_ca_pem(&self) -> Option<&str> {
        self.data_ca_pem.as_deref()
    }

    /// The service's clock.
    pub fn now(&self) -> Timestamp {
        self.shared.look(|state| state.service.clock.now().timestamp())
    }

    /// Every call since the last reset, in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.look(|state| state.calls.all().to_vec())
    }

    /// All visible tunnels, newest first.
    pub fn tunnels(&self) -> Vec<TunnelInfo> {
        self.shared.look(control::tunnels)
    }

    /// The tokens that the tunnel accepts now. `None`: it accepts none, being closed,
    /// expired or unknown.
    pub fn live_tokens(&self, tunnel_id: &str) -> Option<LiveTokens> {
        self.shared.look(|state| {
            let now = state.service.clock.now();
            let tunnel = state.service.store.get_mut(tunnel_id, now)?;
            tunnel.is_open(now).then(|| tunnel.tokens().clone())
        })
    }

    /// Replaces all quotas; every bucket is full then.
    pub fn set_quotas(&self, quotas: &Quotas) {
        control::set_quotas(&self.shared, quotas);
    }

    /// Replaces all faults. Calls that hang or are delayed already are not released.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        control::set_faults(&self.shared, faults.into_iter().collect());
    }

    /// Replaces all faults of the data plane, also of who is connected.
    pub fn set_data_faults(&self, faults: impl IntoIterator<Item = DataFault>) {
        control::set_data_faults(&self.shared, faults.into_iter().collect());
    }

    /// What AWS would have published on `$aws/things/{thing}/tunnels/notify` since the last reset, oldest first.
    pub fn notifications(&self, thing: &str) -> Vec<Notification> {
        self.shared.look(|state| state.service.notifications.of(thing).to_vec())
    }

    /// Advances the service's clock, at most to the end of the year 9999.
    pub fn advance_clock(&self, by: Duration) {
        control::advance_clock(&self.shared, by);
    }

    /// Sets what DescribeTunnel tells about an open tunnel's connections.
    ///
    /// # Errors
    /// When no such tunnel is visible, or it is closed.
    pub fn set_connections(&self, tunnel_id: &str, connections: Connections) -> Result<(), ControlError> {
        control::set_connections(&self.shared, tunnel_id, connections)
    }

    /// What DescribeTunnel tells about a tunnel's connections. `None`: no such tunnel is visible.
    pub fn connections(&self, tunnel_id: &str) -> Option<Connections> {
        self.shared.look(|state| control::connections(state, tunnel_id))
    }

    /// Closes a tunnel as a third party would; the log of calls does not show it. A
    /// closed one stays as it is.
    ///
    /// # Errors
    /// When no such tunnel is visible.
    pub fn close(&self, tunnel_id: &str) -> Result<(), ControlError> {
        control::with_tunnel(&self.shared, tunnel_id, |tunnel, now| tunnel.close(now))
    }

    /// Sets a tag of a tunnel as a third party would, or takes it off (`None`); the log of calls does not show it.
    ///
    /// # Errors
    /// When no such tunnel is visible.
    pub fn tag(&self, tunnel_id: &str, key: &str, value: Option<&str>) -> Result<(), ControlError> {
        control::with_tunnel(&self.shared, tunnel_id, |tunnel, _| match value {
            Some(value) => drop(tunnel.tags.insert(key.to_owned(), value.to_owned())),
            None => drop(tunnel.tags.remove(key)),
        })
    }

    /// Deletes a tunnel as a third party would (CloseTunnel with `delete`); the log of
    /// calls does not show it.
    ///
    /// # Errors
    /// When no such tunnel is visible.
    pub fn delete(&self, tunnel_id: &str) -> Result<(), ControlError> {
        self.close(tunnel_id)?;
        self.shared.change(|state| state.service.store.remove(tunnel_id));
        Ok(())
    }

    /// Empties everything; clock, quotas and faults are as at start. A delayed call that
    /// is still under way does nothing and gets no answer.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Returns once `condition` holds of the log of calls. It is evaluated now and after
    /// every call, and must not call the emulator.
    pub async fn wait_calls(&self, mut condition: impl FnMut(&[Call]) -> bool) {
        self.shared.wait(|state| condition(state.calls.all())).await;
    }

    /// Returns once `condition` holds of the visible tunnels, newest first. It is
    /// evaluated now and after every call and every change by this API or over HTTP (not
    /// when a tunnel expires by the mere passing of time), and must not call the
    /// emulator.
    pub async fn wait_tunnels(&self, mut condition: impl FnMut(&[TunnelInfo]) -> bool) {
        self.shared.wait(|state| condition(&control::tunnels(state))).await;
    }

    /// Returns once these are a tunnel's connections, as DescribeTunnel tells them; `None` of a side waits for nothing.
    /// It is looked at when [`Emulator::wait_tunnels`] looks at its condition, and when a side connects or leaves.
    pub async fn wait_connections(&self, tunnel_id: &str, wanted: Connections) {
        let fits = |wanted: Option<_>, is: Option<_>| wanted.is_none() || wanted == is;
        self.shared
            .wait(|state| {
                control::connections(state, tunnel_id)
                    .is_some_and(|is| fits(wanted.source, is.source) && fits(wanted.destination, is.destination))
            })
            .await;
    }
}

async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}"));
    TcpListener::bind(addr).await.map_err(failed)
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.shared.tasks.abort();
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("endpoint", &self.endpoint())
            .field("data_endpoint", &self.data_endpoint())
            .finish()
    }
}
