//! What `opentunnel-proxy` does with a tunnel, beside the bound of this machine: `make bench-proxy`. docs/performance.md
//! says how to read it.
//!
//! A server and its clients, which are in this program, are joined by three processes: source, service (the emulator, with
//! TLS), destination. Beside that, in the same run:
//!
//! - the bound: relays of the same hops, without framing, one TLS connection for each client and hop (`relay`);
//! - for the echo and the connects, the same relays without TLS;
//! - AWS's program in the place of ours, where LOCALPROXY has its path.
//!
//! They are measured one after the other in each of BENCH_TURNS=3 turns, for BENCH_SECONDS=1 each, with processes that are
//! new each time. A figure is the median of the turns. A peer that fails in one measurement is not measured in it again.
//! BENCH_ONLY=text leaves out what does not have that text in its name. BENCH_JSON=path: a file for the figures of each
//! turn. OPENTUNNEL_PROXY_BIN and EMULATOR name other builds than those of this profile.

mod load;
mod path;
mod process;
mod relay;
mod report;

use load::{Ask, Server, at_once, client_within, clients, echo, ended, fill, throughput};
use path::{Lab, Peer, Way};
use report::Report;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const MIB: f64 = 1_048_576.0;
/// SO_SNDBUF and SO_RCVBUF of clients and servers.
const WINDOWS: [(usize, &str); 2] = [(64 << 10, "64 KiB"), (1 << 20, "1 MiB")];
const CONNECTIONS: [usize; 3] = [1, 16, 500];
/// A proxy whose connection did not live for so long is held back when it comes again; one that is cut in use is older.
const OLD: Duration = Duration::from_secs(31);
const CUTS: [(&str, &str); 2] = [
    ("source", "from a cut of the source to served again"),
    ("destination", "from a cut of the destination to served again"),
];
/// What tcp_mem counts in, on most machines.
const PAGE: usize = 4096;
const AT_ONCE: usize = 2000;
const IDLE: usize = 1000;
/// How long a proxy has to come back.
const BACK: Duration = Duration::from_secs(30);
/// How long one client waits for a proxy that comes back, before another one tries.
const TRY: Duration = Duration::from_millis(250);

fn setting<T: FromStr>(name: &str, default: T) -> Result<T, String> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text} is not understood")),
        Err(_) => Ok(default),
    }
}

struct Bench {
    programs: Programs,
    lab: Lab,
    report: Report,
    time: Duration,
    only: String,
}

struct Programs {
    emulator: PathBuf,
    ours: PathBuf,
    aws: Option<PathBuf>,
}

impl Programs {
    fn lab(&self) -> Result<Lab, String> {
        Lab::start(&self.emulator, &self.ours, self.aws.as_deref())
    }
}

/// A way that grows old in a lab of its own while other things are measured, or why there is none.
struct Old {
    lab: Lab,
    _server: Server,
    way: Result<Way, String>,
    since: Instant,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    // cargo says `--bench`, too.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((first, rest)) if first == "relay" => {
            runtime.block_on(relay::run(rest)).map_err(|error| format!("relay: {error}"))
        }
        _ => runtime.block_on(run()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let seconds = setting("BENCH_SECONDS", 1.0)?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| format!("BENCH_SECONDS: {error}"))?;
    let turns = setting("BENCH_TURNS", 3)?;
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    // This program is in deps/, beside which they are.
    let beside = std::env::current_exe().map_err(|error| error.to_string())?;
    let emulator = path("EMULATOR").unwrap_or_else(|| beside.with_file_name("../secure-tunneling-emulator"));
    let ours = path("OPENTUNNEL_PROXY_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_opentunnel-proxy").into());
    let programs = Programs { emulator, ours, aws: path("LOCALPROXY") };
    let (lab, only) = (programs.lab()?, setting("BENCH_ONLY", String::new())?);
    let mut bench = Bench { programs, lab, report: Report::default(), time, only };
    for turn in 1..=turns {
        eprintln!("turn {turn} of {turns}");
        bench.turn().await?;
    }
    println!("Median of {turns} turns of {seconds} s each:\n\n{}", bench.report.table());
    if let Some(path) = path("BENCH_JSON") {
        let text = format!("{:#}\n", bench.report.json());
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

impl Bench {
    async fn turn(&mut self) -> Result<(), String> {
        let proxies: Vec<_> =
            [Some(Peer::Ours), self.programs.aws.as_ref().map(|_| Peer::Aws)].into_iter().flatten().collect();
        let mut old = Vec::new();
        for peer in proxies.clone() {
            if CUTS.iter().any(|(_, measure)| self.wants(measure, peer)) {
                old.push((peer, self.grow_old(peer).await?));
            }
        }
        let with = |others: &[Peer]| [&proxies[..1], others, &proxies[1..]].concat();
        for (ask, ways) in [(Ask::Sink, "one way"), (Ask::Both, "both ways")] {
            for (window, windows) in WINDOWS {
                for count in CONNECTIONS.into_iter().filter(|count| fits(*count, window)) {
                    let connections = if count == 1 { "connection" } else { "connections" };
                    let measure = format!("{ways}, {count} {connections}, windows of {windows}");
                    for peer in with(&[Peer::TlsRelay]) {
                        self.throughput(&measure, peer, (ask, window, count)).await?;
                    }
                }
            }
        }
        for peer in with(&[Peer::TcpRelay, Peer::TlsRelay]) {
            self.measure("echo of 64 bytes, p50 / p99", "ms", peer, Self::echo).await?;
        }
        for peer in with(&[Peer::TcpRelay, Peer::TlsRelay]) {
            let measure = format!("{AT_ONCE} connects at once, served / in");
            self.measure(&measure, "number / s", peer, Self::at_once).await?;
        }
        for peer in proxies {
            let memory = |what: &str| format!("resident {what}, source / destination");
            self.measure(&memory("idle"), "MiB", peer, Self::idle::<0>).await?;
            self.measure(&memory(&format!("with {IDLE} idle connections")), "MiB", peer, Self::idle::<IDLE>).await?;
            self.measure(&memory("while a reader stands still"), "MiB", peer, Self::stand_still).await?;
        }
        for (peer, mut old) in old {
            sleep(OLD.saturating_sub(old.since.elapsed())).await;
            for (side, measure) in CUTS {
                if self.wants(measure, peer) {
                    let outcome = match &mut old.way {
                        Ok(way) => cut(&old.lab, side, way.address).await.map_err(|error| way.ended().unwrap_or(error)),
                        Err(error) => Err(error.clone()),
                    };
                    self.report.take(measure, "ms", peer, outcome);
                }
            }
        }
        Ok(())
    }

    fn wants(&self, measure: &str, peer: Peer) -> bool {
        measure.contains(&self.only) && !self.report.has_failed(measure, peer)
    }

    async fn grow_old(&self, peer: Peer) -> Result<Old, String> {
        let lab = self.programs.lab()?;
        let server = Server::start(None).map_err(|error| error.to_string())?;
        let way = lab.way(peer, &server).await;
        Ok(Old { lab, _server: server, way, since: Instant::now() })
    }

    /// Measures what does not care for windows, once.
    async fn measure(
        &mut self,
        measure: &str,
        unit: &'static str,
        peer: Peer,
        act: impl AsyncFn(&Self, &Way) -> Result<Vec<f64>, String>,
    ) -> Result<(), String> {
        if !self.wants(measure, peer) {
            return Ok(());
        }
        let server = Server::start(None).map_err(|error| error.to_string())?;
        let outcome = match self.lab.way(peer, &server).await {
            Ok(mut way) => {
                let outcome = act(self, &way).await;
                outcome.map_err(|error| way.ended().unwrap_or(error))
            }
            Err(error) => Err(error),
        };
        self.report.take(measure, unit, peer, outcome);
        Ok(())
    }

    async fn throughput(&mut self, measure: &str, peer: Peer, load: (Ask, usize, usize)) -> Result<(), String> {
        if !self.wants(measure, peer) {
            return Ok(());
        }
        let server = Server::start(Some(load.1)).map_err(|error| error.to_string())?;
        let mut used = Vec::new();
        let outcome = match self.lab.way(peer, &server).await {
            Ok(mut way) => {
                let outcome = throughput(way.address, &server, load, self.time, || used.push(way.cpu())).await;
                outcome.map_err(|error| way.ended().unwrap_or(error))
            }
            Err(error) => Err(error),
        };
        let costs = format!("CPU of source / service / destination: {measure}");
        match (outcome, &used[..]) {
            (Ok(rate), [before, after]) => {
                let gib = rate * self.time.as_secs_f64() / MIB / 1024.0;
                let cpu = before.iter().zip(after).map(|(before, after)| (after - before) / gib).collect();
                self.report.take(measure, "MiB/s", peer, Ok(vec![rate / MIB]));
                self.report.take(&costs, "s/GiB", peer, Ok(cpu));
            }
            (outcome, _) => self.report.take(measure, "MiB/s", peer, outcome.map(|_| Vec::new())),
        }
        Ok(())
    }

    async fn echo(&self, way: &Way) -> Result<Vec<f64>, String> {
        let mut times = echo(way.address, self.time).await?;
        times.sort();
        let percentile = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1);
        let millis = [50, 99].into_iter().filter_map(|percent| Some(percentile(percent)?.as_secs_f64() * 1000.0));
        Ok(millis.collect())
    }

    async fn at_once(&self, way: &Way) -> Result<Vec<f64>, String> {
        let (served, time) = at_once(way.address, AT_ONCE).await;
        Ok(vec![served as f64, time.as_secs_f64()])
    }

    async fn idle<const CONNECTIONS: usize>(&self, way: &Way) -> Result<Vec<f64>, String> {
        let idle = clients(way.address, Ask::Echo, None, CONNECTIONS).await?;
        sleep(self.time).await;
        let resident = way.rss();
        drop(idle);
        Ok(resident)
    }

    async fn stand_still(&self, way: &Way) -> Result<Vec<f64>, String> {
        let mut client = client_within(BACK, way.address, Ask::StandStill).await?;
        fill(&mut client, self.time).await?;
        Ok(way.rss())
    }
}

/// How long it takes from a cut to a client that is served.
async fn cut(lab: &Lab, side: &str, address: SocketAddr) -> Result<Vec<f64>, String> {
    let mut client = client_within(BACK, address, Ask::Echo).await?;
    let begin = Instant::now();
    lab.cut(side)?;
    ended(&mut client).await?;
    while let Err(error) = client_within(TRY, address, Ask::Echo).await {
        if begin.elapsed() > BACK {
            return Err(error);
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(vec![begin.elapsed().as_secs_f64() * 1000.0])
}

/// Whether the buffers of so many connections, at the client and at the server, are within what Linux gives to TCP: beyond
/// it drops what it has received already, and nothing is measured but that. It doubles SO_SNDBUF and SO_RCVBUF.
fn fits(count: usize, window: usize) -> bool {
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default();
    let pages = limits.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.is_none_or(|pages| count * window * 4 < pages * PAGE)
}
