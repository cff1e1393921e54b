//! What a fleet costs: the life of so many Tunnels under the operator as its ServiceAccount, against a real API server
//! and an AWS without quotas. docs/performance.md says how to read it.
//!
//! FLEET_TUNNELS="100 1000 10000", FLEET_REST=60 (seconds), FLEET_AWS_MS=0 (how late AWS answers). FLEET_PEER names
//! another build of the operator: both are measured, in turns. OPENTUNNEL_OPERATOR_BIN measures another build than
//! `release`. Prints tables; FLEET_JSON names a file for the same.

#[allow(dead_code)] // The tests need more of it.
#[path = "../../tests/cluster/support/mod.rs"]
mod support;

mod floor;
mod sight;

use futures::{StreamExt, stream};
use kube::api::{DeleteParams, ListParams, PostParams};
use opentunnel_api::{Tunnel, TunnelSpec};
use secure_tunneling_emulator::{Fault, FaultKind, Operation};
use serde_json::{Value, json};
use sight::{Process, Sight};
use std::collections::{BTreeMap, HashMap};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};
use support::World;
use support::operator::{Operator, Settings, http_get, http_status};
use support::world::Identity;
use tokio::time::sleep;

/// Tunnels that are made one after the other.
const ONE_BY_ONE: usize = 50;
/// Secrets that get lost.
const LOST: usize = 100;
/// Requests of the user's at a time.
const AT_ONCE: usize = 64;
/// How long a phase may take.
const PATIENCE: Duration = Duration::from_secs(3600);

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let parse = |text: String| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not understood"));
    env::var(name).map_or(default, parse)
}

/// A phase, as it was measured. What it does not have is `null`.
struct Phase(&'static str, serde_json::Map<String, Value>);

/// The columns of the table.
const COLUMNS: [(&str, &str); 12] = [
    ("wall", "s"),
    ("p50", "s"),
    ("p99", "s"),
    ("cpu", "s"),
    ("rss", "MiB"),
    ("peak", "MiB"),
    ("lists", ""),
    ("gets", ""),
    ("writes", ""),
    ("refused", "429"),
    ("aws", "calls"),
    ("opened", ""),
];

/// The columns of times, if there are any.
fn percentiles(mut times: Vec<Duration>) -> serde_json::Map<String, Value> {
    times.sort();
    let percentile = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1);
    let columns = [("p50", percentile(50)), ("p99", percentile(99))];
    columns.into_iter().filter_map(|(name, time)| Some((name.to_owned(), json!(time?.as_secs_f64())))).collect()
}

/// One program with one number of Tunnels.
struct Run {
    world: World,
    identity: Identity,
    settings: Settings,
    /// Where the audit log was read up to.
    read: u64,
    calls: usize,
    phases: Vec<Phase>,
    /// How late AWS answers, in milliseconds.
    aws_late: u64,
}

/// A verb, a resource as `tunnels/status`, and the HTTP status.
type Request = (String, String, u64);

/// What is measured from here on.
struct Since {
    begun: Instant,
    cpu: Duration,
}

impl Run {
    async fn new(program: &PathBuf, aws_late: u64) -> Self {
        let world = World::new().await;
        let identity = world.identity().await;
        // As a user runs it: what is quick for tests is left out again.
        let quick = ["--aws-timeout", "--recovery-grace", "--poll-interval", "--log-filter"];
        let mut settings = world.electing().await.with_identity(&identity);
        settings.program.clone_from(program);
        let settings = quick.iter().fold(settings, |settings, flag| settings.without_flag(flag));
        let settings = settings.flag("--open-rate", "1000").flag("--close-rate", "1000");
        let read = world.plane.audit_log_from(0).len() as u64;
        let run = Self { world, identity, settings, read, calls: 0, phases: Vec::new(), aws_late };
        run.world.aws.set_faults(run.late());
        run
    }

    /// AWS answers late.
    fn late(&self) -> Vec<Fault> {
        let operations = [Operation::OpenTunnel, Operation::CloseTunnel, Operation::ListTunnels];
        let late = |operation| Fault::new(operation, FaultKind::Delay).delay_ms(self.aws_late).times(u32::MAX);
        operations.into_iter().filter(|_| self.aws_late > 0).map(late).collect()
    }

    /// Starts it; how long it took until `/readyz` said so.
    async fn start(&self) -> (Operator, Duration) {
        let begun = Instant::now();
        let mut operator = self.world.spawn(&self.settings);
        let address = operator.address().await;
        while http_status(address, "/readyz").await != Some(200) {
            assert!(operator.runs() && begun.elapsed() < PATIENCE, "it is never ready");
            sleep(Duration::from_millis(2)).await;
        }
        (operator, begun.elapsed())
    }

    fn since(&self, operator: Option<&Operator>) -> Since {
        let cpu = operator.map_or(Duration::ZERO, |operator| {
            Process(operator.pid()).forget_peak();
            Process(operator.pid()).cpu()
        });
        Since { begun: Instant::now(), cpu }
    }

    /// A phase is over.
    async fn note(&mut self, name: &'static str, operator: &Operator, since: &Since, times: Vec<Duration>) {
        let wall = since.begun.elapsed();
        let process = Process(operator.pid());
        let mut all = serde_json::Map::new();
        all.insert("wall".into(), json!(wall.as_secs_f64()));
        all.insert("cpu".into(), json!(process.cpu().saturating_sub(since.cpu).as_secs_f64()));
        all.insert("rss".into(), json!(process.resident()));
        all.insert("peak".into(), json!(process.peak()));
        all.extend(percentiles(times));
        let requests = self.requests().await;
        let sum = |is: &dyn Fn(&str, &str, u64) -> bool| -> usize {
            let is = |(request, _): &(&Request, &usize)| is(&request.0, &request.1, request.2);
            requests.iter().filter(is).map(|(_, count)| count).sum()
        };
        let lease = |resource: &str| resource == "leases";
        let reads = ["list", "watch"];
        all.insert("lists".into(), json!(sum(&|verb, resource, _| reads.contains(&verb) && !lease(resource))));
        all.insert("gets".into(), json!(sum(&|verb, resource, _| verb == "get" && !lease(resource))));
        let writes = |verb: &str, resource: &str, _| !reads.contains(&verb) && verb != "get" && !lease(resource);
        all.insert("writes".into(), json!(sum(&writes)));
        all.insert("refused".into(), json!(sum(&|_, _, code| code == 429)));
        let each: BTreeMap<String, usize> = requests
            .iter()
            .map(|((verb, resource, code), count)| (format!("{verb} {resource} {code}"), *count))
            .collect();
        all.insert("requests".into(), json!(each));
        let calls = self.world.aws.calls();
        let new = &calls[self.calls.min(calls.len())..];
        let mut operations = BTreeMap::<&str, usize>::new();
        new.iter().for_each(|call| *operations.entry(&call.operation).or_default() += 1);
        all.insert("aws".into(), json!(new.len()));
        all.insert("opened".into(), json!(operations.get("OpenTunnel").copied().unwrap_or_default()));
        all.insert("operations".into(), json!(operations));
        self.calls = calls.len();
        let (resident, peak) = (process.resident(), process.peak());
        eprintln!("   {name}: {:.1} s; {resident:.1} MiB, at most {peak:.1}", wall.as_secs_f64());
        self.phases.push(Phase(name, all));
    }

    /// How often the operator made each request since this was last asked. A watch counts when it ends.
    async fn requests(&mut self) -> BTreeMap<Request, usize> {
        // Returns once the log has what was answered.
        self.world.writes_by(&self.identity).await;
        let log = self.world.plane.audit_log_from(self.read);
        self.read += log.len() as u64;
        let mut requests = BTreeMap::new();
        for line in log.lines().filter(|line| line.contains(&self.identity.credential)) {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let text = |pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            if text("/stage") == "ResponseComplete" {
                let (resource, sub) = (text("/objectRef/resource"), text("/objectRef/subresource"));
                let resource = if sub.is_empty() { resource } else { format!("{resource}/{sub}") };
                let code = line.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default();
                *requests.entry((text("/verb"), resource, code)).or_default() += 1;
            }
        }
        requests
    }

    /// Tunnels that were opened.
    fn openings(&self) -> usize {
        self.world.aws.calls().iter().filter(|call| call.operation == "OpenTunnel" && call.succeeded()).count()
    }

    async fn create(&self, name: &str) {
        let tunnel = Tunnel::new(name, TunnelSpec::default());
        self.world.tunnels().create(&PostParams::default(), &tunnel).await.expect("it is accepted");
    }

    /// Creates them all, as fast as the API server takes them; when each was.
    async fn create_all(&self, prefix: &str, count: usize) -> HashMap<String, Instant> {
        stream::iter(0..count)
            .map(|n| async move {
                let (name, at) = (format!("{prefix}-{n}"), Instant::now());
                self.create(&name).await;
                (name, at)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// Deletes them all; returns once they are gone.
    async fn delete_all(&self) {
        let begun = Instant::now();
        let (tunnels, all) = (self.world.tunnels(), ListParams::default());
        // Of thousands it takes longer than the minute that the API server has for a request.
        while tunnels.delete_collection(&DeleteParams::default(), &all).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "they cannot be deleted");
            sleep(Duration::from_millis(100)).await;
        }
        let one = ListParams::default().limit(1);
        while !tunnels.list_metadata(&one).await.expect("an answer").items.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "they never go");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// All phases.
    async fn go(&mut self, count: usize, rest: Duration) {
        let floor = self.floor("floor: the same requests by a plain loop", ONE_BY_ONE, 1).await;
        let crowd = self.floor("floor: the same for all, 32 at a time", count, 32).await;
        self.phases.extend([floor, crowd]);
        self.requests().await;
        self.calls = self.world.aws.calls().len();
        let openings = self.openings();
        let since = self.since(None);
        let (operator, took) = self.start().await;
        sleep(Duration::from_secs(3)).await;
        self.note("idle, 3 s after the start", &operator, &since, vec![took]).await;

        let sight = Sight::new(&self.world);
        let since = self.since(Some(&operator));
        let mut times = Vec::new();
        for n in 0..ONE_BY_ONE {
            let (name, begun) = (format!("one-{n}"), Instant::now());
            self.create(&name).await;
            times.push(sight.until(&name).await - begun);
        }
        self.note("one after the other: 50", &operator, &since, times).await;
        let since = self.since(Some(&operator));
        self.delete_all().await;
        self.note("these deleted", &operator, &since, Vec::new()).await;
        drop(sight);

        let sight = Sight::new(&self.world);
        let since = self.since(Some(&operator));
        let created = self.create_all("all", count).await;
        sight.until_all(count).await;
        let ready = sight.all();
        let times = created.iter().map(|(name, at)| ready[name] - *at).collect();
        self.note("all created at once", &operator, &since, times).await;
        drop(sight);
        let since = self.since(Some(&operator));
        self.delete_all().await;
        self.note("all deleted", &operator, &since, Vec::new()).await;
        operator.terminate().await;

        let sight = Sight::new(&self.world);
        let since = self.since(None);
        let (operator, _) = self.start().await;
        let begun = Instant::now();
        self.create("first").await;
        let time = sight.until("first").await - begun;
        self.note("the first, as soon as it is ready", &operator, &since, vec![time]).await;
        drop(sight);
        self.delete_all().await;
        self.requests().await;
        self.calls = self.world.aws.calls().len();
        let full = Fault::new(Operation::OpenTunnel, FaultKind::LimitExceeded).times(u32::MAX);
        self.world.aws.set_faults([full].into_iter().chain(self.late()));
        let sight = Sight::of(&self.world, |condition| condition.reason == "LimitExceeded");
        let since = self.since(Some(&operator));
        self.create_all("full", count).await;
        sight.until_all(count).await;
        self.note("AWS is full: all wait, and say so", &operator, &since, Vec::new()).await;
        let since = self.since(Some(&operator));
        sleep(rest).await;
        self.note("AWS stays full", &operator, &since, Vec::new()).await;
        drop(sight);
        self.delete_all().await;
        self.world.aws.set_faults(self.late());
        operator.terminate().await;

        self.create_all("late", count).await;
        let sight = Sight::new(&self.world);
        let since = self.since(None);
        let (operator, _) = self.start().await;
        sight.until_all(count).await;
        let times = sight.all().into_values().map(|at| at - since.begun).collect();
        self.note("a backlog of all at the start", &operator, &since, times).await;
        drop(sight);

        // What is written after Ready, as Events, is not of the rest.
        sleep(Duration::from_secs(5)).await;
        self.requests().await;
        let since = self.since(Some(&operator));
        sleep(rest).await;
        self.note("at rest", &operator, &since, Vec::new()).await;
        operator.terminate().await;

        let since = self.since(None);
        let (mut operator, took) = self.start().await;
        let address = operator.address().await;
        while reconciled(address).await < count {
            assert!(operator.runs(), "it has ended");
            sleep(Duration::from_millis(50)).await;
        }
        self.note("restarted: all looked through", &operator, &since, vec![took]).await;
        sleep(rest).await;
        self.note("at rest after it", &operator, &since, Vec::new()).await;

        let since = self.since(Some(&operator));
        let lost = LOST.min(count);
        let names: Vec<String> = (0..lost).map(|n| format!("late-{n}-tokens")).collect();
        let secrets = self.world.secrets();
        let mut before = HashMap::new();
        for name in &names {
            before.insert(name, secrets.get_metadata(name).await.expect("it is there").metadata.uid);
            secrets.delete(name, &DeleteParams::default()).await.expect("it is there");
        }
        for name in &names {
            let back = async |name: &str| secrets.get_metadata_opt(name).await.expect("an answer")?.metadata.uid;
            while back(name).await.is_none_or(|uid| before[name].as_ref() == Some(&uid)) {
                assert!(since.begun.elapsed() < PATIENCE, "{name} is never restored");
                sleep(Duration::from_millis(5)).await;
            }
        }
        self.note("100 Secrets lost and restored", &operator, &since, Vec::new()).await;
        let since = self.since(Some(&operator));
        self.delete_all().await;
        self.note("all deleted, the second time", &operator, &since, Vec::new()).await;
        let opened = self.openings() - openings;
        assert_eq!(opened, ONE_BY_ONE + 1 + 2 * count, "OpenTunnel is called once for each");
        operator.terminate().await;
    }

    fn show(&self, program: &str, count: usize) {
        println!("\n{count} Tunnels, {program}\n");
        let heads = COLUMNS.map(|(name, unit)| if unit.is_empty() { name.into() } else { format!("{name}, {unit}") });
        println!("| phase | {} |\n|---|{}", heads.join(" | "), "---|".repeat(COLUMNS.len()));
        for Phase(name, all) in &self.phases {
            let cell = |key: &str| match all.get(key) {
                Some(Value::Number(n)) if n.is_f64() => {
                    let n = n.as_f64().unwrap_or_default();
                    if n < 1.0 { format!("{n:.3}") } else { format!("{n:.1}") }
                }
                Some(value) => value.to_string(),
                None => String::new(),
            };
            println!("| {name} | {} |", COLUMNS.map(|(key, _)| cell(key)).join(" | "));
        }
    }
}

/// How many reconciles it has behind it.
async fn reconciled(address: std::net::SocketAddr) -> usize {
    let metrics = http_get(address, "/metrics").await.unwrap_or_default();
    let count = metrics.lines().find_map(|line| line.strip_prefix("opentunnel_reconcile_duration_seconds_count "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

#[tokio::main]
async fn main() {
    let counts = env::var("FLEET_TUNNELS").unwrap_or_else(|_| "100 1000".into());
    let counts: Vec<usize> = counts.split_whitespace().map(|n| n.parse().expect("FLEET_TUNNELS has numbers")).collect();
    let rest = Duration::from_secs(setting("FLEET_REST", 60));
    let late = setting("FLEET_AWS_MS", 0);
    let ours =
        env::var_os("OPENTUNNEL_OPERATOR_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_opentunnel-operator").into());
    let programs: Vec<PathBuf> =
        [Some(ours), env::var_os("FLEET_PEER")].into_iter().flatten().map(PathBuf::from).collect();
    let mut file = Vec::new();
    for count in counts {
        for program in &programs {
            let name = program.display().to_string();
            eprintln!("== {count} Tunnels, {name}");
            let mut run = Run::new(program, late).await;
            run.go(count, rest).await;
            run.show(&name, count);
            let phases: serde_json::Map<String, Value> =
                run.phases.drain(..).map(|Phase(name, all)| (name.to_owned(), Value::Object(all))).collect();
            file.push(json!({"program": name, "tunnels": count, "awsAnswersAfterMs": late, "phases": phases}));
        }
    }
    if let Some(path) = env::var_os("FLEET_JSON") {
        fs::write(&path, serde_json::to_string_pretty(&file).expect("JSON")).expect("FLEET_JSON can be written");
    }
}
