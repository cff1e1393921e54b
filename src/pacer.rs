//! One pacer per AWS operation, shared by all Tunnels: it spaces the calls to AWS's quota.
//!
//! A reconcile never waits in the queue. It takes a ticket and returns; the pacer wakes the Tunnel when its turn has come.
//! That is a little ahead of its call, by twice the time that it took lately to get ready for one: so what has to be
//! written before the call is written when the call may leave, and the quota is used in full however late the API server
//! and AWS answer. Calls are spaced from departure to departure, and several may be in flight.
//!
//! Within a namespace the order is creationTimestamp (so it is the same after a restart), and the namespaces take turns, so
//! that none can starve another. A key without a namespace is no Tunnel's: its turn comes when nobody else waits.
//!
//! After LimitExceededException or throttling the gate shuts: then one probe at a time goes through,
//! after an exponential backoff with full jitter; a success opens the gate again.

mod gate;
pub mod lanes;
mod spacing;

use crate::read::Key;
use crate::tunnels::CallError;
pub use gate::Gate;
use gate::Shut;
use jiff::Timestamp;
use prometheus_client::metrics::histogram::Histogram;
use spacing::Departures;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// So long at the least before its call may leave a turn is given, and at the most. A claim may be 5 s old when the call
/// leaves.
const AHEAD: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// A turn whose holder is not ready to call within this time goes to the next in the queue. Longer than the two
/// writes that may come between the turn and its call.
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// Where a Tunnel stands in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has no ticket.
    None,
    /// It has a ticket.
    Waiting,
    /// It is its turn: what comes before the call is done now, and then it departs.
    Granted,
}

/// The pacer of one operation.
pub struct Pacer {
    /// Calls per second.
    rate: f64,
    state: Mutex<State>,
    changed: Notify,
    waits: Histogram,
    wake: mpsc::UnboundedSender<Key>,
}

/// Place in a namespace's queue.
type Place = (Timestamp, u64);

struct State {
    /// The waiting, by namespace.
    queues: BTreeMap<String, BTreeMap<Place, Key>>,
    tickets: HashMap<Key, Ticket>,
    /// The namespace that had the last turn.
    last_namespace: String,
    issued: u64,
    /// How many turns were given.
    given: u64,
    /// The turns whose call has not left.
    granted: BTreeMap<u64, Granted>,
    /// Those of them whose holders are ready to call: the first departs first.
    ready: BTreeSet<u64>,
    /// How long it takes to get ready: the longest time, of which each other one takes a tenth off.
    readying: Duration,
    /// How many calls are in flight.
    calling: usize,
    departures: Departures,
    shut: Option<Shut>,
    /// Turns are given.
    runs: bool,
}

#[derive(Clone, Copy)]
struct Ticket {
    place: Place,
    /// Since when it is in the queue. Whoever was refused by a limit begins to wait anew.
    since: Instant,
    stage: Stage,
}

impl Ticket {
    /// Its call tells something about the gate.
    fn probes(&self, shut: &Shut) -> bool {
        matches!(self.stage, Stage::Calling(left) if shut.is_probed_by(left))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Waiting,
    /// Under this number.
    Granted(u64),
    /// Since then.
    Calling(Instant),
}

/// A turn whose call has not left.
struct Granted {
    since: Instant,
    key: Key,
    /// Its holder has been ready to call.
    was_ready: bool,
}

impl Pacer {
    /// A pacer for `rate` calls per second. Whoever's turn it is is told by `wake`; how long each call
    /// waited for it goes into `waits`, in seconds.
    pub fn new(rate: f64, waits: Histogram, wake: mpsc::UnboundedSender<Key>) -> Self {
        Self { rate, state: Mutex::new(State::new(rate)), changed: Notify::new(), waits, wake }
    }

    /// Calls per second that it allows.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Takes a ticket, unless `key` has one. `created` is the Tunnel's creationTimestamp. Its turn may come at once:
    /// then it is not woken.
    pub fn take(&self, key: &Key, created: Timestamp) {
        let mut state = self.lock();
        if state.tickets.contains_key(key) {
            return;
        }
        state.issued += 1;
        let place = (created, state.issued);
        state.enqueue(key.clone(), place);
        let next = if state.runs { state.next() } else { Next::Idle };
        drop(state);
        if let Next::Grant(granted) = next
            && granted != *key
        {
            let _ = self.wake.send(granted);
        }
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

    /// Gives the ticket back, unless its call is in flight: that tells something about the gate yet.
    pub fn withdraw(&self, key: &Key) {
        if !matches!(self.lock().tickets.get(key).map(|t| t.stage), None | Some(Stage::Calling(_))) {
            self.give_back(key);
        }
    }

    /// Waits until the call of `key`, whose turn it is, may leave, at most until `latest`. True: it leaves now. False: it
    /// is not its turn any more (the gate has shut, or it has given its ticket back), it is too late, or by then it
    /// `may` not leave.
    pub async fn depart(&self, key: &Key, latest: Option<Instant>, may: impl Fn() -> bool) -> bool {
        let _ready = Ready { pacer: self, key };
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !may() {
                return false;
            }
            let until = match self.lock().depart(key, latest) {
                Depart::Now { since } => {
                    self.waits.observe(since.elapsed().as_secs_f64());
                    return true;
                }
                Depart::Never => return false,
                Depart::NotYet(until) => until,
            };
            match until {
                Some(until) => tokio::select! { () = tokio::time::sleep_until(until) => {}, () = changed => {} },
                None => changed.await,
            }
        }
    }

    /// The call ended. Refused by a limit, `key` keeps its place in the queue; else its ticket is used up.
    pub fn end<T>(&self, key: &Key, outcome: &Result<T, CallError>) {
        let mut state = self.lock();
        let Some(ticket) = state.tickets.get(key).copied() else {
            return;
        };
        state.remove(key);
        let mut refused_again = Vec::new();
        match outcome {
            // A call that left before the gate shut says nothing new about it.
            Ok(_) => {
                state.shut.take_if(|shut| ticket.probes(shut));
            }
            Err(e) if e.is_limit() => {
                state.enqueue(key.clone(), ticket.place);
                if state.refuse(e, &ticket) {
                    refused_again = state.queues.values().flat_map(|q| q.values().cloned()).collect();
                }
            }
            // Neither open nor shut is shown by it: a probe goes on probing.
            Err(_) => state.shut.iter_mut().for_each(Shut::pause),
        }
        drop(state);
        self.changed.notify_waiters();
        // Told once: what they report changes then, and not with every probe. (One refusal alone is nothing to tell: a call
        // that was long on its way may have come too close to the next one.)
        for key in refused_again {
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
        let state = self.lock();
        state.tickets.len() - state.calling
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

    /// Gives turns, for ever; none is given before.
    pub async fn run(&self) {
        self.lock().runs = true;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = self.lock().next();
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

/// Whoever waits to depart is ready, until its wait ends: also where it is dropped.
struct Ready<'a> {
    pacer: &'a Pacer,
    key: &'a Key,
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        let mut state = self.pacer.lock();
        if let Some(Stage::Granted(turn)) = state.tickets.get(self.key).map(|ticket| ticket.stage) {
            state.ready.remove(&turn);
        }
        drop(state);
        self.pacer.changed.notify_waiters();
    }
}

enum Depart {
    /// It leaves; since then it had been in the queue.
    Now {
        since: Instant,
    },
    /// It is to ask again then, or when something changes.
    NotYet(Option<Instant>),
    Never,
}

enum Next {
    Grant(Key),
    At(Instant),
    Idle,
}

impl State {
    fn new(rate: f64) -> Self {
        Self {
            queues: BTreeMap::new(),
            tickets: HashMap::new(),
            last_namespace: String::new(),
            issued: 0,
            given: 0,
            granted: BTreeMap::new(),
            ready: BTreeSet::new(),
            readying: Duration::ZERO,
            calling: 0,
            departures: Departures::new(rate),
            shut: None,
            runs: false,
        }
    }

    fn enqueue(&mut self, key: Key, place: Place) {
        self.tickets.insert(key.clone(), Ticket { place, since: Instant::now(), stage: Stage::Waiting });
        self.queues.entry(key.namespace.clone()).or_default().insert(place, key);
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(ticket) = self.tickets.remove(key) else {
            return false;
        };
        match ticket.stage {
            Stage::Waiting => {}
            Stage::Granted(turn) => self.settle(turn),
            Stage::Calling(_) => self.calling -= 1,
        }
        if let Some(queue) = self.queues.get_mut(&key.namespace) {
            queue.remove(&ticket.place);
            if queue.is_empty() {
                self.queues.remove(&key.namespace);
            }
        }
        true
    }

    /// A turn is used, or given back.
    fn settle(&mut self, turn: u64) {
        self.granted.remove(&turn);
        self.ready.remove(&turn);
    }

    /// Lets the call of `key` leave, if it may.
    fn depart(&mut self, key: &Key, latest: Option<Instant>) -> Depart {
        let now = Instant::now();
        let Some(ticket) = self.tickets.get_mut(key) else { return Depart::Never };
        let Stage::Granted(turn) = ticket.stage else { return Depart::Never };
        let since = ticket.since;
        self.ready.insert(turn);
        if let Some(granted) = self.granted.get_mut(&turn)
            && !std::mem::replace(&mut granted.was_ready, true)
        {
            self.readying = (now - granted.since).max(self.readying.mul_f64(0.9));
        }
        let due = self.departures.due(now);
        if latest.is_some_and(|latest| now.max(due) >= latest) {
            return Depart::Never;
        }
        if self.ready.first() != Some(&turn) {
            return Depart::NotYet(latest);
        }
        if now < due {
            return Depart::NotYet(Some(due));
        }
        ticket.stage = Stage::Calling(now);
        self.settle(turn);
        self.calling += 1;
        self.departures.leave(now);
        Depart::Now { since }
    }

    /// Takes back the turns of those whose call has not left: they keep their places.
    fn take_back(&mut self) {
        for Granted { key, .. } in std::mem::take(&mut self.granted).into_values() {
            let place = self.tickets.get(&key).map(|ticket| ticket.place);
            self.remove(&key);
            place.into_iter().for_each(|place| self.enqueue(key.clone(), place));
        }
    }

    /// AWS has refused a call by a limit. True: the first probe.
    fn refuse(&mut self, error: &CallError, ticket: &Ticket) -> bool {
        match &mut self.shut {
            Some(shut) => ticket.probes(shut) && shut.refused(),
            None => {
                self.take_back();
                self.shut = Some(Shut::new(error));
                false
            }
        }
    }

    /// Gives the next turn, if it is time for one.
    fn next(&mut self) -> Next {
        let now = Instant::now();
        let idle = |state: &Self| {
            let idle = state.granted.iter().find(|(turn, _)| !state.ready.contains(turn));
            idle.map(|(_, granted)| (granted.since + TURN_LIMIT, granted.key.clone()))
        };
        while let Some((_, key)) = idle(self).filter(|(lapses, _)| *lapses <= now) {
            self.remove(&key);
        }
        let lapses = idle(self).map(|(lapses, _)| lapses);
        let due = self.departures.due(now).max(now);
        let turn_at = match &self.shut {
            _ if self.queues.is_empty() => None,
            // One probe at a time.
            Some(_) if !self.granted.is_empty() || self.calling > 0 => None,
            Some(shut) => Some(due.max(shut.probe_at)),
            None => {
                let before = u32::try_from(self.granted.len()).unwrap_or(u32::MAX);
                let ahead = (self.readying * 2).clamp(AHEAD.0, AHEAD.1);
                (due + self.departures.interval.saturating_mul(before)).checked_sub(ahead)
            }
        };
        match turn_at {
            Some(at) if at <= now => self.pop().map_or(Next::Idle, Next::Grant),
            at => at.into_iter().chain(lapses).min().map_or(Next::Idle, Next::At),
        }
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
            self.given += 1;
            ticket.stage = Stage::Granted(self.given);
            let granted = Granted { since: Instant::now(), key: key.clone(), was_ready: false };
            self.granted.insert(self.given, granted);
        }
        self.last_namespace = namespace;
        Some(key)
    }
}

#[cfg(test)]
mod tests;
