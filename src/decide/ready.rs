//! A tunnel is recorded, and was open when AWS was asked the last time.

use super::{Case, later};
use crate::clock::{self, Mono};
use crate::memory::RotationStage;
use crate::memory::redone::Damage;
use crate::record::{Change, RecordedTunnel};
use crate::step::{Lane, Need, Report, Step, Wait};
use crate::tunnels::{Details, Life, Tags, TunnelId, TunnelRef};
use jiff::{SignedDuration, Timestamp};
use opentunnel_api::{ClientMode, Connection, ConnectionStatus, Reason};
use std::collections::BTreeSet;
use std::time::Duration;

/// The connections are written at most once in this time: a side may come and go.
const FLAPPING: Duration = Duration::from_secs(30);
/// That the destination has not connected is told so long after the opening.
const UNCONNECTED_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// Whether a side of a tunnel is connected, or has been.
pub(crate) fn was_connected(tunnel: &RecordedTunnel) -> impl Fn(&Connection) -> bool {
    let opened_at = later(tunnel.opened_at, SignedDuration::from_secs(2));
    move |c| c.status == ConnectionStatus::Connected || c.last_updated_at.is_some_and(|at| at > opened_at)
}

fn pair((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

impl Case<'_> {
    /// What comes first, whether its tokens are in the Secrets or not.
    pub(super) fn look_after(&self, tunnel: &RecordedTunnel) -> Option<Step> {
        if let Some(end) = self.has_ended(tunnel) {
            return Some(self.end(end));
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
            return Some(Step::Wait(Wait { need, until, ..Wait::default() }));
        }
        (!self.object.record.finalizer).then_some(Step::RestoreFinalizer)
    }

    pub(super) fn keep_ready(&self, tunnel: &RecordedTunnel) -> Step {
        if self.foreign_secret().is_some() {
            return Step::Record(Change::Report(self.conflict()));
        }
        if let Some(rotate) = self.object.wanted_rotation().filter(|rotate| rotate.mode.is_none()) {
            return Step::Record(Change::RotationRefused(rotate.value.clone()));
        }
        let details = self.details(&tunnel.reference.id);
        // AWS remembers a later generation: an etcd that was restored has forgotten a rotation, which has revoked what the
        // Secrets hold. A Rotate of ours that ended late may have revoked the tokens that were made after it.
        let marked = details.and_then(|(details, _)| details.generation());
        let revoked = marked.is_some_and(|generation| generation > self.object.record.token_generation);
        if revoked || self.memory.owes_rotation(self.object) {
            return self.claim_rotation(Some(self.object.client_mode()), None);
        }
        if let Some(mode) = self.to_rotate() {
            if let Some(step) = self.rest_from_redoing() {
                return step;
            }
            return self.claim_rotation(Some(mode), self.damage());
        }
        if self.object.wanted_rotation().is_some() {
            return self.claim_rotation(None, None);
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
        self.tend(tunnel)
    }

    /// What an open tunnel needs whose tokens are in the Secrets: its tags, and that people see who is connected.
    fn tend(&self, tunnel: &RecordedTunnel) -> Step {
        let lane = match self.set_tags(tunnel) {
            Some(Step::Wait(wait)) => wait.lane,
            Some(step) => return step,
            None => None,
        };
        let (mono, record, tending) = (self.now.mono, &self.object.record, &self.memory.tending);
        if let Some(rival) = self.facts.rival.as_ref().filter(|_| tending.new) {
            return Step::TellRival(rival.clone());
        }
        let retry_tags = tending.tags_failed.map(|(_, at)| at).filter(|at| mono < *at);
        let mut wakes: Vec<Mono> = retry_tags.into_iter().collect();
        if self.memory.ending.expired.is_none() {
            wakes.push(self.at(tunnel.expires_at));
        }
        let shown = self.details(&tunnel.reference.id).map(|(details, _)| details.connections());
        // Nobody has told whether it is connected before AWS was asked.
        let destination = shown.as_ref().and_then(|shown| shown.destination.clone());
        if let Some(shown) = shown.filter(|shown| shown.is_news(&record.connections)) {
            match tending.connections.map(|at| at + FLAPPING).filter(|at| mono < *at) {
                Some(at) => wakes.push(at),
                None => return Step::Record(Change::Connected(shown)),
            }
        }
        let told = tending.told_unconnected || destination.as_ref().is_none_or(was_connected(tunnel));
        let due = later(tunnel.opened_at, UNCONNECTED_AFTER);
        if !told && self.now.wall < later(due, UNCONNECTED_AFTER) {
            if self.now.wall >= due {
                return Step::TellUnconnected;
            }
            wakes.push(self.at(due));
        }
        // That tags are behind is no reason not to be Ready, but the spec is not carried out yet.
        let report =
            (retry_tags.is_none() && lane.is_none()).then(|| Report { reason: Reason::Open, message: String::new() });
        self.wait(report, Wait { lane, until: wakes.into_iter().min(), ..Wait::default() })
    }

    /// The tags follow the spec: those that the operator sets, and no others.
    fn set_tags(&self, tunnel: &RecordedTunnel) -> Option<Step> {
        let (record, tending, wanted) = (&self.object.record, &self.memory.tending, &self.facts.tags);
        if tending.tags_failed.is_some_and(|(_, at)| self.now.mono < at) {
            return None;
        }
        let observed = record.observed_generation == Some(self.object.generation) && !tending.tags_due;
        let told = tending.tags_failed.is_some();
        // `None`: not known. `Some(None)`: there is no such tag.
        let shown = self.details(&tunnel.reference.id);
        let set = tending.tags.as_ref().filter(|(_, at)| shown.is_none_or(|(_, asked)| *at >= asked));
        let known = |key: &String| {
            let told = || shown.map(|(details, _)| details.tags.get(key));
            set.and_then(|(set, _)| set.get(key)).map(Option::as_ref).or_else(told)
        };
        // Where nobody knows, and the spec has changed: setting a tag that is there does no harm.
        let is_set = |(key, value): &(&String, &String)| known(key).map_or(observed, |known| known == Some(value));
        let to_set: Tags = wanted.iter().filter(|tag| !is_set(tag)).map(pair).collect();
        let stale = record.tag_keys.iter().filter(|key| !wanted.contains_key(*key));
        let stale: Vec<String> = stale.filter(|key| known(key) != Some(None)).cloned().collect();
        let recorded = |keys: Vec<String>| (keys != record.tag_keys).then_some(Step::Record(Change::TagKeys(keys)));
        if to_set.is_empty() && stale.is_empty() {
            return recorded(wanted.keys().cloned().collect());
        }
        // Before the call, so that no tag stays of which nobody knows that it is the operator's.
        let union: BTreeSet<&String> = record.tag_keys.iter().chain(wanted.keys()).collect();
        recorded(union.into_iter().cloned().collect()).or_else(|| {
            // What is to go goes first: AWS takes only so many tags of a tunnel.
            let tag = |tunnel| match stale.is_empty() {
                true => Step::Tag { tunnel, tags: to_set, told },
                false => Step::TakeTagsOff { tunnel, keys: stale, told },
            };
            Some(self.in_lane(Lane::Tag, || self.identified(&tunnel.reference, tunnel.opened_at, tag)))
        })
    }

    /// What DescribeTunnel told last of an open tunnel, beside its life.
    fn details(&self, id: &TunnelId) -> Option<(&Details, Mono)> {
        self.described(id)?.details.as_ref().map(|(details, asked)| (&**details, *asked))
    }

    /// What was written into a Secret has not stayed for some rotations in a row: the next one waits.
    fn rest_from_redoing(&self) -> Option<Step> {
        let next = self.memory.rotating.redone?.next_at(self.damage()?, self.now.mono)?;
        Some(self.wait(Some(self.modified()), Wait { until: Some(next), ..Wait::default() }))
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
        let mut redone = None;
        let free = match memory.rotating.own.as_ref().map(|r| (r, r.stage)) {
            Some((rotation, RotationStage::Claimed)) => {
                let generation = self.object.record.token_generation;
                return self.identified(&tunnel.reference, tunnel.opened_at, |tunnel| {
                    self.in_lane(Lane::Rotate, || {
                        if memory.rotating.marked != Some(generation) {
                            return Step::Mark { tunnel, generation };
                        }
                        self.fresh(Step::Rotate {
                            tunnel,
                            mode: rotation.mode,
                            generation,
                            others: rotation.others_live.then(|| self.recorded_tokens()),
                        })
                    })
                });
            }
            Some((_, RotationStage::Doubt(called))) => called + self.limits.recovery_grace,
            Some((_, RotationStage::Lost)) => {
                redone = self.damage();
                if let Some(step) = self.rest_from_redoing() {
                    return step;
                }
                self.now.mono
            }
            // Somebody else's, who may have left more than one tunnel behind.
            None if unsearched => return self.search(since, since, Reason::Rotating, since),
            None => {
                // Whoever has told that has made its rotations in a row.
                if self.object.record.reported == Some(Reason::SecretModified) {
                    redone = self.damage();
                    if let Some(step) = self.rest_from_redoing() {
                        return step;
                    }
                }
                since + self.limits.recovery_grace
            }
        };
        if self.now.mono < free {
            return self.wait(None, Wait { until: Some(free), ..Wait::default() });
        }
        // Nobody knows which sides have live tokens: all are made anew.
        self.claim_rotation(Some(self.object.client_mode()), redone)
    }

    /// `mode`: what is needed; what the annotations ask for comes with it.
    fn claim_rotation(&self, mode: Option<ClientMode>, redone: Option<Damage>) -> Step {
        if let Some(step) = self.backing_off() {
            return step;
        }
        let asked = self.object.wanted_rotation().and_then(|rotate| rotate.mode);
        let mode = mode.into_iter().chain(asked).reduce(ClientMode::union).unwrap_or_default();
        self.in_lane(Lane::Rotate, || {
            let marked = self.object.record.tunnel.as_ref().and_then(|t| self.details(&t.reference.id)?.0.generation());
            let present = self.object.record.token_generation.max(marked.unwrap_or_default());
            let generation = self.generation_above(present);
            self.try_create().unwrap_or(Step::Record(Change::Rotating { generation, mode, redone }))
        })
    }

    pub(super) fn close(&self, tunnel: TunnelRef, opened_at: Timestamp) -> Step {
        // In this order: whoever asks AWS has a place of the reconciles meanwhile, and after a restart thousands may be
        // deleted at once.
        self.in_lane(Lane::Close, || self.identified(&tunnel, opened_at, |tunnel| Step::Close { tunnel, opened_at }))
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
            .then(|| Step::Wait(Wait { need: Some(Need::Describe(id.clone())), until, ..Wait::default() }))
    }

    /// A time of the wall's clock by the process's own.
    pub(super) fn at(&self, time: Timestamp) -> Mono {
        self.now.mono + Duration::try_from(time.duration_since(self.now.wall)).unwrap_or_default()
    }
}
