//! What the tests share.

pub mod directory;
pub mod exchange;
pub mod interop;
pub mod process;
pub mod proxy;
pub mod service;
pub mod tunnel;

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Longer than anything here takes; ends a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something that nothing tells of.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < PATIENCE, "it does not come about: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
