//! Step 2: everything that a decision depends on besides the Tunnel itself, as plain values. What
//! is read is the Tunnel's Secrets; the rest is what this process remembers and shares.

use crate::clock::Mono;
use crate::crd::{ClientMode, Reason, Tunnel};
use crate::pacer::{Gate, Turn};
use crate::tunnels::{Attempt, CallError, Heard, Home, Search, Tokens, TunnelId, TunnelRef};
use jiff::Timestamp;
use std::time::Duration;

/// The operator's settings that decisions depend on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--aws-timeout`: the limit of one AWS call.
    pub aws_timeout: Duration,
    /// `--recovery-grace`: after it, a call that somebody else may have made has ended.
    pub recovery_grace: Duration,
}

/// All that is known about one Tunnel beside its object.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// When the object was last read from, or written to, the API server in this reconcile. `None`:
    /// it comes from the watch and may be old.
    pub read_at: Option<Mono>,
    /// The API server has no such object any more.
    pub gone: bool,
    /// The wanted Secrets, in the order of [`Desired::secrets`].
    pub secrets: Vec<SecretState>,
    /// Secrets of this Tunnel's that it wants no more: they come after the wanted ones.
    pub former: Vec<SecretState>,
    /// What this process remembers.
    pub memory: &'a Memory,
    /// The last completed search for its tunnels.
    pub search: Option<Search>,
    /// Whether its tunnel is in the operator's own account and region.
    pub home: Home,
    /// AWS's last word on its tunnel.
    pub heard: Option<Heard>,
    /// What AWS's reads fail with at present.
    pub reads_fail: Option<CallError>,
    /// The ticket for OpenTunnel.
    pub open: Turn,
    /// The ticket for CloseTunnel.
    pub close: Turn,
    /// The ticket for RotateTunnelAccessToken.
    pub rotate: Turn,
    /// The gate of OpenTunnel.
    pub gate: Option<Gate>,
}

/// A wanted Secret, as it is.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretState {
    /// There is none.
    Missing,
    /// Not controlled by this Tunnel: never touched.
    Foreign,
    /// This Tunnel's; it is being deleted, and somebody's finalizer holds it back.
    Terminating,
    /// This Tunnel's.
    Ours {
        /// The generation of its tokens; 0 where the annotation cannot be read.
        generation: i64,
        /// SHA-256 of its data.
        digest: String,
        /// It can be updated, and Pods find in it what they expect: not immutable, of the right type.
        sound: bool,
        /// It is as it was recorded when the Tunnel last was Ready.
        intact: bool,
        /// The side whose keys it has, and no others.
        mode: Option<ClientMode>,
        /// It holds the tokens of the answer in [`Memory::answer`], and the watch of Secrets sees it.
        holds_answer: bool,
    },
}

/// What this process remembers of one Tunnel (by UID). All of it may be lost at any moment.
#[derive(Debug, Default)]
pub struct Memory {
    /// This process saw its creation on a live watch, and nothing has vanished from it since: nobody
    /// can have opened anything for it unseen.
    pub saw_creation: bool,
    /// When this process first saw it; not before it led.
    pub first_seen: Mono,
    /// The last claim seen on it, and since when.
    pub claim: Option<(Attempt, Mono)>,
    /// The attempt of this process.
    pub attempt: Option<Attempt>,
    /// When this process last made a call to OpenTunnel that may have been carried out.
    pub open_doubt: Option<Mono>,
    /// The generation of a rotation that is not finished, and since when it was seen.
    pub unfinished: Option<(i64, Mono)>,
    /// The rotation that this process has claimed.
    pub rotation: Option<Rotation>,
    /// An answer with tokens that are not yet in the Secrets.
    pub answer: Option<Answer>,
    /// What the API server last said to a new Secret, or to a trial of creating one.
    pub trial: Option<Trial>,
    /// The generation of a Rotate of this process that somebody superseded while it was under way, or that
    /// ended later than the limit of one call (the process was paused): what it sent may have been carried
    /// out after a newer one.
    pub late_rotation: Option<i64>,
    /// Since when deletion was seen.
    pub deleting: Option<Mono>,
    /// Since when `expiresAt` was seen to be over.
    pub expired: Option<Mono>,
    /// Tunnels that AWS said are closed (or never were).
    pub closed: Vec<TunnelId>,
    /// The last AWS call that failed, until one succeeds.
    pub failure: Option<Failure>,
    /// What the last reconcile failed with, if it failed.
    pub trouble: Option<String>,
    /// The object as it was last written, until the watch shows it.
    pub written: Option<std::sync::Arc<Tunnel>>,
}

/// What the API server says to a Secret that is to be created.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// When.
    pub at: Mono,
    /// `None`: it takes it.
    pub refused: Option<Refusal>,
}

/// Why the API server takes no new Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The namespace is being deleted.
    NamespaceEnds,
    /// A quota, a policy or a lack of rights, in its words.
    Told(String),
}

/// A rotation of this process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotation {
    /// Its generation.
    pub generation: i64,
    /// The sides that get new tokens.
    pub mode: ClientMode,
    /// It was claimed on a Ready Tunnel: the tokens of the other side, where a Secret holds them, are live.
    pub others_live: bool,
    /// How far it is.
    pub stage: RotationStage,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RotationStage {
    /// Claimed; nothing that could have been carried out was sent.
    Claimed,
    /// Sent then, and not answered.
    Doubt(Mono),
    /// Answered, but its tokens could not be kept.
    Lost,
}

/// The tokens that an answer brought.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What they are the tokens of.
    pub of: AnswerOf,
    /// The tunnel.
    pub tunnel: TunnelRef,
    /// The tokens. Never in a text.
    pub tokens: Tokens,
    /// When the answer came.
    pub at: Mono,
    /// The same by the local clock.
    pub wall: Timestamp,
}

/// The call that brought tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerOf {
    /// OpenTunnel, under this attempt.
    Open(Attempt),
    /// RotateTunnelAccessToken, under this generation.
    Rotate(i64),
    /// None: the tokens of this generation were read from the Secrets of a Ready Tunnel, for others of it.
    Secrets(i64),
}

/// A failed AWS call.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// AwsUnavailable, AccessDenied or InvalidRequest.
    pub reason: Reason,
    /// What failed, in AWS's words.
    pub message: String,
    /// When.
    pub at: Mono,
    /// When it is tried again.
    pub retry_at: Mono,
    /// How often it has failed in a row.
    pub times: u32,
    /// The status has said so.
    pub told: bool,
}
