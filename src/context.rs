//! What all reconciles share.

use crate::account::Account;
use crate::clock::Clock;
use crate::facts::{Limits, Standing};
use crate::kubernetes::Kubernetes;
use crate::leader::Leadership;
use crate::memory::store::Memories;
use crate::memory::{Answer, AnswerOf, Memory};
use crate::metrics::Metrics;
use crate::read::Key;
use crate::surplus::Surplus;
use crate::watch::owned::OwnedSecrets;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// What all reconciles share.
pub struct Context {
    /// The API server.
    pub kubernetes: Kubernetes,
    /// The AWS account.
    pub account: Account,
    /// Settings.
    pub limits: Limits,
    /// The process's clock.
    pub clock: Clock,
    /// Whether this process leads.
    pub leader: Arc<Leadership>,
    /// It is about to stop: nothing new is started.
    pub stopping: AtomicBool,
    /// What is remembered of each Tunnel.
    pub memories: Memories,
    /// Which Secrets are whose.
    pub owned: OwnedSecrets,
    /// Tunnels that are to be woken.
    pub wake: mpsc::UnboundedSender<Key>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Context {
    /// What this process may do, at this moment.
    pub fn standing(&self) -> Standing {
        match self.leader.since().map(|since| self.clock.at(since)) {
            None => Standing::Finishes,
            Some(since) if self.is_stopping() => Standing::Stopping { since },
            Some(since) => Standing::Leads { since },
        }
    }

    /// It is about to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A Tunnel is gone. What was opened for it, and stands nowhere, is surplus.
    pub fn gone(&self, key: &Key, memory: Option<Memory>) {
        self.account.forget(key);
        let answer = memory.and_then(|memory| memory.into_inner().answer);
        if let Some(Answer { of: AnswerOf::Open(attempt), tunnel, .. }) = answer {
            self.account.close_surplus(Surplus { key: key.clone(), attempt, tunnel });
        }
    }
}
