//! The one thing to do next, and what it came to: plain values, on which `decide`, `act` and `learn` agree.

use crate::clock::Mono;
use crate::error::Error;
use crate::read::{Object, SecretSpec};
use crate::record::Change;
use crate::tunnels::{Attempt, CallError, Description, Operation, Tags, Tokens, TunnelId, TunnelRef};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use opentunnel_api::{ClientMode, Reason};

/// The one thing to do next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Nothing for now: the reconcile ends.
    Wait(Wait),
    /// Read the Tunnel anew: what is known of it may be old.
    Read,
    /// Take a ticket.
    Queue(Lane),
    /// Write the finalizer and the claim.
    Claim {
        /// Under this attempt.
        attempt: Attempt,
        /// It was never used before.
        new: bool,
    },
    /// Write the finalizer again, which somebody wiped.
    RestoreFinalizer,
    /// Call OpenTunnel.
    Open {
        /// Under this attempt.
        attempt: Attempt,
        /// With these tags, beside the operator's own two.
        tags: Tags,
    },
    /// Ask AWS, by DescribeTunnel, whether a tunnel carries this Tunnel's owner tag.
    Identify {
        /// Which.
        tunnel: TunnelRef,
        /// When it was opened.
        opened_at: Timestamp,
    },
    /// Call RotateTunnelAccessToken.
    Rotate {
        /// For this tunnel.
        tunnel: TunnelRef,
        /// These sides.
        mode: ClientMode,
        /// Under this generation.
        generation: i64,
        /// The live tokens of the other side. `None`: nobody knows whether there are any.
        others: Option<Tokens>,
    },
    /// Call CloseTunnel.
    Close {
        /// For this tunnel.
        tunnel: TunnelRef,
        /// When it was opened.
        opened_at: Timestamp,
    },
    /// Call TagResource for the generation tag, before a Rotate: AWS remembers it whatever becomes of etcd.
    Mark {
        /// Of this tunnel.
        tunnel: TunnelRef,
        /// The generation of the tokens that follow.
        generation: i64,
    },
    /// Call TagResource for tags that the spec names.
    Tag {
        /// Of this tunnel.
        tunnel: TunnelRef,
        /// The tags.
        tags: Tags,
        /// It was told that this fails.
        told: bool,
    },
    /// Call UntagResource for tags that the spec names no more.
    TakeTagsOff {
        /// Of this tunnel.
        tunnel: TunnelRef,
        /// Their keys.
        keys: Vec<String>,
        /// It was told that this fails.
        told: bool,
    },
    /// Tell that the destination has not connected yet.
    TellUnconnected,
    /// Tell that an older Tunnel has an open tunnel for the same thing.
    TellRival(String),
    /// Call UntagResource for the operator's own tags: the tunnel is this cluster's no more.
    Untag {
        /// Of this tunnel.
        tunnel: TunnelRef,
        /// When it was opened.
        opened_at: Timestamp,
    },
    /// Create or update a Secret.
    WriteSecret {
        /// Which.
        secret: SecretSpec,
        /// The tunnel.
        tunnel: TunnelId,
        /// Its tokens.
        tokens: Tokens,
        /// Their generation.
        generation: i64,
    },
    /// Delete a Secret of this Tunnel's.
    DeleteSecret {
        /// Its name.
        name: String,
    },
    /// Ask the API server whether it would take a Secret, before what the others hold is revoked.
    TryCreate {
        /// Which.
        secret: SecretSpec,
    },
    /// Take the live tokens out of the Secrets that hold them, for those that want them too.
    Reuse {
        /// The tunnel.
        tunnel: TunnelRef,
        /// Its tokens.
        tokens: Tokens,
        /// Their generation.
        generation: i64,
    },
    /// Write the status.
    Record(Change),
    /// Take the finalizer off.
    RemoveFinalizer,
    /// Drop the answer: somebody else has done better.
    Forget,
    /// Drop the answer, whose tunnel is surplus: it is closed in the background.
    CloseSurplus {
        /// Which.
        tunnel: TunnelRef,
        /// The attempt that opened it.
        attempt: Attempt,
    },
}

impl Step {
    /// The Secret that it writes.
    pub fn secret(&self) -> Option<&String> {
        match self {
            Self::WriteSecret { secret, .. } => Some(&secret.name),
            _ => None,
        }
    }
}

/// How a reconcile ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wait {
    /// In this queue; tickets for others are given back.
    pub lane: Option<Lane>,
    /// Not longer than until then.
    pub until: Option<Mono>,
    /// What the poller has to find out meanwhile.
    pub need: Option<Need>,
    /// Secrets of others whose names it waits for.
    pub names: Vec<String>,
}

/// A question to AWS that the poller asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Need {
    /// Search for the Tunnel's tunnels, with a listing that begins at this time or later.
    Search(Mono),
    /// Describe a tunnel now.
    Describe(TunnelId),
}

/// A queue for an operation of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// OpenTunnel.
    Open,
    /// CloseTunnel.
    Close,
    /// RotateTunnelAccessToken.
    Rotate,
    /// TagResource and UntagResource, but for the tag that goes before a Rotate, in its turn.
    Tag,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Open, Self::Close, Self::Rotate, Self::Tag];

    /// The operation whose calls it spaces.
    pub fn operation(self) -> Operation {
        match self {
            Self::Open => Operation::OpenTunnel,
            Self::Close => Operation::CloseTunnel,
            Self::Rotate => Operation::RotateTunnelAccessToken,
            Self::Tag => Operation::TagResource,
        }
    }
}

/// What the conditions say.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for people. Empty: what stands is said of a new generation of the spec.
    pub message: String,
}

/// What a step came to.
#[derive(Debug)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The Tunnel as it is now; `None`: it is gone.
    Read(Option<Box<Object>>),
    /// The Tunnel as it was written.
    Written(Box<Object>),
    /// Somebody else has written meanwhile, so nothing was written: the Tunnel as it is now; `None`: it is gone.
    Conflict(Option<Box<Object>>),
    /// OpenTunnel has ended.
    Opened {
        /// When it was called.
        called: Mono,
        /// The tunnel and its tokens.
        answer: Result<(TunnelRef, Tokens), CallError>,
    },
    /// RotateTunnelAccessToken has ended.
    Rotated {
        /// When it was called.
        called: Mono,
        /// The new tokens.
        answer: Result<Tokens, CallError>,
    },
    /// CloseTunnel or UntagResource has ended.
    ClosedOrUntagged(Result<(), CallError>),
    /// TagResource, or UntagResource for the spec's tags, has ended.
    Tagged(Result<(), CallError>),
    /// DescribeTunnel has ended.
    Identified(Result<Identity, CallError>),
    /// The Secret as it was written; `None`: it was deleted.
    SecretWritten(Option<Box<Secret>>),
    /// Somebody else has written the Secret meanwhile, so nothing was written.
    SecretConflict,
    /// Whether the API server takes a new Secret. `None`: it does.
    Tried(Option<Refusal>),
    /// A Secret of that name is there by now.
    NameTaken,
    /// The call has not left: it was not its turn any more, its claim was too old, or the lead has passed on.
    Withdrawn,
    /// The API server refused, or did not answer.
    Failed(Error),
}

/// Whose DescribeTunnel says that a tunnel is.
#[derive(Clone, Debug, PartialEq)]
pub enum Identity {
    /// This Tunnel's, with the ARN that AWS has.
    Own(TunnelRef),
    /// Somebody else's.
    Foreign,
    /// AWS does not know it.
    NotFound,
}

impl Identity {
    /// Reads it off an answer about `asked`.
    pub fn of(asked: &TunnelId, described: Description, is_own: impl FnOnce(&crate::tunnels::Owner) -> bool) -> Self {
        match (described.tunnel, described.owner) {
            (None, _) => Self::NotFound,
            // What AWS describes is what was asked for, or nothing is learnt from it.
            (Some(tunnel), Some(owner)) if tunnel.id == *asked && is_own(&owner) => Self::Own(tunnel),
            _ => Self::Foreign,
        }
    }
}

/// Why the API server takes no new Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The namespace is being deleted.
    NamespaceEnds,
    /// A quota, a policy or a lack of rights, in its words.
    Told(String),
}

/// What a reconcile has read that it may not build on any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outdated {
    /// The Secrets: they are read again.
    pub secrets: bool,
    /// The Tunnel is as it was read, but that may be old.
    pub tunnel: bool,
}

impl Outcome {
    /// What has to be read again after it.
    pub fn outdates(&self) -> Outdated {
        match self {
            Self::SecretWritten(None) | Self::NameTaken => Outdated { secrets: true, tunnel: false },
            // Whoever has written the Tunnel meanwhile may have written its Secrets.
            Self::Conflict(_) => Outdated { secrets: true, tunnel: false },
            // Whoever has written a Secret meanwhile did so for a Tunnel that may have changed as well.
            Self::SecretConflict => Outdated { secrets: true, tunnel: true },
            Self::Withdrawn => Outdated { secrets: false, tunnel: true },
            _ => Outdated::default(),
        }
    }
}
