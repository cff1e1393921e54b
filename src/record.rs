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
mod tests {
    use super::*;
    use crate::tunnels::{Owner, TunnelId};

    const LIFETIME: SignedDuration = SignedDuration::from_mins(60);

    fn at(milli: i64) -> Timestamp {
        Timestamp::from_millisecond(milli).unwrap()
    }

    fn tunnel(id: &str) -> TunnelRef {
        TunnelRef { id: TunnelId(id.into()), arn: format!("arn:{id}") }
    }

    fn secrets(sha256: &str) -> Vec<SecretStatus> {
        vec![SecretStatus { name: "a".into(), sha256: sha256.into() }]
    }

    fn opened() -> Change {
        Change::Opened { opening: opening(at(1_500)), generation: 1, secrets: secrets("1") }
    }

    fn opening(at: Timestamp) -> Opening {
        let (tunnel, attempt) = (tunnel("t"), Attempt("own".into()));
        Opening { tunnel, at, attempt, opened_with: "with".into(), tag_keys: vec!["team".into()], handled: None }
    }

    fn rotated(sha256: &str) -> Change {
        Change::Rotated { secrets: secrets(sha256), handled: None }
    }

    fn adopted() -> Change {
        let attempt = Attempt("a".into());
        let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "u".into(), attempt };
        let found = Found { tunnel: tunnel("t"), owner, created_at: at(1_500), opened_with: None };
        Change::Adopted { found, generation: 2, handled: None, connections: Connections::default() }
    }

    fn rotating() -> Change {
        Change::Rotating { generation: 5, mode: ClientMode::All, redone: None }
    }

    fn ended() -> Change {
        Change::Ended { reason: Reason::Closed, closed_at: at(9_900), told: true, reopen: None }
    }

    fn report(reason: Reason) -> Change {
        Change::Report(Report { reason, message: "words".into() })
    }

    fn before() -> Record {
        Record { finalizer: true, claim: Some(Attempt("own".into())), ..Record::default() }
    }

    fn after(changes: &[Change]) -> Record {
        changes.iter().fold(before(), |record, change| record.after(change, 7, LIFETIME))
    }

    fn phase(record: &Record) -> &'static str {
        match record.phase() {
            Phase::None => "none",
            Phase::Open(_) => "open",
            Phase::Ready(_) => "ready",
            Phase::Ended(_) => "ended",
        }
    }

    #[test]
    fn each_change_leads_to_its_phase() {
        let in_conflict = Report { reason: Reason::SecretConflict, message: String::new() };
        let conflict = Change::OpenedInVain { opening: opening(at(0)), generation: 1, report: in_conflict };
        for (changes, expected, reason, generation) in [
            (vec![], "none", None, 0),
            (vec![report(Reason::Opening)], "none", Some(Reason::Opening), 0),
            (vec![opened()], "ready", Some(Reason::Open), 1),
            (vec![conflict.clone()], "open", Some(Reason::SecretConflict), 1),
            (vec![conflict, rotating()], "open", Some(Reason::Rotating), 5),
            (vec![adopted()], "open", Some(Reason::Rotating), 2),
            (vec![adopted(), rotated("2")], "ready", Some(Reason::Open), 2),
            (vec![opened(), rotating()], "open", Some(Reason::Rotating), 5),
            (vec![opened(), rotating(), rotated("5")], "ready", Some(Reason::Open), 5),
            (vec![opened(), Change::SecretsUpdated(secrets("1"))], "ready", Some(Reason::Open), 1),
            (vec![opened(), report(Reason::SecretConflict)], "open", Some(Reason::SecretConflict), 1),
            (vec![opened(), report(Reason::Open)], "ready", Some(Reason::Open), 1),
            (vec![opened(), Change::OpenedAt(at(70_000))], "ready", Some(Reason::Open), 1),
            (vec![adopted(), Change::OpenedAt(at(70_000))], "open", Some(Reason::Rotating), 2),
            (vec![opened(), ended()], "ended", Some(Reason::Closed), 1),
            (vec![opened(), ended(), report(Reason::Closed)], "ended", Some(Reason::Closed), 1),
            // That AWS does not answer is told once, not with every rotation that is claimed again.
            (vec![adopted(), report(Reason::AwsUnavailable), rotating()], "open", Some(Reason::AwsUnavailable), 5),
        ] {
            let record = after(&changes);
            let is = (phase(&record), record.reported, record.token_generation);
            assert_eq!(is, (expected, reason, generation), "{changes:?}");
            assert_eq!((record.finalizer, record.claim), (before().finalizer, before().claim), "{changes:?}");
            assert_eq!(record.observed_generation, (!changes.is_empty()).then_some(7), "{changes:?}");
        }
    }

    #[test]
    fn the_secrets_are_recorded_while_they_hold_its_tokens_and_when_new_ones_are_on_the_way() {
        let recorded = |changes: &[Change]| after(changes).secrets;
        assert_eq!(recorded(&[opened()]), Some(secrets("1")));
        assert_eq!(recorded(&[opened(), rotating()]), Some(secrets("1")), "an intact one shows which side is live");
        assert_eq!(recorded(&[opened(), rotating(), rotated("5")]), Some(secrets("5")));
        assert_eq!(recorded(&[opened(), Change::SecretsUpdated(secrets("x"))]), Some(secrets("x")));
        assert_eq!(recorded(&[opened(), ended()]), None);
        assert_eq!(recorded(&[adopted()]), None, "it was never Ready");
        assert_eq!(after(&[opened()]).sha256("a"), Some("1"));
        assert_eq!(after(&[opened()]).sha256("b"), None);
    }

    #[test]
    fn times_are_whole_seconds_never_before_what_they_tell_of_and_the_end_never_before_awss() {
        let times = |changes: &[Change]| {
            let tunnel = after(changes).tunnel.unwrap();
            (tunnel.opened_at, tunnel.expires_at, tunnel.closed_at)
        };
        assert_eq!(times(&[opened()]), (at(1_000), at(3_602_000), None));
        assert_eq!(times(&[adopted()]), (at(1_000), at(3_602_000), None));
        assert_eq!(times(&[opened(), Change::OpenedAt(at(70_000))]), (at(70_000), at(3_670_000), None));
        assert_eq!(times(&[opened(), ended()]), (at(1_000), at(3_602_000), Some(at(9_000))));
        let late = Change::Opened { opening: opening(Timestamp::MAX), generation: 1, secrets: vec![] };
        assert!(after(&[late]).tunnel.is_some(), "no time is too late to be recorded");
    }

    #[test]
    fn a_corrected_time_of_opening_does_not_say_that_an_edit_of_the_spec_was_carried_out() {
        let ready = after(&[opened()]);
        let edited = |change: &Change| ready.after(change, 8, LIFETIME).observed_generation;
        assert_eq!(edited(&Change::OpenedAt(at(70_000))), Some(7));
        assert_eq!(edited(&Change::SecretsUpdated(secrets("1"))), Some(8));
    }

    #[test]
    fn a_change_of_a_tunnel_that_is_not_recorded_records_none() {
        for change in [ended(), Change::OpenedAt(at(1)), rotating()] {
            assert_eq!(phase(&after(&[change])), "none");
        }
    }

    fn closing(reason: Reason) -> Change {
        Change::Closing(reason)
    }

    fn ended_for(reason: Reason, reopen: Option<Reopen>) -> Change {
        Change::Ended { reason, closed_at: at(9_900), told: true, reopen }
    }

    fn pause(count: i32) -> Option<Reopen> {
        Some(Reopen { count, not_before: Some(at(60_000)) })
    }

    #[test]
    fn the_way_down_and_up_again_leads_through_the_phases() {
        let (suspended, recreating) = (Reason::Suspended, Reason::Recreating);
        for (changes, expected, reason, end_reason) in [
            (vec![Change::Suspended], "none", suspended, None),
            (vec![opened(), closing(suspended)], "open", Reason::Closing, Some(suspended)),
            (vec![opened(), closing(recreating)], "open", recreating, Some(recreating)),
            (
                vec![opened(), closing(suspended), report(Reason::AccessDenied)],
                "open",
                Reason::AccessDenied,
                Some(suspended),
            ),
            (vec![opened(), closing(suspended), ended_for(suspended, None)], "ended", suspended, Some(suspended)),
            (vec![opened(), closing(recreating), ended_for(recreating, None)], "ended", recreating, Some(recreating)),
            (vec![opened(), ended(), Change::Suspended], "ended", suspended, Some(suspended)),
            (vec![opened(), ended_for(Reason::Closed, pause(1))], "ended", Reason::Opening, Some(Reason::Closed)),
            (vec![opened(), ended(), opened()], "ready", Reason::Open, None),
            (vec![opened(), ended(), adopted()], "open", Reason::Rotating, None),
            // That what is written does not stay is told once, not with every rotation that is claimed again.
            (vec![opened(), report(Reason::SecretModified), rotating()], "open", Reason::SecretModified, None),
        ] {
            let record = after(&changes);
            let of = record.tunnel.as_ref().and_then(|tunnel| tunnel.end_reason);
            assert_eq!((phase(&record), record.reported, of), (expected, Some(reason), end_reason), "{changes:?}");
        }
    }

    #[test]
    fn what_is_known_of_one_tunnel_is_not_said_of_the_next() {
        let connected = || Some(Connection { status: ConnectionStatus::Connected, last_updated_at: Some(at(5_000)) });
        let seen = || Change::Connected(Connections { source: connected(), destination: None });
        let open = after(&[opened(), seen()]);
        let tunnel = open.tunnel.as_ref().unwrap();
        assert_eq!(
            (tunnel.attempt.clone(), tunnel.opened_with.as_deref()),
            (Some(Attempt("own".into())), Some("with"))
        );
        assert_eq!((open.tag_keys.len(), open.connections.source.clone()), (1, connected()));
        for end in [ended(), ended_for(Reason::Expired, None)] {
            let record = after(&[opened(), seen(), end]);
            assert_eq!((record.tag_keys.len(), record.secrets, record.connections), (0, None, Connections::default()));
        }
        let next = after(&[opened(), seen(), ended_for(Reason::Closed, pause(2)), adopted()]);
        assert_eq!((next.connections, next.tag_keys.len()), (Connections::default(), 0));
        assert_eq!(next.reopen, Some(Reopen { count: 2, not_before: None }), "it counts on");
        assert_eq!(next.tunnel.unwrap().attempt, Some(Attempt("a".into())));
        assert_eq!(after(&[opened(), ended_for(Reason::Closed, pause(2)), Change::Suspended]).reopen, None);
    }

    #[test]
    fn a_rotation_that_was_asked_for_is_handled_when_its_tokens_are_there() {
        let handled = |changes: &[Change]| after(changes).handled_rotate_at;
        let asked = |value: &str| Change::Rotated { secrets: secrets("5"), handled: Some(value.into()) };
        assert_eq!(handled(&[opened(), rotating()]), None);
        assert_eq!(handled(&[opened(), rotating(), asked("x")]).as_deref(), Some("x"));
        assert_eq!(handled(&[opened(), asked("x"), rotated("6")]).as_deref(), Some("x"), "one that nobody asked for");
        assert_eq!(handled(&[opened(), Change::RotationRefused("y".into())]).as_deref(), Some("y"));
    }

    #[test]
    fn what_says_nothing_of_an_edit_leaves_the_observed_generation() {
        let ready = after(&[opened()]);
        for change in [
            Change::TagKeys(vec!["a".into()]),
            Change::Connected(Connections::default()),
            Change::RotationRefused("x".into()),
            Change::OpenedAt(at(70_000)),
        ] {
            let record = ready.after(&change, 8, LIFETIME);
            assert_eq!((record.observed_generation, record.reported), (Some(7), Some(Reason::Open)), "{change:?}");
        }
        for change in [closing(Reason::Suspended), Change::Suspended, rotating(), ended()] {
            assert_eq!(ready.after(&change, 8, LIFETIME).observed_generation, Some(8), "{change:?}");
        }
    }

    #[test]
    fn a_tunnel_that_somebody_keeps_closing_is_opened_again_after_1_2_4_to_30_minutes() {
        let closed = |before: Option<&Reopen>| reopen(ReopenPolicy::Always, Reason::Closed, before, at(0));
        let (mut before, mut minutes) = (None, Vec::new());
        for count in 1..=8 {
            let next = closed(before.as_ref()).unwrap();
            assert_eq!(next.count, count);
            minutes.push(next.not_before.unwrap().as_second() / 60);
            before = Some(Reopen { not_before: None, ..next });
        }
        assert_eq!(minutes, [1, 2, 4, 8, 16, 30, 30, 30]);
        let expired = reopen(ReopenPolicy::Always, Reason::Expired, before.as_ref(), at(0));
        assert_eq!(expired, Some(Reopen { count: 0, not_before: None }), "one that has lived its life begins anew");
        assert_eq!(closed(expired.as_ref()).unwrap().count, 1);
        for count in [i32::MIN, -1, i32::MAX] {
            let next = closed(Some(&Reopen { count, not_before: None })).unwrap();
            assert!((1..=1001).contains(&next.count) && next.not_before > Some(at(0)), "{count}: {next:?}");
        }
        let late = reopen(ReopenPolicy::Always, Reason::Closed, None, Timestamp::MAX);
        assert!(late.is_some(), "no time is too late");
        let not_before = reopen(ReopenPolicy::Always, Reason::Closed, None, at(1)).unwrap().not_before;
        assert_eq!(not_before, Some(at(61_000)), "whole seconds, and no pause is shorter");
    }

    #[test]
    fn what_follows_an_end_is_as_the_policy_says() {
        use ReopenPolicy::{Always, Never, OnExpiry};
        for (policy, reason, follows) in [
            (Never, Reason::Expired, false),
            (Never, Reason::Closed, false),
            (OnExpiry, Reason::Expired, true),
            (OnExpiry, Reason::Closed, false),
            (Always, Reason::Expired, true),
            (Always, Reason::Closed, true),
            // These do not ask the policy.
            (Always, Reason::Suspended, false),
            (Always, Reason::Recreating, false),
        ] {
            assert_eq!(reopen(policy, reason, None, at(0)).is_some(), follows, "{policy:?}, {reason}");
        }
    }

    #[test]
    fn connections_are_news_where_they_are_not_as_recorded() {
        use ConnectionStatus::{Connected, Disconnected};
        let side = |status, second: Option<i64>| {
            Some(Connection { status, last_updated_at: second.map(|second| at(1000 * second)) })
        };
        for (now, recorded, news) in [
            (None, None, false),
            (side(Connected, Some(5)), None, true),
            (side(Connected, Some(5)), side(Connected, Some(5)), false),
            (side(Connected, Some(6)), side(Connected, Some(5)), true),
            (side(Disconnected, Some(6)), side(Connected, Some(5)), true),
            (None, side(Connected, Some(5)), true),
            // As it was recorded when it was opened: AWS's time of it says nothing.
            (side(Disconnected, Some(5)), side(Disconnected, None), false),
            (side(Connected, Some(5)), side(Disconnected, None), true),
        ] {
            let of = |side: &Option<Connection>| {
                let (source, destination) = (side.clone(), None);
                (Connections { source, destination }, Connections { source: None, destination: side.clone() })
            };
            let ((source, destination), (source_before, destination_before)) = (of(&now), of(&recorded));
            assert_eq!(source.is_news(&source_before), news, "{now:?}, {recorded:?}");
            assert_eq!(destination.is_news(&destination_before), news, "{now:?}, {recorded:?}");
        }
    }
}
