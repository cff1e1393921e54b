//! What is counted in a soak.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts, for people.
#[derive(Default)]
pub struct Counts {
    /// Tunnels created.
    pub created: Count,
    /// Changes of Tunnels, of their Secrets and of their tunnels.
    pub changed: Count,
    /// Tunnels deleted.
    pub deleted: Count,
    /// Tunnels whose claim was replaced away while they were being opened.
    pub replaced_opening: Count,
    /// SIGKILL.
    pub killed: Count,
    /// SIGTERM.
    pub terminated: Count,
    /// Rolled to another release.
    pub rolled: Count,
    /// SIGSTOP.
    pub paused: Count,
    /// Processes that gave up at their start, and were started again as a kubelet does.
    pub gave_up: Count,
    /// Requests to the API server and to AWS that something happened to.
    pub faults: Count,
    /// Ready Tunnels whose tokens were looked at, and compared.
    pub looked: Count,
}

/// One of them.
#[derive(Default)]
pub struct Count(AtomicUsize);

impl Count {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load(Ordering::Relaxed).fmt(f)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} creations, {} changes, {} deletions, {} claims wiped in an opening, {} looks at tokens, {} kills, {} SIGTERMs, {} rolled to another release, {} pauses, {} starts given up, {} faults",
            self.created,
            self.changed,
            self.deleted,
            self.replaced_opening,
            self.looked,
            self.killed,
            self.terminated,
            self.rolled,
            self.paused,
            self.gave_up,
            self.faults
        )
    }
}
