//! What to do next for one Tunnel. Pure: no client, no clock, no await, no randomness.
//!
//! OpenTunnel costs money, cannot be repeated safely, and says the tokens once. So whoever opens claims first, whoever
//! finds a claim searches first, and every write is conditioned by what was read. What each rule is there for stands
//! beside it; docs/protocol.md tells the whole.
//!
//! The decision is a match over what is wanted ([`Goal`]) and where the Tunnel is ([`Phase`]). Three gates stand before
//! it: an answer with tokens that is in hand, a Tunnel that is gone, a tunnel of another account. One stands behind it:
//! what this process may do ([`Standing`]).

mod deliver;
mod ending;
mod opening;
mod ready;
mod secrets;
mod waiting;

use crate::clock::Now;
use crate::facts::{Facts, Limits, Standing, View};
use crate::memory::{AnswerOf, Memory};
use crate::read::{Down, Goal, Object};
use crate::record::{Change, Phase};
use crate::step::{Lane, Step, Wait};
use crate::tunnels::{CallErrorKind, Described, Found, InAccount, Life, Search, TunnelId};
use jiff::{SignedDuration, Timestamp};
use opentunnel_api::Reason;
pub(crate) use ready::was_connected;
use secrets::TokenSecret;
use std::time::Duration;

/// What to do next.
pub fn decide(view: &View, facts: &Facts, memory: &Memory, standing: Standing, limits: &Limits, now: Now) -> Step {
    let case = Case::new(view, facts, memory, standing, limits, now);
    match standing {
        Standing::Leads { .. } => case.next(),
        Standing::Stopping { .. } => {
            let step = case.next();
            // A rotation that it owes nobody else knows of: that is claimed yet, for whoever leads then.
            let starts = starts_something(&step) && !memory.owes_rotation(&view.object);
            if starts { Step::Wait(Wait::default()) } else { step }
        }
        Standing::Finishes if !memory.is_in_hand(&view.object) => Step::Wait(Wait::default()),
        Standing::Finishes => case.finish(case.next()),
    }
}

/// Whether a step starts something that goes on after it.
fn starts_something(step: &Step) -> bool {
    matches!(
        step,
        Step::Claim { new: true, .. }
            | Step::Record(Change::Rotating { .. } | Change::Adopted { .. } | Change::Closing(_))
    )
}

/// The reason that a failed call gives.
pub fn failure_reason(kind: CallErrorKind) -> Reason {
    match kind {
        CallErrorKind::AccessDenied | CallErrorKind::NoCredentials => Reason::AccessDenied,
        CallErrorKind::InvalidRequest | CallErrorKind::NotFound => Reason::InvalidRequest,
        CallErrorKind::LimitExceeded | CallErrorKind::Throttled | CallErrorKind::Unreachable | CallErrorKind::Doubt => {
            Reason::AwsUnavailable
        }
    }
}

struct Case<'a> {
    object: &'a Object,
    view: &'a View,
    facts: &'a Facts,
    memory: &'a Memory,
    /// This process leads.
    leads: bool,
    /// The last completed search that counts.
    search: Option<&'a Search>,
    /// The Secrets that the spec names, in its order.
    secrets: Vec<TokenSecret<'a>>,
    /// Secrets that held its tokens, or are its own, and that the spec names no more.
    former: Vec<TokenSecret<'a>>,
    limits: &'a Limits,
    now: Now,
}

impl<'a> Case<'a> {
    fn new(
        view: &'a View,
        facts: &'a Facts,
        memory: &'a Memory,
        standing: Standing,
        limits: &'a Limits,
        now: Now,
    ) -> Self {
        let object = &view.object;
        // What was found before this process led may have been closed by another since.
        let counts = |search: &&Search| standing.leads_since().is_some_and(|since| search.started >= since);
        let waited = memory.opening.since.is_none_or(|since| now.mono >= since + secrets::PREDECESSOR_LIMIT);
        let all = facts.secrets.iter().map(|facts| TokenSecret::judge(object, facts, !waited));
        let (secrets, former) = all.partition(|secret| secret.wanted.is_some());
        let (leads, search) = (standing.leads_since().is_some(), facts.search.as_ref().filter(counts));
        Self { object, view, facts, memory, leads, search, secrets, former, limits, now }
    }

    fn next(&self) -> Step {
        if let Some(answer) = &self.memory.answer
            && let Some(step) = self.judge(answer)
        {
            return step;
        }
        if self.view.gone {
            return Step::Wait(Wait::default());
        }
        if let (Some(tunnel), InAccount::No) = (&self.object.record.tunnel, self.facts.in_account) {
            return self.leave_alone(tunnel);
        }
        match (self.object.goal(), self.object.record.phase()) {
            (Goal::Open, Phase::None) => self.open(),
            (Goal::Open, Phase::Open(tunnel)) => self.look_after(tunnel).unwrap_or_else(|| self.make_ready(tunnel)),
            (Goal::Open, Phase::Ready(tunnel)) => self.look_after(tunnel).unwrap_or_else(|| self.keep_ready(tunnel)),
            (Goal::Open, Phase::Ended(tunnel)) if self.object.reopens() => self.open_again(tunnel),
            (Goal::Open, Phase::Ended(tunnel)) => self.rest(tunnel),
            (Goal::Down(Down::Deleted), _) => self.delete(),
            (Goal::Down(Down::Suspended), Phase::Open(tunnel) | Phase::Ready(tunnel)) => {
                self.close_for(tunnel, Reason::Suspended)
            }
            (Goal::Down(Down::Suspended), Phase::None | Phase::Ended(_)) => self.suspend(),
            (Goal::Down(Down::Outdated), Phase::Open(tunnel) | Phase::Ready(tunnel)) => {
                self.close_for(tunnel, tunnel.closes_for().unwrap_or(Reason::Recreating))
            }
            (Goal::Down(Down::Outdated), Phase::None | Phase::Ended(_)) => Step::Wait(Wait::default()),
        }
    }

    /// What a process that does not lead does of a step: it finishes what it has in hand.
    fn finish(&self, step: Step) -> Step {
        let Some(answer) = &self.memory.answer else {
            // The rotation that it owes is claimed; whoever leads makes it.
            let claims = matches!(
                step,
                Step::Read
                    | Step::Queue(Lane::Rotate)
                    | Step::TryCreate { .. }
                    | Step::Record(Change::Rotating { .. })
                    | Step::Wait(_)
            );
            return if claims { step } else { Step::Wait(Wait::default()) };
        };
        match (step, &answer.of) {
            (step @ (Step::Read | Step::Forget | Step::CloseSurplus { .. }), _) => step,
            // What it opened for a Tunnel that is being deleted it closes by itself, unless the leader has adopted it.
            (_, AnswerOf::Open(attempt)) if self.object.goal() != Goal::Open => {
                Step::CloseSurplus { tunnel: answer.tunnel.clone(), attempt: attempt.clone() }
            }
            (step, _) => step,
        }
    }

    /// What AWS told last of a tunnel.
    fn described(&self, id: &TunnelId) -> Option<&'a Described> {
        self.facts.described.iter().find(|(of, _)| of == id).map(|(_, described)| described)
    }

    /// Tunnels that a search found and nobody has closed since.
    fn found(&self) -> impl Iterator<Item = &'a Found> {
        let found = self.search.into_iter().flat_map(|s| &s.found);
        found.filter(|f| {
            let closed = matches!(self.described(&f.tunnel.id).map(|d| d.life), Some(Life::Closed { .. }));
            !closed && !self.memory.ending.closed.contains(&f.tunnel.id)
        })
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
