//! The end: by what AWS tells, by the lifetime, by deletion.

use super::opening::Absence;
use super::waiting::until_at_most;
use super::{Case, later, signed};
use crate::clock;
use crate::memory::AnswerOf;
use crate::pacer::Turn;
use crate::record::{Change, RecordedTunnel};
use crate::step::{Report, Step, Wait};
use crate::tunnels::{InAccount, Life, TunnelRef};
use jiff::Timestamp;
use opentunnel_api::{DeletionPolicy, Reason, TunnelState};

impl Case<'_> {
    /// Its tunnel is in another account or region than this operator's: nothing that AWS tells here is
    /// about it. It ends by itself.
    pub(super) fn leave_alone(&self, tunnel: &RecordedTunnel) -> Step {
        let ended = tunnel.state == TunnelState::Closed || self.now.wall >= tunnel.expires_at;
        if self.object.deleted_at.is_some() && ended {
            return if self.object.record.finalizer { Step::RemoveFinalizer } else { Step::Wait(Wait::default()) };
        }
        if tunnel.state == TunnelState::Closed {
            return self.rest();
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
    pub(super) fn has_ended(&self, tunnel: &RecordedTunnel) -> Option<(Reason, Timestamp)> {
        let unknown = |since| self.described(&tunnel.reference.id).is_none_or(|d| d.asked < since);
        let over = self.memory.ending.expired.is_some_and(unknown)
            && self.facts.reads_fail.is_some()
            && self.now.wall >= later(tunnel.expires_at, clock::TOLERANCE);
        self.described_end(tunnel).or_else(|| over.then_some((Reason::Expired, tunnel.expires_at)))
    }

    /// Whether AWS has told that the tunnel is closed. Not-found counts only once the tunnel is older
    /// than the recovery grace: a listing may lag behind OpenTunnel.
    fn described_end(&self, tunnel: &RecordedTunnel) -> Option<(Reason, Timestamp)> {
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
    pub(super) fn end(&self, reason: Reason, closed_at: Timestamp) -> Step {
        self.delete_secret().unwrap_or(Step::Record(Change::Ended { reason, closed_at }))
    }

    /// It has ended, and nothing more follows.
    pub(super) fn rest(&self) -> Step {
        if let Some(step) = self.delete_secret() {
            return step;
        }
        let report = self.object.record.reported.map(|reason| Report { reason, message: String::new() });
        self.wait(report, Wait::default())
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
        let own = recorded.filter(|t| !ending.foreign.contains(&t.reference.id));
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
            let away = self.memory.backoff.failure.is_some()
                || self.facts.reads_fail.is_some()
                || self.facts.turns.close == Turn::Waiting;
            if over && away {
                return Step::RemoveFinalizer;
            }
            if let Some(step) = self.backing_off() {
                return until_at_most(step, ends_at);
            }
            let retain = self.object.spec.deletion_policy == DeletionPolicy::Retain && was_ready;
            if retain && named.is_some() {
                return self.identified(&tunnel, opened_at, |tunnel| Step::Untag { tunnel, opened_at });
            }
            return until_at_most(self.close(tunnel, opened_at), ends_at);
        }
        let down = ending.down.unwrap_or(self.now.mono);
        let absence = match (recorded, self.search) {
            (None, _) => self.absence(),
            (Some(t), _) if was_ready || t.state == TunnelState::Closed => Absence::Known,
            // Adopted and never Ready: more than one may have been found.
            (Some(_), Some(search)) if search.started >= down => Absence::Known,
            (Some(_), _) => Absence::Unknown { from: down, until: down },
        };
        match absence {
            Absence::Unknown { from, until } if !over => {
                until_at_most(self.search(from, until, Reason::Closing, down), ends_at)
            }
            _ => Step::RemoveFinalizer,
        }
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
