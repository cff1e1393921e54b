//! One round: a listing of AWS's tunnels, and what follows from it for everybody.

use super::{Poller, REFRESH_ROUNDS, Refresh, SPACING, Shared, Watched};
use crate::clock::{self, Mono};
use crate::orphans::sightings::Answer;
use crate::read::Key;
use crate::tunnels::{CallError, Described, Found, Life, Owner, Search, Summary, TunnelId};
use crate::whose::is_tagged_for;
use jiff::{SignedDuration, Timestamp};
use opentunnel_api::TunnelState;
use std::collections::{HashMap, HashSet};

/// A tunnel lives at most 12 hours: what is older needs no look. Ten minutes for clocks that differ.
const OLDEST: SignedDuration = SignedDuration::from_mins(12 * 60 + 10);
/// A tunnel was opened after its Tunnel was created, less this for clocks that differ.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

impl Poller {
    /// One listing, and what follows from it for everybody. `complete`: of all tunnels that may be open.
    pub(super) async fn round(
        &self,
        watched: &[Watched],
        complete: bool,
        owned: impl Fn() -> HashMap<TunnelId, Key>,
    ) -> Result<(), CallError> {
        let started = self.clock.mono();
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
            Some(created) => {
                let searching: HashSet<&Key> = searches.iter().map(|(key, _)| key).collect();
                let mut others = owned();
                others.retain(|_, owner| !searching.contains(owner));
                self.answer_searches(&searches, &listed, created, started, &others).await?;
            }
            None => {
                let grace = self.rounds.unknown_after.unwrap_or_default();
                let Shared { answers, sightings, .. } = &mut *self.lock();
                answers.retain(|id, answer| sightings.is_settled(id, answer, grace));
            }
        }
        if !complete {
            return Ok(());
        }
        self.compare(watched, &listed, started).await?;
        if let Some(grace) = self.rounds.unknown_after {
            let Shared { answers, sightings, .. } = &mut *self.lock();
            sightings.update(&listed, watched.iter().map(|w| &w.id), answers, grace, self.clock.mono());
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

    /// Describes the open tunnels of the time in question, once each, for their owner tags. `others`: tunnels of Tunnels
    /// that do not search. A fleet that is being opened has thousands of them, and AWS tells of 10 a second.
    async fn answer_searches(
        &self,
        searches: &[(Key, Timestamp)],
        listed: &[Summary],
        created: Timestamp,
        started: Mono,
        others: &HashMap<TunnelId, Key>,
    ) -> Result<(), CallError> {
        let mut owned: Vec<(&Summary, Owner, Option<String>)> = Vec::new();
        let in_question = |s: &&Summary| {
            s.state == TunnelState::Open && s.created_at >= created && !others.contains_key(&s.tunnel.id)
        };
        for summary in listed.iter().filter(in_question) {
            let answer = self.answer(&summary.tunnel.id).await?;
            owned.extend(answer.owner().map(|o| (summary, o.clone(), answer.description.opened_with.clone())));
        }
        let mut state = self.lock();
        for (key, _) in searches {
            let found = owned
                .iter()
                .filter(|(_, owner, _)| is_tagged_for(owner, &self.cluster, key))
                .map(|(s, owner, opened_with)| Found {
                    tunnel: s.tunnel.clone(),
                    owner: owner.clone(),
                    created_at: s.created_at,
                    opened_with: opened_with.clone(),
                })
                .collect();
            if let Some(search) = state.searches.get_mut(key) {
                search.result = Some(Search { started, found });
            }
            let _ = self.wake.send(key.clone());
        }
        Ok(())
    }

    /// What DescribeTunnel tells of a tunnel. It is asked once.
    pub(super) async fn answer(&self, id: &TunnelId) -> Result<Answer, CallError> {
        let known = self.lock().answers.get(id).cloned();
        match known {
            Some(answer) => Ok(answer),
            None => self.read(id).await,
        }
    }

    /// Lines up the open tunnels of Tunnels that are to be described in the background: first those of which AWS says
    /// that something has changed, then those that were not described for the longest time.
    fn line_up(&self, watched: &[Watched], listed: &HashMap<&TunnelId, &Summary>) {
        let every = self.rounds.interval.saturating_mul(REFRESH_ROUNDS);
        let now = self.clock.mono();
        let mut state = self.lock();
        let mut due: Vec<(bool, Option<Mono>, Refresh)> = Vec::new();
        for watched in watched {
            let Some(summary) = listed.get(&watched.id).filter(|s| s.state == TunnelState::Open) else { continue };
            let updated_at = summary.last_updated_at;
            let details = state.described.get(&watched.id).and_then(|described| described.details.as_ref());
            let refreshed = state.refreshed.get(&watched.id);
            let moved = refreshed.is_some_and(|at| *at != updated_at);
            let asked = details.map(|(_, asked)| *asked);
            // One that was described for another reason is described once more: of what change that told is not known.
            if moved || refreshed.is_none() || asked.is_none_or(|asked| now >= asked + every) {
                due.push((moved, asked, Refresh { watched: watched.clone(), updated_at }));
            }
        }
        // The last is the first.
        due.sort_by_key(|(moved, asked, _)| (*moved, std::cmp::Reverse(*asked)));
        state.refresh = due.into_iter().map(|(.., refresh)| refresh).collect();
        let open: HashSet<&TunnelId> = watched.iter().map(|w| &w.id).collect();
        state.refreshed.retain(|id, _| open.contains(id));
    }

    /// Wakes the Tunnels whose tunnel is closed. Absence from the list proves nothing: it is described.
    async fn compare(&self, watched: &[Watched], listed: &[Summary], started: Mono) -> Result<(), CallError> {
        let ids: HashSet<_> = watched.iter().map(|w| &w.id).collect();
        self.lock().described.retain(|id, _| ids.contains(id));
        let listed: HashMap<_, _> = listed.iter().map(|s| (&s.tunnel.id, s)).collect();
        let mut told = HashMap::new();
        self.line_up(watched, &listed);
        for Watched { id, .. } in watched {
            let described = match listed.get(id) {
                Some(s) => Described { life: life(s), asked: started, details: None },
                // Openings wait for searches: the rest is described in the next round.
                None if self.is_searching() => continue,
                None => {
                    let Ok(answer) = self.read(id).await else { continue };
                    Described { life: answer.description.life, asked: answer.asked, details: None }
                }
            };
            told.insert(id, described);
        }
        let mut state = self.lock();
        for Watched { key, id, opened_at, .. } in watched {
            let Some(now) = told.get(id) else { continue };
            state.take(id, now.clone());
            state.undescribed.remove(key);
            // A Tunnel whose tunnel is open, and since when it is recorded to be, sleeps on.
            let as_recorded = matches!(now.life, Life::Open { created_at }
                if created_at.duration_since(*opened_at).abs() <= clock::TOLERANCE);
            if !as_recorded || self.rounds.wake_all {
                let _ = self.wake.send(key.clone());
            }
        }
        Ok(())
    }
}

fn life(summary: &Summary) -> Life {
    let created_at = summary.created_at;
    match summary.state {
        TunnelState::Open => Life::Open { created_at },
        TunnelState::Closed => Life::Closed { created_at, closed_at: summary.last_updated_at },
    }
}
