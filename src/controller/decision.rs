//! What step 3 can decide: plain values, which step 4 carries out.

use crate::clock::Mono;
use crate::crd::{ClientMode, Reason};
use crate::tunnels::{Attempt, Found, TunnelId, TunnelRef};
use jiff::Timestamp;

/// The one thing to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing for now: the reconcile ends.
    Wait(Wait),
    /// Read the Tunnel anew: what is known of it may be old.
    Read,
    /// Take a ticket.
    Queue(Lane),
    /// Write finalizer and intent: under this attempt, or under a new one.
    Claim(Option<Attempt>),
    /// Write the finalizer again, which somebody wiped.
    RestoreFinalizer,
    /// Call OpenTunnel.
    Open,
    /// Call RotateTunnelAccessToken.
    Rotate {
        /// Of this tunnel.
        tunnel: TunnelId,
        /// These sides.
        mode: ClientMode,
        /// Under this generation.
        generation: i64,
    },
    /// Call CloseTunnel.
    Close {
        /// For this tunnel.
        tunnel: TunnelRef,
        /// When it was opened.
        opened_at: Timestamp,
    },
    /// Take the owner tag off.
    Disown {
        /// Of this tunnel.
        tunnel: TunnelRef,
        /// When it was opened.
        opened_at: Timestamp,
    },
    /// Create or update a Secret with the tokens of the answer.
    WriteSecret {
        /// Which of [`Desired::secrets`](super::validate::Desired::secrets).
        index: usize,
        /// The generation of the tokens.
        generation: i64,
    },
    /// Delete a Secret of this Tunnel's.
    DeleteSecret {
        /// Which of [`Desired::secrets`](super::validate::Desired::secrets); beyond them, of those that are wanted no more.
        index: usize,
    },
    /// Ask the API server whether it would take a Secret, before what the others hold is revoked.
    TryCreate {
        /// Which of [`Desired::secrets`](super::validate::Desired::secrets).
        index: usize,
    },
    /// Take the live tokens out of the Secrets that hold them, for those that want them too.
    Reuse,
    /// Write the status.
    Record(Change),
    /// Take the finalizer off.
    Release,
    /// Drop the answer: somebody else has done better.
    Forget,
    /// Drop the answer, and have its tunnel closed: nobody wants it any more.
    Abandon(TunnelRef),
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
}

/// A question to AWS that the poller asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Need {
    /// Search for the Tunnel's tunnels, with a listing that begins at this time or later.
    Search(Mono),
    /// Describe its tunnel now.
    Describe,
}

/// A queue for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// OpenTunnel.
    Open,
    /// CloseTunnel.
    Close,
    /// RotateTunnelAccessToken.
    Rotate,
}

/// What a status write says.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The tunnel of the answer is open, and its tokens are in the Secrets.
    Opened {
        /// Their generation.
        generation: i64,
    },
    /// The tunnel of the answer is open, but a Secret is somebody else's.
    Kept {
        /// The generation of the tokens that could not be kept.
        generation: i64,
    },
    /// A found tunnel is taken over; its tokens come by rotation.
    Adopted {
        /// Which.
        found: Found,
        /// The generation of that rotation.
        generation: i64,
    },
    /// A rotation is claimed.
    Rotating {
        /// Its generation.
        generation: i64,
        /// The sides that get new tokens.
        mode: ClientMode,
    },
    /// The Secrets are those that the spec names, with the same tokens.
    Arranged,
    /// The new tokens are in the Secrets.
    Rotated,
    /// The tunnel has ended.
    Ended {
        /// Expired or Closed.
        reason: Reason,
        /// When.
        closed_at: Timestamp,
    },
    /// AWS opened it at another time than was recorded.
    OpenedAt(Timestamp),
    /// Nothing but the reason.
    Report(Report),
}

/// What the conditions say.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
}
