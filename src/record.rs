//! What the operator has recorded on a Tunnel, and what a status write makes of it. Pure: the model checker goes
//! through the very same changes. [`status`](crate::status) renders it.

use crate::memory::redone::Damage;
use crate::status::main_condition;
use crate::step::Report;
use crate::tunnels::{Attempt, Found, TunnelId, TunnelRef};
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use opentunnel_api::{
    ClientMode, Connection, ConnectionStatus, GENERATIONS, Reason, Reopen, ReopenPolicy, SecretStatus, TunnelState,
    TunnelStatus,
};

/// What stands on a Tunnel object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The operator's finalizer stands.
    pub finalizer: bool,
    /// The attempt that claims to open. An annotation that names another UID was copied: it is no claim.
    pub claim: Option<Attempt>,
    /// The AWS tunnel.
    pub tunnel: Option<RecordedTunnel>,
    /// `status.tokenGeneration`, 0 before the first.
    pub token_generation: i64,
    /// The Secrets that held its tokens when the Tunnel was Ready the last time. `None`: it was never Ready, or has
    /// ended.
    pub secrets: Option<Vec<SecretStatus>>,
    /// The reason of the main condition, `Ready` or `Ended`.
    pub reported: Option<Reason>,
    /// `status.observedGeneration`.
    pub observed_generation: Option<i64>,
    /// `status.tagKeys`, sorted.
    pub tag_keys: Vec<String>,
    /// `status.lastHandledRotateAt`.
    pub handled_rotate_at: Option<String>,
    /// `status.reopen`.
    pub reopen: Option<Reopen>,
    /// `status.sourceConnection` and `status.destinationConnection`.
    pub connections: Connections,
}

/// Whether the two sides are connected, as far as AWS has told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connections {
    /// The source.
    pub source: Option<Connection>,
    /// The destination.
    pub destination: Option<Connection>,
}

/// The AWS tunnel as the status has it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedTunnel {
    /// `status.tunnelId` and `status.tunnelArn`.
    pub reference: TunnelRef,
    /// `status.state`.
    pub state: TunnelState,
    /// `status.openedAt`.
    pub opened_at: Timestamp,
    /// `status.expiresAt`.
    pub expires_at: Timestamp,
    /// `status.closedAt`.
    pub closed_at: Option<Timestamp>,
    /// `status.endReason`: why it is closed, or is being closed.
    pub end_reason: Option<Reason>,
    /// `status.attempt`: the attempt that opened it.
    pub attempt: Option<Attempt>,
    /// `status.openedWith`: see [`OpenRequest::digest`](crate::tunnels::OpenRequest::digest).
    pub opened_with: Option<String>,
}

impl Connections {
    /// Of a tunnel that was just opened.
    fn none() -> Self {
        let none = || Some(Connection { status: ConnectionStatus::Disconnected, last_updated_at: None });
        Self { source: none(), destination: none() }
    }

    /// Whether what AWS tells (`self`) is something else than what is recorded.
    pub fn is_news(&self, recorded: &Self) -> bool {
        let side = |now: &Option<Connection>, before: &Option<Connection>| match (now, before) {
            (Some(now), Some(before)) if before.last_updated_at.is_none() => now.status != before.status,
            (now, before) => now != before,
        };
        side(&self.source, &recorded.source) || side(&self.destination, &recorded.destination)
    }
}

/// Where a Tunnel is in its life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase<'a> {
    /// No tunnel is recorded.
    None,
    /// A tunnel is recorded; its live tokens are not in the Secrets.
    Open(&'a RecordedTunnel),
    /// A tunnel is recorded, and its live tokens are in the Secrets.
    Ready(&'a RecordedTunnel),
    /// The tunnel has ended.
    Ended(&'a RecordedTunnel),
}

impl Phase<'_> {
    /// A tunnel is recorded that has not ended.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open(_) | Self::Ready(_))
    }
}

/// What a status write says.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A tunnel was opened, and its tokens are in the Secrets.
    Opened {
        /// Which.
        opening: Opening,
        /// The generation of its tokens.
        generation: i64,
        /// The Secrets.
        secrets: Vec<SecretStatus>,
    },
    /// A tunnel was opened, but its tokens could not be kept: they come by rotation.
    OpenedInVain {
        /// Which.
        opening: Opening,
        /// The generation of the tokens that could not be kept.
        generation: i64,
        /// Why.
        report: Report,
    },
    /// A found tunnel is adopted: its tokens come by rotation.
    Adopted {
        /// Which.
        found: Found,
        /// The generation of that rotation.
        generation: i64,
        /// The value of the annotation that asks for a rotation: this is one.
        handled: Option<String>,
        /// Whether the two sides are connected, as the search has found it.
        connections: Connections,
    },
    /// A rotation is claimed.
    Rotating {
        /// Its generation.
        generation: i64,
        /// The sides that get new tokens.
        mode: ClientMode,
        /// What was written into a Secret did not stay.
        redone: Option<Damage>,
    },
    /// The new tokens are in the Secrets.
    Rotated {
        /// The Secrets.
        secrets: Vec<SecretStatus>,
        /// The value of the annotation that asked for it.
        handled: Option<String>,
    },
    /// The Secrets are those that the spec names, with the same tokens.
    SecretsUpdated(Vec<SecretStatus>),
    /// The tunnel is about to be closed for this reason: [`Reason::Suspended`] or [`Reason::Recreating`].
    Closing(Reason),
    /// The tunnel has ended.
    Ended {
        /// [`Reason::Expired`], [`Reason::Closed`], [`Reason::Suspended`] or [`Reason::Recreating`].
        reason: Reason,
        /// When.
        closed_at: Timestamp,
        /// AWS has said so, not the local clock alone.
        told: bool,
        /// What follows: `None`: nothing.
        reopen: Option<Reopen>,
    },
    /// The Tunnel is suspended, and has no open tunnel.
    Suspended,
    /// AWS opened the tunnel at another time than was recorded.
    OpenedAt(Timestamp),
    /// The operator is about to set tags with these keys, or sets no others any more.
    TagKeys(Vec<String>),
    /// A side was connected, or is no longer.
    Connected(Connections),
    /// A rotation was asked for by an annotation, with a side that does not exist: it is not made.
    RotationRefused(String),
    /// Nothing but the reason.
    Report(Report),
}

/// A tunnel that this operator has opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Opening {
    /// Which.
    pub tunnel: TunnelRef,
    /// When, by the local clock.
    pub at: Timestamp,
    /// Under which attempt.
    pub attempt: Attempt,
    /// With what: see [`OpenRequest::digest`](crate::tunnels::OpenRequest::digest).
    pub opened_with: String,
    /// The keys of its tags, sorted.
    pub tag_keys: Vec<String>,
    /// The value of the annotation that asks for a rotation: these tokens are new enough.
    pub handled: Option<String>,
}

impl Change {
    /// Nothing that was searched for is of use any more: the Tunnel is Ready, or has ended.
    pub fn ends_search(&self) -> bool {
        use Change::{Ended, Opened, Rotated, SecretsUpdated};
        matches!(self, Opened { .. } | Rotated { .. } | SecretsUpdated(_) | Ended { .. })
    }

    /// It says nothing of an edit of the spec: that is still to be carried out.
    fn observes_nothing(&self) -> bool {
        matches!(self, Self::OpenedAt(_) | Self::TagKeys(_) | Self::Connected(_) | Self::RotationRefused(_))
    }
}

/// What follows when a tunnel has ended for `reason`. `before`: of the tunnels before it; the pauses are 1, 2, 4 … 30
/// minutes, because each opening costs money.
pub fn reopen(policy: ReopenPolicy, reason: Reason, before: Option<&Reopen>, now: Timestamp) -> Option<Reopen> {
    match (reason, policy) {
        (Reason::Expired, ReopenPolicy::OnExpiry | ReopenPolicy::Always) => Some(Reopen { count: 0, not_before: None }),
        (Reason::Closed, ReopenPolicy::Always) => {
            let count = before.map_or(0, |before| before.count.clamp(0, 1000)) + 1;
            let pause = SignedDuration::from_mins(1_i64 << (count - 1).min(5)).min(LONGEST_PAUSE);
            Some(Reopen {
                count,
                not_before: Some(whole_seconds(now.saturating_add(pause).unwrap_or(now), RoundMode::Ceil)),
            })
        }
        _ => None,
    }
}

/// The longest pause before a tunnel is opened again that somebody keeps closing.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(30);

impl Record {
    /// Reads it off a status. The finalizer and the claim stand elsewhere.
    pub fn of(status: &TunnelStatus, lifetime: SignedDuration) -> Self {
        let tunnel = status.tunnel_id.as_ref().map(|id| {
            let opened_at = status.opened_at.unwrap_or(Timestamp::UNIX_EPOCH);
            RecordedTunnel {
                reference: TunnelRef { id: TunnelId(id.clone()), arn: status.tunnel_arn.clone().unwrap_or_default() },
                state: status.state.unwrap_or(TunnelState::Open),
                opened_at,
                expires_at: status
                    .expires_at
                    .unwrap_or_else(|| opened_at.saturating_add(lifetime).unwrap_or(opened_at)),
                closed_at: status.closed_at,
                end_reason: status.end_reason.as_deref().and_then(Reason::parse),
                attempt: status.attempt.clone().map(Attempt),
                opened_with: status.opened_with.clone(),
            }
        });
        let mut tag_keys = status.tag_keys.clone().unwrap_or_default();
        tag_keys.sort();
        Self {
            tunnel,
            token_generation: status.token_generation.filter(|g| GENERATIONS.contains(g)).unwrap_or_default(),
            secrets: status.secrets.clone(),
            reported: status.conditions.as_deref().and_then(main_condition).and_then(|c| Reason::parse(&c.reason)),
            observed_generation: status.observed_generation,
            tag_keys,
            handled_rotate_at: status.last_handled_rotate_at.clone(),
            reopen: status.reopen.clone(),
            connections: Connections {
                source: status.source_connection.clone(),
                destination: status.destination_connection.clone(),
            },
            ..Self::default()
        }
    }

    /// The fields of a status that hold it; the conditions are not among them.
    pub fn fields(&self) -> TunnelStatus {
        let tunnel = self.tunnel.as_ref();
        TunnelStatus {
            observed_generation: self.observed_generation,
            tunnel_id: tunnel.map(|t| t.reference.id.to_string()),
            tunnel_arn: tunnel.map(|t| t.reference.arn.clone()),
            state: tunnel.map(|t| t.state),
            opened_at: tunnel.map(|t| t.opened_at),
            expires_at: tunnel.map(|t| t.expires_at),
            closed_at: tunnel.and_then(|t| t.closed_at),
            end_reason: tunnel.and_then(|t| t.end_reason).map(|reason| reason.to_string()),
            attempt: tunnel.and_then(|t| t.attempt.as_ref()).map(ToString::to_string),
            opened_with: tunnel.and_then(|t| t.opened_with.clone()),
            source_connection: self.connections.source.clone(),
            destination_connection: self.connections.destination.clone(),
            tag_keys: (!self.tag_keys.is_empty()).then(|| self.tag_keys.clone()),
            last_handled_rotate_at: self.handled_rotate_at.clone(),
            reopen: self.reopen.clone(),
            secrets: self.secrets.clone(),
            token_generation: (self.token_generation > 0).then_some(self.token_generation),
            conditions: None,
        }
    }

    /// Where the Tunnel is in its life.
    pub fn phase(&self) -> Phase<'_> {
        match &self.tunnel {
            None => Phase::None,
            Some(tunnel) if tunnel.state == TunnelState::Closed => Phase::Ended(tunnel),
            Some(tunnel) if self.is_ready() => Phase::Ready(tunnel),
            Some(tunnel) => Phase::Open(tunnel),
        }
    }

    /// The main condition is `Ready: True`.
    pub fn is_ready(&self) -> bool {
        self.reported == Some(Reason::Open)
    }

    /// The SHA-256 that is recorded of a Secret.
    pub fn sha256(&self, name: &str) -> Option<&str> {
        self.secrets.iter().flatten().find(|s| s.name == name).map(|s| s.sha256.as_str())
    }

    /// Another tunnel is recorded: what was known of the one before is of no use.
    fn begins(&mut self) {
        self.connections = Connections::default();
        self.secrets = None;
        if let Some(reopen) = &mut self.reopen {
            reopen.not_before = None;
        }
    }

    /// No tunnel is open.
    fn ends(&mut self) {
        self.secrets = None;
        self.connections = Connections::default();
        self.tag_keys.clear();
    }

    /// What stands on the object after a status write. `generation` and `lifetime` are the spec's.
    pub fn after(&self, change: &Change, generation: i64, lifetime: SignedDuration) -> Self {
        let mut record = self.clone();
        if !change.observes_nothing() {
            record.observed_generation = Some(generation);
        }
        match change {
            Change::Opened { opening, generation, .. } | Change::OpenedInVain { opening, generation, .. } => {
                record.tunnel = Some(RecordedTunnel {
                    attempt: Some(opening.attempt.clone()),
                    opened_with: Some(opening.opened_with.clone()),
                    ..RecordedTunnel::open(&opening.tunnel, opening.at, lifetime)
                });
                record.token_generation = *generation;
                record.tag_keys = opening.tag_keys.clone();
                record.handled_rotate_at = opening.handled.clone();
                record.begins();
                // Nobody can be connected yet: it costs no write to say so.
                record.connections = Connections::none();
            }
            Change::Adopted { found, generation, handled, connections } => {
                record.tunnel = Some(RecordedTunnel {
                    attempt: Some(found.owner.attempt.clone()),
                    opened_with: found.opened_with.clone(),
                    ..RecordedTunnel::open(&found.tunnel, found.created_at, lifetime)
                });
                record.token_generation = *generation;
                record.handled_rotate_at = handled.clone();
                record.begins();
                record.connections = connections.clone();
            }
            Change::Rotating { generation, .. } => record.token_generation = *generation,
            Change::Rotated { handled, .. } => {
                record.handled_rotate_at = handled.clone().or(record.handled_rotate_at);
            }
            Change::RotationRefused(value) => record.handled_rotate_at = Some(value.clone()),
            Change::Closing(reason) => record.tunnel.iter_mut().for_each(|t| t.end_reason = Some(*reason)),
            Change::Ended { reason, closed_at, reopen, .. } => {
                if let Some(tunnel) = &mut record.tunnel {
                    (tunnel.state, tunnel.closed_at) = (TunnelState::Closed, Some(floor(*closed_at)));
                    tunnel.end_reason = Some(*reason);
                }
                record.reopen = reopen.clone();
                record.ends();
            }
            Change::Suspended => {
                record.tunnel.iter_mut().for_each(|t| t.end_reason = Some(Reason::Suspended));
                record.reopen = None;
                record.ends();
            }
            Change::OpenedAt(at) => {
                if let Some(tunnel) = &mut record.tunnel {
                    let times = RecordedTunnel::open(&tunnel.reference, *at, lifetime);
                    (tunnel.opened_at, tunnel.expires_at) = (times.opened_at, times.expires_at);
                }
            }
            Change::TagKeys(keys) => record.tag_keys = keys.clone(),
            Change::Connected(connections) => record.connections = connections.clone(),
            Change::SecretsUpdated(_) | Change::Report(_) => {}
        }
        if let Change::Opened { secrets, .. } | Change::Rotated { secrets, .. } | Change::SecretsUpdated(secrets) =
            change
        {
            record.secrets = Some(secrets.clone());
            record.tunnel.iter_mut().for_each(|t| t.end_reason = None);
        }
        record.reported = match change {
            Change::Opened { .. } | Change::Rotated { .. } | Change::SecretsUpdated(_) => Some(Reason::Open),
            // Claimed again after AWS did not answer: that is told once.
            Change::Rotating { .. }
                if matches!(self.reported, Some(Reason::AwsUnavailable | Reason::SecretModified)) =>
            {
                self.reported
            }
            Change::Adopted { .. } | Change::Rotating { .. } => Some(Reason::Rotating),
            Change::Closing(Reason::Recreating) => Some(Reason::Recreating),
            Change::Closing(_) => Some(Reason::Closing),
            Change::Ended { reopen: Some(_), .. } => Some(Reason::Opening),
            Change::Ended { reason, .. } => Some(*reason),
            Change::Suspended => Some(Reason::Suspended),
            Change::OpenedInVain { report, .. } | Change::Report(report) => Some(report.reason),
            Change::OpenedAt(_) | Change::TagKeys(_) | Change::Connected(_) | Change::RotationRefused(_) => {
                self.reported
            }
        };
        record
    }
}

impl RecordedTunnel {
    /// Why the operator is closing it, once that stands in the status: [`Reason::Suspended`] or [`Reason::Recreating`].
    pub fn closes_for(&self) -> Option<Reason> {
        self.end_reason.filter(|reason| matches!(reason, Reason::Suspended | Reason::Recreating))
    }

    fn open(reference: &TunnelRef, at: Timestamp, lifetime: SignedDuration) -> Self {
        let opened_at = floor(at);
        let expires_at = at.saturating_add(lifetime).unwrap_or(at);
        Self {
            reference: reference.clone(),
            state: TunnelState::Open,
            opened_at,
            // Never before AWS's own end: whoever asks then would be told that it is open.
            expires_at: whole_seconds(expires_at, RoundMode::Ceil),
            closed_at: None,
            end_reason: None,
            attempt: None,
            opened_with: None,
        }
    }
}

/// Kubernetes' times have whole seconds; a time that has been is never in the future.
pub fn floor(time: Timestamp) -> Timestamp {
    whole_seconds(time, RoundMode::Floor)
}

fn whole_seconds(time: Timestamp, mode: RoundMode) -> Timestamp {
    time.round(TimestampRound::new().smallest(Unit::Second).mode(mode)).unwrap_or(time)
}

#[cfg(test)]
mod tests;
