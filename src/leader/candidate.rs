//! The rules of the election, for one candidate: pure. What it has seen of the Lease, and the time, in;
//! what to do next, out. Its test goes through all that can happen between two and three of them.
//!
//! The rules are client-go's, but stricter:
//! - Every write is conditioned by the version of the Lease that it was decided on.
//! - Whether another's lease has run out is judged by one's own monotonic clock alone, from the moment
//!   when one first saw that version of it. The times that stand in the Lease are for people.
//! - One's own right ends [`Timing::deadline`] after the *start* of the last renewal that succeeded: before
//!   anybody can take the lease, and by the clock alone, so that a process that was paused does not lead
//!   any more when it wakes.
//! - The lease of a candidate that is known to be dead is taken at once: it does not lead, and what it may have sent
//!   before is conditioned by a version that is gone then.
//! - A Lease that was there and is gone was deleted by hand: whoever held it may lead still. Who makes it anew
//!   leads only when it has stood for the time of a lease; at once only one who has never seen it, as where the
//!   operator is installed for the first time, and its holder, who goes on.

use crate::clock::Mono;
use std::time::Duration;

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// How long after it was last seen to be renewed a lease may be taken.
    pub lease: Duration,
    /// How long after the start of its last renewal its holder leads.
    pub deadline: Duration,
    /// Between two renewals.
    pub renew: Duration,
    /// Between two looks of a standby.
    pub look: Duration,
}

/// Who holds a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Nobody: it was released.
    Nobody,
    /// This candidate.
    Me,
    /// A candidate that is known to be dead: it led in the place of this one.
    Predecessor,
    /// Another one.
    Other,
}

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record<V> {
    /// Whose it is.
    pub holder: Holder,
    /// Which version of the object it is.
    pub version: V,
    /// How long its holder wants others to wait.
    pub lasts: Duration,
}

/// The right to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Right {
    /// Without a break since then.
    pub since: Mono,
    /// It ends then.
    pub until: Mono,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<V> {
    /// Read the Lease.
    Read,
    /// Write it as one's own, over this version; `None`: create it.
    Write(Option<V>),
    /// Nothing until then; then [`Candidate::waited`].
    Wait(Mono),
}

/// The Lease (`None`: there is none) as it was last seen, and since when it is so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen<V> {
    record: Option<Record<V>>,
    since: Mono,
}

/// One who wants to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate<V> {
    timing: Timing,
    seen: Option<Seen<V>>,
    /// What was seen may have changed since: it is read before anything is written.
    stale: bool,
    /// The Lease was there once.
    known: bool,
    right: Option<Right>,
}

impl<V: Clone + PartialEq> Candidate<V> {
    /// One who knows nothing yet.
    pub fn new(timing: Timing) -> Self {
        Self { timing, seen: None, stale: true, known: false, right: None }
    }

    /// The right to lead; it may be over.
    pub fn right(&self) -> Option<Right> {
        self.right
    }

    /// Whether it leads.
    pub fn leads(&self, now: Mono) -> bool {
        self.right.is_some_and(|right| now < right.until)
    }

    /// What to do now.
    pub fn next(&self, now: Mono) -> Next<V> {
        let Some(seen) = self.seen.as_ref().filter(|_| !self.stale) else { return Next::Read };
        let due = match &seen.record {
            record if self.leads(now) => record.as_ref().map_or(now, |_| self.renew_at()),
            // Its own as well: without the right it cannot know whether another led meanwhile.
            Some(Record { holder: Holder::Me | Holder::Other, lasts, .. }) => {
                seen.since + self.timing.lease.max(*lasts)
            }
            Some(Record { holder: Holder::Nobody | Holder::Predecessor, .. }) | None => now,
        };
        if due <= now {
            return Next::Write(seen.record.as_ref().map(|record| record.version.clone()));
        }
        Next::Wait(if self.leads(now) { due } else { due.min(now + self.timing.look) })
    }

    /// `until` counts from the start of the last renewal.
    fn renew_at(&self) -> Mono {
        let until = self.right.map_or(Duration::ZERO, |right| right.until.0);
        Mono((until + self.timing.renew).saturating_sub(self.timing.deadline))
    }

    /// It has waited. Others may have written meanwhile; its own lease it renews without a look.
    pub fn waited(&mut self, now: Mono) {
        self.stale = !self.leads(now);
    }

    /// The Lease was read: it was like this, at some moment before now.
    pub fn read(&mut self, record: Option<Record<V>>, now: Mono) {
        self.known |= record.is_some();
        self.stale = false;
        if record.as_ref().is_some_and(|record| record.holder != Holder::Me) {
            self.right = None;
        }
        let version = |record: &Option<Record<V>>| record.as_ref().map(|record| record.version.clone());
        if self.seen.as_ref().is_none_or(|seen| version(&seen.record) != version(&record)) {
            self.seen = Some(Seen { record, since: now });
        }
    }

    /// A write that began then has succeeded: the Lease is this candidate's.
    pub fn written(&mut self, record: Record<V>, begun: Mono, now: Mono) {
        let made_anew = self.known && self.seen.as_ref().is_some_and(|seen| seen.record.is_none());
        let until = begun + self.timing.deadline;
        self.right = match self.right.filter(|_| self.leads(now)) {
            Some(right) => Some(Right { until, ..right }),
            None if made_anew => None,
            // Whoever was without the right for a moment begins anew: another may have led meanwhile.
            None => Some(Right { since: now, until }),
        };
        self.seen = Some(Seen { record: Some(record), since: now });
        (self.stale, self.known) = (false, true);
    }

    /// A request has failed, or was not answered: it may have been carried out, or be carried out yet.
    pub fn failed(&mut self) {
        self.stale = true;
    }

    /// It leads no more, from now on.
    pub fn resigns(&mut self) {
        self.right = None;
    }
}

#[cfg(test)]
mod tests;
