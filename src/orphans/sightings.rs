//! Open tunnels that no Tunnel has: since when the poller's rounds list them, and which of them are still to
//! be described. Pure.

use super::Candidate;
use crate::clock::Mono;
use crate::crd::State;
use crate::tunnels::{Owner, Summary, TunnelId, TunnelRef};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// What a DescribeTunnel has told of a tunnel's owner.
#[derive(Clone, Debug)]
pub struct Told {
    /// The owner tag, where it is one of an operator's and the tunnel is open.
    pub owner: Option<Owner>,
    /// When it was asked.
    pub asked: Mono,
}

/// What DescribeTunnel has told, by tunnel.
pub type Owners = HashMap<TunnelId, Told>;

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

/// Whoever is seen for `grace` is described: by then it is settled in AWS what its tags are, and a Tunnel that has
/// just opened one has recorded it.
impl Sightings {
    /// A complete listing, and those tunnels that Tunnels have. What is not listed any more is forgotten.
    pub fn note<'a>(
        &mut self,
        listed: &[Summary],
        had: impl IntoIterator<Item = &'a TunnelId>,
        owners: &Owners,
        grace: Duration,
        now: Mono,
    ) {
        let had: HashSet<_> = had.into_iter().collect();
        let mut before = std::mem::take(&mut self.seen);
        for summary in listed {
            self.aws_time = self.aws_time.max(summary.created_at).max(summary.last_updated_at);
            let id = &summary.tunnel.id;
            if summary.state == State::Open && !had.contains(id) {
                let new = || Sighting { tunnel: summary.tunnel.clone(), created_at: summary.created_at, since: now };
                self.seen.insert(id.clone(), before.remove(id).unwrap_or_else(new));
            }
        }
        let is_due = |(id, sighting): &(&TunnelId, &Sighting)| {
            now >= sighting.since + grace && !owners.get(id).is_some_and(|told| self.is_settled(id, told, grace))
        };
        let mut due: Vec<_> = self.seen.iter().filter(is_due).collect();
        due.sort_by_key(|(_, sighting)| sighting.created_at);
        // The last is the first to be described: the newest, which would stay open the longest.
        self.due = due.into_iter().map(|(id, _)| id.clone()).collect();
    }

    /// Whether what was told of a tunnel's owner holds as long as the tunnel is listed. (What was told of one
    /// that is new to AWS may lack a tag yet.)
    pub fn is_settled(&self, id: &TunnelId, told: &Told, grace: Duration) -> bool {
        self.seen.get(id).is_some_and(|sighting| told.asked >= sighting.since + grace)
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
    pub fn candidates(&self, cluster: &str, owners: &Owners, grace: Duration, now: Mono) -> Vec<Candidate> {
        let candidate = |(id, sighting): (&TunnelId, &Sighting)| {
            let told = owners.get(id).filter(|told| self.is_settled(id, told, grace))?;
            Some(Candidate {
                tunnel: sighting.tunnel.clone(),
                owner: told.owner.clone().filter(|owner| owner.cluster == cluster)?,
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
