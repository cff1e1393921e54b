//! Two clocks: the wall's, which may be wrong or set, and the process's own, which only goes on.

use jiff::{SignedDuration, Timestamp};
use std::time::{Duration, Instant};

/// Wall clocks that differ by less are taken for equal.
pub const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// Monotonic time since the process started. Waits that safety depends on are measured by it: a
/// clock that is set, or is wrong, cannot shorten them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub Duration);

impl std::ops::Add<Duration> for Mono {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0 + rhs)
    }
}

/// The moment of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By the local clock.
    pub wall: Timestamp,
    /// By the process's own.
    pub mono: Mono,
}

/// Tells [`Mono`] since it was made: one of them in a process.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// It begins now.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// The process's own time.
    pub fn mono(self) -> Mono {
        Mono(self.0.elapsed())
    }

    /// The process's own time at a moment.
    pub fn at(self, moment: Instant) -> Mono {
        Mono(moment.saturating_duration_since(self.0))
    }

    /// By both clocks.
    pub fn now(self) -> Now {
        Now { wall: Timestamp::now(), mono: self.mono() }
    }
}
