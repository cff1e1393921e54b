//! The gate of an operation: AWS shuts it by a limit; probes find out when there is room again.

use crate::tunnels::{CallError, CallErrorKind};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

/// The longest pause between two probes.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A shut gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// [`CallErrorKind::LimitExceeded`] or [`CallErrorKind::Throttled`].
    pub cause: CallErrorKind,
    /// AWS's words.
    pub message: String,
    /// Since when it is shut.
    pub since: Timestamp,
}

/// A gate that is shut, and its probes.
pub(super) struct Shut {
    pub(super) gate: Gate,
    at: Instant,
    failures: u32,
    pub(super) probe_at: Instant,
}

impl Shut {
    /// AWS has refused a call.
    pub(super) fn new(error: &CallError) -> Self {
        let (cause, message, now) = (error.kind, error.message.clone(), Instant::now());
        let gate = Gate { cause, message, since: Timestamp::now() };
        Self { gate, at: now, failures: 0, probe_at: now + backoff(0) }
    }

    /// Whether a call that left then tells something about it: one that left before it was shut does not.
    pub(super) fn is_probed_by(&self, left: Instant) -> bool {
        left >= self.at
    }

    /// A probe was refused. True: the first.
    pub(super) fn refused(&mut self) -> bool {
        self.failures += 1;
        self.pause();
        self.failures == 1
    }

    /// The next probe waits.
    pub(super) fn pause(&mut self) {
        self.probe_at = Instant::now() + backoff(self.failures);
    }
}

/// Exponential, with full jitter: 0 to 1, 2, 4 … 60 s.
fn backoff(failures: u32) -> Duration {
    let limit = Duration::from_secs(1).saturating_mul(1 << failures.min(16)).min(MAX_BACKOFF);
    limit.mul_f64(fastrand::f64())
}
