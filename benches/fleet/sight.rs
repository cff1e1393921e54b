//! What is seen from outside: of the operator's process, and of the Tunnels.

use super::PATIENCE;
use super::support::World;
use super::support::namespace::main_condition;
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use opentunnel_api::Condition;
use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What Linux says of a process.
#[derive(Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    fn status(self, key: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(key)).expect("Linux tells it");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
    }

    /// Resident memory, in MiB.
    pub fn resident(self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most that there was since the start, or since [`Self::forget_peak`], in MiB.
    pub fn peak(self) -> f64 {
        self.status("VmHWM:")
    }

    pub fn forget_peak(self) {
        // Where this is not allowed, the peak is that since the start.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.0), "5");
    }

    /// Processor time so far: in user and system mode, in ticks of 10 ms.
    pub fn cpu(self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).expect("it runs");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }
}

/// When each Tunnel came into a state, as a user's watch sees it.
pub struct Sight {
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    watch: JoinHandle<()>,
}

impl Sight {
    /// Ready.
    pub fn new(world: &World) -> Self {
        Self::of(world, |condition| condition.type_ == "Ready" && condition.status == "True")
    }

    /// That of this main condition.
    pub fn of(world: &World, wanted: fn(&Condition) -> bool) -> Self {
        let all: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let seen = all.clone();
        let mut events = watcher(world.tunnels(), watcher::Config::default()).default_backoff().boxed();
        let watch = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(watcher::Event::Apply(tunnel) | watcher::Event::InitApply(tunnel)) = event else { continue };
                if let (true, Some(name)) = (main_condition(&tunnel).is_some_and(wanted), tunnel.metadata.name) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_insert_with(Instant::now);
                }
            }
        });
        Self { seen: all, watch }
    }

    /// Those that are in it.
    pub fn all(&self) -> HashMap<String, Instant> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub async fn until(&self, name: &str) -> Instant {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
                return *at;
            }
            assert!(begun.elapsed() < PATIENCE, "{name} never becomes Ready");
            sleep(Duration::from_micros(200)).await;
        }
    }

    pub async fn until_all(&self, count: usize) {
        let begun = Instant::now();
        while self.seen.lock().unwrap_or_else(PoisonError::into_inner).len() < count {
            assert!(begun.elapsed() < PATIENCE, "they never come into the state");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        self.watch.abort();
    }
}
