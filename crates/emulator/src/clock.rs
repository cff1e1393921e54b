//! The service's clock: the machine's, plus what tests advanced it by.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A moment in milliseconds since the epoch, the precision in which AWS tells times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(i64);

/// 9999-12-30T00:00:00Z. Later times cannot be written as RFC 3339.
const LATEST: Millis = Millis(253_402_128_000_000);

impl Millis {
    pub(crate) fn after(self, minutes: i32) -> Self {
        Self(self.0.saturating_add(i64::from(minutes) * 60_000))
    }

    /// Seconds with a fraction: how AWS JSON writes a timestamp.
    pub(crate) fn epoch_seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// How long it is from `earlier` to this moment; none if that is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub(crate) fn timestamp(self) -> Timestamp {
        Timestamp::from_millisecond(self.0).unwrap_or(Timestamp::MAX)
    }
}

/// Writes a time as RFC 3339 with milliseconds, as the control API tells all times.
pub(crate) fn rfc3339<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    format!("{at:.3}").serialize(to)
}

/// Never goes back, whatever the machine's clock does.
#[derive(Debug)]
pub(crate) struct Clock {
    advanced_ms: i64,
    last: Millis,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { advanced_ms: 0, last: Millis(0) }
    }

    pub(crate) fn now(&mut self) -> Millis {
        let machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Millis(millis(machine).saturating_add(self.advanced_ms));
        self.last = now.clamp(self.last, LATEST);
        self.last
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.advanced_ms = self.advanced_ms.saturating_add(millis(by));
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
