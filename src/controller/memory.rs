//! How a process's memory of one Tunnel changes: by what the object shows, and by what its own writes and
//! calls came to. Pure, so that the model checker goes through the very same changes.

use super::decide::CLAIM_LIMIT;
use super::decision::{Change, Decision, Lane};
use super::observe::{Answer, AnswerOf, Limits, Memory, Rotation, RotationStage};
use super::validate::{Desired, Record};
use crate::clock::{Mono, Now};
use crate::crd::{ClientMode, Reason};
use crate::tunnels::{Attempt, CallErrorKind, TunnelId};

impl Memory {
    /// Of a Tunnel that is seen for the first time.
    pub fn new(saw_creation: bool, now: Mono) -> Self {
        Self { saw_creation, first_seen: now, ..Self::default() }
    }

    /// This process leads since then. Another may have led before, and opened and rotated, unseen by this one: what
    /// was seen until then proves nothing, and what has to be waited for is waited for from then on. What this
    /// process has in hand, or has sent itself, it keeps. What it has claimed, and not sent, may just be overruled
    /// by a write that is under way: it is taken for somebody else's.
    pub fn led_since(&mut self, term: Mono) {
        if self.first_seen >= term {
            return;
        }
        self.saw_creation = false;
        self.first_seen = term;
        if let Some((_, since)) = &mut self.claim {
            *since = term;
        }
        for since in [&mut self.deleting, &mut self.expired].into_iter().flatten() {
            *since = term;
        }
        if let Some((_, since)) = &mut self.unfinished {
            *since = term;
        }
        self.trial = None;
        self.failure = None;
        self.attempt = None;
        self.rotation = self.rotation.filter(|r| matches!(r.stage, RotationStage::Doubt(_)));
    }

    /// Whether a process that does not lead has something to finish all the same: tokens in hand, or a Rotate of
    /// its own that may have revoked those of a Ready Tunnel, which nobody else knows.
    pub fn in_hand(&self, desired: &Desired) -> bool {
        self.answer.is_some() || self.owes_rotation(desired)
    }

    fn owes_rotation(&self, desired: &Desired) -> bool {
        let record = &desired.record;
        let late = self.late_rotation.is_some_and(|generation| generation < record.token_generation);
        late && record.reported == Some(Reason::Open) && desired.deleted_at.is_none()
    }

    /// What a process that does not lead does about a decision. `None`: nothing.
    pub fn without_the_lead(&self, desired: &Desired, decision: Decision) -> Option<Decision> {
        let Some(answer) = &self.answer else {
            // The rotation is claimed; whoever leads makes it.
            let claims = matches!(
                decision,
                Decision::Read
                    | Decision::Queue(Lane::Rotate)
                    | Decision::TryCreate { .. }
                    | Decision::Record(Change::Rotating { .. })
                    | Decision::Wait(_)
            );
            return Some(decision).filter(|_| claims && self.owes_rotation(desired));
        };
        // What it opened for a Tunnel that is being deleted it closes by itself, unless who leads has taken it over.
        let unwanted = matches!(answer.of, AnswerOf::Open(_)) && desired.deleted_at.is_some();
        match decision {
            Decision::Read | Decision::Forget | Decision::Abandon(_) => Some(decision),
            _ if unwanted => Some(Decision::Abandon(answer.tunnel.clone())),
            _ => Some(decision),
        }
    }

    /// Notes what the object shows, and since when. Pure.
    pub fn note(&mut self, desired: &Desired, now: Now) {
        let record = &desired.record;
        if self.claim.is_some() && record.claim.is_none() && record.tunnel.is_none() {
            self.saw_creation = false;
        }
        if let Some(claim) = &record.claim {
            if self.claim.as_ref().is_none_or(|(seen, _)| seen != claim) {
                self.claim = Some((claim.clone(), now.mono));
            }
            // Another one claims: ours is lost, whatever our write answered.
            if self.attempt.as_ref().is_some_and(|own| own != claim) {
                self.attempt = None;
            }
        }
        if self.deleting.is_none() && desired.deleted_at.is_some() {
            // What failed before is no reason to wait with the close.
            self.failure = None;
        }
        let since = |seen: Option<Mono>, is: bool| is.then(|| seen.unwrap_or(now.mono));
        self.deleting = since(self.deleting, desired.deleted_at.is_some());
        self.expired = since(self.expired, record.tunnel.as_ref().is_some_and(|t| now.wall >= t.expires_at));
        let unfinished = record.tunnel.is_some() && record.reported != Some(Reason::Open);
        self.unfinished = match self.unfinished {
            _ if !unfinished => None,
            Some(seen) if seen.0 == record.token_generation => Some(seen),
            _ => Some((record.token_generation, now.mono)),
        };
        if let Some(own) = self.rotation.filter(|own| own.generation != record.token_generation) {
            // Superseded while it was under way: it may be carried out after the newer one.
            if own.generation < record.token_generation && matches!(own.stage, RotationStage::Doubt(_)) {
                self.late_rotation = Some(own.generation);
            }
            self.rotation = None;
        }
    }

    /// A claim is about to be written. Noted before: whoever reads it back after an unclear answer knows it
    /// for its own.
    pub fn claiming(&mut self, attempt: Attempt) {
        self.attempt = Some(attempt);
    }

    /// A claim was written. A new one follows only on a search that has settled what became of the last call.
    pub fn claimed(&mut self, new: bool) {
        if new {
            self.open_doubt = None;
        }
    }

    /// OpenTunnel is about to be called.
    pub fn opening(&mut self, now: Mono) {
        self.open_doubt = Some(now);
    }

    /// OpenTunnel failed.
    pub fn open_failed(&mut self, kind: CallErrorKind) {
        if kind != CallErrorKind::Doubt {
            self.open_doubt = None;
        }
    }

    /// RotateTunnelAccessToken is about to be called. Whether the tokens of the other side are live.
    pub fn rotating(&mut self, generation: i64, mode: ClientMode, now: Mono) -> bool {
        let others_live = self.rotation.is_some_and(|r| r.others_live);
        self.rotation = Some(Rotation { generation, mode, others_live, stage: RotationStage::Doubt(now) });
        others_live
    }

    /// RotateTunnelAccessToken has ended, with an answer or without.
    pub fn rotate_ended(&mut self, failed: Option<CallErrorKind>, limits: &Limits, now: Mono) {
        let Some(rotation) = &mut self.rotation else { return };
        // Nobody else has rotated before: the grace is counted from the claim, which is at most so old. (A call that
        // was given up after its time limit alone is no such case: the process was paused.)
        if let RotationStage::Doubt(called) = rotation.stage
            && now > called + limits.recovery_grace.saturating_sub(CLAIM_LIMIT)
        {
            self.late_rotation = Some(rotation.generation);
        }
        if failed.is_some_and(|kind| kind != CallErrorKind::Doubt) {
            rotation.stage = RotationStage::Claimed;
        }
    }

    /// Tokens are in hand.
    pub fn answered(&mut self, answer: Answer) {
        self.failure = None;
        self.answer = Some(answer);
    }

    /// A tunnel was closed, or let go.
    pub fn parted(&mut self, id: &TunnelId) {
        self.failure = None;
        self.closed.push(id.clone());
        // What the own call opened is known, and closed: nothing else can have come of it.
        if self.answer.as_ref().is_some_and(|a| a.tunnel.id == *id) {
            self.open_doubt = None;
            self.answer = None;
        }
    }

    /// The answer is of no use any more.
    pub fn drop_answer(&mut self) {
        self.forget_rotation();
        self.answer = None;
    }

    /// The status was written. `before` is the record that it was decided on.
    pub fn recorded(&mut self, change: &Change, before: &Record, mode: ClientMode) {
        let rotation = |generation: &i64, mode, others_live, stage| {
            Some(Rotation { generation: *generation, mode, others_live, stage })
        };
        if !matches!(change, Change::OpenedAt(_) | Change::Report(_)) {
            self.attempt = None;
            self.open_doubt = None;
        }
        match change {
            Change::Opened { .. } | Change::Rotated | Change::Arranged | Change::Ended { .. } => {
                self.answer = None;
                self.rotation = None;
                self.failure = None;
            }
            Change::Kept { generation } => {
                self.answer = None;
                self.rotation = rotation(generation, mode, false, RotationStage::Lost);
            }
            Change::Adopted { generation, .. } => {
                self.late_rotation = None;
                self.rotation = rotation(generation, mode, false, RotationStage::Claimed);
            }
            Change::Rotating { generation, mode } => {
                let ready = before.reported == Some(Reason::Open);
                let present = before.token_generation;
                let late = ready && self.late_rotation.take().is_some_and(|generation| generation < present);
                self.rotation = rotation(generation, *mode, ready && !late, RotationStage::Claimed);
            }
            Change::Report(report) => {
                self.failure.iter_mut().filter(|f| f.reason == report.reason).for_each(|f| f.told = true);
                self.forget_rotation();
                // It was Ready until this write: nobody's rotation has to be waited for.
                if report.reason != Reason::Open && before.reported == Some(Reason::Open) {
                    self.rotation = rotation(&before.token_generation, mode, false, RotationStage::Lost);
                }
            }
            Change::OpenedAt(_) => {}
        }
    }

    /// Drops new tokens that cannot be kept: they come by another rotation.
    fn forget_rotation(&mut self) {
        if let Some(Answer { of: AnswerOf::Rotate(generation) | AnswerOf::Secrets(generation), .. }) = self.answer {
            self.answer = None;
            if let Some(rotation) = self.rotation.as_mut().filter(|r| r.generation == generation) {
                rotation.stage = RotationStage::Lost;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn who_gets_to_lead_takes_nothing_that_it_saw_before_for_a_proof() {
        let (before, term) = (Mono(Duration::from_secs(1)), Mono(Duration::from_secs(9)));
        let mut memory = Memory {
            claim: Some((Attempt::random(), before)),
            unfinished: Some((2, before)),
            deleting: Some(before),
            attempt: Some(Attempt::random()),
            open_doubt: Some(before),
            late_rotation: Some(2),
            ..Memory::new(true, before)
        };
        memory.led_since(term);
        assert!(!memory.saw_creation, "another may have opened for it");
        let since =
            [Some(memory.first_seen), memory.claim.map(|c| c.1), memory.unfinished.map(|u| u.1), memory.deleting];
        assert_eq!(since, [Some(term); 4], "every grace begins anew");
        assert_eq!(memory.attempt, None, "another may be overruling its claim");
        let kept = (memory.open_doubt, memory.late_rotation);
        assert_eq!(kept, (Some(before), Some(2)), "what this process has sent, it knows best");

        let mut created_later = Memory::new(true, term);
        created_later.led_since(term);
        assert!(created_later.saw_creation);
    }
}
