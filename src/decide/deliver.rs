//! An answer with tokens is in hand: what becomes of them.

use super::Case;
use super::secrets::SecretState;
use crate::memory::{Answer, AnswerOf, CLAIM_LIMIT};
use crate::read::Goal;
use crate::record::{Change, Opening, Phase};
use crate::step::{Refusal, Report, Step};
use crate::tunnels::{Attempt, Owner};
use crate::whose::{Whose, whose};
use opentunnel_api::Reason;

impl Case<'_> {
    /// A late answer is judged against the object as it is then, not as it was when the call left. One that comes in
    /// time needs no read: the status is written on the version that was claimed, or not at all. `None`: its tunnel is
    /// for [`Case::delete`] to close.
    pub(super) fn judge(&self, answer: &Answer) -> Option<Step> {
        if !self.view.gone && self.view.read_at.is_none_or(|at| at + CLAIM_LIMIT < answer.at) {
            return Some(Step::Read);
        }
        match &answer.of {
            AnswerOf::Open(attempt) => self.judge_opened(answer, attempt),
            AnswerOf::Rotate(generation) => Some(self.judge_tokens(answer, *generation, false)),
            AnswerOf::Secrets(generation) => Some(self.judge_tokens(answer, *generation, true)),
        }
    }

    fn judge_opened(&self, answer: &Answer, attempt: &Attempt) -> Option<Step> {
        let surplus = || Some(Step::CloseSurplus { tunnel: answer.tunnel.clone(), attempt: attempt.clone() });
        if self.view.gone {
            return surplus();
        }
        let key = &self.object.key;
        // This process has opened it: so that is what its owner tag says.
        let (cluster, namespace, uid) = (String::new(), key.namespace.clone(), key.uid.clone());
        let owner = Owner { cluster, namespace, uid, attempt: attempt.clone() };
        match whose(&answer.tunnel.id, &owner, "", &self.object.claimant()) {
            // Adopted by somebody else, or our own write was carried out though its answer was lost.
            Whose::Named => Some(Step::Forget),
            _ if self.object.goal() != Goal::Open => None,
            Whose::Surplus | Whose::Foreign => surplus(),
            Whose::Adoptable => match &self.object.record.claim {
                // Wiped by a user (kubectl replace): its opener writes it again and goes on.
                None => Some(Step::Claim { attempt: attempt.clone(), new: false }),
                Some(claim) if claim != attempt => surplus(),
                Some(_) => Some(self.in_trouble().unwrap_or_else(|| self.deliver_opened(answer, attempt))),
            },
        }
    }

    fn deliver_opened(&self, answer: &Answer, attempt: &Attempt) -> Step {
        let generation = self.object.record.token_generation + 1;
        let (tags, opened_with) = answer.opened_with.clone().unwrap_or_default();
        let opening = Opening {
            tunnel: answer.tunnel.clone(),
            at: answer.wall,
            attempt: attempt.clone(),
            opened_with,
            tag_keys: tags.into_keys().collect(),
            handled: self.object.rotate.as_ref().map(|rotate| rotate.value.clone()),
        };
        if self.foreign_secret().is_some() {
            return Step::Record(Change::OpenedInVain { opening, generation, report: self.conflict() });
        }
        if self.is_spoilt(answer, generation) {
            let message =
                "the tunnel is open, but what is written into its Secret does not stay: it gets new tokens".into();
            let report = Report { reason: Reason::Rotating, message };
            return Step::Record(Change::OpenedInVain { opening, generation, report });
        }
        self.deliver(answer, generation, generation - 1, |secrets| Change::Opened { opening, generation, secrets })
    }

    /// What was written into a Secret has not stayed: a policy or another controller has changed it.
    fn is_spoilt(&self, answer: &Answer, generation: i64) -> bool {
        self.secrets.iter().any(|secret| {
            let written = answer.written.iter().any(|written| written.name == secret.name);
            let holds = match secret.state {
                SecretState::Terminating => true,
                SecretState::Ours { found, holds_answer, .. } => {
                    // What an adopter has written counts for more.
                    (holds_answer && found.generation == generation && found.sound) || found.generation > generation
                }
                _ => false,
            };
            written && !holds
        })
    }

    /// Tokens of an open tunnel that is recorded: new ones, or (`reused`) those that its Secrets hold.
    fn judge_tokens(&self, answer: &Answer, generation: i64, reused: bool) -> Step {
        let record = &self.object.record;
        let tunnel = match record.phase() {
            Phase::Ready(tunnel) if reused => tunnel,
            Phase::Open(tunnel) if !reused => tunnel,
            _ => return Step::Forget,
        };
        let superseded = tunnel.reference.id != answer.tunnel.id || record.token_generation != generation;
        // The spec may want a side by now that the answer has not.
        let lacks = !answer.tokens.have(self.object.client_mode());
        // While the API server refuses a Secret, the end must not wait for it.
        let ended = self.has_ended(tunnel).is_some();
        if self.view.gone || self.object.goal() != Goal::Open || superseded || lacks || ended {
            return Step::Forget;
        }
        if self.foreign_secret().is_some() {
            return Step::Record(Change::Report(self.conflict()));
        }
        if self.is_spoilt(answer, generation) {
            return if reused { Step::Record(Change::Report(self.modified())) } else { Step::Forget };
        }
        // The same generation's tokens may come where they did not stand before.
        let below = if reused { generation } else { generation - 1 };
        let handled = self.memory.rotating.own.as_ref().and_then(|own| own.handles.clone());
        self.deliver(answer, generation, below, |secrets| match reused {
            true => Change::SecretsUpdated(secrets),
            false => Change::Rotated { secrets, handled },
        })
    }

    /// Puts the answer's tokens into the Secrets, each only over a lower generation, at most `below`: an adopter's
    /// always win over its late opener's.
    fn deliver(
        &self,
        answer: &Answer,
        generation: i64,
        below: i64,
        done: impl FnOnce(Vec<opentunnel_api::SecretStatus>) -> Change,
    ) -> Step {
        if let Some(Refusal::NamespaceEnds) = self.refusal() {
            return self.wait_for_room();
        }
        for secret in &self.secrets {
            let Some(wanted) = secret.wanted else { continue };
            let write = || {
                let (tunnel, tokens) = (answer.tunnel.id.clone(), answer.tokens.clone());
                Step::WriteSecret { secret: wanted.clone(), tunnel, tokens, generation }
            };
            match secret.state {
                // It is waited for when the others have theirs.
                SecretState::Terminating | SecretState::Predecessor => {}
                SecretState::Ours { found, holds_answer: true, .. }
                    if found.generation == generation && found.sound =>
                {
                    // What somebody took off at once is not written again; what the spec has named since is.
                    if !found.decorated && !answer.written.contains(wanted) {
                        return write();
                    }
                }
                SecretState::Ours { found, .. } if found.generation > below => return Step::Forget,
                SecretState::Ours { found, .. } if !found.sound => {
                    return Step::DeleteSecret { name: secret.name.to_owned() };
                }
                _ => return write(),
            }
        }
        // Until they are gone the status names them, so that whoever goes on from here finds them.
        self.wait_for_termination()
            .or_else(|| self.wait_for_predecessor())
            .or_else(|| self.delete_former())
            .unwrap_or_else(|| Step::Record(done(self.to_record())))
    }
}
