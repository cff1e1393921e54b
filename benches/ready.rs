//! How long it takes from apply to Ready, and how much memory the operator holds: 100 Tunnels, one
//! after the other, then 100 more at once, against a real API server and an AWS without quotas.

#[allow(dead_code)] // The tests need more of it.
#[path = "../tests/cluster/support/mod.rs"]
mod support;

use futures::future::join_all;
use kube::api::PostParams;
use opentunnel_operator::crd::{Tunnel, TunnelSpec};
use std::fs;
use std::time::{Duration, Instant};
use support::World;

const TUNNELS: usize = 100;

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

#[tokio::main]
async fn main() {
    let world = World::new().await;
    let started = Instant::now();
    let operator = world.operator_with(&world.settings().flag("--log-filter", "info")).await;
    println!("start to ready: {:.0?}", started.elapsed());
    println!("resident with 0 Tunnels: {:.1} MiB", resident(operator.pid()));
    let mut times = Vec::new();
    for n in 0..TUNNELS {
        times.push(apply_to_ready(&world, &format!("one-{n}")).await);
    }
    show("apply to Ready, one after the other", times);
    println!("resident with {TUNNELS} Tunnels: {:.1} MiB", resident(operator.pid()));
    let names: Vec<String> = (0..TUNNELS).map(|n| format!("all-{n}")).collect();
    let start = Instant::now();
    let times = join_all(names.iter().map(|name| apply_to_ready(&world, name))).await;
    println!("{TUNNELS} at once: all Ready after {:.0?}", start.elapsed());
    show("apply to Ready, all at once", times);
    println!("resident with {} Tunnels: {:.1} MiB", 2 * TUNNELS, resident(operator.pid()));
    let opened = world.aws.calls().iter().filter(|c| c.operation == "OpenTunnel").count();
    assert_eq!(opened, 2 * TUNNELS, "OpenTunnel is called once for each");
}
