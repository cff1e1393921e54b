//! How many calls and how many open tunnels the account is granted.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::operation::Operation;

/// The account's quotas. What is not named is unlimited.
///
/// As JSON: `{"OpenTunnel": 1.0, "maxOpenTunnels": 10}`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Quotas {
    /// How many tunnels may be open at once; OpenTunnel answers
    /// LimitExceededException beyond it.
    #[serde(rename = "maxOpenTunnels", default, skip_serializing_if = "Option::is_none")]
    pub max_open_tunnels: Option<u64>,
    /// Calls per second. An unused operation saves up `max(1, rate)` calls; rate 0
    /// grants one call and then none.
    #[serde(flatten)]
    pub rates: BTreeMap<Operation, f64>,
}

impl Quotas {
    /// AWS's defaults (Service Quotas, 2024-02): OpenTunnel and CloseTunnel 1 a second,
    /// the other six 10 a second. AWS names no number of open tunnels.
    pub fn aws() -> Self {
        let rate = |operation| match operation {
            Operation::OpenTunnel | Operation::CloseTunnel => 1.0,
            _ => 10.0,
        };
        Self { max_open_tunnels: None, rates: Operation::ALL.map(|operation| (operation, rate(operation))).into() }
    }

    /// Everything unlimited.
    pub fn none() -> Self {
        Self::default()
    }

    /// These quotas with `rate` calls per second for `operation`.
    #[must_use]
    pub fn rate(mut self, operation: Operation, rate: f64) -> Self {
        self.rates.insert(operation, rate);
        self
    }

    /// These quotas with at most `tunnels` open at once.
    #[must_use]
    pub fn max_open_tunnels(mut self, tunnels: u64) -> Self {
        self.max_open_tunnels = Some(tunnels);
        self
    }
}

/// Quotas at work: one token bucket per limited operation, on the monotonic clock. The
/// service's clock may be advanced by hours; calls per second stay real.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) max_open_tunnels: Option<u64>,
    buckets: BTreeMap<Operation, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    rate: f64,
    calls: f64,
    filled: Instant,
}

impl Meter {
    /// Full buckets of these quotas.
    pub(crate) fn new(quotas: &Quotas, now: Instant) -> Self {
        let bucket = |rate: f64| Bucket { rate: rate.max(0.0), calls: rate.max(1.0), filled: now };
        Self {
            max_open_tunnels: quotas.max_open_tunnels,
            buckets: quotas.rates.iter().map(|(operation, rate)| (*operation, bucket(*rate))).collect(),
        }
    }

    /// Whether the operation may be called now; counts the call if so.
    pub(crate) fn admit(&mut self, operation: Operation, now: Instant) -> bool {
        self.buckets.get_mut(&operation).is_none_or(|bucket| bucket.take(now))
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.calls = (self.calls + seconds * self.rate).min(self.rate.max(1.0));
        // The sum of many small refills misses 1 by rounding.
        let granted = self.calls >= 1.0 - 1e-9;
        if granted {
            self.calls -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn granted(meter: &mut Meter, operation: Operation, calls: u32, at: Instant) -> u32 {
        (0..calls).map(|_| u32::from(meter.admit(operation, at))).sum()
    }

    #[test]
    fn a_bucket_holds_one_second_of_calls_and_refills_at_its_rate() {
        let start = Instant::now();
        let mut meter = Meter::new(&Quotas::aws(), start);
        assert_eq!(granted(&mut meter, Operation::ListTunnels, 15, start), 10);
        assert_eq!(granted(&mut meter, Operation::ListTunnels, 5, start + Duration::from_millis(200)), 2);
        assert_eq!(granted(&mut meter, Operation::ListTunnels, 50, start + Duration::from_secs(60)), 10);
    }

    #[test]
    fn a_bucket_of_a_slow_rate_holds_one_call() {
        let start = Instant::now();
        let mut meter = Meter::new(&Quotas::none().rate(Operation::OpenTunnel, 0.5), start);
        assert_eq!(granted(&mut meter, Operation::OpenTunnel, 2, start), 1);
        assert_eq!(granted(&mut meter, Operation::OpenTunnel, 1, start + Duration::from_millis(1990)), 0);
        assert_eq!(granted(&mut meter, Operation::OpenTunnel, 2, start + Duration::from_millis(2000)), 1);
    }

    #[test]
    fn what_has_no_rate_is_unlimited() {
        let start = Instant::now();
        let mut meter = Meter::new(&Quotas::none().rate(Operation::OpenTunnel, 1.0), start);
        assert_eq!(granted(&mut meter, Operation::CloseTunnel, 1000, start), 1000);
    }
}
