//! Tokens that are made again and again, because what is written into a Secret does not stay.

use crate::clock::Mono;
use std::time::Duration;

/// What is wrong with a Secret that held live tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Damage {
    /// It is gone.
    Missing,
    /// One of the operator's keys has another value.
    Edited,
    /// It is immutable, or of another type.
    Unusable,
    /// The operator's own label or annotations are not as they were written.
    Unmarked,
}

/// Rotations in a row that repaired the same damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redone {
    /// Which. `None`: not known, because that was before this process began.
    pub damage: Option<Damage>,
    /// How often.
    pub times: u32,
    /// When the last was claimed.
    pub last: Mono,
}

/// So many rotations in a row are made at once.
pub const AT_ONCE: u32 = 3;
/// The same where a Secret is deleted: that is no quarrel about what is in it.
const AT_ONCE_MISSING: u32 = 10;
/// A rotation that is needed within this time after the last one and its pause is one in a row.
const IN_ROW: Duration = Duration::from_secs(60);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30 * 60);

impl Redone {
    /// After one more.
    pub fn next(before: Option<Self>, damage: Damage, now: Mono) -> Self {
        let times = before.filter(|before| before.goes_on(damage, now)).map_or(0, |before| before.times);
        Self { damage: Some(damage), times: times + 1, last: now }
    }

    /// When the next one may be made for this damage. `None`: at once.
    pub fn next_at(self, damage: Damage, now: Mono) -> Option<Mono> {
        let next = self.last + self.pause();
        (self.goes_on(damage, now) && now < next).then_some(next)
    }

    fn goes_on(self, damage: Damage, now: Mono) -> bool {
        self.damage.is_none_or(|before| before == damage) && now < self.last + self.pause() + IN_ROW
    }

    /// 1, 2, 4 … 30 minutes, once it was made a few times.
    fn pause(self) -> Duration {
        let at_once = if self.damage == Some(Damage::Missing) { AT_ONCE_MISSING } else { AT_ONCE };
        match self.times.checked_sub(at_once) {
            None => Duration::ZERO,
            Some(more) => LONGEST.min(Duration::from_secs(60 << more.min(5))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Mono {
        Mono(Duration::from_secs(second))
    }

    #[test]
    fn three_in_a_row_are_made_at_once_and_then_after_1_2_4_to_30_minutes() {
        let (mut now, mut redone, mut pauses) = (0, None, Vec::new());
        for _ in 0..10 {
            let next = Redone::next(redone, Damage::Edited, at(now));
            redone = Some(next);
            let free = next.next_at(Damage::Edited, at(now)).map_or(now, |at| at.0.as_secs());
            pauses.push((free - now) / 60);
            // The damage is there again 15 s after the tokens were made.
            now = free + 15;
        }
        assert_eq!(pauses, [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn another_damage_or_one_that_comes_later_is_none_in_a_row() {
        let third = Redone { damage: Some(Damage::Edited), times: 3, last: at(0) };
        assert_eq!(third.next_at(Damage::Edited, at(1)), Some(at(60)));
        assert_eq!(third.next_at(Damage::Unusable, at(1)), None);
        assert_eq!(third.next_at(Damage::Edited, at(60)), None);
        assert_eq!(Redone::next(Some(third), Damage::Edited, at(60)).times, 4);
        assert_eq!(Redone::next(Some(third), Damage::Edited, at(121)).times, 1, "it has stayed for a while");
        let restarted = Redone { damage: None, ..third };
        assert_eq!(restarted.next_at(Damage::Unmarked, at(1)), Some(at(60)), "a restart does not begin anew");
        let deleted = Redone { damage: Some(Damage::Missing), ..third };
        assert_eq!(deleted.next_at(Damage::Missing, at(1)), None, "nobody quarrels about what is in it");
    }
}
