//! Waiting: for a turn, for a retry, for a Secret's name, and what is reported meanwhile.

use super::{Case, failure_reason};
use crate::clock::Mono;
use crate::memory::CLAIM_LIMIT;
use crate::pacer::Turn;
use crate::record::Change;
use crate::step::{Lane, Report, Step, Wait};
use crate::tunnels::CallErrorKind;
use opentunnel_api::Reason;
use std::time::Duration;

/// A wait is reported only once it has taken longer than this.
const REPORT_AFTER: Duration = Duration::from_secs(5);
/// A Secret of somebody else's is looked at again after this time at the latest: the watch shows only those with the
/// operator's label.
const CONFLICT_RETRY: Duration = Duration::from_secs(5);

impl Case<'_> {
    pub(super) fn in_lane(&self, lane: Lane, granted: impl FnOnce() -> Step) -> Step {
        match self.facts.turns.of(lane) {
            Turn::None => Step::Queue(lane),
            Turn::Granted => granted(),
            Turn::Waiting => {
                // What the last call failed with says more.
                let since = self.memory.ending.down.filter(|_| self.memory.backoff.failure.is_none());
                let report = since.and_then(|since| {
                    self.after_5s(since, Reason::Closing, "its call to AWS is queued behind those of other Tunnels")
                });
                let until = since.and_then(|since| self.report_at(since));
                self.wait(report, Wait { lane: Some(lane), until, ..Wait::default() })
            }
        }
    }

    /// A claim is acted on while it is fresh, else it is read again.
    pub(super) fn fresh(&self, step: Step) -> Step {
        match self.view.read_at {
            Some(at) if self.now.mono < at + CLAIM_LIMIT => step,
            _ => Step::Read,
        }
    }

    /// The last call failed, and it is not time to try again.
    pub(super) fn backing_off(&self) -> Option<Step> {
        let failure = self.memory.backoff.failure.as_ref().filter(|f| self.now.mono < f.retry_at)?;
        // Said once: two operators that fail differently would say it in turn for ever.
        let observed = self.object.record.observed_generation == Some(self.object.generation);
        let report =
            (!failure.told || !observed).then(|| Report { reason: failure.reason, message: failure.message.clone() });
        Some(self.wait(report, Wait { until: Some(failure.retry_at), ..Wait::default() }))
    }

    /// The tokens are in hand, and the API server does not take them: said once, while it is tried on. Whoever leads, and
    /// has no tokens, says what it waits for: a process that does not lead says nothing, and a name that is taken is
    /// reason enough. Else two would say it in turn for ever.
    pub(super) fn in_trouble(&self) -> Option<Step> {
        if !self.leads || self.object.record.reported == Some(Reason::SecretConflict) {
            return None;
        }
        let trouble = self.facts.trouble.as_ref()?;
        let words = format!("the tunnel is open, but its tokens cannot be kept yet: {trouble}");
        let report = self.after_5s(self.opening_since(), Reason::Opening, &words)?;
        match self.wait(Some(report), Wait::default()) {
            Step::Wait(_) => None,
            record => Some(record),
        }
    }

    /// Waits for a Secret's name, which somebody else's Secret has.
    pub(super) fn wait_for_name(&self) -> Step {
        let names = self.foreign_secret().map(|secret| secret.name.to_owned()).into_iter().collect();
        self.wait(Some(self.conflict()), Wait { until: self.retry_name(), names, ..Wait::default() })
    }

    /// When a Secret of somebody else's is looked at again.
    pub(super) fn retry_name(&self) -> Option<Mono> {
        Some(self.now.mono + CONFLICT_RETRY)
    }

    pub(super) fn conflict(&self) -> Report {
        let secret = self.foreign_secret();
        let name = secret.map_or("", |secret| secret.name);
        let holder = secret.and_then(|secret| secret.holder).unwrap_or("not controlled by this Tunnel");
        let message = format!(
            "Secret {name} exists and is {holder}, so nothing is written to it: delete or rename it, or name another one in spec.secrets"
        );
        Report { reason: Reason::SecretConflict, message }
    }

    pub(super) fn wait_in_queue(&self) -> Step {
        let since = self.opening_since();
        let report = match &self.facts.gate {
            // What the last call failed with stands already: a retry costs no write.
            _ if self.memory.backoff.failure.is_some() => None,
            Some(gate) if gate.cause == CallErrorKind::LimitExceeded => self.after_5s(
                since,
                Reason::LimitExceeded,
                &format!(
                    "AWS refuses OpenTunnel since {:.0}: {}; it is tried again until there is room",
                    gate.since, gate.message
                ),
            ),
            Some(gate) => self.after_5s(
                since,
                Reason::AwsUnavailable,
                &format!("AWS throttles OpenTunnel since {:.0}: {}", gate.since, gate.message),
            ),
            // Said once: a gate that opens and shuts costs no write.
            None if self.says_why() => None,
            None => self.after_5s(
                since,
                Reason::Opening,
                "OpenTunnel is queued: AWS allows few of them a second for the whole account",
            ),
        };
        self.wait(report, Wait { lane: Some(Lane::Open), until: self.report_at(since), ..Wait::default() })
    }

    /// What stands says more than that it is being opened.
    pub(super) fn says_why(&self) -> bool {
        use Reason::{AccessDenied, AwsUnavailable, InvalidRequest, LimitExceeded};
        let reported = self.object.record.reported;
        matches!(reported, Some(LimitExceeded | AwsUnavailable | AccessDenied | InvalidRequest))
    }

    pub(super) fn after_5s(&self, since: Mono, reason: Reason, message: &str) -> Option<Report> {
        (self.now.mono >= since + REPORT_AFTER).then(|| Report { reason, message: message.to_owned() })
    }

    pub(super) fn report_at(&self, since: Mono) -> Option<Mono> {
        Some(since + REPORT_AFTER).filter(|at| self.now.mono < *at)
    }

    pub(super) fn reads_fail(&self) -> Option<Report> {
        let error = self.facts.reads_fail.as_ref()?;
        Some(Report { reason: failure_reason(error.kind), message: error.message.clone() })
    }

    /// Waits, unless there is something to report that does not stand in the status yet. The message
    /// alone is no reason to write: it may change with every retry.
    pub(super) fn wait(&self, report: Option<Report>, wait: Wait) -> Step {
        let record = &self.object.record;
        let observed = record.observed_generation == Some(self.object.generation) || self.object.deleted_at.is_some();
        match report {
            Some(report) if record.reported != Some(report.reason) || !observed => Step::Record(Change::Report(report)),
            _ => Step::Wait(wait),
        }
    }
}

pub(super) fn until_at_most(step: Step, limit: Mono) -> Step {
    match step {
        Step::Wait(wait) => {
            Step::Wait(Wait { until: Some(wait.until.map_or(limit, |until| until.min(limit))), ..wait })
        }
        other => other,
    }
}
