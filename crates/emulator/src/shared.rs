//! What the HTTP API, the control API and the Rust API work on.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::calls::CallLog;
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
}

impl Default for Config {
    /// A free port of 127.0.0.1, AWS's quotas, us-east-1, account 123456789012.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            quotas: Quotas::aws(),
            region: "us-east-1".to_owned(),
            account_id: "123456789012".to_owned(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) service: Service,
    pub(crate) meter: Meter,
    pub(crate) faults: Vec<Fault>,
    pub(crate) calls: CallLog,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) tasks: Tasks,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        let state = State {
            service: Service::new(&config.account_id),
            meter: Meter::new(&config.quotas, Instant::now()),
            faults: Vec::new(),
            calls: CallLog::default(),
        };
        let changes = watch::Sender::new(());
        Self { config, tasks: Tasks::default(), state: Mutex::new(state), changes }
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
            state.service = Service::new(&self.config.account_id);
            state.meter = Meter::new(&self.config.quotas, Instant::now());
            state.faults.clear();
            state.calls.reset();
        });
    }
}
