//! How far apart the calls of an operation depart.

use std::time::Duration;
use tokio::time::Instant;

/// Spacing beyond the quota's, from departure to departure.
const MARGIN: f64 = 1.02;
/// AWS's bucket holds as many calls as its rate is, and one at least: from this rate on, a call that left late does not
/// delay those after it.
const CATCHES_UP: f64 = 2.0;

/// The departures of an operation.
pub(super) struct Departures {
    /// From one to the next, on an average.
    pub(super) interval: Duration,
    /// At the least.
    least: Duration,
    last: Option<Departure>,
}

struct Departure {
    /// When it might have left.
    due: Instant,
    /// When it left.
    at: Instant,
}

impl Departures {
    /// For so many calls a second.
    pub(super) fn new(rate: f64) -> Self {
        let interval = Duration::from_secs_f64(MARGIN / rate);
        let least = if rate < CATCHES_UP { interval } else { Duration::ZERO };
        Self { interval, least, last: None }
    }

    /// When the next call may leave, as seen at `now`.
    pub(super) fn due(&self, now: Instant) -> Instant {
        self.last.as_ref().map_or(now, |last| (last.due + self.interval).max(last.at + self.least))
    }

    /// A call leaves.
    pub(super) fn leave(&mut self, now: Instant) {
        let due = self.due(now);
        // A call that comes after a pause begins anew.
        let due = if now < due + self.interval { due } else { now };
        self.last = Some(Departure { due, at: now });
    }
}
