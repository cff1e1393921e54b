//! A tunnel is recorded, and was open when AWS was asked the last time.

use super::Case;
use crate::clock::{self, Mono};
use crate::memory::RotationStage;
use crate::record::{Change, RecordedTunnel};
use crate::step::{Lane, Need, Report, Step, Wait};
use crate::tunnels::{Life, TunnelId, TunnelRef};
use jiff::Timestamp;
use opentunnel_api::{ClientMode, Reason};
use std::time::Duration;

impl Case<'_> {
    /// What comes first, whether its tokens are in the Secrets or not.
    pub(super) fn look_after(&self, tunnel: &RecordedTunnel) -> Option<Step> {
        if let Some((reason, closed_at)) = self.has_ended(tunnel) {
            return Some(self.end(reason, closed_at));
        }
        if let Some(Life::Open { created_at }) = self.described(&tunnel.reference.id).map(|d| d.life)
            && created_at.duration_since(tunnel.opened_at).abs() > clock::TOLERANCE
        {
            return Some(Step::Record(Change::OpenedAt(created_at)));
        }
        if let Some(since) = self.memory.ending.expired
            && self.described(&tunnel.reference.id).is_none_or(|d| d.asked < since)
        {
            let until = Some(self.now.mono + clock::TOLERANCE.unsigned_abs());
            let need = Some(Need::Describe(tunnel.reference.id.clone()));
            return Some(Step::Wait(Wait { need, until, lane: None }));
        }
        (!self.object.record.finalizer).then_some(Step::RestoreFinalizer)
    }

    pub(super) fn keep_ready(&self, tunnel: &RecordedTunnel) -> Step {
        if self.foreign_secret().is_some() {
            return Step::Record(Change::Report(self.conflict()));
        }
        // A Rotate of ours that ended late may have revoked the tokens that were made after it.
        let needed =
            if self.memory.owes_rotation(self.object) { Some(self.object.client_mode()) } else { self.to_rotate() };
        if let Some(mode) = needed {
            return self.claim_rotation(mode);
        }
        if let Some(step) = self.wait_for_termination() {
            return step;
        }
        if !self.fit_the_spec() {
            return self.try_create().unwrap_or_else(|| Step::Reuse {
                tunnel: tunnel.reference.clone(),
                tokens: self.recorded_tokens(),
                generation: self.object.record.token_generation,
            });
        }
        let until = self.memory.ending.expired.is_none().then(|| self.at(tunnel.expires_at));
        let report = Report { reason: Reason::Open, message: String::new() };
        self.wait(Some(report), Wait { until, ..Wait::default() })
    }

    /// The live tokens are not in the Secrets: they are rotated in. This is the one way of recovery; what
    /// stands in a Secret is never believed about AWS.
    pub(super) fn make_ready(&self, tunnel: &RecordedTunnel) -> Step {
        let (memory, id) = (self.memory, &tunnel.reference.id);
        let since = memory.rotating.unfinished.map_or(self.now.mono, |(_, since)| since);
        let unsearched = self.search.is_none_or(|s| s.started < since);
        let mut surplus = self.found().filter(|f| f.tunnel.id != *id);
        // No tokens are made; but a second tunnel does not wait for a Secret's name.
        if self.foreign_secret().is_some() {
            let backing_off = memory.backoff.failure.as_ref().is_some_and(|f| self.now.mono < f.retry_at);
            return match surplus.next().filter(|_| !backing_off) {
                Some(surplus) => self.close(surplus.tunnel.clone(), surplus.created_at),
                None if unsearched && memory.rotating.own.is_none() => {
                    self.look_for(since, since, Some(self.conflict()), self.retry_name())
                }
                None => self.wait_for_name(),
            };
        }
        let surplus = surplus.next();
        if let Some(step) = self.describe_refused(surplus.map_or(id, |surplus| &surplus.tunnel.id)) {
            return step;
        }
        if let Some(step) = self.backing_off() {
            return step;
        }
        if let Some(surplus) = surplus {
            return self.close(surplus.tunnel.clone(), surplus.created_at);
        }
        let free = match memory.rotating.own.map(|r| (r, r.stage)) {
            Some((rotation, RotationStage::Claimed)) => {
                return self.identified(&tunnel.reference, tunnel.opened_at, |tunnel| {
                    self.in_lane(Lane::Rotate, || {
                        self.fresh(Step::Rotate {
                            tunnel,
                            mode: rotation.mode,
                            generation: self.object.record.token_generation,
                            others: rotation.others_live.then(|| self.recorded_tokens()),
                        })
                    })
                });
            }
            Some((_, RotationStage::Doubt(called))) => called + self.limits.recovery_grace,
            Some((_, RotationStage::Lost)) => self.now.mono,
            // Somebody else's, who may have left more than one tunnel behind.
            None if unsearched => return self.search(since, since, Reason::Rotating, since),
            None => since + self.limits.recovery_grace,
        };
        if self.now.mono < free {
            return self.wait(None, Wait { until: Some(free), ..Wait::default() });
        }
        // Nobody knows which sides have live tokens: all are made anew.
        self.claim_rotation(self.object.client_mode())
    }

    fn claim_rotation(&self, mode: ClientMode) -> Step {
        if let Some(step) = self.backing_off() {
            return step;
        }
        self.in_lane(Lane::Rotate, || {
            let generation = self.generation_above(self.object.record.token_generation);
            self.try_create().unwrap_or(Step::Record(Change::Rotating { generation, mode }))
        })
    }

    pub(super) fn close(&self, tunnel: TunnelRef, opened_at: Timestamp) -> Step {
        self.identified(&tunnel, opened_at, |tunnel| self.in_lane(Lane::Close, || Step::Close { tunnel, opened_at }))
    }

    /// Does something to a tunnel that is known to be this Tunnel's according to AWS (with the ARN that AWS told).
    /// A status is no proof: it may have been copied, restored from a backup or written by somebody, who would otherwise
    /// get the tokens of any tunnel, or have it closed. AWS is asked once in the life of a process, and never about
    /// a tunnel that this process opened or found.
    pub(super) fn identified(
        &self,
        tunnel: &TunnelRef,
        opened_at: Timestamp,
        act: impl FnOnce(TunnelRef) -> Step,
    ) -> Step {
        match self.known_own(&tunnel.id) {
            Some(own) => act(own),
            None => Step::Identify { tunnel: tunnel.clone(), opened_at },
        }
    }

    fn known_own(&self, id: &TunnelId) -> Option<TunnelRef> {
        let found = || self.search.into_iter().flat_map(|s| &s.found).map(|f| &f.tunnel).find(|t| t.id == *id);
        self.memory.owned.iter().find(|t| t.id == *id).or_else(found).cloned()
    }

    /// AWS refused a call on a known tunnel, and has not said since whether the tunnel is open: what a rotation or a
    /// second close of a closed tunnel answers is not documented.
    pub(super) fn describe_refused(&self, id: &TunnelId) -> Option<Step> {
        let failure = self.memory.backoff.failure.as_ref().filter(|f| f.reason == Reason::InvalidRequest)?;
        let unknown = self.described(id).is_none_or(|d| d.asked < failure.at) && self.facts.reads_fail.is_none();
        let until = Some(failure.retry_at);
        (unknown && self.now.mono < failure.retry_at)
            .then(|| Step::Wait(Wait { need: Some(Need::Describe(id.clone())), until, lane: None }))
    }

    /// A time of the wall's clock by the process's own.
    pub(super) fn at(&self, time: Timestamp) -> Mono {
        self.now.mono + Duration::try_from(time.duration_since(self.now.wall)).unwrap_or_default()
    }
}
