//! Everything that a decision depends on beside what is remembered: plain values.

use crate::clock::Mono;
use crate::pacer::{Gate, Turn};
use crate::read::Object;
use crate::secrets::SecretFacts;
use crate::step::Lane;
use crate::tunnels::{Attempt, CallError, Described, InAccount, Search, Tags, TunnelId};
use std::time::Duration;

/// The operator's settings that decisions depend on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--aws-timeout`: the limit of one AWS call.
    pub aws_timeout: Duration,
    /// `--recovery-grace`: after it, a call that somebody else may have made has ended.
    pub recovery_grace: Duration,
}

/// What this process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It leads.
    Leads {
        /// Since when, without a break.
        since: Mono,
    },
    /// It leads, but is about to stop: it starts nothing new.
    Stopping {
        /// Since when it leads.
        since: Mono,
    },
    /// It does not lead: it only finishes calls whose answer it already holds.
    Finishes,
}

impl Standing {
    /// Since when it leads.
    pub fn leads_since(self) -> Option<Mono> {
        match self {
            Self::Leads { since } | Self::Stopping { since } => Some(since),
            Self::Finishes => None,
        }
    }
}

/// The Tunnel as this reconcile sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// As it was last read, written or watched.
    pub object: Object,
    /// When it was last read from, or written to, the API server in this reconcile. `None`: it comes from the watch
    /// and may be old.
    pub read_at: Option<Mono>,
    /// The API server has no such object any more.
    pub gone: bool,
    /// Something may have been wiped from it unseen: by a user, while the watch was interrupted, or by an etcd that was
    /// restored from an older state.
    pub wiped: bool,
}

/// What there is beside the Tunnel.
#[derive(Clone, Debug)]
pub struct Facts {
    /// A random ID, new each time: for a new claim.
    pub fresh_attempt: Attempt,
    /// The Secrets that concern it (see [`secrets::names`](crate::secrets::names)).
    pub secrets: Vec<SecretFacts>,
    /// The last completed search for its tunnels.
    pub search: Option<Search>,
    /// Whether its tunnel is in the operator's account and region.
    pub in_account: InAccount,
    /// What AWS told last of its tunnel, and of others that are its own.
    pub described: Vec<(TunnelId, Described)>,
    /// What AWS's reads fail with at present.
    pub reads_fail: Option<CallError>,
    /// Its ticket for each lane.
    pub turns: Turns,
    /// The gate of OpenTunnel, if it is shut.
    pub gate: Option<Gate>,
    /// What the last reconcile failed with, if it failed.
    pub trouble: Option<String>,
    /// The tags that its tunnel is to have: the spec's, and `--default-tag`.
    pub tags: Tags,
    /// An older Tunnel that has an open tunnel for the same thing: an agent that serves one tunnel follows the newest.
    pub rival: Option<String>,
    /// The API server has taken a token Secret of this process in the Tunnel's namespace a short time ago.
    pub takes_secrets: bool,
}

/// Where a Tunnel stands in each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// For OpenTunnel.
    pub open: Turn,
    /// For CloseTunnel.
    pub close: Turn,
    /// For RotateTunnelAccessToken.
    pub rotate: Turn,
    /// For TagResource and UntagResource.
    pub tag: Turn,
}

impl Turns {
    /// The same in each queue.
    pub fn all(turn: Turn) -> Self {
        Self { open: turn, close: turn, rotate: turn, tag: turn }
    }

    /// In one.
    pub fn of(self, lane: Lane) -> Turn {
        match lane {
            Lane::Open => self.open,
            Lane::Close => self.close,
            Lane::Rotate => self.rotate,
            Lane::Tag => self.tag,
        }
    }
}
