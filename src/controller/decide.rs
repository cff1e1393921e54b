//! Step 3, pure: what to do next. Everything hard about this product is in here, and none of it
//! talks to anybody: no client, no clock, no await, no randomness.
//!
//! OpenTunnel costs money, cannot be repeated safely, and says the tokens once. So who opens claims
//! first, who finds a claim searches first, and every write is conditioned by what was read. What
//! each rule is there for stands beside it; docs/protocol.md tells the whole.

use super::decision::{Change, Decision, Lane, Need, Report, Wait};
use super::observe::{Answer, AnswerOf, Limits, Observed, Refusal, RotationStage, SecretState};
use super::secrets;
use super::validate::{Desired, RecordedTunnel};
use crate::clock::{self, Mono, Now};
use crate::crd::{ClientMode, Reason, State};
use crate::pacer::Turn;
use crate::tunnels::{CallErrorKind, Found, Home, TunnelRef, Word};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

mod ending;
mod waiting;

pub use waiting::CLAIM_LIMIT;

/// So long the API server's word counts that it would take a Secret.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);
/// A Secret that the API server did not take is tried again after this time.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// A Secret that somebody's finalizer holds back is looked at again after this time.
const TERMINATING_RETRY: Duration = Duration::from_secs(5);

/// What to do next for one Tunnel.
pub fn decide(desired: &Desired, observed: &Observed, limits: &Limits, now: Now) -> Decision {
    let case = Case { d: desired, o: observed, limits, now };
    if let Some(answer) = &observed.memory.answer
        && let Some(decision) = case.judge(answer)
    {
        return decision;
    }
    if observed.gone {
        return Decision::Wait(Wait::default());
    }
    if let (Some(tunnel), Home::Elsewhere) = (&desired.record.tunnel, observed.home) {
        return case.leave_alone(tunnel);
    }
    if desired.deleted_at.is_some() {
        return case.delete();
    }
    match &desired.record.tunnel {
        None => case.open(),
        Some(tunnel) if tunnel.state == State::Closed => case.ended(),
        Some(tunnel) => case.keep_open(tunnel),
    }
}

struct Case<'a> {
    d: &'a Desired,
    o: &'a Observed<'a>,
    limits: &'a Limits,
    now: Now,
}

/// Whether a tunnel of this Tunnel may exist that is not known.
enum Absence {
    Known,
    /// A search that began at `from` or later shows what is there; only one that began at `until` or
    /// later shows what is not there.
    Unknown {
        from: Mono,
        until: Mono,
    },
}

impl Case<'_> {
    /// An answer with tokens is judged against the object as it is now, not as it was when the call
    /// left. `None`: it is for [`Case::delete`] to close.
    fn judge(&self, answer: &Answer) -> Option<Decision> {
        if !self.o.gone && self.o.read_at.is_none_or(|at| at < answer.at) {
            return Some(Decision::Read);
        }
        let record = &self.d.record;
        let recorded = record.tunnel.as_ref().map(|t| &t.tunnel.id);
        let mine = recorded == Some(&answer.tunnel.id);
        Some(match &answer.of {
            AnswerOf::Open(_) if self.o.gone => Decision::Abandon(answer.tunnel.clone()),
            // Adopted by somebody else, or our own write was carried out though its answer was lost.
            AnswerOf::Open(_) if mine => Decision::Forget,
            AnswerOf::Open(_) if self.d.deleted_at.is_some() => return None,
            AnswerOf::Open(_) if recorded.is_some() => Decision::Abandon(answer.tunnel.clone()),
            AnswerOf::Open(attempt) => match &record.claim {
                // Wiped by a user (kubectl replace): its opener writes it again and goes on.
                None => Decision::Claim(Some(attempt.clone())),
                Some(claim) if claim != attempt => Decision::Abandon(answer.tunnel.clone()),
                Some(_) => self.in_trouble().unwrap_or_else(|| {
                    self.keep_tokens(record.token_generation + 1, |generation| {
                        (Change::Opened { generation }, Change::Kept { generation })
                    })
                }),
            },
            AnswerOf::Rotate(generation) | AnswerOf::Secrets(generation) => {
                let (ready, reused) =
                    (record.reported == Some(Reason::Open), matches!(answer.of, AnswerOf::Secrets(_)));
                let superseded = !mine || record.token_generation != *generation || ready != reused;
                // The spec may want a side by now that the answer has not.
                let lacks = !answer.tokens.have(self.d.client_mode());
                // While the API server refuses a Secret, the end must not wait for it.
                let ended =
                    record.tunnel.as_ref().is_some_and(|t| t.state == State::Closed || self.has_ended(t).is_some());
                if self.o.gone || self.d.deleted_at.is_some() || superseded || lacks || ended {
                    Decision::Forget
                } else {
                    let done = if reused { Change::Arranged } else { Change::Rotated };
                    self.keep_tokens(*generation, |_| (done, Change::Report(self.conflict())))
                }
            }
        })
    }

    /// Puts the answer's tokens into the Secrets, each only over a lower generation: an adopter's
    /// always win over its late opener's.
    fn keep_tokens(&self, generation: i64, changes: impl FnOnce(i64) -> (Change, Change)) -> Decision {
        let (done, conflict) = changes(generation);
        if self.o.secrets.contains(&SecretState::Foreign) {
            return Decision::Record(conflict);
        }
        if let Some(Refusal::NamespaceEnds) = self.refusal() {
            return self.wait_for_secrets();
        }
        // The same generation's tokens may come where they did not stand before.
        let newest = if done == Change::Arranged { generation } else { generation - 1 };
        for (index, secret) in self.o.secrets.iter().enumerate() {
            match secret {
                // Waited for when the others have theirs.
                SecretState::Terminating => {}
                SecretState::Ours { generation: g, sound: true, holds_answer: true, .. } if *g == generation => {}
                SecretState::Ours { generation: g, .. } if *g > newest => return Decision::Forget,
                SecretState::Ours { sound: false, .. } => return Decision::DeleteSecret { index },
                _ => return Decision::WriteSecret { index, generation },
            }
        }
        if self.o.secrets.contains(&SecretState::Terminating) {
            return self.wait(None, Wait { until: Some(self.now.mono + TERMINATING_RETRY), ..Wait::default() });
        }
        // Until they are gone the status names them, so that whoever goes on from here finds them.
        self.delete_former().unwrap_or(Decision::Record(done))
    }

    /// No tunnel is known: search where one may exist, else claim and open.
    fn open(&self) -> Decision {
        // Found is found, whatever the search was for. The current attempt's, else the oldest, else the
        // smallest ID: two operators choose the same.
        let claim = self.d.record.claim.as_ref();
        let chosen = self.found().min_by_key(|f| (claim != Some(&f.owner.attempt), f.created_at, f.tunnel.id.clone()));
        if let Some(found) = chosen {
            // Two above: the tokens of its late opener are one above.
            let generation = self.generation_above(self.d.record.token_generation + 1);
            return Decision::Record(Change::Adopted { found: found.clone(), generation });
        }
        // Nothing is opened; but what an earlier call may have opened does not wait for a Secret's name.
        if self.o.secrets.contains(&SecretState::Foreign) {
            return match self.absence() {
                Absence::Unknown { from, until } => {
                    self.look_for(from, until, Some(self.conflict()), self.retry_name())
                }
                Absence::Known => self.wait_for_secret(),
            };
        }
        if let Some(decision) = self.backing_off() {
            return decision;
        }
        if let Absence::Unknown { from, until } = self.absence() {
            return self.search(from, until, Reason::Opening, self.o.memory.first_seen);
        }
        match self.o.open {
            Turn::None => Decision::Queue(Lane::Open),
            Turn::Waiting => self.wait_in_queue(),
            Turn::Granted => {
                let own = self.o.memory.attempt.as_ref().filter(|_| self.o.memory.open_doubt.is_none());
                match (claim, own) {
                    (Some(claim), Some(own)) if claim == own => self.fresh(Decision::Open),
                    (_, own) => Decision::Claim(own.cloned()),
                }
            }
        }
    }

    /// Nobody may have opened anything: that is known of a Tunnel whose creation was seen, and of a
    /// claim of this process that was never sent. Else a search must show it, and where a call may be
    /// in flight (of this process or of who claimed), one that begins when the call must have ended.
    fn absence(&self) -> Absence {
        let memory = self.o.memory;
        let foreign_claim =
            memory.claim.as_ref().filter(|(claim, _)| memory.attempt.as_ref() != Some(claim)).map(|(_, seen)| *seen);
        let unknown = match memory.open_doubt.max(foreign_claim) {
            Some(since) => Some((since, since + self.limits.recovery_grace)),
            None if memory.saw_creation => None,
            None => Some((memory.first_seen, memory.first_seen)),
        };
        match (unknown, &self.o.search) {
            (Some((_, until)), Some(search)) if search.started >= until => Absence::Known,
            (Some((from, until)), _) => Absence::Unknown { from, until },
            (None, _) => Absence::Known,
        }
    }

    /// Tunnels that a search found and nobody has closed since.
    fn found(&self) -> impl Iterator<Item = &Found> {
        let found = self.o.search.iter().flat_map(|s| &s.found);
        found.filter(|f| !self.o.memory.closed.contains(&f.tunnel.id))
    }

    fn search(&self, from: Mono, until: Mono, reason: Reason, since: Mono) -> Decision {
        let report = self.reads_fail().or_else(|| {
            // After a call that failed the reason stands already.
            let words = "looking for a tunnel that an earlier attempt may have opened";
            self.after_5s(since, reason, words).filter(|_| self.o.memory.failure.is_none() && !self.says_why())
        });
        self.look_for(from, until, report, self.report_at(since))
    }

    /// Waits for a search, and at most until `at`.
    fn look_for(&self, from: Mono, until: Mono, report: Option<Report>, at: Option<Mono>) -> Decision {
        let searched = self.o.search.as_ref().is_some_and(|s| s.started >= from);
        if searched && self.now.mono < until {
            return self.wait(report, Wait { until: Some(until), ..Wait::default() });
        }
        let need = Need::Search(if searched { until } else { from });
        self.wait(report, Wait { need: Some(need), until: at, ..Wait::default() })
    }

    /// A tunnel is known and was open when last heard of.
    fn keep_open(&self, tunnel: &RecordedTunnel) -> Decision {
        if let Some((reason, closed_at)) = self.has_ended(tunnel) {
            return self.end(reason, closed_at);
        }
        if let Some(Word::Open { created_at }) = self.o.heard.map(|h| h.word)
            && created_at.duration_since(tunnel.opened_at).abs() > clock::TOLERANCE
        {
            return Decision::Record(Change::OpenedAt(created_at));
        }
        if let Some(since) = self.o.memory.expired
            && self.o.heard.is_none_or(|h| h.asked < since)
        {
            let until = Some(self.now.mono + clock::TOLERANCE.unsigned_abs());
            return Decision::Wait(Wait { need: Some(Need::Describe), until, lane: None });
        }
        if !self.d.record.finalizer {
            return Decision::RestoreFinalizer;
        }
        if self.d.record.reported == Some(Reason::Open) { self.keep_ready(tunnel) } else { self.make_ready(tunnel) }
    }

    /// A time of the wall's clock by the process's own.
    fn at(&self, time: Timestamp) -> Mono {
        self.now.mono + Duration::try_from(time.duration_since(self.now.wall)).unwrap_or_default()
    }

    fn keep_ready(&self, tunnel: &RecordedTunnel) -> Decision {
        if self.o.secrets.contains(&SecretState::Foreign) {
            return Decision::Record(Change::Report(self.conflict()));
        }
        // A Rotate of ours that ended late may have revoked the tokens that were made after it.
        let late = self.o.memory.late_rotation.is_some_and(|g| g < self.d.record.token_generation);
        let needed = if late { Some(self.d.client_mode()) } else { secrets::to_rotate(self.d, self.o) };
        if let Some(mode) = needed {
            return self.claim_rotation(mode);
        }
        // Whoever deleted it wants another one: it comes when it is gone.
        if self.o.secrets.contains(&SecretState::Terminating) {
            return self.wait(None, Wait { until: Some(self.now.mono + TERMINATING_RETRY), ..Wait::default() });
        }
        if !secrets::are_arranged(self.d, self.o) {
            return self.try_create().unwrap_or(Decision::Reuse);
        }
        let until = self.o.memory.expired.is_none().then(|| self.at(tunnel.expires_at));
        let report = Report { reason: Reason::Open, message: String::new() };
        self.wait(Some(report), Wait { until, ..Wait::default() })
    }

    /// Asks, before tokens that work are revoked, whether the API server takes the Secrets that are missing. One
    /// that was lost is not restored while its namespace is being deleted.
    fn try_create(&self) -> Option<Decision> {
        let index = self.o.secrets.iter().position(|s| *s == SecretState::Missing)?;
        if self.refusal().is_some() {
            return Some(self.wait_for_secrets());
        }
        let taken =
            self.o.memory.trial.as_ref().is_some_and(|t| t.refused.is_none() && self.now.mono < t.at + TRIAL_LIMIT);
        (!taken).then_some(Decision::TryCreate { index })
    }

    /// Why the API server takes no Secret, until it is time to try again.
    fn refusal(&self) -> Option<&Refusal> {
        let trial = self.o.memory.trial.as_ref().filter(|t| self.now.mono < t.at + REFUSED_RETRY)?;
        trial.refused.as_ref()
    }

    fn wait_for_secrets(&self) -> Decision {
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
        let until = self.o.memory.trial.as_ref().map(|t| t.at + REFUSED_RETRY);
        self.wait(report, Wait { until, ..Wait::default() })
    }

    /// The live tokens are not in the Secrets: rotate them in. This is the one way of recovery; what
    /// stands in a Secret is never believed about AWS.
    fn make_ready(&self, tunnel: &RecordedTunnel) -> Decision {
        let memory = self.o.memory;
        let since = memory.unfinished.map_or(self.now.mono, |(_, since)| since);
        let mut extra = self.found().filter(|f| f.tunnel.id != tunnel.tunnel.id);
        // No tokens are made; but a second tunnel does not wait for a Secret's name.
        if self.o.secrets.contains(&SecretState::Foreign) {
            let backing_off = memory.failure.as_ref().is_some_and(|f| self.now.mono < f.retry_at);
            let unsearched = memory.rotation.is_none() && self.o.search.as_ref().is_none_or(|s| s.started < since);
            return match extra.next().filter(|_| !backing_off) {
                Some(extra) => self.close(extra.tunnel.clone(), extra.created_at),
                None if unsearched => self.look_for(since, since, Some(self.conflict()), self.retry_name()),
                None => self.wait_for_secret(),
            };
        }
        if let Some(failure) = self.refused_unheard() {
            return Decision::Wait(Wait { need: Some(Need::Describe), until: Some(failure.retry_at), lane: None });
        }
        if let Some(decision) = self.backing_off() {
            return decision;
        }
        if let Some(extra) = extra.next() {
            return self.close(extra.tunnel.clone(), extra.created_at);
        }
        let free = match memory.rotation.map(|r| (r.stage, r.mode)) {
            Some((RotationStage::Claimed, mode)) => {
                return self.in_lane(Lane::Rotate, self.o.rotate, || {
                    self.fresh(Decision::Rotate {
                        tunnel: tunnel.tunnel.id.clone(),
                        mode,
                        generation: self.d.record.token_generation,
                    })
                });
            }
            Some((RotationStage::Doubt(called), _)) => called + self.limits.recovery_grace,
            Some((RotationStage::Lost, _)) => self.now.mono,
            // Somebody else's, who may have left more than one tunnel behind.
            None if self.o.search.as_ref().is_none_or(|s| s.started < since) => {
                return self.search(since, since, Reason::Rotating, since);
            }
            None => since + self.limits.recovery_grace,
        };
        if self.now.mono < free {
            return self.wait(None, Wait { until: Some(free), ..Wait::default() });
        }
        // Who knows which sides have live tokens: all are made anew.
        self.claim_rotation(self.d.client_mode())
    }

    fn claim_rotation(&self, mode: ClientMode) -> Decision {
        if let Some(decision) = self.backing_off() {
            return decision;
        }
        self.in_lane(Lane::Rotate, self.o.rotate, || {
            let generation = self.generation_above(self.d.record.token_generation);
            self.try_create().unwrap_or(Decision::Record(Change::Rotating { generation, mode }))
        })
    }

    fn close(&self, tunnel: TunnelRef, opened_at: Timestamp) -> Decision {
        self.in_lane(Lane::Close, self.o.close, || Decision::Close { tunnel, opened_at })
    }
}

/// The reason that a failed call gives.
pub fn failure_reason(kind: CallErrorKind) -> Reason {
    match kind {
        CallErrorKind::AccessDenied => Reason::AccessDenied,
        CallErrorKind::InvalidRequest | CallErrorKind::NotFound => Reason::InvalidRequest,
        CallErrorKind::LimitExceeded | CallErrorKind::Throttled | CallErrorKind::Unreachable | CallErrorKind::Doubt => {
            Reason::AwsUnavailable
        }
    }
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests;
