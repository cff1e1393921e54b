//! The end: by what AWS tells, by the lifetime, by deletion.

use super::opening::Absence;
use super::waiting::until_at_most;
use super::{Case, later, signed};
use crate::clock;
use crate::memory::AnswerOf;
use crate::pacer::Turn;
use crate::record::{Change, Connections, Phase, RecordedTunnel, reopen};
use crate::step::{Lane, Report, Step, Wait};
use crate::tunnels::{Found, InAccount, Life, Owner, TunnelRef};
use jiff::Timestamp;
use opentunnel_api::{DeletionPolicy, Reason, TunnelState};

/// How a tunnel has ended.
pub(super) struct End {
    reason: Reason,
    closed_at: Timestamp,
    /// AWS has said so, not the local clock alone.
    told: bool,
}

impl Case<'_> {
    /// Its tunnel is in another account or region than this operator's: nothing that AWS tells here is
    /// about it. It ends by itself.
    pub(super) fn leave_alone(&self, tunnel: &RecordedTunnel) -> Step {
        let ended = tunnel.state == TunnelState::Closed || self.now.wall >= tunnel.expires_at;
        if self.object.deleted_at.is_some() && ended {
            return if self.object.record.finalizer { Step::RemoveFinalizer } else { Step::Wait(Wait::default()) };
        }
        if tunnel.state == TunnelState::Closed {
            return self.rest(tunnel);
        }
        let message = format!(
            "tunnel {} is in another AWS account or region than this operator's ({}): it is left alone",
            tunnel.reference.id, tunnel.reference.arn
        );
        let until = self.object.deleted_at.map(|_| self.at(tunnel.expires_at));
        self.wait(Some(Report { reason: Reason::WrongAccount, message }), Wait { until, ..Wait::default() })
    }

    /// Whether the tunnel has ended: by what AWS tells, or, where AWS cannot be asked, by the local clock, which may
    /// end Ready and never opens anything.
    pub(super) fn has_ended(&self, tunnel: &RecordedTunnel) -> Option<End> {
        let unknown = |since| self.described(&tunnel.reference.id).is_none_or(|d| d.asked < since);
        let over = self.memory.ending.expired.is_some_and(unknown)
            && self.facts.reads_fail.is_some()
            && self.now.wall >= later(tunnel.expires_at, clock::TOLERANCE);
        let closed = self.memory.ending.closed.contains(&tunnel.reference.id);
        let by_us = || closed.then(|| (Reason::Closed, self.now.wall.min(tunnel.expires_at)));
        let told = self.described_end(tunnel).or_else(by_us).map(|(reason, closed_at)| (reason, closed_at, true));
        let end = told.or_else(|| over.then_some((Reason::Expired, tunnel.expires_at, false)));
        // What it was being closed for is why it is closed, whoever is told so.
        end.map(|(reason, closed_at, told)| End { reason: tunnel.end_reason.unwrap_or(reason), closed_at, told })
    }

    /// Whether AWS has told that the tunnel is closed. Not-found counts only once the tunnel is older
    /// than the recovery grace: a listing may lag behind OpenTunnel.
    pub(super) fn described_end(&self, tunnel: &RecordedTunnel) -> Option<(Reason, Timestamp)> {
        let described = self.described(&tunnel.reference.id)?;
        let reason = |expired| if expired { Reason::Expired } else { Reason::Closed };
        match described.life {
            Life::Open { .. } => None,
            Life::Closed { created_at, closed_at } => {
                let expired = Life::lifetime_ran_out(created_at, closed_at, self.object.spec.lifetime);
                Some((reason(expired), closed_at))
            }
            Life::NotFound => {
                // Its age when AWS was asked, not its age now.
                let since_asked = self.now.mono.0.saturating_sub(described.asked.0);
                let age = self.now.wall.duration_since(tunnel.opened_at) - signed(since_asked);
                let expired = self.now.wall >= tunnel.expires_at;
                // An account that is not known to be the tunnel's own may well not know it.
                let own = expired || self.facts.in_account == InAccount::Yes;
                let known = own && age > signed(self.limits.recovery_grace);
                known.then(|| (reason(expired), self.now.wall.min(tunnel.expires_at)))
            }
        }
    }

    /// What the Secrets hold is dead: they go first, so that no Ended Tunnel has one.
    pub(super) fn end(&self, End { reason, closed_at, told }: End) -> Step {
        let (policy, before) = (self.object.spec.reopen_policy, self.object.record.reopen.as_ref());
        let reopen = reopen(policy, reason, before, self.now.wall);
        self.delete_secret().unwrap_or(Step::Record(Change::Ended { reason, closed_at, told, reopen }))
    }

    /// It has ended, and nothing more follows.
    pub(super) fn rest(&self, tunnel: &RecordedTunnel) -> Step {
        if let Some(step) = self.delete_secret() {
            return step;
        }
        let reported = self.object.record.reported;
        let report = match tunnel.end_reason {
            // Another was to be opened, until the spec was changed.
            Some(reason) if reported != Some(reason) && reason.is_end() => {
                let message = format!("tunnel {} is closed, and no other follows", tunnel.reference.id);
                Some(Report { reason, message })
            }
            _ => reported.map(|reason| Report { reason, message: String::new() }),
        };
        self.wait(report, Wait::default())
    }

    /// The tunnel is closed because of `reason`, [`Reason::Suspended`] or [`Reason::Recreating`].
    pub(super) fn close_for(&self, tunnel: &RecordedTunnel, reason: Reason) -> Step {
        // Its end is not written before that of another one that is in hand or was found: nobody would look for it then.
        let surplus = self.unnamed(Some(tunnel));
        if let (None, Some(end)) = (&surplus, self.has_ended(tunnel)) {
            return self.end(End { reason, ..end });
        }
        // It is Ready no more before its tokens are dead.
        if tunnel.end_reason != Some(reason) || self.object.record.is_ready() {
            return Step::Record(Change::Closing(reason));
        }
        let (close, opened_at) = surplus.unwrap_or_else(|| (tunnel.reference.clone(), tunnel.opened_at));
        if let Some(step) = self.describe_refused(&close.id) {
            return step;
        }
        if let Some(step) = self.backing_off() {
            return until_at_most(step, self.at(later(tunnel.expires_at, clock::TOLERANCE)));
        }
        self.close(close, opened_at)
    }

    /// No tunnel is wanted, and none is recorded that is open: nor may there be one that is not known.
    pub(super) fn suspend(&self) -> Step {
        let record = &self.object.record;
        // It is named before it is closed: else whoever goes on from here, and by then wants a tunnel, would adopt one
        // that a call under way is about to close.
        if let Some(found) = self.unnamed_found() {
            let generation = self.generation_above(record.token_generation + 1);
            let (handled, connections) = (record.handled_rotate_at.clone(), Connections::default());
            return Step::Record(Change::Adopted { found, generation, handled, connections });
        }
        let down = self.memory.ending.down.unwrap_or(self.now.mono);
        let reason = Reason::Suspended;
        if let Absence::Unknown { from, until } = self.absence() {
            return match record.reported {
                // That stands already: it is made sure of without a word.
                Some(reported) if reported == reason => self.look_for(from, until, None, None),
                _ => self.search(from, until, Reason::Closing, down),
            };
        }
        if let Some(step) = self.delete_secret() {
            return step;
        }
        let recorded = record.tunnel.as_ref().is_none_or(|tunnel| tunnel.end_reason == Some(reason));
        if record.reported != Some(reason) || !recorded {
            return Step::Record(Change::Suspended);
        }
        self.wait(Some(Report { reason, message: String::new() }), Wait::default())
    }

    /// Deletion was asked for: what is open is closed (or untagged), then the finalizer goes.
    pub(super) fn delete(&self) -> Step {
        let (record, ending) = (&self.object.record, &self.memory.ending);
        if !record.finalizer && self.memory.answer.is_none() {
            return Step::Wait(Wait::default());
        }
        let was_ready = record.secrets.is_some();
        let recorded = record.tunnel.as_ref();
        let named = recorded.filter(|t| {
            t.state == TunnelState::Open
                && ![&ending.closed, &ending.foreign].into_iter().any(|ids| ids.contains(&t.reference.id))
                && self.described_end(t).is_none()
        });
        // A tunnel ends by itself: no deletion hangs longer than it lives, even where AWS is away.
        let own = recorded.filter(|t| t.state == TunnelState::Open && !ending.foreign.contains(&t.reference.id));
        let ends = own.map_or_else(
            || {
                let lifetime = self.object.spec.lifetime + signed(self.limits.aws_timeout);
                later(self.object.deleted_at.unwrap_or(self.now.wall), lifetime)
            },
            |t| t.expires_at,
        );
        let over = self.now.wall >= ends;
        let ends_at = self.at(ends);
        let named_ref = named.map(|t| (t.reference.clone(), t.opened_at));
        if let Some((tunnel, opened_at)) = named_ref.or_else(|| self.unnamed(named)) {
            if let Some(step) = self.describe_refused(&tunnel.id) {
                return step;
            }
            let retain = self.object.spec.deletion_policy == DeletionPolicy::Retain && was_ready && named.is_some();
            let lane = if retain { Lane::Tag } else { Lane::Close };
            let away = self.memory.backoff.failure.is_some()
                || self.facts.reads_fail.is_some()
                || self.facts.turns.of(lane) == Turn::Waiting;
            if over && away {
                return Step::RemoveFinalizer;
            }
            if let Some(step) = self.backing_off() {
                return until_at_most(step, ends_at);
            }
            let leave = |tunnel, opened_at| {
                let untag = |tunnel| Step::Untag { tunnel, opened_at };
                self.in_lane(Lane::Tag, || self.identified(&tunnel, opened_at, untag))
            };
            let step = if retain { leave(tunnel, opened_at) } else { self.close(tunnel, opened_at) };
            return until_at_most(step, ends_at);
        }
        let down = ending.down.unwrap_or(self.now.mono);
        let absence = match (self.object.record.phase(), self.search) {
            (Phase::None, _) => self.absence(),
            // Nobody has claimed another since it ended.
            (Phase::Ended(_), _) if self.object.claim_is_settled() => Absence::Known,
            (Phase::Ended(_), _) => self.absence(),
            _ if was_ready => Absence::Known,
            // Adopted and never Ready: more than one may have been found.
            (_, Some(search)) if search.started >= down => Absence::Known,
            _ => Absence::Unknown { from: down, until: down },
        };
        match absence {
            Absence::Unknown { from, until } if !over => {
                until_at_most(self.search(from, until, Reason::Closing, down), ends_at)
            }
            _ => Step::RemoveFinalizer,
        }
    }

    /// The same, with all that is recorded of a tunnel, where none is named that is open.
    fn unnamed_found(&self) -> Option<Found> {
        let (tunnel, created_at) = self.unnamed(None)?;
        if let Some(found) = self.found().find(|found| found.tunnel.id == tunnel.id) {
            return Some(found.clone());
        }
        let answer = self.memory.answer.as_ref()?;
        let AnswerOf::Open(attempt) = &answer.of else { return None };
        let (namespace, uid) = (self.object.key.namespace.clone(), self.object.key.uid.clone());
        let owner = Owner { cluster: String::new(), namespace, uid, attempt: attempt.clone() };
        let opened_with = answer.opened_with.as_ref().map(|(_, digest)| digest.clone());
        Some(Found { tunnel, owner, created_at, opened_with })
    }

    /// A tunnel of this Tunnel's that its status does not name, and that may be open.
    fn unnamed(&self, named: Option<&RecordedTunnel>) -> Option<(TunnelRef, Timestamp)> {
        let ending = &self.memory.ending;
        let answered = self.memory.answer.iter().filter(|a| matches!(a.of, AnswerOf::Open(_)));
        // Where the status names somebody else's tunnel, its own is hidden by it.
        let is_hidden = !ending.foreign.is_empty() && self.object.spec.deletion_policy == DeletionPolicy::Close;
        let hidden = self.memory.owned.iter().filter(|_| is_hidden);
        answered
            .map(|a| (a.tunnel.clone(), a.wall))
            .chain(self.found().map(|f| (f.tunnel.clone(), f.created_at)))
            .chain(hidden.map(|t| (t.clone(), self.object.created_at)))
            .filter(|(t, _)| named.is_none_or(|n| n.reference.id != t.id) && !ending.closed.contains(&t.id))
            .find(|(t, _)| !matches!(self.described(&t.id).map(|d| d.life), Some(Life::Closed { .. })))
    }
}
