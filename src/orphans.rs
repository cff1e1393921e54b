//! Orphans: open tunnels in AWS that carry this cluster's owner tag, and that no Tunnel owns. A slow sweep
//! closes them.
//!
//! A Tunnel looks for its own tunnels by itself (`poller`'s searches), and whoever has opened a surplus tunnel closes
//! it. What is left is what nobody looks for any more: the Tunnel is gone (its finalizer was taken off by
//! hand), or it has another tunnel, and the process that knew of both has died. Or the Tunnel has none, has searched
//! before this one came to light, and waits for something else: then the sweep has it search once more. The sweep asks for nothing
//! that is not there already: the poller's rounds list the tunnels anyway, and those that no Tunnel names are
//! described for their tags, once each ([`sightings`]).
//!
//! [`judge`] says what becomes of one; [`sweep`] does it.

pub mod sightings;
pub mod sweep;

use crate::tunnels::{Owner, TunnelRef};
use crate::whose::{Claimant, Whose, whose};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::time::Duration;

/// No tunnel is closed that is younger. By then its opening, and whatever follows from that, has ended.
pub const MIN_AGE: Duration = Duration::from_secs(300);

/// An open tunnel with an owner tag, and no Tunnel that the watches show has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Which.
    pub tunnel: TunnelRef,
    /// What its tag says.
    pub owner: Owner,
    /// When it was opened, by AWS's clock.
    pub created_at: Timestamp,
    /// The latest time that AWS has told of anything: its clock is not before it.
    pub aws_time: Timestamp,
    /// For how long this process has seen it so, by its own clock.
    pub seen: Duration,
}

impl Candidate {
    /// AWS's clock and ours may differ, so no time of one is compared with the other: it is old by what AWS
    /// has told, or by having been seen for so long. In either case it was seen for the recovery grace: a
    /// call that was in flight when it was first seen has ended.
    fn is_old(&self, grace: Duration) -> bool {
        let age = self.aws_time.duration_since(self.created_at);
        let min = SignedDuration::try_from(MIN_AGE).unwrap_or(SignedDuration::MAX);
        self.seen >= grace && (age >= min || self.seen >= MIN_AGE)
    }
}

/// Whose tunnels this operator may close.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The cluster's ID.
    pub cluster: String,
    /// The namespaces that are watched; none: all.
    pub namespaces: BTreeSet<String>,
    /// `--recovery-grace`.
    pub grace: Duration,
}

impl Scope {
    /// The tag may hold anything: its namespace becomes a part of a URL, so it has to be the name of one.
    fn covers(&self, owner: &Owner) -> bool {
        let name = |text: &str, longest| {
            (1..=longest).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        owner.cluster == self.cluster
            && name(&owner.namespace, 63)
            && name(&owner.uid, 64)
            && (self.namespaces.is_empty() || self.namespaces.contains(&owner.namespace))
    }
}

/// What the Tunnels in the tag's namespace say about the tunnel.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// One of them names it, whatever its UID.
    Owned,
    /// None has the UID of the tag.
    Gone,
    /// The one with the UID is being deleted.
    Deleting,
    /// The one with the UID may adopt it.
    Opening(Claimant),
    /// The one with the UID has another.
    HasAnother(Claimant),
}

impl Shown {
    /// Reads it off the Tunnels of the namespace.
    pub fn of(candidate: &Candidate, tunnels: impl IntoIterator<Item = Claimant>) -> Self {
        let mut shown = Self::Gone;
        for tunnel in tunnels {
            match whose(&candidate.tunnel.id, &candidate.owner, &candidate.owner.cluster, &tunnel) {
                Whose::Named => return Self::Owned,
                Whose::Foreign => {}
                _ if tunnel.down => shown = Self::Deleting,
                Whose::Adoptable => shown = Self::Opening(tunnel),
                Whose::Surplus => shown = Self::HasAnother(tunnel),
            }
        }
        shown
    }
}

/// Where it was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum By {
    /// Off the watch, which may lag behind.
    Watch,
    /// From the API server, just now.
    ApiServer,
}

/// What becomes of a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Not this operator's business, or it has an owner.
    Keep,
    /// It has no owner, but that may be so because it is new.
    Wait,
    /// Its Tunnel adopts it when it searches.
    Search,
    /// By the watch it has no owner: the API server has to say so.
    Look,
    /// It has no owner, and never will have.
    Close,
}

/// What becomes of a candidate. Pure.
///
/// `Close` is never wrong later: a UID never comes back, and a Tunnel that names another tunnel takes this one only
/// while it claims with the attempt of the tag, which is never claimed twice.
pub fn judge(candidate: &Candidate, scope: &Scope, shown: &Shown, by: By) -> Verdict {
    if !scope.covers(&candidate.owner) {
        return Verdict::Keep;
    }
    match shown {
        // Its deletion closes what it has; what it does not know of comes to light when it is gone.
        Shown::Owned | Shown::Deleting => Verdict::Keep,
        // It searches for its tunnels before it opens one, and adopts what it finds. This one may have come to light since:
        // a claim was wiped while the call was under way, and whoever made the call has died.
        Shown::Opening(_) if candidate.is_old(scope.grace) => Verdict::Search,
        Shown::Opening(_) => Verdict::Keep,
        Shown::Gone | Shown::HasAnother(_) if !candidate.is_old(scope.grace) => Verdict::Wait,
        Shown::Gone | Shown::HasAnother(_) if by == By::Watch => Verdict::Look,
        Shown::Gone | Shown::HasAnother(_) => Verdict::Close,
    }
}

#[cfg(test)]
mod tests;
