//! What the object shows, and since when.

use super::redone::{AT_ONCE, Redone};
use super::{Memory, RotationStage, Tending};
use crate::clock::{Mono, Now};
use crate::facts::{Standing, View};
use crate::read::{Goal, Object};
use opentunnel_api::Reason;

impl Memory {
    /// Remembers what the object shows, before it is decided on.
    pub fn see(&mut self, view: &View, standing: Standing, now: Now) {
        if view.wiped {
            self.0.saw_creation = false;
        }
        match standing {
            Standing::Leads { since } | Standing::Stopping { since } => self.led_since(since),
            // A replica that does not lead makes no call to AWS: one that failed is no reason to wait.
            Standing::Finishes if self.is_in_hand(&view.object) => self.0.backoff.failure = None,
            Standing::Finishes => return,
        }
        self.see_claim(&view.object, now);
        self.see_end(&view.object, now);
        self.see_rotation(&view.object, now);
    }

    /// This process leads since then. Another may have led before, and opened and rotated, unseen by this one: what
    /// was seen until then proves nothing, and what has to be waited for is waited for from then on. What this
    /// process has in hand, or has sent itself, it keeps. A claim that it has not acted on counts as somebody else's:
    /// a write that is under way may replace it.
    fn led_since(&mut self, term: Mono) {
        let m = &mut self.0;
        if m.first_seen >= term {
            return;
        }
        m.saw_creation = false;
        m.first_seen = term;
        if let Some((_, since)) = &mut m.opening.claim {
            *since = term;
        }
        for since in [&mut m.ending.down, &mut m.ending.expired].into_iter().flatten() {
            *since = term;
        }
        if let Some((_, since)) = &mut m.rotating.unfinished {
            *since = term;
        }
        m.opening.since = None;
        m.backoff.trial = None;
        m.backoff.failure = None;
        m.opening.attempt = None;
        m.rotating.own.take_if(|r| !matches!(r.stage, RotationStage::Doubt(_)));
        m.rotating.marked = None;
        m.tending = Tending { told_unconnected: m.tending.told_unconnected, ..Tending::default() };
    }

    fn see_claim(&mut self, object: &Object, now: Now) {
        let (m, record) = (&mut self.0, &object.record);
        if m.opening.claim.is_some() && record.claim.is_none() {
            m.saw_creation = false;
        }
        let opens = object.goal() == Goal::Open && (record.tunnel.is_none() || object.reopens());
        let begins = if record.tunnel.is_none() { m.first_seen } else { now.mono };
        m.opening.since = opens.then(|| m.opening.since.unwrap_or(begins));
        if let Some(claim) = &record.claim {
            if m.opening.claim.as_ref().is_none_or(|(seen, _)| seen != claim) {
                m.opening.claim = Some((claim.clone(), now.mono));
            }
            // Another one claims: ours is lost, whatever our write answered.
            if m.opening.attempt.as_ref().is_some_and(|own| own != claim) {
                m.opening.attempt = None;
            }
        }
    }

    fn see_end(&mut self, object: &Object, now: Now) {
        let m = &mut self.0;
        if m.ending.down.is_none() && object.goal() != Goal::Open {
            // What failed before is no reason to wait with the close.
            m.backoff.failure = None;
        }
        let since = |seen: Option<Mono>, is: bool| is.then(|| seen.unwrap_or(now.mono));
        let is_over = object.record.tunnel.as_ref().is_some_and(|t| now.wall >= t.expires_at);
        m.ending.down = since(m.ending.down, object.goal() != Goal::Open);
        m.ending.expired = since(m.ending.expired, is_over);
    }

    fn see_rotation(&mut self, object: &Object, now: Now) {
        let (rotating, record) = (&mut self.0.rotating, &object.record);
        // A restart does not let it begin anew.
        if record.reported == Some(Reason::SecretModified) && rotating.redone.is_none() {
            rotating.redone = Some(Redone { damage: None, times: AT_ONCE, last: now.mono });
        }
        let unfinished = record.tunnel.is_some() && !record.is_ready();
        rotating.unfinished = match rotating.unfinished {
            _ if !unfinished => None,
            Some(seen) if seen.0 == record.token_generation => Some(seen),
            _ => Some((record.token_generation, now.mono)),
        };
        if let Some(own) = rotating.own.take_if(|own| own.generation != record.token_generation) {
            // Superseded while it was under way: it may be carried out after the newer one.
            if own.generation < record.token_generation && matches!(own.stage, RotationStage::Doubt(_)) {
                rotating.late = Some(own.generation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Ending, Opening, Remembered, Rotating};
    use crate::tunnels::Attempt;
    use std::time::Duration;

    #[test]
    fn a_process_that_gets_to_lead_takes_nothing_that_it_saw_before_for_a_proof() {
        let (before, term) = (Mono(Duration::from_secs(1)), Mono(Duration::from_secs(9)));
        let mut memory = Memory::restore(Remembered {
            saw_creation: true,
            first_seen: before,
            opening: Opening {
                claim: Some((Attempt::random(), before)),
                attempt: Some(Attempt::random()),
                doubt: Some(before),
                since: Some(before),
            },
            rotating: Rotating { unfinished: Some((2, before)), late: Some(2), ..Rotating::default() },
            ending: Ending { down: Some(before), ..Ending::default() },
            ..Remembered::default()
        });
        memory.led_since(term);
        assert!(!memory.saw_creation, "another may have opened for it");
        let since = [
            Some(memory.first_seen),
            memory.opening.claim.as_ref().map(|c| c.1),
            memory.rotating.unfinished.map(|u| u.1),
            memory.ending.down,
        ];
        assert_eq!(since, [Some(term); 4], "every grace begins anew");
        assert_eq!(memory.opening.attempt, None, "another may be overruling its claim");
        let kept = (memory.opening.doubt, memory.rotating.late);
        assert_eq!(kept, (Some(before), Some(2)), "what this process has sent, it knows best");

        let mut created_later = Memory::new(true, term);
        created_later.led_since(term);
        assert!(created_later.saw_creation);
    }
}
