//! What all reconciles share.

use crate::account::Account;
use crate::clock::{Clock, Mono};
use crate::facts::{Limits, Standing};
use crate::kubernetes::Kubernetes;
use crate::leader::Leadership;
use crate::memory::store::Memories;
use crate::memory::{Answer, AnswerOf, Memory};
use crate::metrics::Metrics;
use crate::read::{Key, Object};
use crate::surplus::Surplus;
use crate::watch::owned::OwnedSecrets;
use jiff::Timestamp;
use opentunnel_api::{Tunnel, TunnelState};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, mpsc};

/// The namespaces in which the API server has taken a token Secret of this process, and when it did last: what it would
/// refuse need not be found out by a trial there.
#[derive(Default)]
pub struct TakesSecrets(Mutex<HashMap<String, InNamespace>>);

#[derive(Default)]
struct InNamespace {
    /// When it has taken one last, since it has refused one.
    taken: Option<Mono>,
    /// Held by a Tunnel that finds it out by a trial.
    asking: Arc<tokio::sync::Mutex<()>>,
}

/// How long it counts that the API server has taken a token Secret.
const TAKEN_LIMIT: Duration = Duration::from_secs(3600);

impl TakesSecrets {
    /// It has taken one, or has refused one.
    pub fn tell(&self, namespace: &str, taken: bool, now: Mono) {
        self.lock().entry(namespace.to_owned()).or_default().taken = taken.then_some(now);
    }

    /// Whether it has taken one a short time ago.
    pub fn in_namespace(&self, namespace: &str, now: Mono) -> bool {
        self.taken(namespace).is_some_and(|at| now < at + TAKEN_LIMIT)
    }

    /// When it has taken one last.
    fn taken(&self, namespace: &str) -> Option<Mono> {
        self.lock().get(namespace)?.taken
    }

    /// Of many Tunnels of a namespace that are to ask at once, the first one asks for all of them. `None`: it has asked
    /// meanwhile, and its answer is here.
    pub async fn ask(&self, namespace: &str) -> Option<OwnedMutexGuard<()>> {
        let asking = self.lock().entry(namespace.to_owned()).or_default().asking.clone();
        match asking.clone().try_lock_owned() {
            Ok(first) => Some(first),
            Err(_) => {
                drop(asking.lock().await);
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, InNamespace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which Tunnels have an open tunnel for which thing.
#[derive(Default)]
pub struct Things(Mutex<ByThing>);

#[derive(Default)]
struct ByThing {
    /// The oldest first.
    tunnels: HashMap<String, BTreeMap<Age, Key>>,
    /// The thing of a Tunnel, by its UID.
    of: HashMap<String, (String, Age)>,
}

/// `metadata.creationTimestamp` and the UID.
type Age = (Timestamp, String);

impl ByThing {
    fn remove(&mut self, uid: &str) {
        let Some((thing, age)) = self.of.remove(uid) else { return };
        if let Some(tunnels) = self.tunnels.get_mut(&thing) {
            tunnels.remove(&age);
            if tunnels.is_empty() {
                self.tunnels.remove(&thing);
            }
        }
    }
}

impl Things {
    /// A Tunnel is as it is now.
    pub fn see(&self, tunnel: &Tunnel, key: &Key) {
        let mut things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        things.remove(&key.uid);
        let thing = tunnel.spec.destination.as_ref().and_then(|d| d.thing_name.clone());
        let is_open = tunnel.status.as_ref().is_some_and(|status| status.state == Some(TunnelState::Open));
        let created_at = tunnel.metadata.creation_timestamp.as_ref();
        if let (Some(thing), Some(created_at), true) = (thing, created_at, is_open) {
            let age = (created_at.0, key.uid.clone());
            things.of.insert(key.uid.clone(), (thing.clone(), age.clone()));
            things.tunnels.entry(thing).or_default().insert(age, key.clone());
        }
    }

    /// An older Tunnel that has an open tunnel for the same thing, as namespace/name.
    pub fn rival(&self, object: &Object) -> Option<String> {
        let thing = object.spec.request.destination.as_ref()?.thing_name.as_ref()?;
        let things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = (object.created_at, object.key.uid.clone());
        let (_, older) = things.tunnels.get(thing)?.range(..age).next()?;
        Some(format!("{}/{}", older.namespace, older.name))
    }

    fn lose(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

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
    /// Where the API server takes token Secrets.
    pub takes_secrets: TakesSecrets,
    /// Which Tunnels have a thing.
    pub things: Things,
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
        self.things.lose(&key.uid);
        let answer = memory.and_then(|memory| memory.into_inner().answer).map(|answer| *answer);
        if let Some(Answer { of: AnswerOf::Open(attempt), tunnel, .. }) = answer {
            self.account.close_surplus(Surplus { key: key.clone(), attempt, tunnel });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_the_api_server_takes_secrets_counts_for_its_namespace_and_an_hour() {
        let takes = TakesSecrets::default();
        let at = |second| Mono(Duration::from_secs(second));
        assert!(!takes.in_namespace("a", at(0)));
        takes.tell("a", true, at(10));
        assert!(takes.in_namespace("a", at(10)) && !takes.in_namespace("b", at(10)));
        assert!(takes.in_namespace("a", at(3609)) && !takes.in_namespace("a", at(3610)));
        takes.tell("a", true, at(3600));
        takes.tell("b", false, at(3600));
        assert!(takes.in_namespace("a", at(3610)), "it counts from the last time");
        takes.tell("a", false, at(3620));
        assert!(!takes.in_namespace("a", at(3620)), "a refusal ends it");
    }

    #[tokio::test]
    async fn the_first_of_a_namespace_asks_and_the_others_wait_for_its_answer() {
        let takes = TakesSecrets::default();
        let first = takes.ask("a").await.expect("nobody asks");
        assert!(takes.ask("b").await.is_some(), "another namespace's answer is none of it");
        let others = futures::future::join(takes.ask("a"), takes.ask("a"));
        let answer = async {
            tokio::task::yield_now().await;
            takes.tell("a", true, Mono::default());
            drop(first);
        };
        let (others, ()) = futures::future::join(others, answer).await;
        assert!(others.0.is_none() && others.1.is_none());
        assert_eq!(takes.taken("a"), Some(Mono::default()));
        assert!(takes.ask("a").await.is_some(), "it is asked again");
    }
}
