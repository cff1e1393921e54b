//! What the token Secrets are to the Tunnel.

use super::Case;
use crate::read::{Object, SecretSpec};
use crate::secrets::{FoundSecret, SecretFacts};
use crate::step::{Refusal, Report, Step, Wait};
use crate::tunnels::Tokens;
use opentunnel_api::{ClientMode, Reason, SecretStatus};
use std::time::Duration;

/// How long a dry-run answer of the API server counts.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);
/// A Secret that the API server did not take is tried again after this time.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// A Secret that somebody's finalizer holds back is looked at again after this time.
const TERMINATING_RETRY: Duration = Duration::from_secs(5);

/// A Secret that concerns the Tunnel.
pub(super) struct TokenSecret<'a> {
    pub(super) name: &'a str,
    /// What the spec wants of it; `None`: the spec names it no more.
    pub(super) wanted: Option<&'a SecretSpec>,
    pub(super) state: SecretState<'a>,
}

/// What a Secret is to the Tunnel.
#[derive(Clone, Copy)]
pub(super) enum SecretState<'a> {
    /// There is none.
    Missing,
    /// The Tunnel does not control it: it is never touched.
    Foreign,
    /// This Tunnel's; it is being deleted, and somebody's finalizer holds it back.
    Terminating,
    /// This Tunnel's.
    Ours {
        found: &'a FoundSecret,
        /// It is as it was recorded when the Tunnel was Ready the last time.
        intact: bool,
        /// It holds the tokens of the answer in hand.
        holds_answer: bool,
    },
}

impl<'a> TokenSecret<'a> {
    /// What one is to a Tunnel.
    pub(super) fn judge(object: &'a Object, facts: &'a SecretFacts) -> Self {
        let wanted = object.spec.secrets.iter().find(|s| s.name == facts.name);
        let state = match &facts.found {
            None => SecretState::Missing,
            Some(found) if found.controller.as_ref() != Some(&object.key.uid) => SecretState::Foreign,
            Some(found) if found.terminating => SecretState::Terminating,
            // Without its label the watch would not see what becomes of it.
            Some(found) => SecretState::Ours {
                found,
                intact: found.sound
                    && found.labelled
                    && object.record.sha256(&facts.name) == Some(found.sha256.as_str()),
                holds_answer: found.labelled && facts.sha256_of_answer.as_ref() == Some(&found.sha256),
            },
        };
        Self { name: &facts.name, wanted, state }
    }

    pub(super) fn is_ours(&self) -> bool {
        matches!(self.state, SecretState::Ours { .. })
    }

    fn is_terminating(&self) -> bool {
        matches!(self.state, SecretState::Terminating)
    }

    /// What it holds, if it is as it was recorded.
    fn intact(&self) -> Option<&'a FoundSecret> {
        match self.state {
            SecretState::Ours { found, intact: true, .. } => Some(found),
            _ => None,
        }
    }

    fn generation(&self) -> Option<i64> {
        match self.state {
            SecretState::Ours { found, .. } => Some(found.generation),
            _ => None,
        }
    }
}

impl<'a> Case<'a> {
    fn all_secrets(&self) -> impl Iterator<Item = &TokenSecret<'a>> {
        self.secrets.iter().chain(&self.former)
    }

    /// A wanted Secret that is somebody else's.
    pub(super) fn foreign_secret(&self) -> Option<&TokenSecret<'a>> {
        self.secrets.iter().find(|s| matches!(s.state, SecretState::Foreign))
    }

    /// The generation after `present`, and above whatever stands in the Secrets.
    pub(super) fn generation_above(&self, present: i64) -> i64 {
        self.all_secrets().filter_map(TokenSecret::generation).fold(present, i64::max).saturating_add(1)
    }

    /// The tokens in the Secrets that are as they were recorded when the Tunnel was Ready the last time.
    pub(super) fn recorded_tokens(&self) -> Tokens {
        let intact = self.all_secrets().filter_map(TokenSecret::intact);
        intact.map(|found| found.tokens.clone()).fold(Tokens::default(), Tokens::or)
    }

    /// What is recorded of the wanted Secrets when they hold the tokens.
    pub(super) fn to_record(&self) -> Vec<SecretStatus> {
        let status = |secret: &TokenSecret<'_>| match secret.state {
            SecretState::Ours { found, .. } => {
                Some(SecretStatus { name: secret.name.to_owned(), sha256: found.sha256.clone() })
            }
            _ => None,
        };
        self.secrets.iter().filter_map(status).collect()
    }

    /// The sides of a Ready Tunnel that need new tokens: those of Secrets that were lost or edited, and those
    /// that no Secret holds yet. What a Secret that is as it was recorded holds needs none.
    pub(super) fn to_rotate(&self) -> Option<ClientMode> {
        let record = &self.object.record;
        let present = record.token_generation;
        let held = self.all_secrets().filter_map(|s| s.intact()?.mode).reduce(ClientMode::union);
        let needed = self.secrets.iter().filter_map(|secret| {
            let mode = secret.wanted?.mode;
            let known = record.sha256(secret.name).is_some();
            let as_recorded = secret.intact().is_some_and(|found| found.generation == present);
            // Beyond the present generation: somebody wrote it in.
            let forged = secret.generation().is_some_and(|generation| generation > present);
            match secret.state {
                SecretState::Terminating => None,
                _ if (known && !as_recorded) || forged => Some(mode),
                _ => mode.without(held),
            }
        });
        needed.reduce(ClientMode::union)
    }

    /// Whether the Secrets that the spec names, and no others, are as the spec says. Their labels and annotations are
    /// looked at when the spec has changed, and not again: somebody else may take them off.
    pub(super) fn fit_the_spec(&self) -> bool {
        let record = &self.object.record;
        let observed = record.observed_generation == Some(self.object.generation);
        let fits = |secret: &TokenSecret<'_>| match (secret.wanted, secret.state) {
            (Some(wanted), SecretState::Ours { found, .. }) => {
                let recorded = record.sha256(secret.name).is_some();
                recorded && found.mode == Some(wanted.mode) && (observed || found.decorated)
            }
            _ => false,
        };
        self.secrets.iter().all(fits)
            && record.secrets.as_ref().is_some_and(|recorded| recorded.len() == self.secrets.len())
            && !self.former.iter().any(TokenSecret::is_ours)
    }

    /// A Secret of this Tunnel's that the spec names no more.
    pub(super) fn delete_former(&self) -> Option<Step> {
        let former = self.former.iter().find(|s| s.is_ours())?;
        Some(Step::DeleteSecret { name: former.name.to_owned() })
    }

    /// Any Secret of this Tunnel's.
    pub(super) fn delete_secret(&self) -> Option<Step> {
        let own = self.secrets.iter().find(|s| s.is_ours());
        own.map(|own| Step::DeleteSecret { name: own.name.to_owned() }).or_else(|| self.delete_former())
    }

    /// Whoever deleted a Secret wants another one: it comes when it is gone.
    pub(super) fn wait_for_termination(&self) -> Option<Step> {
        let until = Some(self.now.mono + TERMINATING_RETRY);
        let waits = self.secrets.iter().any(TokenSecret::is_terminating);
        waits.then(|| self.wait(None, Wait { until, ..Wait::default() }))
    }

    /// Asks, before tokens that work are revoked, whether the API server takes the Secrets that are missing. One
    /// that was lost is not restored while its namespace is being deleted.
    pub(super) fn try_create(&self) -> Option<Step> {
        let missing = self.secrets.iter().find(|s| matches!(s.state, SecretState::Missing))?;
        if self.refusal().is_some() {
            return Some(self.wait_for_room());
        }
        let trial = self.memory.backoff.trial.as_ref();
        let taken = trial.is_some_and(|t| t.refused.is_none() && self.now.mono < t.at + TRIAL_LIMIT);
        let secret = missing.wanted.filter(|_| !taken)?;
        Some(Step::TryCreate { secret: secret.clone() })
    }

    /// Why the API server takes no Secret, until it is time to try again.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        let trial = self.memory.backoff.trial.as_ref().filter(|t| self.now.mono < t.at + REFUSED_RETRY)?;
        trial.refused.as_ref()
    }

    /// Waits until the API server may take a Secret again.
    pub(super) fn wait_for_room(&self) -> Step {
        let report = self.refusal().and_then(|refusal| match refusal {
            // The Tunnel goes with it.
            Refusal::NamespaceEnds => None,
            Refusal::Told(words) => Some(Report {
                reason: Reason::Rotating,
                message: format!(
                    "the API server does not take a Secret that is missing, so no tokens are made for it: {words}"
                ),
            }),
        });
        let until = self.memory.backoff.trial.as_ref().map(|t| t.at + REFUSED_RETRY);
        self.wait(report, Wait { until, ..Wait::default() })
    }
}
