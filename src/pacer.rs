//! One pacer per AWS operation, shared by all Tunnels: it spaces the calls to AWS's quota.
//!
//! A reconcile never waits in the queue. It takes a ticket and returns; the pacer wakes the Tunnel
//! when its turn has come. Within a namespace the order is creationTimestamp (so it is the same
//! after a restart), and the namespaces take turns, so that none can starve another. A key without a
//! namespace is no Tunnel's: its turn comes when nobody else waits.
//!
//! After LimitExceededException or throttling the gate shuts: then one probe at a time goes through,
//! after an exponential backoff with full jitter; a success opens the gate again.

pub mod lanes;

use crate::read::Key;
use crate::tunnels::{CallError, CallErrorKind};
use jiff::Timestamp;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Spacing beyond the quota's, from call to call. From a call's answer to the next call it is the
/// quota's: a call that took long to arrive must not be followed too soon.
const MARGIN: f64 = 1.02;
/// A turn that is not used within this time goes to the next in the queue. Longer than the two
/// writes that may come between the turn and its call.
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// The longest pause between two probes of a shut gate.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Where a Tunnel stands in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has no ticket.
    None,
    /// It has a ticket.
    Waiting,
    /// It is its turn, for a few seconds.
    Granted,
}

/// A shut gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// [`CallErrorKind::LimitExceeded`] or [`CallErrorKind::Throttled`].
    pub cause: CallErrorKind,
    /// AWS's words.
    pub message: String,
    /// Since when it is shut.
    pub since: Timestamp,
}

/// The pacer of one operation.
pub struct Pacer {
    interval: Duration,
    state: Mutex<State>,
    changed: Notify,
    waits: Histogram,
    wake: mpsc::UnboundedSender<Key>,
}

/// Place in a namespace's queue.
type Place = (Timestamp, u64);

#[derive(Default)]
struct State {
    /// The waiting, by namespace.
    queues: BTreeMap<String, BTreeMap<Place, Key>>,
    tickets: HashMap<Key, Ticket>,
    /// The namespace that had the last turn.
    last_namespace: String,
    issued: u64,
    last_call: Option<Instant>,
    last_answer: Option<Instant>,
    shut: Option<Shut>,
}

#[derive(Clone, Copy)]
struct Ticket {
    place: Place,
    /// Since when it is in the queue. Whoever was refused by a limit begins to wait anew.
    since: Instant,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Waiting,
    Granted(Instant),
    Calling(Instant),
}

struct Shut {
    gate: Gate,
    at: Instant,
    failures: u32,
    probe_at: Instant,
}

impl Pacer {
    /// A pacer for `rate` calls per second. Whoever's turn it is is told by `wake`; how long each call
    /// waited for it goes into `waits`, in seconds.
    pub fn new(rate: f64, waits: Histogram, wake: mpsc::UnboundedSender<Key>) -> Self {
        let interval = Duration::from_secs_f64(MARGIN / rate);
        Self { interval, state: Mutex::default(), changed: Notify::new(), waits, wake }
    }

    /// Takes a ticket, unless `key` has one. `created` is the Tunnel's creationTimestamp.
    pub fn take(&self, key: &Key, created: Timestamp) {
        let mut state = self.lock();
        if state.tickets.contains_key(key) {
            return;
        }
        state.issued += 1;
        let place = (created, state.issued);
        state.enqueue(key.clone(), place);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Where `key` stands.
    pub fn turn(&self, key: &Key) -> Turn {
        match self.lock().tickets.get(key).map(|t| t.stage) {
            None => Turn::None,
            Some(Stage::Waiting) => Turn::Waiting,
            Some(Stage::Granted(_) | Stage::Calling(_)) => Turn::Granted,
        }
    }

    /// Gives the ticket back, if there is one.
    pub fn give_back(&self, key: &Key) {
        if self.lock().remove(key) {
            self.changed.notify_waiters();
        }
    }

    /// The call leaves now.
    pub fn begin(&self, key: &Key) {
        let now = Instant::now();
        let mut state = self.lock();
        state.last_call = Some(now);
        if let Some(ticket) = state.tickets.get_mut(key) {
            ticket.stage = Stage::Calling(now);
            self.waits.observe((now - ticket.since).as_secs_f64());
        }
        drop(state);
        // The next in the queue need not wait for the answer.
        self.changed.notify_waiters();
    }

    /// The call ended. Refused by a limit, `key` keeps its place in the queue; else its ticket is used up.
    pub fn end<T>(&self, key: &Key, outcome: &Result<T, CallError>) {
        let mut state = self.lock();
        state.last_answer = Some(Instant::now());
        let Some(ticket) = state.tickets.get(key).copied() else {
            return;
        };
        state.remove(key);
        let mut shut_now = Vec::new();
        match outcome {
            Ok(_) => state.shut = None,
            Err(e) if matches!(e.kind, CallErrorKind::LimitExceeded | CallErrorKind::Throttled) => {
                state.enqueue(key.clone(), ticket.place);
                if state.shut.is_none() {
                    shut_now = state.queues.values().flat_map(|q| q.values().cloned()).collect();
                }
                state.refuse(e, ticket.stage);
            }
            // Neither open nor shut is shown by it: a probe goes on probing.
            Err(_) => {
                if let Some(shut) = &mut state.shut {
                    shut.probe_at = Instant::now() + backoff(shut.failures);
                }
            }
        }
        drop(state);
        self.changed.notify_waiters();
        // Told once, when the gate shuts: what they report changes then, and not with every probe.
        for key in shut_now {
            let _ = self.wake.send(key);
        }
    }

    /// A tunnel has closed: there may be room now, so the next probe goes at once.
    pub fn probe_now(&self) {
        if let Some(shut) = &mut self.lock().shut {
            shut.probe_at = Instant::now();
        }
        self.changed.notify_waiters();
    }

    /// Opens the gate: what AWS said last is long ago, and nobody goes on probing.
    pub fn open_gate(&self) {
        self.lock().shut = None;
        self.changed.notify_waiters();
    }

    /// The gate, if it is shut.
    pub fn gate(&self) -> Option<Gate> {
        self.lock().shut.as_ref().map(|shut| shut.gate.clone())
    }

    /// How many wait for their call.
    pub fn depth(&self) -> usize {
        self.lock().tickets.values().filter(|t| !matches!(t.stage, Stage::Calling(_))).count()
    }

    /// Waits for the turn of `key`, who is no Tunnel that could be woken.
    pub async fn acquire(&self, key: &Key, created: Timestamp) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.take(key, created);
            if self.turn(key) == Turn::Granted {
                return;
            }
            changed.await;
        }
    }

    /// Gives turns, for ever.
    pub async fn run(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = self.lock().next(self.interval);
            match next {
                Next::Grant(key) => {
                    self.changed.notify_waiters();
                    let _ = self.wake.send(key);
                }
                Next::At(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = changed => {}
                    }
                }
                Next::Idle => changed.await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done in here: each change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next {
    Grant(Key),
    At(Instant),
    Idle,
}

impl State {
    fn enqueue(&mut self, key: Key, place: Place) {
        self.tickets.insert(key.clone(), Ticket { place, since: Instant::now(), stage: Stage::Waiting });
        self.queues.entry(key.namespace.clone()).or_default().insert(place, key);
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(ticket) = self.tickets.remove(key) else {
            return false;
        };
        if let Some(queue) = self.queues.get_mut(&key.namespace) {
            queue.remove(&ticket.place);
            if queue.is_empty() {
                self.queues.remove(&key.namespace);
            }
        }
        true
    }

    /// A call that left before the gate shut says nothing new about it.
    fn refuse(&mut self, error: &CallError, stage: Stage) {
        let now = Instant::now();
        match &mut self.shut {
            Some(shut) => {
                if matches!(stage, Stage::Calling(at) if at >= shut.at) {
                    shut.failures += 1;
                    shut.probe_at = now + backoff(shut.failures);
                }
            }
            None => {
                let gate = Gate { cause: error.kind, message: error.message.clone(), since: Timestamp::now() };
                self.shut = Some(Shut { gate, at: now, failures: 0, probe_at: now + backoff(0) });
            }
        }
    }

    /// Gives the next turn, if it is time for one.
    fn next(&mut self, interval: Duration) -> Next {
        let now = Instant::now();
        let lapsed: Vec<Key> = self
            .tickets
            .iter()
            .filter(|(_, t)| matches!(t.stage, Stage::Granted(at) if now >= at + TURN_LIMIT))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &lapsed {
            self.remove(key);
        }
        let granted = self.tickets.values().find_map(|t| match t.stage {
            Stage::Granted(at) => Some(at),
            _ => None,
        });
        if let Some(at) = granted {
            return Next::At(at + TURN_LIMIT);
        }
        let probing = self.tickets.values().any(|t| matches!(t.stage, Stage::Calling(_)));
        if self.queues.is_empty() || (self.shut.is_some() && probing) {
            return Next::Idle;
        }
        let spaced = self.last_call.map(|at| at + interval);
        let answered = self.last_answer.map(|at| at + interval.div_f64(MARGIN));
        let probe = self.shut.as_ref().map(|shut| shut.probe_at);
        if let Some(due) = spaced.max(answered).max(probe).filter(|due| *due > now) {
            return Next::At(due);
        }
        let Some(key) = self.pop() else { return Next::Idle };
        Next::Grant(key)
    }

    /// The first of the namespace that comes after the one that had the last turn; in the end, of none.
    fn pop(&mut self) -> Option<Key> {
        let first = |after: &str| {
            let mut rest = self.queues.range((Bound::Excluded(after.to_owned()), Bound::Unbounded));
            rest.next().map(|(namespace, _)| namespace.clone())
        };
        let namespace = first(&self.last_namespace).or_else(|| first(""));
        let namespace = namespace.or_else(|| self.queues.keys().next().cloned())?;
        let queue = self.queues.get_mut(&namespace)?;
        let (_, key) = queue.pop_first()?;
        if queue.is_empty() {
            self.queues.remove(&namespace);
        }
        if let Some(ticket) = self.tickets.get_mut(&key) {
            ticket.stage = Stage::Granted(Instant::now());
        }
        self.last_namespace = namespace;
        Some(key)
    }
}

/// Exponential, with full jitter: 0 to 1, 2, 4 … 60 s.
fn backoff(failures: u32) -> Duration {
    let limit = Duration::from_secs(1).saturating_mul(1 << failures.min(16)).min(MAX_BACKOFF);
    limit.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
