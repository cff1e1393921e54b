//! What the operator has recorded on a Tunnel, and what a status write makes of it. Pure: the model checker goes
//! through the very same changes. [`status`](crate::status) renders it.

use crate::status::main_condition;
use crate::step::Report;
use crate::tunnels::{Attempt, Found, TunnelId, TunnelRef};
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use opentunnel_api::{ClientMode, GENERATIONS, Reason, SecretStatus, TunnelState, TunnelStatus};

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

/// What a status write says.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A tunnel was opened, and its tokens are in the Secrets.
    Opened {
        /// Which.
        tunnel: TunnelRef,
        /// When, by the local clock.
        at: Timestamp,
        /// The generation of its tokens.
        generation: i64,
        /// The Secrets.
        secrets: Vec<SecretStatus>,
    },
    /// A tunnel was opened, but a Secret is somebody else's: its tokens come by rotation when the name is free.
    OpenedInConflict {
        /// Which.
        tunnel: TunnelRef,
        /// When, by the local clock.
        at: Timestamp,
        /// The generation of the tokens that could not be kept.
        generation: i64,
    },
    /// A found tunnel is adopted: its tokens come by rotation.
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
    /// The new tokens are in the Secrets.
    Rotated(Vec<SecretStatus>),
    /// The Secrets are those that the spec names, with the same tokens.
    SecretsUpdated(Vec<SecretStatus>),
    /// The tunnel has ended.
    Ended {
        /// [`Reason::Expired`] or [`Reason::Closed`].
        reason: Reason,
        /// When.
        closed_at: Timestamp,
    },
    /// AWS opened the tunnel at another time than was recorded.
    OpenedAt(Timestamp),
    /// Nothing but the reason.
    Report(Report),
}

impl Change {
    /// Nothing that was searched for is of use any more: the Tunnel is Ready, or has ended.
    pub fn ends_search(&self) -> bool {
        matches!(self, Self::Opened { .. } | Self::Rotated(_) | Self::SecretsUpdated(_) | Self::Ended { .. })
    }
}

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
            }
        });
        Self {
            tunnel,
            token_generation: status.token_generation.filter(|g| GENERATIONS.contains(g)).unwrap_or_default(),
            secrets: status.secrets.clone(),
            reported: status.conditions.as_deref().and_then(main_condition).and_then(|c| Reason::parse(&c.reason)),
            observed_generation: status.observed_generation,
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

    /// What stands on the object after a status write. `generation` and `lifetime` are the spec's.
    pub fn after(&self, change: &Change, generation: i64, lifetime: SignedDuration) -> Self {
        let mut record = Self { observed_generation: Some(generation), ..self.clone() };
        match change {
            Change::Opened { tunnel, at, generation, .. } | Change::OpenedInConflict { tunnel, at, generation } => {
                record.tunnel = Some(RecordedTunnel::open(tunnel, *at, lifetime));
                record.token_generation = *generation;
            }
            Change::Adopted { found, generation } => {
                record.tunnel = Some(RecordedTunnel::open(&found.tunnel, found.created_at, lifetime));
                record.token_generation = *generation;
            }
            Change::Rotating { generation, .. } => record.token_generation = *generation,
            Change::Ended { closed_at, .. } => {
                if let Some(tunnel) = &mut record.tunnel {
                    (tunnel.state, tunnel.closed_at) = (TunnelState::Closed, Some(floor(*closed_at)));
                }
                record.secrets = None;
            }
            Change::OpenedAt(at) => {
                // It says nothing of an edit of the spec: that is still to be carried out.
                record.observed_generation = self.observed_generation;
                if let Some(tunnel) = &mut record.tunnel {
                    *tunnel = RecordedTunnel::open(&tunnel.reference, *at, lifetime);
                }
            }
            Change::Rotated(_) | Change::SecretsUpdated(_) | Change::Report(_) => {}
        }
        if let Change::Opened { secrets, .. } | Change::Rotated(secrets) | Change::SecretsUpdated(secrets) = change {
            record.secrets = Some(secrets.clone());
        }
        record.reported = match change {
            Change::Opened { .. } | Change::Rotated(_) | Change::SecretsUpdated(_) => Some(Reason::Open),
            Change::OpenedInConflict { .. } => Some(Reason::SecretConflict),
            // Claimed again after AWS did not answer: that is told once.
            Change::Rotating { .. } if self.reported == Some(Reason::AwsUnavailable) => self.reported,
            Change::Adopted { .. } | Change::Rotating { .. } => Some(Reason::Rotating),
            Change::Ended { reason, .. } => Some(*reason),
            Change::Report(report) => Some(report.reason),
            Change::OpenedAt(_) => self.reported,
        };
        record
    }
}

impl RecordedTunnel {
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
        Change::Opened { tunnel: tunnel("t"), at: at(1_500), generation: 1, secrets: secrets("1") }
    }

    fn adopted() -> Change {
        let attempt = Attempt("a".into());
        let owner = Owner { cluster: "c".into(), namespace: "edge".into(), uid: "u".into(), attempt };
        Change::Adopted { found: Found { tunnel: tunnel("t"), owner, created_at: at(1_500) }, generation: 2 }
    }

    fn rotating() -> Change {
        Change::Rotating { generation: 5, mode: ClientMode::All }
    }

    fn ended() -> Change {
        Change::Ended { reason: Reason::Closed, closed_at: at(9_900) }
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
        let conflict = Change::OpenedInConflict { tunnel: tunnel("t"), at: at(0), generation: 1 };
        for (changes, expected, reason, generation) in [
            (vec![], "none", None, 0),
            (vec![report(Reason::Opening)], "none", Some(Reason::Opening), 0),
            (vec![opened()], "ready", Some(Reason::Open), 1),
            (vec![conflict.clone()], "open", Some(Reason::SecretConflict), 1),
            (vec![conflict, rotating()], "open", Some(Reason::Rotating), 5),
            (vec![adopted()], "open", Some(Reason::Rotating), 2),
            (vec![adopted(), Change::Rotated(secrets("2"))], "ready", Some(Reason::Open), 2),
            (vec![opened(), rotating()], "open", Some(Reason::Rotating), 5),
            (vec![opened(), rotating(), Change::Rotated(secrets("5"))], "ready", Some(Reason::Open), 5),
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
        assert_eq!(recorded(&[opened(), rotating(), Change::Rotated(secrets("5"))]), Some(secrets("5")));
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
        let late = Change::Opened { tunnel: tunnel("t"), at: Timestamp::MAX, generation: 1, secrets: vec![] };
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
}
