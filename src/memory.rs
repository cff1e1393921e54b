//! What this process remembers of one Tunnel (by UID). All of it may be lost at any moment.
//!
//! It changes in two functions and nowhere else: [`Memory::see`], by what the object shows, and [`Memory::learn`], by
//! what a step came to. Both are pure, and the model checker goes through the very same changes.

mod learn;
pub mod redone;
mod see;
pub mod store;

use crate::clock::Mono;
use crate::read::{Goal, Object, SecretSpec};
use crate::step::Refusal;
use crate::tunnels::{Attempt, Tags, Tokens, TunnelId, TunnelRef};
use jiff::Timestamp;
use opentunnel_api::{ClientMode, Reason};
use redone::Redone;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

/// A claim is acted on within this time of its write, or of a read that shows it unchanged: a process that was paused
/// must not act on an old one.
pub const CLAIM_LIMIT: Duration = Duration::from_secs(5);

/// What is remembered. It can be read by everybody.
#[derive(Debug)]
pub struct Memory(Remembered);

/// The content of a [`Memory`].
#[derive(Debug, Default)]
pub struct Remembered {
    /// This process saw its creation on a live watch, and nothing was wiped from it since: nobody can have opened
    /// anything for it unseen.
    pub saw_creation: bool,
    /// When this process first saw it; not before it led.
    pub first_seen: Mono,
    /// Of openings.
    pub opening: Opening,
    /// Of rotations.
    pub rotating: Rotating,
    /// Of the open tunnel.
    pub tending: Tending,
    /// Of the end.
    pub ending: Ending,
    /// Tunnels that are this Tunnel's according to AWS: this process opened them, or has seen their owner tag.
    pub owned: Vec<TunnelRef>,
    /// An answer with tokens that are not yet in the Secrets. In a box, because most of the time there is none.
    pub answer: Option<Box<Answer>>,
    /// What failed.
    pub backoff: Backoff,
}

/// What is remembered of openings.
#[derive(Debug, Default)]
pub struct Opening {
    /// The last claim seen on the object, and since when.
    pub claim: Option<(Attempt, Mono)>,
    /// The attempt of this process.
    pub attempt: Option<Attempt>,
    /// When this process last made a call to OpenTunnel that may have been carried out.
    pub doubt: Option<Mono>,
    /// Since when a tunnel is to be opened.
    pub since: Option<Mono>,
}

/// What is remembered of rotations.
#[derive(Debug, Default)]
pub struct Rotating {
    /// The generation of a rotation that is not finished, and since when it was seen.
    pub unfinished: Option<(i64, Mono)>,
    /// The rotation that this process has claimed.
    pub own: Option<Rotation>,
    /// The generation of a Rotate of this process that somebody superseded while it was under way, or that ended later
    /// than the recovery grace allows (the process was paused): AWS may have carried it out after a newer one.
    pub late: Option<i64>,
    /// The generation that this process has tagged the tunnel with.
    pub marked: Option<i64>,
    /// Rotations in a row, because what was written into a Secret did not stay.
    pub redone: Option<Redone>,
}

/// What is known of tags, by key: the value, or `None` where there is no such tag. Of other keys nothing is known.
pub type KnownTags = BTreeMap<String, Option<String>>;

/// What is remembered of an open tunnel.
#[derive(Debug, Default)]
pub struct Tending {
    /// The tags that this process has set or taken off, and when it did last.
    pub tags: Option<(KnownTags, Mono)>,
    /// Tags are to be set or taken off, and that has not been done. A write for another reason may say meanwhile that the
    /// spec is carried out.
    pub tags_due: bool,
    /// A call that set tags failed: so often in a row, and it is tried again then.
    pub tags_failed: Option<(u32, Mono)>,
    /// When the connections were written last.
    pub connections: Option<Mono>,
    /// It was told that the destination has not connected.
    pub told_unconnected: bool,
    /// This process has just opened it: if an older Tunnel has one for the same thing, that is to be told.
    pub new: bool,
}

/// What is remembered of the end.
#[derive(Debug, Default)]
pub struct Ending {
    /// Since when it is seen to want no tunnel any more.
    pub down: Option<Mono>,
    /// Since when `expiresAt` was seen to be over.
    pub expired: Option<Mono>,
    /// Tunnels that AWS said are closed (or never were), and those that are untagged.
    pub closed: Vec<TunnelId>,
    /// Tunnels that the status of a Tunnel that is being deleted names, but that are somebody else's by their owner tag.
    pub foreign: Vec<TunnelId>,
}

/// What failed.
#[derive(Debug, Default)]
pub struct Backoff {
    /// The last AWS call that failed, until one succeeds.
    pub failure: Option<Failure>,
    /// What the API server last said to a new Secret, or to a trial of creating one.
    pub trial: Option<Trial>,
}

/// What the API server says to a Secret that is to be created.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// When.
    pub at: Mono,
    /// `None`: it takes it.
    pub refused: Option<Refusal>,
    /// How often in a row it did not.
    pub refusals: u32,
}

/// A rotation of this process.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Its generation.
    pub generation: i64,
    /// The sides that get new tokens.
    pub mode: ClientMode,
    /// It was claimed on a Ready Tunnel: the tokens of the other side, where a Secret holds them, are live.
    pub others_live: bool,
    /// How far it is.
    pub stage: RotationStage,
    /// The value of the annotation that asked for it.
    pub handles: Option<String>,
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
    /// The tags that the tunnel was opened with, and [`OpenRequest::digest`](crate::tunnels::OpenRequest::digest).
    pub opened_with: Option<(Tags, String)>,
    /// When the answer came.
    pub at: Mono,
    /// The same by the local clock.
    pub wall: Timestamp,
    /// The Secrets that were written with them, each as the spec wanted it then. (Somebody may take labels off a Secret
    /// at once; and the spec may be edited meanwhile.)
    pub written: Vec<SecretSpec>,
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
    /// The status says so.
    pub told: bool,
}

impl Memory {
    /// Of a Tunnel that is seen for the first time.
    pub fn new(saw_creation: bool, now: Mono) -> Self {
        Self(Remembered { saw_creation, first_seen: now, ..Remembered::default() })
    }

    /// From its content: for tests and the model checker, which keep it as plain values.
    pub fn restore(content: Remembered) -> Self {
        Self(content)
    }

    /// Its content: what [`Memory::restore`] takes.
    pub fn into_inner(self) -> Remembered {
        self.0
    }

    /// Whether a process that does not lead has something to finish all the same: tokens in hand, or a Rotate of
    /// its own that may have revoked those of a Ready Tunnel, which nobody else knows.
    pub fn is_in_hand(&self, object: &Object) -> bool {
        self.answer.is_some() || self.owes_rotation(object)
    }

    /// Whether a late Rotate of this process may have revoked the tokens of a Ready Tunnel.
    pub fn owes_rotation(&self, object: &Object) -> bool {
        let late = self.rotating.late.is_some_and(|generation| generation < object.record.token_generation);
        late && object.record.is_ready() && object.goal() == Goal::Open
    }
}

impl Deref for Memory {
    type Target = Remembered;

    fn deref(&self) -> &Remembered {
        &self.0
    }
}
