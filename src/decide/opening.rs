//! No tunnel is recorded: search where one may exist, else claim and open.

use super::Case;
use crate::clock::{self, Mono};
use crate::pacer::Turn;
use crate::record::{Change, RecordedTunnel};
use crate::step::{Lane, Need, Report, Step, Wait};
use crate::tunnels::Life;
use opentunnel_api::Reason;

/// Whether a tunnel of this Tunnel may exist that is not known.
pub(super) enum Absence {
    Known,
    /// A search that began at `from` or later shows what is there; only one that began at `until` or
    /// later shows what is not there.
    Unknown {
        from: Mono,
        until: Mono,
    },
}

impl Case<'_> {
    pub(super) fn open(&self) -> Step {
        // Found is found, whatever the search was for. The current attempt's, else the oldest, else the
        // smallest ID: two operators choose the same.
        let claim = self.object.record.claim.as_ref();
        let chosen = self.found().min_by_key(|f| (claim != Some(&f.owner.attempt), f.created_at, f.tunnel.id.clone()));
        if let Some(found) = chosen {
            // Two above: the tokens of its late opener are one above.
            let generation = self.generation_above(self.object.record.token_generation + 1);
            let handled = self.object.rotate.as_ref().map(|rotate| rotate.value.clone());
            let details = self.described(&found.tunnel.id).and_then(|described| described.details.as_ref());
            let connections = details.map(|(details, _)| details.connections()).unwrap_or_default();
            return Step::Record(Change::Adopted { found: found.clone(), generation, handled, connections });
        }
        // Nothing is opened; but what an earlier call may have opened does not wait for a Secret's name.
        if self.foreign_secret().is_some() {
            return match self.absence() {
                Absence::Unknown { from, until } => {
                    self.look_for(from, until, Some(self.conflict()), self.retry_name())
                }
                Absence::Known => self.wait_for_name(),
            };
        }
        if let Some(step) = self.backing_off() {
            return step;
        }
        if let Absence::Unknown { from, until } = self.absence() {
            return self.search(from, until, Reason::Opening, self.opening_since());
        }
        // What the API server would refuse is found out before a tunnel is paid for.
        if let Some(step) = self.wait_for_predecessor() {
            return step;
        }
        if !self.facts.takes_secrets
            && let Some(step) = self.try_create()
        {
            return step;
        }
        match self.facts.turns.open {
            Turn::None => Step::Queue(Lane::Open),
            Turn::Waiting => self.wait_in_queue(),
            Turn::Granted => {
                let own = self.memory.opening.attempt.as_ref().filter(|_| self.memory.opening.doubt.is_none());
                match (claim, own) {
                    (Some(claim), Some(own)) if claim == own => {
                        self.fresh(Step::Open { attempt: own.clone(), tags: self.facts.tags.clone() })
                    }
                    (_, Some(own)) => Step::Claim { attempt: own.clone(), new: false },
                    (_, None) => Step::Claim { attempt: self.facts.fresh_attempt.clone(), new: true },
                }
            }
        }
    }

    /// Its tunnel has ended, and another one is wanted.
    pub(super) fn open_again(&self, ended: &RecordedTunnel) -> Step {
        let pause = self.object.record.reopen.as_ref().filter(|_| ended.end_reason == Some(Reason::Closed));
        if let Some((count, at)) = pause.and_then(|reopen| Some((reopen.count, reopen.not_before?)))
            && self.now.wall < at
        {
            let message = format!(
                "tunnel {} was closed by somebody else before its lifetime was over ({count} in a row): another is opened at {at}",
                ended.reference.id
            );
            let report = Report { reason: Reason::Opening, message };
            return self.wait(Some(report), Wait { until: Some(self.at(at)), ..Wait::default() });
        }
        // Only AWS's own word that the one before is closed lets another be opened: never two at once.
        let id = &ended.reference.id;
        if !self.memory.ending.closed.contains(id) && self.described_end(ended).is_none() {
            if let Some(step) = self.describe_refused(id) {
                return step;
            }
            if let Some(step) = self.backing_off() {
                return step;
            }
            if let Some(Life::Open { .. }) = self.described(id).map(|d| d.life) {
                return self.close(ended.reference.clone(), ended.opened_at);
            }
            let report = self.reads_fail();
            let until = Some(self.now.mono + clock::TOLERANCE.unsigned_abs());
            return self.wait(report, Wait { need: Some(Need::Describe(id.clone())), until, ..Wait::default() });
        }
        self.open()
    }

    /// Since when a tunnel is to be opened.
    pub(super) fn opening_since(&self) -> Mono {
        self.memory.opening.since.unwrap_or(self.memory.first_seen)
    }

    /// It is known that nobody has opened anything if the Tunnel's creation was seen, or if the claim is this process's
    /// and was never sent. Else a search must show it; where a call may be in flight (of this process or of whoever
    /// claimed), one that begins when the call must have ended.
    pub(super) fn absence(&self) -> Absence {
        let (memory, opening) = (self.memory, &self.memory.opening);
        let theirs = |claim| opening.attempt.as_ref() != Some(claim) && !self.object.claim_is_settled();
        let claim = opening.claim.as_ref().filter(|(claim, _)| theirs(claim));
        let unknown = match opening.doubt.max(claim.map(|(_, seen)| *seen)) {
            Some(since) => Some((since, since + self.limits.recovery_grace)),
            None if memory.saw_creation => None,
            None => Some((memory.first_seen, memory.first_seen)),
        };
        match (unknown, self.search) {
            (Some((_, until)), Some(search)) if search.started >= until => Absence::Known,
            (Some((from, until)), _) => Absence::Unknown { from, until },
            (None, _) => Absence::Known,
        }
    }

    pub(super) fn search(&self, from: Mono, until: Mono, reason: Reason, since: Mono) -> Step {
        let report = self.reads_fail().or_else(|| {
            // After a call that failed the reason stands already.
            let words = "looking for a tunnel that an earlier attempt may have opened";
            let unfailed = self.memory.backoff.failure.is_none() && !self.says_why();
            self.after_5s(since, reason, words).filter(|_| unfailed)
        });
        self.look_for(from, until, report, self.report_at(since))
    }

    /// Waits for a search, and at most until `at`.
    pub(super) fn look_for(&self, from: Mono, until: Mono, report: Option<Report>, at: Option<Mono>) -> Step {
        let searched = self.search.is_some_and(|s| s.started >= from);
        if searched && self.now.mono < until {
            return self.wait(report, Wait { until: Some(until), ..Wait::default() });
        }
        let need = Need::Search(if searched { until } else { from });
        self.wait(report, Wait { need: Some(need), until: at, ..Wait::default() })
    }
}
