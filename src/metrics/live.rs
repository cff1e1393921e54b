//! What is not counted but read off, when it is asked for: the Tunnels, the queues, the process.

use super::{kind, of};
use crate::tunnels::{CallErrorKind, Operation};
use opentunnel_api::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::MetricType::Gauge;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is there at one moment.
pub struct Snapshot {
    /// The Tunnels.
    pub tunnels: ByReason,
    /// Tunnels whose source is connected.
    pub sources: u64,
    /// Tunnels whose destination is connected.
    pub destinations: u64,
    /// The queues of the paced operations.
    pub queues: [Queue; 4],
    /// This process leads.
    pub leads: bool,
}

/// Tunnels, counted by the reason of their main condition.
#[derive(Default)]
pub struct ByReason {
    known: HashMap<Reason, u64>,
    none: u64,
    other: u64,
}

impl ByReason {
    /// Counts one more. `reason` is as it stands in the condition; `None`: there is no condition yet.
    pub fn add(&mut self, reason: Option<&str>) {
        match reason.map(Reason::parse) {
            Some(Some(reason)) => *self.known.entry(reason).or_default() += 1,
            Some(None) => self.other += 1,
            None => self.none += 1,
        }
    }
}

/// The queue of one operation.
pub struct Queue {
    /// Which.
    pub operation: Operation,
    /// Calls per second that it lets go.
    pub rate: f64,
    /// Calls that wait for their turn.
    pub depth: usize,
    /// What shut its gate: `LimitExceeded` or `Throttled`; `None`: it is open.
    pub shut: Option<CallErrorKind>,
}

type Source = Box<dyn Fn() -> Snapshot + Send + Sync>;

/// Tells what a [`Snapshot`] has; nothing before there is a source of them: an operator that has not
/// listed the Tunnels yet does not know that there are none.
#[derive(Default)]
pub(super) struct Live(OnceLock<Source>);

impl Live {
    pub(super) fn set(&self, source: Source) {
        let _ = self.0.set(source);
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live")
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(source) = self.0.get() else { return Ok(()) };
        let Snapshot { tunnels, sources, destinations, queues, leads } = source();
        let help = "1 while this process leads, 0 while it stands by.";
        gauge(&mut encoder, "opentunnel_leader", help, Some(u64::from(leads)))?;
        let help = "Tunnels in Kubernetes, by the reason of their main condition.";
        let mut family = encoder.encode_descriptor("opentunnel_tunnels", help, None, Gauge)?;
        for reason in Reason::ALL.into_iter() {
            let count = tunnels.known.get(&reason).copied().unwrap_or_default();
            family.encode_family(&[("reason", reason.to_string())])?.encode_gauge(&count)?;
        }
        for (reason, count) in [("None", tunnels.none), ("Other", tunnels.other)] {
            family.encode_family(&[("reason", reason)])?.encode_gauge(&count)?;
        }
        let help = "Tunnels whose side is connected, as far as AWS has told.";
        let mut family = encoder.encode_descriptor("opentunnel_connected", help, None, Gauge)?;
        for (side, count) in [("source", sources), ("destination", destinations)] {
            family.encode_family(&[("side", side)])?.encode_gauge(&count)?;
        }
        let help = "Calls per second that AWS allows, as the operator is told.";
        let mut family = encoder.encode_descriptor("opentunnel_quota_calls_per_second", help, None, Gauge)?;
        for queue in &queues {
            family.encode_family(&of(queue.operation))?.encode_gauge(&queue.rate)?;
        }
        let help = "Calls to AWS that wait for their turn.";
        let mut family = encoder.encode_descriptor("opentunnel_queue_depth", help, None, Gauge)?;
        for queue in &queues {
            family.encode_family(&of(queue.operation))?.encode_gauge(&queue.depth)?;
        }
        let help = "1 while a limit of AWS's holds the queue back but for probes, by what it was.";
        let mut family = encoder.encode_descriptor("opentunnel_gate_shut", help, None, Gauge)?;
        for queue in &queues {
            for cause in [CallErrorKind::LimitExceeded, CallErrorKind::Throttled] {
                let labels = [("operation", queue.operation.name()), ("reason", kind(cause))];
                family.encode_family(&labels)?.encode_gauge(&u64::from(queue.shut == Some(cause)))?;
            }
        }
        Ok(())
    }
}

/// What Prometheus' client libraries tell of a process, under their names. What it cannot find out (all
/// but Linux has no `/proc`) it leaves out.
#[derive(Debug)]
pub(super) struct Process {
    started: SystemTime,
}

impl Process {
    pub(super) fn starts_now() -> Self {
        Self { started: SystemTime::now() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let started = self.started.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
        gauge(&mut encoder, "process_start_time_seconds", "When the process started, since the epoch.", started)?;
        gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory.", resident_bytes())?;
        gauge(&mut encoder, "process_open_fds", "Open file descriptors.", open_fds())
    }
}

fn gauge<N>(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: Option<N>) -> fmt::Result
where
    ConstGauge<N>: EncodeMetric,
{
    let Some(value) = value else { return Ok(()) };
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, Gauge)?)
}

/// proc_pid_status(5): `VmRSS:     20480 kB`.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// One of those that are found is the one by which they are looked for.
fn open_fds() -> Option<u64> {
    let found = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(found).ok()?.checked_sub(1)
}
