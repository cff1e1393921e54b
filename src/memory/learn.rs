//! What a step came to.

use super::redone::Redone;
use super::{
    Answer, AnswerOf, CLAIM_LIMIT, Failure, KnownTags, Memory, Remembered, Rotation, RotationStage, Tending, Trial,
};
use crate::clock::{Mono, Now};
use crate::decide::failure_reason;
use crate::facts::Limits;
use crate::read::{Goal, Object};
use crate::record::Change;
use crate::step::{Identity, Lane, Outcome, Step};
use crate::tunnels::{CallError, CallErrorKind, Operation, Tokens, TunnelRef};
use jiff::{SignedDuration, Timestamp};
use opentunnel_api::Reason;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// The first pause after a failed AWS call; it doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause where AWS does not answer.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(30);
/// The longest pause where AWS refuses: a person has to do something, but then it is to go on.
const REFUSED_RETRY: Duration = Duration::from_secs(300);

impl Memory {
    /// Remembers what a step came to. `object`: what it was decided on.
    pub fn learn(&mut self, step: &Step, outcome: &Outcome, object: &Object, limits: &Limits, now: Now) {
        let mut learner = Learner { memory: &mut self.0, object, limits, now };
        match (step, outcome) {
            (Step::Claim { attempt, new }, outcome) => {
                // Also where the answer was lost: whoever reads the claim back knows it for its own.
                learner.memory.opening.attempt = Some(attempt.clone());
                // A new one follows only on a search that has settled what became of the last call.
                if *new && matches!(outcome, Outcome::Written(_)) {
                    learner.memory.opening.doubt = None;
                }
            }
            (Step::Open { attempt, tags }, Outcome::Opened { called, answer }) => {
                learner.memory.opening.doubt = Some(*called);
                match answer {
                    Ok((tunnel, tokens)) => {
                        learner.own(tunnel);
                        learner.answered(AnswerOf::Open(attempt.clone()), tunnel, tokens.clone());
                        let opened_with = (tags.clone(), object.spec.request.digest());
                        learner.memory.answer.iter_mut().for_each(|a| a.opened_with = Some(opened_with.clone()));
                    }
                    Err(error) => {
                        if error.kind != CallErrorKind::Doubt {
                            learner.memory.opening.doubt = None;
                        }
                        learner.failed(Operation::OpenTunnel, error);
                    }
                }
            }
            (Step::Identify { tunnel, opened_at }, Outcome::Identified(identity)) => {
                learner.identified(tunnel, *opened_at, identity);
            }
            (Step::Rotate { tunnel, mode, generation, others }, Outcome::Rotated { called, answer }) => {
                let stage = RotationStage::Doubt(*called);
                let handles = learner.memory.rotating.own.take().and_then(|own| own.handles);
                let others_live = others.is_some();
                let own = Rotation { generation: *generation, mode: *mode, others_live, stage, handles };
                learner.rotated(tunnel, own, others.as_ref(), *called, answer);
            }
            (Step::Close { tunnel, opened_at }, Outcome::ClosedOrUntagged(outcome)) => {
                learner.closed_or_untagged(tunnel, *opened_at, Operation::CloseTunnel, outcome);
            }
            (Step::Untag { tunnel, opened_at }, Outcome::ClosedOrUntagged(outcome)) => {
                learner.closed_or_untagged(tunnel, *opened_at, Operation::UntagResource, outcome);
            }
            (Step::Queue(Lane::Tag), _) => learner.memory.tending.tags_due = true,
            (Step::Mark { generation, .. }, Outcome::Tagged(outcome)) => match outcome {
                Ok(()) => learner.memory.rotating.marked = Some(*generation),
                Err(error) => learner.failed(Operation::TagResource, error),
            },
            (Step::Tag { tags, .. }, Outcome::Tagged(outcome)) => {
                let set = tags.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
                learner.tagged(outcome, set.collect());
            }
            (Step::TakeTagsOff { keys, .. }, Outcome::Tagged(outcome)) => {
                learner.tagged(outcome, keys.iter().map(|key| (key.clone(), None)).collect());
            }
            (Step::TellRival(_), _) => learner.memory.tending.new = false,
            (Step::TellUnconnected, _) => learner.memory.tending.told_unconnected = true,
            (_, Outcome::Tried(refused)) => {
                let before = learner.memory.backoff.trial.as_ref().map_or(0, |trial| trial.refusals);
                let refusals = refused.as_ref().map_or(0, |_| before.saturating_add(1));
                learner.memory.backoff.trial = Some(Trial { at: now.mono, refused: refused.clone(), refusals });
            }
            (Step::Reuse { tunnel, tokens, generation }, Outcome::Done) => {
                learner.answered(AnswerOf::Secrets(*generation), tunnel, tokens.clone());
            }
            (Step::WriteSecret { secret, .. }, Outcome::SecretWritten(_)) => {
                learner.memory.answer.iter_mut().for_each(|answer| answer.written.push(secret.clone()));
            }
            (Step::Record(change), Outcome::Written(_)) => learner.recorded(change),
            (Step::Forget, Outcome::Done) => {
                learner.drop_new_tokens();
                learner.memory.answer = None;
            }
            (Step::CloseSurplus { .. }, Outcome::Done)
            | (Step::RemoveFinalizer, Outcome::Written(_) | Outcome::Conflict(_)) => learner.memory.answer = None,
            _ => {}
        }
    }
}

struct Learner<'a> {
    memory: &'a mut Remembered,
    object: &'a Object,
    limits: &'a Limits,
    now: Now,
}

impl Learner<'_> {
    fn own(&mut self, tunnel: &TunnelRef) {
        if !self.memory.owned.contains(tunnel) {
            self.memory.owned.push(tunnel.clone());
        }
    }

    /// Tokens are in hand.
    fn answered(&mut self, of: AnswerOf, tunnel: &TunnelRef, tokens: Tokens) {
        self.memory.backoff.failure = None;
        let (at, wall) = (self.now.mono, self.now.wall);
        let (tunnel, written) = (tunnel.clone(), Vec::new());
        self.memory.answer = Some(Box::new(Answer { of, tunnel, tokens, opened_with: None, at, wall, written }));
    }

    /// TagResource or UntagResource has ended, for tags that the spec names or named.
    fn tagged(&mut self, outcome: &Result<(), CallError>, changed: KnownTags) {
        let tending = &mut self.memory.tending;
        match outcome {
            Ok(()) => {
                // What is to go goes first.
                tending.tags_due &= changed.values().any(Option::is_none);
                let mut known = tending.tags.take().map(|(known, _)| known).unwrap_or_default();
                known.extend(changed);
                tending.tags = Some((known, self.now.mono));
                tending.tags_failed = None;
            }
            // It keeps its place in the queue.
            Err(error) if error.is_limit() => {}
            Err(_) => {
                let times = tending.tags_failed.map_or(0, |(times, _)| times);
                let pause = (FIRST_RETRY * 5).saturating_mul(1 << times.min(16)).min(REFUSED_RETRY);
                let pause = pause.mul_f64(0.75 + 0.25 * self.spread(times));
                self.memory.tending.tags_failed = Some((times + 1, self.now.mono + pause));
            }
        }
    }

    fn identified(&mut self, tunnel: &TunnelRef, opened_at: Timestamp, identity: &Result<Identity, CallError>) {
        let down = self.object.goal() != Goal::Open;
        let refused = |kind, message| CallError { kind, message };
        let id = &tunnel.id;
        match identity {
            Ok(Identity::Own(own)) => self.own(own),
            // The Tunnel goes without it.
            Ok(Identity::Foreign) if self.object.deleted_at.is_some() => self.memory.ending.foreign.push(id.clone()),
            // Whose it is, is nobody's business.
            Ok(Identity::Foreign) => self.failed(
                Operation::DescribeTunnel,
                &refused(
                    CallErrorKind::InvalidRequest,
                    format!(
                        "tunnel {id}, which the status names, is not this Tunnel's by its owner tag, so it is left alone: delete the Tunnel and apply it again"
                    ),
                ),
            ),
            Ok(Identity::NotFound) => {
                let error = refused(CallErrorKind::NotFound, format!("AWS does not know tunnel {id}"));
                if down {
                    self.closed_or_untagged(tunnel, opened_at, Operation::DescribeTunnel, &Err(error));
                } else {
                    self.failed(Operation::DescribeTunnel, &error);
                }
            }
            Err(error) => self.failed(Operation::DescribeTunnel, error),
        }
    }

    fn rotated(
        &mut self,
        tunnel: &TunnelRef,
        mut own: Rotation,
        others: Option<&Tokens>,
        called: Mono,
        answer: &Result<Tokens, CallError>,
    ) {
        // Nobody else has rotated before: the grace is counted from the claim, which is at most so old. (A call that
        // was given up after its time limit alone is no such case: the process was paused.)
        if self.now.mono > called + self.limits.recovery_grace.saturating_sub(CLAIM_LIMIT) {
            self.memory.rotating.late = Some(own.generation);
        }
        if answer.as_ref().is_err_and(|error| error.kind != CallErrorKind::Doubt) {
            own.stage = RotationStage::Claimed;
        }
        let generation = own.generation;
        self.memory.rotating.own = Some(own);
        match answer {
            Ok(tokens) => {
                let tokens = tokens.clone().or(others.cloned().unwrap_or_default());
                self.answered(AnswerOf::Rotate(generation), tunnel, tokens);
            }
            Err(error) => self.failed(Operation::RotateTunnelAccessToken, error),
        }
    }

    /// CloseTunnel or UntagResource has ended.
    fn closed_or_untagged(
        &mut self,
        tunnel: &TunnelRef,
        opened_at: Timestamp,
        operation: Operation,
        outcome: &Result<(), CallError>,
    ) {
        match outcome {
            // Not-found may be told of a tunnel that was opened a moment ago.
            Err(e) if e.kind == CallErrorKind::NotFound => {
                let grace = SignedDuration::try_from(self.limits.recovery_grace).unwrap_or(SignedDuration::MAX);
                if self.now.wall.duration_since(opened_at) > grace {
                    self.memory.ending.closed.push(tunnel.id.clone());
                } else {
                    self.failed(operation, &CallError { kind: CallErrorKind::Doubt, ..e.clone() });
                }
            }
            Err(e) => self.failed(operation, e),
            Ok(()) => {
                let memory = &mut self.memory;
                memory.backoff.failure = None;
                memory.ending.closed.push(tunnel.id.clone());
                // What the own call opened is known, and closed: nothing else can have come of it.
                if memory.answer.as_ref().is_some_and(|a| a.tunnel.id == tunnel.id) {
                    memory.opening.doubt = None;
                    memory.answer = None;
                }
            }
        }
    }

    /// A call to AWS failed. A limit is the pacer's business: the Tunnel keeps its place in the queue.
    fn failed(&mut self, operation: Operation, error: &CallError) {
        use Operation::{DescribeTunnel, TagResource};
        let paced = !matches!(operation, TagResource | DescribeTunnel);
        if error.is_limit() && paced {
            self.memory.backoff.failure = None;
            return;
        }
        let before = self.memory.backoff.failure.as_ref();
        let times = before.map_or(0, |f| f.times);
        let reason = failure_reason(error.kind);
        let told = before.is_some_and(|f| f.told && f.reason == reason);
        let (first, limit) = match (reason, error.kind) {
            // No call is sent: to look whether there are credentials now costs nothing.
            (Reason::AwsUnavailable, _) | (_, CallErrorKind::NoCredentials) => (FIRST_RETRY, UNAVAILABLE_RETRY),
            _ => (FIRST_RETRY * 5, REFUSED_RETRY),
        };
        let pause = first.saturating_mul(1 << times.min(16)).min(limit).mul_f64(0.75 + 0.25 * self.spread(times));
        let at = self.now.mono;
        let message = format!("{}: {error}", operation.name());
        self.memory.backoff.failure =
            Some(Failure { reason, message, at, retry_at: at + pause, times: times + 1, told });
    }

    /// From 0 to 1, so that Tunnels that fail together do not all come again together.
    fn spread(&self, times: u32) -> f64 {
        let mut hasher = DefaultHasher::new();
        (&self.object.key.uid, times).hash(&mut hasher);
        f64::from(u16::try_from(hasher.finish() & 0xffff).unwrap_or_default()) / f64::from(u16::MAX)
    }

    /// The status was written.
    fn recorded(&mut self, change: &Change) {
        let (before, all) = (&self.object.record, self.object.client_mode());
        let handles = self.object.wanted_rotation().filter(|rotate| rotate.mode.is_some()).map(|r| r.value.clone());
        let rotation = |generation: i64, mode, others_live, stage, handles| {
            Some(Rotation { generation, mode, others_live, stage, handles })
        };
        let was_ready = before.is_ready();
        let memory = &mut self.memory;
        use Change::{Adopted, Closing, Connected, Ended, Opened, OpenedAt, OpenedInVain, Report, Rotated, Rotating};
        use Change::{RotationRefused, SecretsUpdated, Suspended, TagKeys};
        if !matches!(change, OpenedAt(_) | Report(_) | Closing(_) | Connected(_) | TagKeys(_) | RotationRefused(_)) {
            memory.opening.attempt = None;
            memory.opening.doubt = None;
        }
        if matches!(change, Opened { .. } | OpenedInVain { .. } | Adopted { .. } | Ended { .. } | Suspended) {
            let new = matches!(change, Opened { .. } | OpenedInVain { .. });
            memory.tending = Tending { new, ..Tending::default() };
            memory.rotating.marked = None;
        }
        if let Opened { generation, .. } | OpenedInVain { generation, .. } = change {
            memory.rotating.marked = Some(*generation);
            // It was made for the opening.
            memory.backoff.trial = None;
            let tags = memory.answer.as_ref().and_then(|answer| answer.opened_with.clone());
            let known = tags.map(|(tags, _)| tags.into_iter().map(|(key, value)| (key, Some(value))).collect());
            memory.tending.tags = known.map(|known| (known, self.now.mono));
        }
        match change {
            Opened { .. } | Rotated { .. } | SecretsUpdated(_) => {
                memory.answer = None;
                memory.rotating.own = None;
                memory.backoff.failure = None;
            }
            Ended { told, .. } => {
                memory.answer = None;
                memory.rotating.own = None;
                memory.backoff.failure = None;
                // Only AWS's own word lets another one be opened.
                if let Some(tunnel) = before.tunnel.as_ref().filter(|_| *told) {
                    memory.ending.closed.push(tunnel.reference.id.clone());
                }
            }
            OpenedInVain { generation, .. } => {
                memory.answer = None;
                memory.rotating.own = rotation(*generation, all, false, RotationStage::Lost, None);
            }
            Adopted { generation, .. } => {
                memory.rotating.late = None;
                memory.rotating.own = rotation(*generation, all, false, RotationStage::Claimed, None);
            }
            Rotating { generation, mode, redone } => {
                let present = before.token_generation;
                let late = was_ready && memory.rotating.late.take().is_some_and(|generation| generation < present);
                let others_live = was_ready && !late;
                memory.rotating.own = rotation(*generation, *mode, others_live, RotationStage::Claimed, handles);
                if let Some(damage) = redone {
                    memory.rotating.redone = Some(Redone::next(memory.rotating.redone, *damage, self.now.mono));
                }
            }
            Report(report) => {
                let failure = memory.backoff.failure.iter_mut();
                failure.filter(|f| f.reason == report.reason).for_each(|f| f.told = true);
                self.drop_new_tokens();
                // It was Ready until this write: nobody's rotation has to be waited for.
                if report.reason != Reason::Open && was_ready {
                    self.memory.rotating.own = rotation(before.token_generation, all, false, RotationStage::Lost, None);
                }
            }
            Closing(_) => self.drop_new_tokens(),
            Connected(_) => memory.tending.connections = Some(self.now.mono),
            Suspended | OpenedAt(_) | TagKeys(_) | RotationRefused(_) => {}
        }
    }

    /// Drops new tokens that cannot be kept: they come by another rotation.
    fn drop_new_tokens(&mut self) {
        let memory = &mut self.memory;
        let of = memory.answer.as_ref().map(|answer| &answer.of);
        if let Some(&(AnswerOf::Rotate(generation) | AnswerOf::Secrets(generation))) = of {
            memory.answer = None;
            if let Some(rotation) = memory.rotating.own.as_mut().filter(|r| r.generation == generation) {
                rotation.stage = RotationStage::Lost;
            }
        }
    }
}

#[cfg(test)]
mod tests;
