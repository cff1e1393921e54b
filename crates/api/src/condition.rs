//! The conditions of a Tunnel, and the reasons of the main one.

use crate::Time;
use jiff::Timestamp;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The types of the conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// The main one, while the Tunnel has or wants an open tunnel.
    Ready,
    /// The main one, when nothing more follows by the spec.
    Ended,
    /// Beside `Ready: False`, only while True: the operator is at it.
    Reconciling,
    /// Beside `Ready: False`, only while True: it needs a person.
    Stalled,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One aspect of the state, in the shape of `metav1.Condition`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Ready`, `Ended`, `Reconciling` or `Stalled`.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub type_: String,
    /// `True` or `False`.
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// The `metadata.generation` that this condition speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    #[schemars(with = "Time")]
    pub last_transition_time: Timestamp,
    /// Why, in one word: a [`Reason`].
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// The reasons of the main condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Ready: the tunnel is open and its live tokens are in the Secrets.
    Open,
    /// OpenTunnel is queued or in flight for longer than 5 s.
    Opening,
    /// AWS's account limit holds all openings back.
    LimitExceeded,
    /// A call to AWS fails without an answer, with a 5xx or by throttling.
    AwsUnavailable,
    /// New tokens are being made.
    Rotating,
    /// The tunnel is closed because the spec changed, and a new one is opened.
    Recreating,
    /// The tunnel is being closed.
    Closing,
    /// AWS refuses the credentials or their rights.
    AccessDenied,
    /// AWS refuses what the spec says.
    InvalidRequest,
    /// A Secret of a wanted name belongs to somebody else.
    SecretConflict,
    /// What the operator writes into a Secret does not stay.
    SecretModified,
    /// The tunnel is in another account or region than the operator's.
    WrongAccount,
    /// Ended: the lifetime ran out.
    Expired,
    /// Ended: closed by somebody else.
    Closed,
    /// Ended: closed because of `spec.suspend`.
    Suspended,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::Open,
        Self::Opening,
        Self::LimitExceeded,
        Self::AwsUnavailable,
        Self::Rotating,
        Self::Recreating,
        Self::Closing,
        Self::AccessDenied,
        Self::InvalidRequest,
        Self::SecretConflict,
        Self::SecretModified,
        Self::WrongAccount,
        Self::Expired,
        Self::Closed,
        Self::Suspended,
    ];

    /// The reason that a condition's text names.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.to_string() == text)
    }

    /// Nothing more follows: the main condition is `Ended`, not `Ready`.
    pub fn is_end(self) -> bool {
        self.kind() == Kind::End
    }

    /// A person has to do something: the condition `Stalled` stands beside.
    pub fn is_stalled(self) -> bool {
        self.kind() == Kind::Stalled
    }

    fn kind(self) -> Kind {
        match self {
            Self::Open => Kind::Ready,
            Self::Opening
            | Self::LimitExceeded
            | Self::AwsUnavailable
            | Self::Rotating
            | Self::Recreating
            | Self::Closing => Kind::Reconciling,
            Self::AccessDenied
            | Self::InvalidRequest
            | Self::SecretConflict
            | Self::SecretModified
            | Self::WrongAccount => Kind::Stalled,
            Self::Expired | Self::Closed | Self::Suspended => Kind::End,
        }
    }
}

/// What a reason makes of the conditions.
#[derive(PartialEq)]
enum Kind {
    Ready,
    Reconciling,
    Stalled,
    End,
}

// A reason that is not in the list would not be read back.
const _: () = assert!(Reason::ALL.len() == Reason::Suspended as usize + 1);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
