//! What the token Secrets are to the Tunnel.

use super::Case;
use crate::clock::Mono;
use crate::memory::redone::Damage;
use crate::read::{Object, SecretSpec};
use crate::secrets::{FoundSecret, SecretFacts};
use crate::step::{Refusal, Report, Step, Wait};
use crate::tunnels::Tokens;
use opentunnel_api::{ClientMode, Reason, SecretStatus};
use std::time::Duration;

/// How long a dry-run answer of the API server counts.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);
/// A Secret that the API server did not take is tried again after this time, which doubles with each refusal. Not all
/// refusals stay: right after the CRD was created, admission may not know it yet.
const FIRST_REFUSED_RETRY: Duration = Duration::from_secs(1);
/// The longest time after which it is tried again.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// So long the Secret of an earlier Tunnel of the same name is waited for, which the garbage collector removes.
pub(super) const PREDECESSOR_LIMIT: Duration = Duration::from_secs(60);
/// A Secret that somebody's finalizer holds back is looked at again after this time.
const TERMINATING_RETRY: Duration = Duration::from_secs(5);
/// The Secret of an earlier Tunnel is looked at again after this time, where the watch does not tell that it is gone.
const PREDECESSOR_RETRY: Duration = Duration::from_secs(2);

/// A Secret that concerns the Tunnel.
pub(super) struct TokenSecret<'a> {
    pub(super) name: &'a str,
    /// What the spec wants of it; `None`: the spec names it no more.
    pub(super) wanted: Option<&'a SecretSpec>,
    pub(super) state: SecretState<'a>,
    /// Who has it, for people.
    pub(super) holder: Option<&'a str>,
    /// Who has written to it beside the operator, and what, for people.
    editors: Option<&'a str>,
}

/// What a Secret is to the Tunnel.
#[derive(Clone, Copy)]
pub(super) enum SecretState<'a> {
    /// There is none.
    Missing,
    /// Somebody else's: it is never touched.
    Foreign,
    /// An earlier Tunnel of the same name controls it: the garbage collector removes it.
    Predecessor,
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
    /// `waits`: for that of an earlier Tunnel of the same name.
    pub(super) fn judge(object: &'a Object, facts: &'a SecretFacts, waits: bool) -> Self {
        let wanted = object.spec.secrets.iter().find(|s| s.name == facts.name);
        let state = match &facts.found {
            None => SecretState::Missing,
            Some(found) if found.controller.as_ref() != Some(&object.key.uid) && !found.leftover => {
                if found.predecessor && waits { SecretState::Predecessor } else { SecretState::Foreign }
            }
            Some(found) if found.terminating => SecretState::Terminating,
            // Without its label the watch would not see what becomes of it.
            Some(found) => SecretState::Ours {
                found,
                intact: found.sound
                    && found.labelled
                    && !found.leftover
                    && object.record.sha256(&facts.name) == Some(found.sha256.as_str()),
                holds_answer: found.labelled
                    && !found.leftover
                    && facts.sha256_of_answer.as_ref() == Some(&found.sha256),
            },
        };
        let found = facts.found.as_ref();
        let holder = found.map(|found| found.holder.as_str());
        Self { name: &facts.name, wanted, state, holder, editors: found.and_then(|found| found.editors.as_deref()) }
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

    /// The Secret of an earlier Tunnel of the same name is about to go: it is waited for.
    pub(super) fn wait_for_predecessor(&self) -> Option<Step> {
        let secret = self.secrets.iter().find(|s| matches!(s.state, SecretState::Predecessor))?;
        let since = self.opening_since();
        let words = format!(
            "Secret {} belongs to the Tunnel that had this name before: it is waited until it is gone",
            secret.name
        );
        let report = self.after_5s(since, Reason::Opening, &words);
        let until = self.report_at(since).or(Some(self.now.mono + PREDECESSOR_RETRY));
        Some(self.wait(report, Wait { until, names: vec![secret.name.to_owned()], ..Wait::default() }))
    }

    /// What is wrong with the first Secret that does not hold the tokens as they were recorded.
    pub(super) fn damage(&self) -> Option<Damage> {
        let present = self.object.record.token_generation;
        self.secrets.iter().find_map(|secret| match secret.state {
            SecretState::Missing | SecretState::Terminating | SecretState::Predecessor => Some(Damage::Missing),
            SecretState::Foreign => None,
            SecretState::Ours { found, .. } if !found.sound => Some(Damage::Unusable),
            SecretState::Ours { found, .. } if !found.labelled || found.leftover => Some(Damage::Unmarked),
            SecretState::Ours { intact: false, .. } => Some(Damage::Edited),
            SecretState::Ours { found, .. } => (found.generation != present).then_some(Damage::Unmarked),
        })
    }

    /// Which Secret does not stay as it is written, and who has changed it.
    pub(super) fn modified(&self) -> Report {
        let spoilt = |secret: &&TokenSecret<'_>| secret.intact().is_none();
        let secret = self.secrets.iter().find(spoilt).or_else(|| self.secrets.first());
        let name = secret.map_or("", |secret| secret.name);
        let who = match secret.map(|secret| (secret.state, secret.editors)) {
            Some((SecretState::Missing | SecretState::Terminating, _)) => "it is deleted again and again".to_owned(),
            Some((_, Some(editors))) => format!("changed by {editors}"),
            _ => "nobody else has written to it: an admission policy or webhook changes what the operator writes"
                .to_owned(),
        };
        let message = format!(
            "what is written into Secret {name} does not stay ({who}): new tokens are made only now and then, until it stays; exempt the Secret from what changes it"
        );
        Report { reason: Reason::SecretModified, message }
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
                let (name, sha256) = (secret.name.to_owned(), found.sha256.clone());
                Some(SecretStatus { name, sha256, resource_version: found.version.clone() })
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
        // (Before an opening, one dry run counts for all Tunnels of the namespace.)
        let trial = self.memory.backoff.trial.as_ref();
        let taken = trial.is_some_and(|t| t.refused.is_none() && self.now.mono < t.at + TRIAL_LIMIT);
        let secret = missing.wanted.filter(|_| !taken)?;
        Some(Step::TryCreate { secret: secret.clone() })
    }

    /// When a Secret that the API server did not take is tried again.
    fn tried_again(&self) -> Option<Mono> {
        let trial = self.memory.backoff.trial.as_ref()?;
        let doubled = FIRST_REFUSED_RETRY.saturating_mul(1 << trial.refusals.saturating_sub(1).min(16));
        Some(trial.at + doubled.min(REFUSED_RETRY))
    }

    /// Why the API server takes no Secret, until it is time to try again.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        self.tried_again().filter(|again| self.now.mono < *again)?;
        self.memory.backoff.trial.as_ref()?.refused.as_ref()
    }

    /// Waits until the API server may take a Secret again.
    pub(super) fn wait_for_room(&self) -> Step {
        let report = self.refusal().and_then(|refusal| match refusal {
            // The Tunnel goes with it.
            Refusal::NamespaceEnds => None,
            Refusal::Told(words) if self.object.record.phase().is_open() => Some(Report {
                reason: Reason::Rotating,
                message: format!(
                    "the API server does not take a Secret that is missing, so no tokens are made for it: {words}"
                ),
            }),
            Refusal::Told(words) => Some(Report {
                reason: Reason::Opening,
                message: format!("the API server does not take the token Secret, so no tunnel is opened: {words}"),
            }),
        });
        self.wait(report, Wait { until: self.tried_again(), ..Wait::default() })
    }
}
