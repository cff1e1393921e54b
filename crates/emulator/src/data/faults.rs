//! What the data plane is told to do wrong.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::Side;

/// How a connection fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataFaultKind {
    /// The handshake is answered with 400. No token is used up.
    Refuse4xx,
    /// The handshake is answered with 503. No token is used up.
    Refuse5xx,
    /// The TCP connection is closed without a close frame, within a message if `afterBytes` ends there.
    Disconnect,
    /// The side is sent SESSION_RESET, and the other one STREAM_RESET for what was open.
    SessionReset,
    /// Nothing is read from the side nor sent to it, pongs included; within a message if `afterBytes` ends there.
    Stall,
    /// What the side is sent is cut and joined at any byte.
    Reframe,
    /// The side is read from and sent to at `bytesPerSecond` each.
    Bandwidth,
}

impl DataFaultKind {
    fn refuses(self) -> bool {
        matches!(self, Self::Refuse4xx | Self::Refuse5xx)
    }
}

/// A fault in waiting. The first of the list that names a connection's side and has times left is the one that happens
/// to it: to those that are there when the list is set, and then to those that come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataFault {
    /// Whose connection fails.
    pub side: Side,
    /// How.
    pub kind: DataFaultKind,
    /// How many connections fail; `None` (left out): every one.
    #[serde(default)]
    pub times: Option<u32>,
    /// It happens when this many bytes of the messages' stream were sent to the side since the connection met the fault.
    /// Not of those that refuse.
    #[serde(default)]
    pub after_bytes: u64,
    /// Milliseconds. Of [`DataFaultKind::Stall`]: how long it lasts; 0: until the faults are replaced. Of every other
    /// kind: how much later it happens.
    #[serde(default)]
    pub delay_ms: u64,
    /// Of [`DataFaultKind::Bandwidth`], and only of it.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

impl DataFault {
    /// A fault that happens to every connection of `side`, at once.
    pub fn new(side: Side, kind: DataFaultKind) -> Self {
        Self { side, kind, times: None, after_bytes: 0, delay_ms: 0, bytes_per_second: None }
    }

    /// This fault, for `times` connections only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// This fault, when `after_bytes` bytes were sent to the side.
    #[must_use]
    pub fn after_bytes(mut self, after_bytes: u64) -> Self {
        self.after_bytes = after_bytes;
        self
    }

    /// This fault, `delay_ms` milliseconds late (a stall: for so long).
    #[must_use]
    pub fn delay_ms(mut self, delay_ms: u64) -> Self {
        self.delay_ms = delay_ms;
        self
    }

    /// This fault of kind [`DataFaultKind::Bandwidth`] with its rate.
    #[must_use]
    pub fn bytes_per_second(mut self, bytes_per_second: u64) -> Self {
        self.bytes_per_second = Some(bytes_per_second);
        self
    }

    /// Why the control API does not take it.
    pub(crate) fn check(&self) -> Result<(), String> {
        match (self.kind, self.bytes_per_second) {
            (DataFaultKind::Bandwidth, None | Some(0)) => {
                Err("a fault of kind Bandwidth needs bytesPerSecond (above 0)".to_owned())
            }
            (DataFaultKind::Bandwidth, Some(_)) | (_, None) => Ok(()),
            (_, Some(_)) => Err("bytesPerSecond is for faults of kind Bandwidth".to_owned()),
        }?;
        if self.kind.refuses() && self.after_bytes > 0 {
            return Err("afterBytes is not for faults that refuse: nothing is sent then".to_owned());
        }
        Ok(())
    }
}

fn take(faults: &mut [DataFault], wanted: impl Fn(&DataFault) -> bool) -> Option<DataFault> {
    let fault = faults.iter_mut().find(|fault| fault.times != Some(0) && wanted(fault))?;
    if let Some(times) = &mut fault.times {
        *times -= 1;
    }
    Some(fault.clone())
}

/// Takes the fault that refuses a handshake of `side`, if that is the one that it meets.
pub(crate) fn take_of_handshake(faults: &mut [DataFault], side: Side) -> Option<DataFault> {
    let met = faults.iter().find(|fault| fault.times != Some(0) && fault.side == side)?;
    if met.kind.refuses() { take(faults, |fault| fault.side == side) } else { None }
}

/// Takes the fault that a connection of `side` meets, if one does.
pub(crate) fn take_of_connection(faults: &mut [DataFault], side: Side) -> Option<DataFault> {
    take(faults, |fault| fault.side == side && !fault.kind.refuses())
}

/// What a fault does at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Strike {
    Disconnect,
    SessionReset,
}

#[derive(Debug)]
enum Phase {
    /// Until so many bytes were sent to the side.
    Counting(u64),
    Delayed(Pin<Box<Sleep>>),
    /// It has happened, or goes on.
    Struck,
    /// Of a stall.
    Over,
}

/// The fault of one connection, as it goes.
#[derive(Debug)]
pub(super) struct ActiveFault {
    fault: DataFault,
    phase: Phase,
    /// The end of a stall.
    over: Option<Pin<Box<Sleep>>>,
    reads: Pace,
    writes: Pace,
    cuts: usize,
}

impl ActiveFault {
    pub(super) fn new(fault: DataFault) -> Self {
        let phase = Phase::Counting(fault.after_bytes);
        Self { fault, phase, over: None, reads: Pace::default(), writes: Pace::default(), cuts: 0 }
    }

    fn goes_on(&self, kind: DataFaultKind) -> bool {
        self.fault.kind == kind && matches!(self.phase, Phase::Struck)
    }

    /// Whether it waits for nothing but being polled.
    pub(super) fn is_due(&self) -> bool {
        matches!(self.phase, Phase::Counting(0))
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Strike> {
        let stalls = self.fault.kind == DataFaultKind::Stall;
        let delay = Duration::from_millis(self.fault.delay_ms);
        match &mut self.phase {
            Phase::Counting(0) if stalls || delay.is_zero() => {
                self.over = (stalls && !delay.is_zero()).then(|| Box::pin(sleep(delay)));
            }
            Phase::Counting(0) => {
                self.phase = Phase::Delayed(Box::pin(sleep(delay)));
                return self.poll(cx);
            }
            Phase::Delayed(until) => {
                if until.as_mut().poll(cx).is_pending() {
                    return None;
                }
            }
            Phase::Counting(_) | Phase::Struck | Phase::Over => return None,
        }
        self.phase = Phase::Struck;
        match self.fault.kind {
            DataFaultKind::Disconnect => Some(Strike::Disconnect),
            DataFaultKind::SessionReset => Some(Strike::SessionReset),
            _ => None,
        }
    }

    /// Ready: nothing stands still, or no longer.
    pub(super) fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.goes_on(DataFaultKind::Stall) {
            return Poll::Ready(());
        }
        // Without an end it goes on until there is another fault.
        let over = self.over.as_mut().map_or(Poll::Pending, |over| over.as_mut().poll(cx));
        if over.is_ready() {
            self.phase = Phase::Over;
        }
        over
    }

    /// How many of the next `length` bytes may be sent in one frame.
    pub(super) fn piece(&mut self, length: usize) -> usize {
        let most = match (&self.phase, self.fault.kind) {
            (Phase::Counting(left), DataFaultKind::Disconnect | DataFaultKind::Stall) => {
                usize::try_from(*left).unwrap_or(usize::MAX)
            }
            (Phase::Struck, DataFaultKind::Reframe) => {
                // From one byte to half of what there is: over time every place of a message is one where it is cut.
                self.cuts = self.cuts.wrapping_add(1);
                let cuts = self.cuts / 5;
                match self.cuts % 5 {
                    0 => 1,
                    1 => 1 + cuts % 7,
                    2 => 1 + cuts % 97,
                    3 => 1 + cuts.wrapping_mul(7919) % 4096,
                    _ => length.div_ceil(2),
                }
            }
            // Ten times a second, as long as that are bytes at all.
            (Phase::Struck, DataFaultKind::Bandwidth) => usize::try_from(self.rate() / 10).unwrap_or(usize::MAX).max(1),
            _ => length,
        };
        most.min(length)
    }

    /// Whether messages are to be joined before they are cut.
    pub(super) fn joins(&self) -> bool {
        self.goes_on(DataFaultKind::Reframe)
    }

    fn rate(&self) -> u64 {
        self.fault.bytes_per_second.unwrap_or(u64::MAX)
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        if let Phase::Counting(left) = &mut self.phase {
            *left = left.saturating_sub(bytes as u64);
        }
        if self.goes_on(DataFaultKind::Bandwidth) {
            self.writes.spend(bytes, self.rate());
        }
    }

    pub(super) fn read(&mut self, bytes: usize) {
        if self.goes_on(DataFaultKind::Bandwidth) {
            self.reads.spend(bytes, self.rate());
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.writes.poll(cx)
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.reads.poll(cx)
    }
}

/// Holds one direction back: what was spent is waited for afterwards.
#[derive(Debug, Default)]
struct Pace(Option<Pin<Box<Sleep>>>);

impl Pace {
    fn spend(&mut self, bytes: usize, rate: u64) {
        let seconds = bytes as f64 / rate as f64;
        let until = Instant::now().checked_add(Duration::from_secs_f64(seconds));
        self.0 = until.map(|until| Box::pin(sleep_until(until)));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(wait) = &mut self.0 {
            if wait.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.0 = None;
        }
        Poll::Ready(())
    }
}
