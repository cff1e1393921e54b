//! What the HTTP API, the control API and the Rust API work on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::calls::CallLog;
use crate::data::DataFault;
use crate::data::link::Goodbye;
use crate::faults::Fault;
use crate::quotas::{Meter, Quotas};
use crate::service::Service;
use crate::tasks::Tasks;

/// How an emulator starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen. Port 0: a free one.
    pub listen: SocketAddr,
    /// The quotas at start and after a reset.
    pub quotas: Quotas,
    /// The region of calls that are not signed for one.
    pub region: String,
    /// The 12-digit account that owns every tunnel.
    pub account_id: String,
    /// Where the data plane listens. Port 0: a free one.
    pub data_listen: SocketAddr,
    /// How the data plane is secured.
    pub data_tls: DataTls,
}

/// How the data plane is secured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DataTls {
    /// Not at all: `ws://`.
    #[default]
    Off,
    /// `wss://` with a certificate for localhost, 127.0.0.1, ::1 and the address that is listened on, by an authority
    /// that is made at start.
    SelfSigned,
    /// `wss://` with a certificate that there is. Both files are PEM.
    Certificate {
        /// The server's certificate, then those of intermediate authorities.
        chain: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

impl Default for Config {
    /// Free ports of 127.0.0.1, a data plane without TLS, AWS's quotas, us-east-1, account 123456789012.
    fn default() -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: any_port,
            quotas: Quotas::aws(),
            region: "us-east-1".to_owned(),
            account_id: "123456789012".to_owned(),
            data_listen: any_port,
            data_tls: DataTls::Off,
        }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) service: Service,
    pub(crate) meter: Meter,
    pub(crate) faults: Vec<Fault>,
    pub(crate) data_faults: Vec<DataFault>,
    pub(crate) calls: CallLog,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) tasks: Tasks,
    /// The next expiry of a tunnel with connections may be nearer than it was.
    pub(crate) expiries: Notify,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        let state = State {
            service: Service::new(&config.account_id),
            meter: Meter::new(&config.quotas, Instant::now()),
            faults: Vec::new(),
            data_faults: Vec::new(),
            calls: CallLog::default(),
        };
        let changes = watch::Sender::new(());
        Self { config, tasks: Tasks::default(), expiries: Notify::new(), state: Mutex::new(state), changes }
    }

    /// Does something to the state, then wakes whoever waits for a change.
    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = self.look(act);
        self.changes.send_replace(());
        result
    }

    /// Looks at the state (mutably: the clock ticks).
    pub(crate) fn look<T>(&self, at: impl FnOnce(&mut State) -> T) -> T {
        at(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns once `condition` holds; it is looked at now and after every change.
    pub(crate) async fn wait(&self, mut condition: impl FnMut(&mut State) -> bool) {
        let mut changes = self.changes.subscribe();
        while !self.look(&mut condition) {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    pub(crate) fn reset(&self) {
        self.change(|state| {
            for tunnel in state.service.store.all_mut() {
                tunnel.link.end(Goodbye::Reset);
            }
            state.service = Service::new(&self.config.account_id);
            state.meter = Meter::new(&self.config.quotas, Instant::now());
            state.faults.clear();
            state.data_faults.clear();
            state.calls.reset();
        });
    }
}
