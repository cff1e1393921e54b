//! One round: a listing of AWS's tunnels, and what follows from it for everybody.

use super::{Poller, SPACING, Shared, Watched};
use crate::clock::{self, Mono};
use crate::crd::State;
use crate::pacer::Key;
use crate::tunnels::{CallError, Found, Heard, Owner, Search, Summary, TunnelId, Word};
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, HashSet};

/// A tunnel lives at most 12 hours: what is older needs no look. Ten minutes for clocks that differ.
const OLDEST: SignedDuration = SignedDuration::from_mins(12 * 60 + 10);
/// A tunnel was opened after its Tunnel was created, less this for clocks that differ.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

impl Poller {
    /// One listing, and what follows from it for everybody. `complete`: of all tunnels that may be open.
    pub(super) async fn round(&self, watched: &[Watched], complete: bool) -> Result<(), CallError> {
        let started = self.now();
        let searches: Vec<(Key, Timestamp)> = self
            .lock()
            .searches
            .iter()
            .filter(|(_, s)| s.is_pending() && s.since <= started)
            .map(|(key, s)| (key.clone(), s.created))
            .collect();
        let oldest = Timestamp::now().saturating_sub(OLDEST).unwrap_or(Timestamp::MIN);
        let created = searches.iter().map(|(_, created)| *created).min();
        let created = created.and_then(|c| c.saturating_sub(CLOCKS_DIFFER).ok());
        // A search alone need not go back beyond what it searches for.
        let until = created.filter(|_| !complete).map_or(oldest, |c| c.max(oldest));
        let listed = self.list(until).await?;
        match created {
            Some(created) => self.answer_searches(&searches, &listed, created, started).await?,
            None => {
                let grace = self.rounds.unknown_after.unwrap_or_default();
                let Shared { owners, sightings, .. } = &mut *self.lock();
                owners.retain(|id, told| sightings.is_settled(id, told, grace));
            }
        }
        if !complete {
            return Ok(());
        }
        self.compare(watched, &listed, started).await?;
        if let Some(grace) = self.rounds.unknown_after {
            let Shared { owners, sightings, .. } = &mut *self.lock();
            sightings.note(&listed, watched.iter().map(|w| &w.id), owners, grace, self.now());
            self.listed.notify_one();
        }
        Ok(())
    }

    async fn list(&self, until: Timestamp) -> Result<Vec<Summary>, CallError> {
        let (mut listed, mut token) = (Vec::new(), None);
        loop {
            let page = self.aws.list(token).await?;
            // An empty page with a token is no end.
            let beyond = page.summaries.last().is_some_and(|s| s.created_at < until);
            listed.extend(page.summaries);
            token = page.next_token;
            if beyond || token.is_none() {
                return Ok(listed);
            }
            tokio::time::sleep(SPACING).await;
        }
    }

    /// Describes the open tunnels of the time in question, once each, for their owner tags.
    async fn answer_searches(
        &self,
        searches: &[(Key, Timestamp)],
        listed: &[Summary],
        created: Timestamp,
        started: Mono,
    ) -> Result<(), CallError> {
        let mut owned: Vec<(&Summary, Owner)> = Vec::new();
        for summary in listed.iter().filter(|s| s.state == State::Open && s.created_at >= created) {
            let owner = self.owner(&summary.tunnel.id).await?;
            owned.extend(owner.filter(|o| o.cluster == self.cluster).map(|o| (summary, o)));
        }
        let mut state = self.lock();
        for (key, _) in searches {
            let found = owned
                .iter()
                .filter(|(_, owner)| owner.uid == key.uid && owner.namespace == key.namespace)
                .map(|(s, owner)| Found { tunnel: s.tunnel.clone(), owner: owner.clone(), created_at: s.created_at })
                .collect();
            if let Some(search) = state.searches.get_mut(key) {
                search.result = Some(Search { started, found });
            }
            let _ = self.wake.send(key.clone());
        }
        Ok(())
    }

    pub(super) async fn owner(&self, id: &TunnelId) -> Result<Option<Owner>, CallError> {
        if let Some(told) = self.lock().owners.get(id) {
            return Ok(told.owner.clone());
        }
        let asked = self.now();
        let described = self.aws.describe(id).await?;
        let owner = described.owner.filter(|_| matches!(described.word, Word::Open { .. }));
        // A tunnel that was just opened may not be known everywhere: it is asked for again.
        if described.word != Word::NotFound {
            self.tell(id, owner.clone(), asked);
        }
        tokio::time::sleep(SPACING).await;
        Ok(owner)
    }

    /// Wakes the Tunnels whose tunnel is closed. Absence from the list proves nothing: it is described.
    async fn compare(&self, watched: &[Watched], listed: &[Summary], started: Mono) -> Result<(), CallError> {
        let ids: HashSet<_> = watched.iter().map(|w| &w.id).collect();
        self.lock().heard.retain(|id, _| ids.contains(id));
        let listed: HashMap<_, _> = listed.iter().map(|s| (&s.tunnel.id, s)).collect();
        let mut heard = HashMap::new();
        for Watched { id, .. } in watched {
            let (word, asked) = match listed.get(id) {
                Some(s) if s.state == State::Open => (Word::Open { created_at: s.created_at }, started),
                Some(s) => (Word::Closed { created_at: s.created_at, closed_at: s.last_updated_at }, started),
                // Openings wait for searches: the rest is described in the next round.
                None if self.is_searching() => continue,
                None => {
                    let asked = self.now();
                    let described = self.aws.describe(id).await;
                    tokio::time::sleep(SPACING).await;
                    let Ok(described) = described else { continue };
                    (described.word, asked)
                }
            };
            heard.insert(id, Heard { word, asked });
        }
        let mut state = self.lock();
        for Watched { key, id, opened_at } in watched {
            let Some(now) = heard.get(id) else { continue };
            state.heard.insert(id.clone(), *now);
            // A Tunnel whose tunnel is open, and since when it is recorded to be, sleeps on.
            let as_recorded = matches!(now.word, Word::Open { created_at }
                if created_at.duration_since(*opened_at).abs() <= clock::TOLERANCE);
            if !as_recorded || self.rounds.wake_all {
                let _ = self.wake.send(key.clone());
            }
        }
        Ok(())
    }
}
