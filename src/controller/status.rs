//! Step 5, pure: what the status says after a change, and the event that tells of it.

use super::decision::{Change, Report};
use super::observe::{Memory, SecretState};
use super::secrets::tokens_digest;
use super::validate::Desired;
use crate::clock::Now;
use crate::crd::{Condition, Reason, State, TunnelStatus};
use crate::tunnels::TunnelRef;
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde_json::{Value, json};

/// The status after `change`. `before` is the one that the decision was made on.
pub fn after(
    before: &TunnelStatus,
    change: &Change,
    desired: &Desired,
    secrets: &[SecretState],
    memory: &Memory,
    now: Now,
) -> TunnelStatus {
    let mut status = TunnelStatus { observed_generation: Some(desired.generation), ..before.clone() };
    let opened = |status: &mut TunnelStatus, tunnel: &TunnelRef, at: Timestamp| {
        status.tunnel_id = Some(tunnel.id.to_string());
        status.tunnel_arn = Some(tunnel.arn.clone());
        status.state = Some(State::Open);
        opened_at(status, desired, at);
    };
    match change {
        Change::Opened { generation } | Change::Kept { generation } => {
            if let Some(answer) = &memory.answer {
                opened(&mut status, &answer.tunnel, answer.wall);
            }
            status.token_generation = Some(*generation);
        }
        Change::Adopted { found, generation } => {
            opened(&mut status, &found.tunnel, found.created_at);
            status.token_generation = Some(*generation);
        }
        Change::Rotating { generation, .. } => status.token_generation = Some(*generation),
        Change::Ended { closed_at, .. } => {
            status.state = Some(State::Closed);
            status.closed_at = Some(seconds(*closed_at));
            status.secrets = None;
            status.tokens_digest = None;
        }
        Change::OpenedAt(at) => opened_at(&mut status, desired, *at),
        Change::Rotated | Change::Arranged | Change::Report(_) => {}
    }
    if matches!(change, Change::Opened { .. } | Change::Rotated | Change::Arranged) {
        status.secrets = Some(desired.secrets.iter().map(|s| s.name.clone()).collect());
        status.tokens_digest = tokens_digest(secrets);
    }
    if let Some(report) = report(change, desired, &status) {
        status.conditions = Some(conditions(before, &report, desired.generation, now.wall));
    }
    status
}

fn opened_at(status: &mut TunnelStatus, desired: &Desired, at: Timestamp) {
    status.opened_at = Some(seconds(at));
    // Never before AWS's own: who asks then is told that it is open.
    let end = at.saturating_add(desired.lifetime).ok();
    status.expires_at = end.map(|end| whole_seconds(end, RoundMode::Ceil));
}

/// What the main condition says after a change; `None`: what it said before.
fn report(change: &Change, desired: &Desired, status: &TunnelStatus) -> Option<Report> {
    let id = status.tunnel_id.as_deref().unwrap_or_default();
    let say = |reason, message: String| Some(Report { reason, message });
    match change {
        Change::Opened { .. } | Change::Rotated | Change::Arranged => say(Reason::Open, is_open(id)),
        Change::Adopted { .. } => say(
            Reason::Rotating,
            format!("tunnel {id}, opened by an earlier attempt, is taken over: it gets new tokens"),
        ),
        // Tried again after AWS did not answer: said once.
        Change::Rotating { .. } if desired.record.reported == Some(Reason::AwsUnavailable) => None,
        Change::Rotating { .. } => say(Reason::Rotating, format!("tunnel {id} gets new tokens")),
        Change::Ended { reason: Reason::Expired, .. } => {
            say(Reason::Expired, format!("the lifetime of tunnel {id} ran out ({} min)", desired.lifetime.as_mins()))
        }
        Change::Ended { reason, .. } => say(*reason, format!("tunnel {id} was closed by somebody else")),
        Change::Kept { .. } => say(
            Reason::SecretConflict,
            format!(
                "tunnel {id} is open, but a Secret of a name in spec.secrets ({}) is not controlled by this Tunnel, so nothing is written to it: delete or rename it",
                desired.secrets.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ")
            ),
        ),
        Change::OpenedAt(_) => None,
        // No words: the reason stays, for a new generation of the spec.
        Change::Report(report) if report.message.is_empty() => {
            let message = status.conditions.iter().flatten().next().map(|c| c.message.clone());
            say(report.reason, message.unwrap_or_else(|| is_open(id)))
        }
        Change::Report(report) => Some(report.clone()),
    }
}

fn is_open(id: &str) -> String {
    format!("tunnel {id} is open and its access tokens are in the Secrets")
}

/// The conditions for a report: the main one first, `Reconciling` and `Stalled` only while True.
fn conditions(before: &TunnelStatus, report: &Report, generation: i64, now: Timestamp) -> Vec<Condition> {
    let reason = report.reason;
    let (main, status) = match reason {
        _ if reason.is_end() => ("Ended", "True"),
        Reason::Open => ("Ready", "True"),
        _ => ("Ready", "False"),
    };
    let mut wanted = vec![(main, status)];
    if status == "False" {
        wanted.push((if reason.is_stalled() { "Stalled" } else { "Reconciling" }, "True"));
    }
    let condition = |(type_, status): (&str, &str)| {
        let same = before.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            observed_generation: Some(generation),
            last_transition_time: same.map_or_else(|| seconds(now), |c| c.last_transition_time),
            reason: reason.to_string(),
            message: report.message.clone(),
        }
    };
    wanted.into_iter().map(condition).collect()
}

/// Kubernetes' times have whole seconds; a time that has been is never in the future.
fn seconds(time: Timestamp) -> Timestamp {
    whole_seconds(time, RoundMode::Floor)
}

fn whole_seconds(time: Timestamp, mode: RoundMode) -> Timestamp {
    time.round(TimestampRound::new().smallest(Unit::Second).mode(mode)).unwrap_or(time)
}

/// The body of a merge patch that makes the status this one: what is not set is taken out.
pub fn patch(status: &TunnelStatus) -> Value {
    json!(status)
}

/// An event for a transition: type Normal or Warning, reason, note.
pub struct Note {
    /// A Warning: something needs a look.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// For people.
    pub note: String,
}

/// The event of a change: one per transition, none per retry.
pub fn event(change: &Change, status: &TunnelStatus) -> Option<Note> {
    let message = status.conditions.iter().flatten().next().map(|c| c.message.clone()).unwrap_or_default();
    let (warning, reason) = match change {
        Change::Opened { .. } => (false, "Opened".to_owned()),
        Change::Adopted { .. } => (false, "Adopted".to_owned()),
        Change::Rotated => (false, "TokensRotated".to_owned()),
        Change::Arranged => (false, "SecretsUpdated".to_owned()),
        Change::Kept { .. } => (true, Reason::SecretConflict.to_string()),
        Change::Ended { reason, .. } => (false, reason.to_string()),
        Change::Report(report) => match report.reason {
            Reason::LimitExceeded | Reason::AwsUnavailable => (true, report.reason.to_string()),
            reason if reason.is_stalled() => (true, reason.to_string()),
            _ => return None,
        },
        Change::Rotating { .. } | Change::OpenedAt(_) => return None,
    };
    Some(Note { warning, reason, note: message })
}
