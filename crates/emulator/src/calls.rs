//! The log of calls. It holds no token and no other part of a request or an answer.

use jiff::Timestamp;
use serde::Serialize;

use crate::clock::rfc3339;

/// One call of the service. Serializes as the control API tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// The operation's name; of one that does not exist, the name that was sent.
    pub operation: String,
    /// When it arrived, by the service's clock.
    #[serde(serialize_with = "rfc3339")]
    pub at: Timestamp,
    /// `ok`, AWS's name of the error, or the kind of the fault that left the call
    /// without an answer. `None` while a delayed fault has not decided it.
    pub outcome: Option<String>,
    /// The tunnel that the request names (if well-formed) or that was opened.
    pub tunnel_id: Option<String>,
}

impl Call {
    /// Whether it was carried out and answered.
    pub fn succeeded(&self) -> bool {
        self.outcome.as_deref() == Some("ok")
    }
}

/// Every call since the last reset. Unbounded: a test wants all of them, and a demo's
/// fit in memory (about 200 bytes each).
#[derive(Debug, Default)]
pub(crate) struct CallLog {
    calls: Vec<Call>,
    resets: u64,
}

/// Where a call stands in the log, as long as that is not reset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallNumber {
    index: usize,
    resets: u64,
}

impl CallLog {
    pub(crate) fn arrive(&mut self, operation: &str, at: Timestamp, tunnel_id: Option<String>) -> CallNumber {
        let operation = operation.to_owned();
        self.calls.push(Call { operation, at, outcome: None, tunnel_id });
        CallNumber { index: self.calls.len() - 1, resets: self.resets }
    }

    /// Whether the call came in before the last reset.
    pub(crate) fn is_forgotten(&self, call: CallNumber) -> bool {
        call.resets != self.resets
    }

    pub(crate) fn decide(&mut self, call: CallNumber, outcome: &str, opened: Option<&str>) {
        if self.is_forgotten(call) {
            return;
        }
        if let Some(entry) = self.calls.get_mut(call.index) {
            entry.outcome = Some(outcome.to_owned());
            if let Some(tunnel_id) = opened {
                entry.tunnel_id = Some(tunnel_id.to_owned());
            }
        }
    }

    pub(crate) fn all(&self) -> &[Call] {
        &self.calls
    }

    pub(crate) fn reset(&mut self) {
        self.calls.clear();
        self.resets += 1;
    }
}
