//! How long it takes from start to ready and from apply to Ready, and how much memory the operator holds,
//! with 0, 100 and 1,000 Tunnels, against a real API server and an AWS without quotas.
//! OPENTUNNEL_OPERATOR_BIN measures another build than `release`, as the image's.

#[allow(dead_code)] // The tests need more of it.
#[path = "../tests/cluster/support/mod.rs"]
mod support;

use futures::future::join_all;
use kube::api::PostParams;
use opentunnel_api::{Tunnel, TunnelSpec};
use std::fs;
use std::time::{Duration, Instant};
use support::World;
use support::operator::Operator;

/// Tunnels that are made one after the other; then as many at once.
const TUNNELS: usize = 100;
/// Tunnels in the end.
const MANY: usize = 1000;
/// Starts of which the time is taken.
const STARTS: usize = 5;
/// Several rounds of polls.
const REST: Duration = Duration::from_secs(5);

fn tunnel(name: &str) -> Tunnel {
    Tunnel::new(name, TunnelSpec::default())
}

/// Resident memory of a process in MiB, as Linux tells it.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("Linux tells it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

async fn apply_to_ready(world: &World, name: &str) -> Duration {
    let start = Instant::now();
    world.tunnels().create(&PostParams::default(), &tunnel(name)).await.expect("it is accepted");
    world.wait_ready(name).await;
    start.elapsed()
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{what}: p50 {:.0?}, p99 {:.0?}, max {:.0?}",
        percentile(&times, 50),
        percentile(&times, 99),
        percentile(&times, 100)
    );
}

/// An operator, and how long it took to be ready.
async fn start(world: &World) -> (Operator, Duration) {
    let started = Instant::now();
    let operator = world.operator_with(&world.settings().flag("--log-filter", "info")).await;
    (operator, started.elapsed())
}

/// Starts an operator STARTS times beside as many Tunnels as there are, and says how long that took.
async fn show_starts(world: &World, tunnels: usize) -> Operator {
    let mut times = Vec::new();
    for _ in 1..STARTS {
        let (operator, time) = start(world).await;
        times.push(time);
        operator.kill();
    }
    let (operator, time) = start(world).await;
    times.push(time);
    show(&format!("start to ready with {tunnels} Tunnels, {STARTS} times"), times);
    println!("resident with {tunnels} Tunnels, just ready: {:.1} MiB", resident(operator.pid()));
    operator
}

async fn many_at_once(world: &World, prefix: &str, count: usize) -> Vec<Duration> {
    let names: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
    join_all(names.iter().map(|name| apply_to_ready(world, name))).await
}

#[tokio::main]
async fn main() {
    let world = World::new().await;
    let operator = show_starts(&world, 0).await;
    let mut times = Vec::new();
    for n in 0..TUNNELS {
        times.push(apply_to_ready(&world, &format!("one-{n}")).await);
    }
    show("apply to Ready, one after the other", times);
    println!("resident with {TUNNELS} Tunnels: {:.1} MiB", resident(operator.pid()));
    let start = Instant::now();
    let times = many_at_once(&world, "all", TUNNELS).await;
    println!("{TUNNELS} at once: all Ready after {:.0?}", start.elapsed());
    show("apply to Ready, all at once", times);
    for batch in 2..MANY / TUNNELS {
        many_at_once(&world, &format!("more-{batch}"), TUNNELS).await;
    }
    println!("resident with {MANY} Tunnels: {:.1} MiB", resident(operator.pid()));
    operator.kill();
    let operator = show_starts(&world, MANY).await;
    let opened = world.aws.calls().iter().filter(|c| c.operation == "OpenTunnel").count();
    assert_eq!(opened, MANY, "OpenTunnel is called once for each");
    // A rest, in which the first polls are over.
    tokio::time::sleep(REST).await;
    println!("resident with {MANY} Tunnels, after {REST:?} at rest: {:.1} MiB", resident(operator.pid()));
}
