//! Open tunnels that no Tunnel has: since when the poller's rounds list them, and which of them are still to
//! be described. Pure.

use super::Candidate;
use crate::clock::Mono;
use crate::tunnels::{Description, Life, Owner, Summary, TunnelId, TunnelRef};
use jiff::Timestamp;
use opentunnel_api::TunnelState;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// What a DescribeTunnel told.
#[derive(Clone, Debug)]
pub struct Answer {
    /// All of it.
    pub description: Description,
    /// When it was asked.
    pub asked: Mono,
}

impl Answer {
    /// The owner tag, where it is one of an operator's and the tunnel is open.
    pub fn owner(&self) -> Option<&Owner> {
        self.description.owner.as_ref().filter(|_| matches!(self.description.life, Life::Open { .. }))
    }
}

/// What DescribeTunnel told, by tunnel.
pub type Answers = HashMap<TunnelId, Answer>;

/// The open tunnels that no Tunnel has.
#[derive(Default)]
pub struct Sightings {
    seen: HashMap<TunnelId, Sighting>,
    /// Those that are described until the next round.
    due: Vec<TunnelId>,
    aws_time: Timestamp,
}

struct Sighting {
    tunnel: TunnelRef,
    created_at: Timestamp,
    since: Mono,
}

/// A tunnel that is seen for `grace` is described: by then it is settled in AWS what its tags are, and a Tunnel that has
/// just opened one has recorded it.
impl Sightings {
    /// A complete listing, and those tunnels that Tunnels have. What is not listed any more is forgotten.
    pub fn update<'a>(
        &mut self,
        listed: &[Summary],
        had: impl IntoIterator<Item = &'a TunnelId>,
        answers: &Answers,
        grace: Duration,
        now: Mono,
    ) {
        let had: HashSet<_> = had.into_iter().collect();
        let mut before = std::mem::take(&mut self.seen);
        for summary in listed {
            self.aws_time = self.aws_time.max(summary.created_at).max(summary.last_updated_at);
            let id = &summary.tunnel.id;
            if summary.state == TunnelState::Open && !had.contains(id) {
                let new = || Sighting { tunnel: summary.tunnel.clone(), created_at: summary.created_at, since: now };
                self.seen.insert(id.clone(), before.remove(id).unwrap_or_else(new));
            }
        }
        let is_due = |(id, sighting): &(&TunnelId, &Sighting)| {
            now >= sighting.since + grace && !answers.get(id).is_some_and(|answer| self.is_settled(id, answer, grace))
        };
        let mut due: Vec<_> = self.seen.iter().filter(is_due).collect();
        due.sort_by_key(|(_, sighting)| sighting.created_at);
        // The last is the first to be described: the newest, which would stay open the longest.
        self.due = due.into_iter().map(|(id, _)| id.clone()).collect();
    }

    /// Whether an answer holds as long as the tunnel is listed. (That about a tunnel that is new to AWS may lack a
    /// tag yet.)
    pub fn is_settled(&self, id: &TunnelId, answer: &Answer, grace: Duration) -> bool {
        self.seen.get(id).is_some_and(|sighting| answer.asked >= sighting.since + grace)
    }

    /// Whether there are any to describe.
    pub fn is_any_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next one to describe.
    pub fn next_due(&mut self) -> Option<TunnelId> {
        self.due.pop()
    }

    /// No more of them until the next round.
    pub fn put_off(&mut self) {
        self.due.clear();
    }

    /// Those with an owner tag of `cluster`, the oldest first.
    pub fn candidates(&self, cluster: &str, answers: &Answers, grace: Duration, now: Mono) -> Vec<Candidate> {
        let candidate = |(id, sighting): (&TunnelId, &Sighting)| {
            let answer = answers.get(id).filter(|answer| self.is_settled(id, answer, grace))?;
            Some(Candidate {
                tunnel: sighting.tunnel.clone(),
                owner: answer.owner().filter(|owner| owner.cluster == cluster)?.clone(),
                created_at: sighting.created_at,
                aws_time: self.aws_time,
                seen: now.0.saturating_sub(sighting.since.0),
            })
        };
        let mut candidates: Vec<_> = self.seen.iter().filter_map(candidate).collect();
        candidates.sort_by_key(|c| (c.created_at, c.tunnel.id.clone()));
        candidates
    }
}
