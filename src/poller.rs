//! Asks AWS what there is. Nothing is polled per Tunnel that can be polled once: a round of ListTunnels serves all
//! Tunnels, those whose tunnel may have been closed by somebody else and those that look for a tunnel that an earlier
//! attempt may have opened. The sweep of orphans uses the same rounds. Every DescribeTunnel of the process goes through
//! [`Poller::read`], which spaces them.

mod round;

use crate::aws::Aws;
use crate::clock::{Clock, Mono};
use crate::orphans::Candidate;
use crate::orphans::sightings::{Answer, Answers, Sightings};
use crate::read::{Key, read};
use crate::tunnels::{CallError, CallErrorKind, Described, Details, Life, Search, Tags, TunnelId};
use jiff::Timestamp;
use opentunnel_api::Tunnel;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// Spacing of reads: AWS's quota is 10 a second for each operation.
const SPACING: Duration = Duration::from_millis(102);
/// Searches that come together are served by one listing.
const GATHER: Duration = Duration::from_millis(50);
/// The longest pause after a read that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// While nobody asks for anything, tunnels that no Tunnel has, and those of Tunnels, are described at a fifth of AWS's
/// quota: there may be thousands.
const BACKGROUND_SPACING: Duration = Duration::from_millis(500);
/// An open tunnel is described at least in every so many'th round, as far as that spacing lets it.
const REFRESH_ROUNDS: u32 = 5;
/// Where no Tunnel has a tunnel, only every so many'th round is listed, for what may be left of Tunnels.
const IDLE_ROUNDS: u32 = 5;

/// A Tunnel's tunnel that is thought to be open.
#[derive(Clone)]
pub struct Watched {
    /// Whose.
    pub key: Key,
    /// Which.
    pub id: TunnelId,
    /// When it was opened, as recorded.
    pub opened_at: Timestamp,
    /// The Tunnel.
    pub tunnel: Arc<Tunnel>,
}

/// An open tunnel that is to be described for what changes while it is open.
struct Refresh {
    watched: Watched,
    /// AWS's `lastUpdatedAt` in the listing.
    updated_at: Timestamp,
}

/// How it polls.
pub struct Rounds {
    /// Between two rounds.
    pub interval: Duration,
    /// Every Tunnel with an open tunnel is woken in each round, whatever AWS says: nothing else would make it look
    /// at its Secrets.
    pub wake_all: bool,
    /// Open tunnels that no Tunnel has are described once they were seen for so long. `None`: never.
    pub unknown_after: Option<Duration>,
}

/// The poller.
pub struct Poller {
    aws: Aws,
    cluster: String,
    default_tags: Tags,
    rounds: Rounds,
    clock: Clock,
    state: Mutex<Shared>,
    /// When DescribeTunnel was called last.
    last_read: tokio::sync::Mutex<Option<Instant>>,
    asked: Notify,
    listed: Notify,
    wake: mpsc::UnboundedSender<Key>,
}

#[derive(Default)]
struct Shared {
    /// Counts how often all of it was dropped.
    epoch: u64,
    searches: HashMap<Key, Searching>,
    describes: HashMap<Key, TunnelId>,
    /// What AWS told last of the life of the tunnels that Tunnels name, by a listing or by DescribeTunnel.
    described: HashMap<TunnelId, Described>,
    /// What listing fails with.
    failing: Option<CallError>,
    /// What describing a Tunnel's tunnel fails with.
    undescribed: HashMap<Key, CallError>,
    /// What DescribeTunnel told: while somebody searches, and where it is settled. Each tunnel is described once for it.
    answers: Answers,
    sightings: Sightings,
    /// Open tunnels of Tunnels that are described in the background, the last one first.
    refresh: Vec<Refresh>,
    /// AWS's `lastUpdatedAt` when a tunnel was refreshed last.
    refreshed: HashMap<TunnelId, Timestamp>,
    /// The turn in the background was a refresh's.
    refreshed_last: bool,
}

impl Shared {
    /// Keeps what AWS told, unless something newer is there. What a listing does not tell stays.
    fn take(&mut self, id: &TunnelId, mut described: Described) {
        let newest = self.described.get(id);
        if newest.is_none_or(|newest| newest.asked <= described.asked) {
            described.details = described.details.or_else(|| newest.and_then(|newest| newest.details.clone()));
            self.described.insert(id.clone(), described);
        }
    }
}

struct Searching {
    created: Timestamp,
    since: Mono,
    result: Option<Search>,
}

impl Searching {
    fn is_pending(&self) -> bool {
        self.result.as_ref().is_none_or(|r| r.started < self.since)
    }
}

impl Poller {
    /// A poller for the tunnels of `cluster`, with rounds while there is something to look at.
    pub fn new(
        aws: Aws,
        cluster: String,
        default_tags: Tags,
        rounds: Rounds,
        clock: Clock,
        wake: mpsc::UnboundedSender<Key>,
    ) -> Self {
        let (state, last_read) = (Mutex::default(), tokio::sync::Mutex::default());
        let (asked, listed) = (Notify::new(), Notify::new());
        Self { aws, cluster, default_tags, rounds, clock, state, last_read, asked, listed, wake }
    }

    /// DescribeTunnel, when its turn has come. The answer is kept for all who ask for it later.
    ///
    /// # Errors
    /// AWS refused, or did not answer.
    pub async fn read(&self, id: &TunnelId) -> Result<Answer, CallError> {
        let mut last = self.last_read.lock().await;
        if let Some(at) = *last {
            tokio::time::sleep(SPACING.saturating_sub(at.elapsed())).await;
        }
        *last = Some(Instant::now());
        drop(last);
        let (asked, epoch) = (self.clock.mono(), self.lock().epoch);
        let answer = Answer { description: self.aws.describe(id).await?, asked };
        let mut state = self.lock();
        // It may have been asked before this process lost the lead.
        if state.epoch == epoch {
            let details = answer.description.details.clone().map(|details| (details, asked));
            state.take(id, Described { life: answer.description.life, asked, details });
            // A tunnel that was just opened may not be known everywhere: it is asked for again.
            if answer.description.life != Life::NotFound {
                state.answers.insert(id.clone(), answer.clone());
            }
        }
        Ok(answer)
    }

    /// Asks for a search whose listing begins at `since` or later. The Tunnel is woken by its result.
    pub fn search(&self, key: &Key, created: Timestamp, since: Mono) {
        let mut state = self.lock();
        let search = state.searches.entry(key.clone()).or_insert(Searching { created, since, result: None });
        search.since = search.since.max(since);
        drop(state);
        self.asked.notify_one();
    }

    /// Asks AWS about one tunnel. The Tunnel is woken by the answer.
    pub fn describe(&self, key: &Key, id: &TunnelId) {
        self.lock().describes.insert(key.clone(), id.clone());
        self.asked.notify_one();
    }

    /// The last completed search of a Tunnel.
    pub fn found(&self, key: &Key) -> Option<Search> {
        self.lock().searches.get(key).and_then(|s| s.result.clone())
    }

    /// What AWS told last of a tunnel's life.
    pub fn described(&self, id: &TunnelId) -> Option<Described> {
        self.lock().described.get(id).cloned()
    }

    /// What reads for a Tunnel fail with at present.
    pub fn failing(&self, key: &Key) -> Option<CallError> {
        let state = self.lock();
        state.failing.as_ref().or_else(|| state.undescribed.get(key)).cloned()
    }

    /// Drops what was searched for a Tunnel: it is Ready, or gone.
    pub fn forget(&self, key: &Key) {
        let mut state = self.lock();
        state.searches.remove(key);
        state.describes.remove(key);
        state.undescribed.remove(key);
    }

    /// Returns after a round that has listed all tunnels (after one since it was last waited for, at once).
    pub async fn listed(&self) {
        self.listed.notified().await;
    }

    /// Open tunnels with this cluster's owner tag that no Tunnel has, by the last round.
    pub fn candidates(&self) -> Vec<Candidate> {
        let (state, grace) = (self.lock(), self.rounds.unknown_after.unwrap_or(Duration::MAX));
        state.sightings.candidates(&self.cluster, &state.answers, grace, self.clock.mono())
    }

    /// Drops all that AWS has told: another process may open, close and untag from now on.
    pub fn forget_all(&self) {
        let mut state = self.lock();
        *state = Shared { epoch: state.epoch + 1, ..Shared::default() };
    }

    /// Polls for ever. `watched` names the tunnels that are thought to be open, and `owned` those whose owner this
    /// process knows, because it has opened them or has read their owner tag.
    pub async fn run(&self, watched: impl Fn() -> Vec<Watched>, owned: impl Fn() -> HashMap<TunnelId, Key>) {
        let mut last_round: Option<Instant> = None;
        let (mut failures, mut idle): (u32, u32) = (0, 0);
        loop {
            let due = last_round.map_or(Duration::ZERO, |at| self.rounds.interval.saturating_sub(at.elapsed()));
            if !self.is_asked() {
                let background = self.has_background();
                let pause = if background { due.min(BACKGROUND_SPACING) } else { due };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.asked.notified() => tokio::time::sleep(GATHER).await,
                }
            }
            let round_due = last_round.is_none_or(|at| at.elapsed() >= self.rounds.interval);
            if !round_due && !self.is_asked() {
                self.describe_in_background().await;
                continue;
            }
            let watched = if round_due { watched() } else { Vec::new() };
            let idle_now = if watched.is_empty() { idle + 1 } else { 0 };
            let for_orphans = self.rounds.unknown_after.is_some() && round_due && idle_now.is_multiple_of(IDLE_ROUNDS);
            let complete = for_orphans || !watched.is_empty();
            let described = self.describe_asked().await;
            let searching = self.is_searching();
            let outcome = if searching || complete { self.round(&watched, complete, &owned).await } else { Ok(()) };
            if round_due && outcome.is_ok() {
                (last_round, idle) = (Some(Instant::now()), idle_now);
            }
            if searching || complete {
                self.tell_failure(outcome.as_ref().err());
            }
            if described && outcome.is_ok() {
                failures = 0;
            } else {
                let limit = Duration::from_millis(500).saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
                failures += 1;
                tokio::time::sleep(limit.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            }
        }
    }

    fn is_asked(&self) -> bool {
        let state = self.lock();
        !state.describes.is_empty() || state.searches.values().any(Searching::is_pending)
    }

    fn is_searching(&self) -> bool {
        self.lock().searches.values().any(Searching::is_pending)
    }

    /// Tells those who wait for an answer when reads begin to fail, and when what they fail with changes.
    fn tell_failure(&self, error: Option<&CallError>) {
        let mut state = self.lock();
        let changed = state.failing.as_ref().map(|e| e.kind) != error.map(|e| e.kind);
        state.failing = error.cloned();
        if let (true, Some(error)) = (changed, error) {
            tracing::warn!(error = %error, "AWS cannot be asked about tunnels; trying again");
            for key in state.searches.keys().chain(state.describes.keys()) {
                let _ = self.wake.send(key.clone());
            }
        }
    }

    fn asked(&self) -> Vec<(Key, TunnelId)> {
        self.lock().describes.iter().map(|(key, id)| (key.clone(), id.clone())).collect()
    }

    /// Whether all that were asked for were described. One that fails holds up nobody else.
    async fn describe_asked(&self) -> bool {
        let mut all = true;
        for (key, id) in self.asked() {
            let outcome = self.read(&id).await.map(drop);
            let mut state = self.lock();
            // AWS takes no such ID: that is an answer, and others wait for theirs.
            let refused = outcome.as_ref().is_err_and(|error| error.kind == CallErrorKind::InvalidRequest);
            if outcome.is_ok() || refused {
                state.describes.remove(&key);
            }
            all &= outcome.is_ok() || refused;
            // The same refusal is nothing new: whoever asks again at once would ask for ever.
            let told = refused && state.undescribed.get(&key) == outcome.as_ref().err();
            match outcome {
                Ok(()) => drop(state.undescribed.remove(&key)),
                Err(error) => drop(state.undescribed.insert(key.clone(), error)),
            }
            drop(state);
            if !told {
                let _ = self.wake.send(key);
            }
        }
        all
    }

    fn has_background(&self) -> bool {
        let state = self.lock();
        state.sightings.is_any_due() || !state.refresh.is_empty()
    }

    /// Describes one tunnel: in turns one that no Tunnel has, and one of a Tunnel.
    async fn describe_in_background(&self) {
        let next = {
            let mut state = self.lock();
            let unknown_next = state.refreshed_last && state.sightings.is_any_due();
            let refresh = if unknown_next { None } else { state.refresh.pop() };
            state.refreshed_last = refresh.is_some();
            refresh
        };
        match next {
            Some(refresh) => self.refresh(refresh).await,
            None => self.describe_unknown().await,
        }
    }

    /// Describes an open tunnel, and wakes its Tunnel if there is something to do about it. One that fails comes again
    /// in the next round.
    async fn refresh(&self, Refresh { watched: Watched { key, id, tunnel, .. }, updated_at }: Refresh) {
        let Ok(answer) = self.read(&id).await else { return };
        self.lock().refreshed.insert(id, updated_at);
        let open = matches!(answer.description.life, Life::Open { .. });
        let news = answer.description.details.as_ref().is_some_and(|now| is_news(&tunnel, now, &self.default_tags));
        if news || !open {
            let _ = self.wake.send(key);
        }
    }

    /// Describes one of those that no Tunnel has. When AWS cannot be asked, the others wait for the next round too.
    async fn describe_unknown(&self) {
        let due = self.lock().sightings.next_due();
        let Some(id) = due else { return };
        if let Err(error) = self.answer(&id).await {
            tracing::warn!(tunnel_id = %id, %error, "AWS cannot be asked whose a tunnel is; trying again");
            // What is refused of one says nothing about the others.
            if !matches!(error.kind, CallErrorKind::InvalidRequest | CallErrorKind::AccessDenied) {
                self.lock().sightings.put_off();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what AWS tells of an open tunnel is not what its Tunnel shows and wants. (That somebody has been told of it
/// before does not count: a search may have described the tunnel for another Tunnel.)
fn is_news(tunnel: &Tunnel, details: &Details, default_tags: &Tags) -> bool {
    let Ok(object) = read(tunnel) else { return false };
    let tags = object.spec.tags(default_tags);
    details.connections().is_news(&object.record.connections)
        || details.generation() > Some(object.record.token_generation)
        || tags.iter().any(|(key, value)| details.tags.get(key) != Some(value))
        || object.record.tag_keys.iter().any(|key| !tags.contains_key(key) || !details.tags.contains_key(key))
}
