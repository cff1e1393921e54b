//! Waiting: for a turn, for a retry, for a Secret's name, and what is reported meanwhile.

use super::super::decision::{Change, Decision, Lane, Report, Wait};
use super::super::observe::{Failure, SecretState};
use super::{Case, failure_reason};
use crate::clock::Mono;
use crate::crd::Reason;
use crate::pacer::Turn;
use crate::tunnels::CallErrorKind;
use std::time::Duration;

/// A claim is acted on within this time of its write, or of a read that shows it unchanged: a
/// process that was paused must not act on an old one.
pub const CLAIM_LIMIT: Duration = Duration::from_secs(5);
/// A wait is reported only once it has taken longer than this.
const REPORT_AFTER: Duration = Duration::from_secs(5);
/// A Secret of somebody else's is looked at again after this time at the latest.
const CONFLICT_RETRY: Duration = Duration::from_secs(60);

impl Case<'_> {
    pub(super) fn in_lane(&self, lane: Lane, turn: Turn, granted: impl FnOnce() -> Decision) -> Decision {
        match turn {
            Turn::None => Decision::Queue(lane),
            Turn::Granted => granted(),
            Turn::Waiting => {
                let report = self.o.memory.deleting.and_then(|since| {
                    self.after_5s(since, Reason::Closing, "CloseTunnel is queued behind those of other Tunnels")
                });
                let until = self.o.memory.deleting.and_then(|since| self.report_at(since));
                self.wait(report, Wait { lane: Some(lane), until, need: None })
            }
        }
    }

    /// A claim is acted on while it is fresh, else it is read again.
    pub(super) fn fresh(&self, decision: Decision) -> Decision {
        match self.o.read_at {
            Some(at) if self.now.mono < at + CLAIM_LIMIT => decision,
            _ => Decision::Read,
        }
    }

    /// The generation after `present`, and above whatever stands in the Secrets.
    pub(super) fn generation_above(&self, present: i64) -> i64 {
        let generations = self.o.secrets.iter().chain(&self.o.former).filter_map(|s| match s {
            SecretState::Ours { generation, .. } => Some(*generation),
            _ => None,
        });
        generations.fold(present, i64::max).saturating_add(1)
    }

    /// The last call failed, and it is not time to try again.
    pub(super) fn backing_off(&self) -> Option<Decision> {
        let failure = self.o.memory.failure.as_ref().filter(|f| self.now.mono < f.retry_at)?;
        // Said once: two operators that fail differently would say it in turn for ever.
        let unsaid = !failure.told || self.d.record.observed_generation != Some(self.d.generation);
        let report = unsaid.then(|| Report { reason: failure.reason, message: failure.message.clone() });
        Some(self.wait(report, Wait { until: Some(failure.retry_at), ..Wait::default() }))
    }

    /// AWS refused a call on a known tunnel, and has not said since whether the tunnel is open: what a
    /// rotation or a second close of a closed tunnel answers is not documented.
    pub(super) fn refused_unheard(&self) -> Option<&Failure> {
        let failure = self.o.memory.failure.as_ref().filter(|f| f.reason == Reason::InvalidRequest)?;
        let unheard = self.o.heard.is_none_or(|h| h.asked < failure.at) && self.o.reads_fail.is_none();
        (unheard && self.now.mono < failure.retry_at).then_some(failure)
    }

    /// The tokens are in hand, and the API server does not take them: said once, while it is tried on.
    pub(super) fn in_trouble(&self) -> Option<Decision> {
        let trouble = self.o.memory.trouble.as_ref()?;
        let words = format!("the tunnel is open, but its tokens cannot be kept yet: {trouble}");
        let report = self.after_5s(self.o.memory.first_seen, Reason::Opening, &words)?;
        match self.wait(Some(report), Wait::default()) {
            Decision::Wait(_) => None,
            record => Some(record),
        }
    }

    pub(super) fn wait_for_secret(&self) -> Decision {
        self.wait(Some(self.conflict()), Wait { until: self.retry_name(), ..Wait::default() })
    }

    /// When a Secret of somebody else's is looked at again.
    pub(super) fn retry_name(&self) -> Option<Mono> {
        Some(self.now.mono + CONFLICT_RETRY)
    }

    pub(super) fn conflict(&self) -> Report {
        let foreign = self.d.secrets.iter().zip(&self.o.secrets).find(|(_, s)| **s == SecretState::Foreign);
        let name = foreign.map_or("", |(wanted, _)| &wanted.name);
        let message = format!(
            "Secret {name} exists and is not controlled by this Tunnel, so nothing is written to it: delete or rename it, or name another one in spec.secrets"
        );
        Report { reason: Reason::SecretConflict, message }
    }

    pub(super) fn wait_in_queue(&self) -> Decision {
        let since = self.o.memory.first_seen;
        let report = match &self.o.gate {
            // What the last call failed with stands already: a retry costs no write.
            _ if self.o.memory.failure.is_some() => None,
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
        self.wait(report, Wait { lane: Some(Lane::Open), until: self.report_at(since), need: None })
    }

    /// What stands says more than that it is being opened.
    pub(super) fn says_why(&self) -> bool {
        use Reason::{AccessDenied, AwsUnavailable, InvalidRequest, LimitExceeded};
        matches!(self.d.record.reported, Some(LimitExceeded | AwsUnavailable | AccessDenied | InvalidRequest))
    }

    pub(super) fn after_5s(&self, since: Mono, reason: Reason, message: &str) -> Option<Report> {
        (self.now.mono >= since + REPORT_AFTER).then(|| Report { reason, message: message.to_owned() })
    }

    pub(super) fn report_at(&self, since: Mono) -> Option<Mono> {
        Some(since + REPORT_AFTER).filter(|at| self.now.mono < *at)
    }

    pub(super) fn reads_fail(&self) -> Option<Report> {
        let error = self.o.reads_fail.as_ref()?;
        Some(Report { reason: failure_reason(error.kind), message: error.message.clone() })
    }

    /// Waits, unless there is something to report that does not stand in the status yet. The message
    /// alone is no reason to write: it may change with every retry.
    pub(super) fn wait(&self, report: Option<Report>, wait: Wait) -> Decision {
        let record = &self.d.record;
        let current = |r: &Report| {
            record.reported == Some(r.reason)
                && (record.observed_generation == Some(self.d.generation) || self.d.deleted_at.is_some())
        };
        match report {
            Some(report) if !current(&report) => Decision::Record(Change::Report(report)),
            _ => Decision::Wait(wait),
        }
    }
}

pub(super) fn until_at_most(decision: Decision, limit: Mono) -> Decision {
    match decision {
        Decision::Wait(wait) => {
            Decision::Wait(Wait { until: Some(wait.until.map_or(limit, |until| until.min(limit))), ..wait })
        }
        other => other,
    }
}
