//! A soak as it goes: its Tunnels, and what is seen of them.

use super::counts::Counts;
use super::ledger::{Life, Slot};
use super::plan::{Bounds, Move};
use crate::support::World;
use crate::support::log;
use crate::support::namespace::Namespace;
use crate::support::promise::{Rule, Violation};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use opentunnel_api::{ReopenPolicy, Tunnel};
use secure_tunneling_emulator::{TunnelInfo, TunnelStatus};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Between two looks at what must hold at any time.
const LOOK: Duration = Duration::from_millis(500);
/// Longer than the shortest lifetime of a tunnel, and than an orphan is left alone.
const AGE: Duration = Duration::from_secs(5 * 60 + 1);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(30);
/// Lines of the operators' logs that are shown of a Tunnel.
const LINES: usize = 400;

/// A soak.
pub struct Scenario {
    /// Where it is.
    pub world: Arc<World>,
    /// Further namespaces.
    others: Vec<Namespace>,
    /// The Tunnels.
    pub slots: Vec<Slot>,
    /// How much of it there is.
    pub bounds: Bounds,
    /// What is counted.
    pub counts: Arc<Counts>,
    /// What was wrong, and with the Tunnel of which number.
    pub violations: Vec<(usize, Violation)>,
}

impl Scenario {
    /// One with no Tunnel yet.
    pub async fn new(bounds: &Bounds, counts: Arc<Counts>) -> Self {
        let mut world = World::new().await;
        world.leave_namespace();
        let mut others = Vec::new();
        for _ in 1..bounds.namespaces() {
            let mut namespace = Namespace::new().await;
            namespace.left = true;
            others.push(namespace);
        }
        let slots = (0..bounds.tunnels).map(|n| Slot::new(n % bounds.namespaces(), format!("soak-{n:03}"))).collect();
        Self { world: Arc::new(world), others, slots, bounds: *bounds, counts, violations: Vec::new() }
    }

    /// The names of all namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        [&self.world.name].into_iter().chain(self.others.iter().map(|n| &n.name)).cloned().collect()
    }

    /// All namespaces.
    pub fn all(&self) -> impl Iterator<Item = &Namespace> {
        [&**self.world].into_iter().chain(&self.others)
    }

    /// The namespace of a Tunnel.
    pub fn namespace(&self, number: usize) -> &Namespace {
        self.all().nth(self.slots[number].namespace).expect("there is one")
    }

    /// The Tunnels of its namespace.
    pub fn tunnels(&self, number: usize) -> Api<Tunnel> {
        self.namespace(number).tunnels()
    }

    /// The Secrets of its namespace.
    pub fn secrets(&self, number: usize) -> Api<Secret> {
        self.namespace(number).secrets()
    }

    /// The Tunnel of this number, unless it is being deleted.
    pub async fn tunnel(&self, number: usize) -> Option<Tunnel> {
        let found = self.tunnels(number).get_opt(&self.slots[number].name).await.expect("the API server answers");
        found.filter(|tunnel| tunnel.metadata.deletion_timestamp.is_none())
    }

    /// Notes that something is wrong.
    pub fn violated(&mut self, number: usize, violation: Violation) {
        self.slots[number].note(&format!("VIOLATION {violation}"));
        self.violations.push((number, violation));
    }

    /// Does what the plan says, and looks meanwhile at what must hold at any time.
    pub async fn go(&mut self, begun: Instant, moves: &[(Duration, Move)], end: Duration) {
        let (mut moves, mut look, mut progress) = (moves.iter().peekable(), begun, begun + PROGRESS);
        let mut looked = 0;
        loop {
            let next = begun + moves.peek().map_or(end, |(at, _)| *at);
            sleep_until(next.min(look)).await;
            let now = Instant::now();
            if now >= look {
                look = now + LOOK;
                self.at_any_time();
                if self.slots[looked].present().is_some() && self.look(looked).await {
                    self.counts.looked.add();
                }
                looked = (looked + 1) % self.slots.len();
            }
            if now >= progress {
                progress += PROGRESS;
                println!("{:>5.0?}: {}; {} tunnels are open", begun.elapsed(), self.counts, self.open().count());
            }
            match moves.next_if(|(at, _)| now >= begun + *at) {
                Some((_, Move::Tunnel(number, act, spec))) => {
                    self.act(*number, *act, *spec).await;
                }
                Some((_, Move::Clock(by))) => self.world.aws.advance_clock(*by),
                None if now >= begun + end => return,
                None => {}
            }
        }
    }

    /// Who was just opening may go on after somebody else has opened: there are never more than these two.
    fn at_any_time(&mut self) {
        let mut open: HashMap<String, usize> = HashMap::new();
        self.open().filter_map(|t| t.description).for_each(|d| *open.entry(d).or_default() += 1);
        for number in 0..self.slots.len() {
            for life in &self.slots[number].lives {
                let count = open.get(&life.description).copied().unwrap_or_default();
                if count > 2 + life.replaced_opening {
                    let what = format!("{count} tunnels of {} are open at once", life.description);
                    self.violated(number, Violation { rule: Rule::OneTunnel, what });
                    break;
                }
            }
        }
    }

    /// AWS's clock is set ahead, so that tunnels of the shortest lifetime end, and orphans are old enough to be
    /// swept away. AWS shows so by the time of a change.
    pub fn age(&mut self) {
        self.world.aws.advance_clock(AGE);
        let present = (0..self.slots.len()).filter(|number| self.slots[*number].present().is_some());
        // Any one that is open.
        let _ = present.collect::<Vec<_>>().into_iter().find(|number| self.connect(*number, true));
    }

    /// Users want no tunnel any more after one that ended: a pause may be longer than a test.
    pub async fn end_reopening(&mut self) {
        for number in 0..self.slots.len() {
            if self.slots[number].present().is_some_and(Life::is_reopened) {
                self.edit_reopen(number, ReopenPolicy::Never).await;
            }
        }
    }

    /// The tunnels that are open.
    pub fn open(&self) -> impl Iterator<Item = TunnelInfo> + use<> {
        self.world.aws.tunnels().into_iter().filter(|t| t.status == TunnelStatus::Open)
    }

    /// Shows what happened to a Tunnel: what was done, what the operators say, what AWS was asked.
    pub fn show(&self, number: usize) {
        let slot = &self.slots[number];
        let namespace = &self.namespace(number).name;
        eprintln!("--- {} in {namespace}:\n{}", slot.name, slot.history.join("\n"));
        let tunnels = self.world.aws.tunnels();
        let descriptions: Vec<_> = slot.lives.iter().map(|life| life.description.as_str()).collect();
        let own: Vec<_> =
            tunnels.iter().filter(|t| t.description.as_deref().is_some_and(|d| descriptions.contains(&d))).collect();
        for t in &own {
            eprintln!("{:?} {} of {:?}, created {}, {:?}", t.status, t.tunnel_id, t.description, t.created_at, t.tags);
        }
        let ids: Vec<_> = own.iter().map(|t| t.tunnel_id.as_str()).collect();
        for call in self.world.aws.calls() {
            if call.tunnel_id.as_deref().is_some_and(|id| ids.contains(&id)) && call.operation != "DescribeTunnel" {
                eprintln!("{:.3} AWS {} {:?} {:?}", call.at, call.operation, call.outcome, call.tunnel_id);
            }
        }
        let about = |line: &&str| {
            (line.contains(slot.name.as_str()) && line.contains(namespace.as_str()))
                || ids.iter().any(|id| line.contains(id))
        };
        let logs = self.world.logs();
        let mut lines: Vec<(&str, usize)> = Vec::new();
        for (process, text) in logs.iter().enumerate().filter(|(_, text)| !log::has_token(text)) {
            lines.extend(text.lines().filter(about).map(|line| (line, process)));
        }
        lines.sort_unstable();
        for (line, process) in &lines[lines.len().saturating_sub(LINES)..] {
            eprintln!("[{process}] {}", line.chars().take(400).collect::<String>());
        }
    }
}
