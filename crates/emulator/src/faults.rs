//! What the service is told to do wrong.

use serde::{Deserialize, Serialize};

use crate::operation::Operation;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// LimitExceededException (400); nothing is done.
    LimitExceeded,
    /// ThrottlingException (400); nothing is done.
    Throttling,
    /// AccessDeniedException (400); nothing is done.
    AccessDenied,
    /// InternalFailure (500); nothing is done.
    InternalError,
    /// Nothing is done; the connection is closed without an answer.
    DropBefore,
    /// The call is carried out; the connection is closed without an answer.
    DropAfter,
    /// Nothing is done and no answer ever comes.
    HangBefore,
    /// The call is carried out and no answer ever comes.
    HangAfter,
    /// The call is carried out at once and answered `delayMs` later.
    Delay,
}

impl FaultKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LimitExceeded => "LimitExceeded",
            Self::Throttling => "Throttling",
            Self::AccessDenied => "AccessDenied",
            Self::InternalError => "InternalError",
            Self::DropBefore => "DropBefore",
            Self::DropAfter => "DropAfter",
            Self::HangBefore => "HangBefore",
            Self::HangAfter => "HangAfter",
            Self::Delay => "Delay",
        }
    }
}

/// A fault in waiting. The first of the list that names a call's operation and has
/// times left is the one that happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// The operation that fails.
    pub operation: Operation,
    /// How.
    pub kind: FaultKind,
    /// How many calls fail; `None` (left out): every one.
    #[serde(default)]
    pub times: Option<u32>,
    /// Milliseconds. Of [`FaultKind::Delay`]: between doing and answering. Of every
    /// other kind: before anything is done or answered, also if the client has gone
    /// by then.
    #[serde(default)]
    pub delay_ms: u64,
}

impl Fault {
    /// A fault that happens to every call of `operation`, without delay.
    pub fn new(operation: Operation, kind: FaultKind) -> Self {
        Self { operation, kind, times: None, delay_ms: 0 }
    }

    /// This fault, for the next `times` calls only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// This fault, `delay_ms` milliseconds late.
    #[must_use]
    pub fn delay_ms(mut self, delay_ms: u64) -> Self {
        self.delay_ms = delay_ms;
        self
    }
}

/// Takes the fault that this call of `operation` meets, if one does.
pub(crate) fn take(faults: &mut [Fault], operation: Operation) -> Option<Fault> {
    let fault = faults.iter_mut().find(|fault| fault.operation == operation && fault.times != Some(0))?;
    if let Some(times) = &mut fault.times {
        *times -= 1;
    }
    Some(fault.clone())
}
