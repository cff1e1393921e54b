//! The end: by AWS's word, by the lifetime, by deletion.

use super::super::decision::{Change, Decision, Need, Report, Wait};
use super::super::observe::{AnswerOf, SecretState};
use super::super::validate::RecordedTunnel;
use super::waiting::until_at_most;
use super::{Absence, Case, later, signed};
use crate::clock;
use crate::crd::{DeletionPolicy, Reason, State};
use crate::pacer::Turn;
use crate::tunnels::{Home, Word};
use jiff::Timestamp;

impl Case<'_> {
    /// Its tunnel is in another account or region than this operator's: nothing that AWS says here is
    /// about it. It ends by itself.
    pub(super) fn leave_alone(&self, tunnel: &RecordedTunnel) -> Decision {
        let ended = tunnel.state == State::Closed || self.now.wall >= tunnel.expires_at;
        if self.d.deleted_at.is_some() && ended {
            return if self.d.record.finalizer { Decision::Release } else { Decision::Wait(Wait::default()) };
        }
        if tunnel.state == State::Closed {
            return self.ended();
        }
        let message = format!(
            "tunnel {} is in another AWS account or region than this operator's ({}): it is left alone",
            tunnel.tunnel.id, tunnel.tunnel.arn
        );
        let until = self.d.deleted_at.map(|_| self.at(tunnel.expires_at));
        self.wait(Some(Report { reason: Reason::WrongAccount, message }), Wait { until, ..Wait::default() })
    }

    /// Whether the tunnel has ended: by AWS's word, or, where AWS cannot be asked, by the local clock, which may
    /// end Ready and never opens anything.
    pub(super) fn has_ended(&self, tunnel: &RecordedTunnel) -> Option<(Reason, Timestamp)> {
        let unheard = |since| self.o.heard.is_none_or(|h| h.asked < since);
        let over = self.o.memory.expired.is_some_and(unheard)
            && self.o.reads_fail.is_some()
            && self.now.wall >= later(tunnel.expires_at, clock::TOLERANCE);
        self.heard_end(tunnel).or_else(|| over.then_some((Reason::Expired, tunnel.expires_at)))
    }

    /// Whether AWS has said that the tunnel is closed. Not-found counts only once the tunnel is older
    /// than the recovery grace: a listing may lag behind OpenTunnel.
    pub(super) fn heard_end(&self, tunnel: &RecordedTunnel) -> Option<(Reason, Timestamp)> {
        let heard = self.o.heard?;
        match heard.word {
            Word::Open { .. } => None,
            Word::Closed { created_at, closed_at } => {
                let expired = Word::lifetime_ran_out(created_at, closed_at, self.d.lifetime);
                Some((if expired { Reason::Expired } else { Reason::Closed }, closed_at))
            }
            Word::NotFound => {
                // Its age when AWS was asked, not its age now.
                let since_asked = self.now.mono.0.saturating_sub(heard.asked.0);
                let age = self.now.wall.duration_since(tunnel.opened_at) - signed(since_asked);
                let expired = self.now.wall >= tunnel.expires_at;
                // An account that is not known to be the tunnel's own may well not know it.
                let known = age > signed(self.limits.recovery_grace) && (expired || self.o.home == Home::Here);
                known.then(|| {
                    (if expired { Reason::Expired } else { Reason::Closed }, self.now.wall.min(tunnel.expires_at))
                })
            }
        }
    }

    /// What the Secrets hold is dead: they go first, so that no Ended Tunnel has one.
    pub(super) fn end(&self, reason: Reason, closed_at: Timestamp) -> Decision {
        self.delete_secret().unwrap_or(Decision::Record(Change::Ended { reason, closed_at }))
    }

    pub(super) fn ended(&self) -> Decision {
        if let Some(decision) = self.delete_secret() {
            return decision;
        }
        let report = self.d.record.reported.map(|reason| Report { reason, message: String::new() });
        self.wait(report, Wait::default())
    }

    fn delete_secret(&self) -> Option<Decision> {
        let index = self.o.secrets.iter().position(|s| matches!(s, SecretState::Ours { .. }));
        index.map(|index| Decision::DeleteSecret { index }).or_else(|| self.delete_former())
    }

    /// A Secret of this Tunnel's that the spec does not name any more.
    pub(super) fn delete_former(&self) -> Option<Decision> {
        let index = self.o.former.iter().position(|s| matches!(s, SecretState::Ours { .. }))?;
        Some(Decision::DeleteSecret { index: self.o.secrets.len() + index })
    }

    /// Deletion was asked for: what is open is closed (or let go), then the finalizer goes.
    pub(super) fn delete(&self) -> Decision {
        let (record, memory) = (&self.d.record, self.o.memory);
        if !record.finalizer && memory.answer.is_none() {
            return Decision::Wait(Wait::default());
        }
        let ready_once = record.ready_once;
        let open = record
            .tunnel
            .as_ref()
            .filter(|t| t.state == State::Open && !memory.closed.contains(&t.tunnel.id) && self.heard_end(t).is_none());
        // A tunnel ends by itself: no deletion hangs longer than it lives, even where AWS is away.
        let ends = record.tunnel.as_ref().map_or_else(
            || later(self.d.deleted_at.unwrap_or(self.now.wall), self.d.lifetime + signed(self.limits.aws_timeout)),
            |t| t.expires_at,
        );
        let over = self.now.wall >= ends;
        let ends_at = self.at(ends);
        let answered = memory.answer.iter().filter(|a| matches!(a.of, AnswerOf::Open(_)));
        let extra = answered
            .map(|a| (a.tunnel.clone(), a.wall))
            .chain(self.found().map(|f| (f.tunnel.clone(), f.created_at)))
            .find(|(t, _)| open.is_none_or(|o| o.tunnel.id != t.id) && !memory.closed.contains(&t.id));
        if let Some((tunnel, opened_at)) = open.map(|t| (t.tunnel.clone(), t.opened_at)).or(extra) {
            if let Some(failure) = self.refused_unheard() {
                return Decision::Wait(Wait { need: Some(Need::Describe), until: Some(failure.retry_at), lane: None });
            }
            let away = memory.failure.is_some() || self.o.reads_fail.is_some() || self.o.close == Turn::Waiting;
            if over && away {
                return Decision::Release;
            }
            if let Some(decision) = self.backing_off() {
                return until_at_most(decision, ends_at);
            }
            let retained = self.d.deletion_policy == DeletionPolicy::Retain && ready_once;
            if retained && open.is_some() {
                return Decision::Disown { tunnel, opened_at };
            }
            return until_at_most(self.close(tunnel, opened_at), ends_at);
        }
        let deleting = memory.deleting.unwrap_or(self.now.mono);
        let absence = match (&record.tunnel, &self.o.search) {
            (None, _) => self.absence(),
            (Some(t), _) if ready_once || t.state == State::Closed => Absence::Known,
            // Taken over and never Ready: more than one may have been found.
            (Some(_), Some(search)) if search.started >= deleting => Absence::Known,
            (Some(_), _) => Absence::Unknown { from: deleting, until: deleting },
        };
        match absence {
            Absence::Unknown { from, until } if !over => {
                until_at_most(self.search(from, until, Reason::Closing, deleting), ends_at)
            }
            _ => Decision::Release,
        }
    }
}
