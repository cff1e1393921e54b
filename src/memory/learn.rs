//! What a step came to.

use super::{Answer, AnswerOf, CLAIM_LIMIT, Failure, Memory, Remembered, Rotation, RotationStage, Trial};
use crate::clock::{Mono, Now};
use crate::decide::failure_reason;
use crate::facts::Limits;
use crate::read::{Goal, Object};
use crate::record::Change;
use crate::step::{Identity, Outcome, Step};
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
            (Step::Open { attempt }, Outcome::Opened { called, answer }) => {
                learner.memory.opening.doubt = Some(*called);
                match answer {
                    Ok((tunnel, tokens)) => {
                        learner.own(tunnel);
                        learner.answered(AnswerOf::Open(attempt.clone()), tunnel, tokens.clone());
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
                let own = Rotation { generation: *generation, mode: *mode, others_live: others.is_some(), stage };
                learner.rotated(tunnel, own, others.as_ref(), *called, answer);
            }
            (Step::Close { tunnel, opened_at }, Outcome::ClosedOrUntagged(outcome)) => {
                learner.closed_or_untagged(tunnel, *opened_at, Operation::CloseTunnel, outcome);
            }
            (Step::Untag { tunnel, opened_at }, Outcome::ClosedOrUntagged(outcome)) => {
                learner.closed_or_untagged(tunnel, *opened_at, Operation::UntagResource, outcome);
            }
            (_, Outcome::Tried(refused)) => {
                learner.memory.backoff.trial = Some(Trial { at: now.mono, refused: refused.clone() });
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
        self.memory.answer = Some(Answer { of, tunnel: tunnel.clone(), tokens, at, wall, written: Vec::new() });
    }

    fn identified(&mut self, tunnel: &TunnelRef, opened_at: Timestamp, identity: &Result<Identity, CallError>) {
        let down = self.object.goal() != Goal::Open;
        let refused = |kind, message| CallError { kind, message };
        let id = &tunnel.id;
        match identity {
            Ok(Identity::Own(own)) => self.own(own),
            // The Tunnel goes without it.
            Ok(Identity::Foreign) if down => self.memory.ending.foreign.push(id.clone()),
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
        self.memory.rotating.own = Some(own);
        match answer {
            Ok(tokens) => {
                let tokens = tokens.clone().or(others.cloned().unwrap_or_default());
                self.answered(AnswerOf::Rotate(own.generation), tunnel, tokens);
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
        let paced = !matches!(operation, Operation::UntagResource | Operation::DescribeTunnel);
        if matches!(error.kind, CallErrorKind::LimitExceeded | CallErrorKind::Throttled) && paced {
            self.memory.backoff.failure = None;
            return;
        }
        let before = self.memory.backoff.failure.as_ref();
        let times = before.map_or(0, |f| f.times);
        let reason = failure_reason(error.kind);
        let told = before.is_some_and(|f| f.told && f.reason == reason);
        let (first, limit) = match reason {
            Reason::AwsUnavailable => (FIRST_RETRY, UNAVAILABLE_RETRY),
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
        let rotation =
            |generation: i64, mode, others_live, stage| Some(Rotation { generation, mode, others_live, stage });
        let was_ready = before.is_ready();
        let memory = &mut self.memory;
        if !matches!(change, Change::OpenedAt(_) | Change::Report(_)) {
            memory.opening.attempt = None;
            memory.opening.doubt = None;
        }
        match change {
            Change::Opened { .. } | Change::Rotated(_) | Change::SecretsUpdated(_) | Change::Ended { .. } => {
                memory.answer = None;
                memory.rotating.own = None;
                memory.backoff.failure = None;
            }
            Change::OpenedInConflict { generation, .. } => {
                memory.answer = None;
                memory.rotating.own = rotation(*generation, all, false, RotationStage::Lost);
            }
            Change::Adopted { generation, .. } => {
                memory.rotating.late = None;
                memory.rotating.own = rotation(*generation, all, false, RotationStage::Claimed);
            }
            Change::Rotating { generation, mode } => {
                let present = before.token_generation;
                let late = was_ready && memory.rotating.late.take().is_some_and(|generation| generation < present);
                memory.rotating.own = rotation(*generation, *mode, was_ready && !late, RotationStage::Claimed);
            }
            Change::Report(report) => {
                let failure = memory.backoff.failure.iter_mut();
                failure.filter(|f| f.reason == report.reason).for_each(|f| f.told = true);
                self.drop_new_tokens();
                // It was Ready until this write: nobody's rotation has to be waited for.
                if report.reason != Reason::Open && was_ready {
                    self.memory.rotating.own = rotation(before.token_generation, all, false, RotationStage::Lost);
                }
            }
            Change::OpenedAt(_) => {}
        }
    }

    /// Drops new tokens that cannot be kept: they come by another rotation.
    fn drop_new_tokens(&mut self) {
        let memory = &mut self.memory;
        if let Some(Answer { of: AnswerOf::Rotate(generation) | AnswerOf::Secrets(generation), .. }) = memory.answer {
            memory.answer = None;
            if let Some(rotation) = memory.rotating.own.as_mut().filter(|r| r.generation == generation) {
                rotation.stage = RotationStage::Lost;
            }
        }
    }
}

#[cfg(test)]
mod tests;
