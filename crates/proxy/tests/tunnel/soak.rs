//! Hours of use in minutes: many connections, a service that cuts and joins anywhere, links that are cut, tokens that are
//! rotated, ends that are replaced or killed. Each byte is compared.

use crate::support::directory::Directory;
use crate::support::exchange::{Exchange, Outcome};
use crate::support::proxy::{Proxy, Start, secret};
use crate::support::service::{Service, unused_port};
use crate::support::tunnel::Tunnel;
use crate::support::{PATIENCE, until};
use futures_util::future::join_all;
use secure_tunneling_emulator::{DataFault, DataFaultKind, Side};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const CONNECTIONS: usize = 200;
const SERVICES: [&str; 3] = ["A", "B", "C"];
const SIDES: [Side; 2] = [Side::Source, Side::Destination];

/// What has happened.
#[derive(Default)]
struct Counts {
    complete: Cell<u64>,
    cut: Cell<u64>,
    bytes: Cell<u64>,
    cuts: Cell<u64>,
    session_resets: Cell<u64>,
    rotations: Cell<u64>,
    replacements: Cell<u64>,
    kills: Cell<u64>,
}

fn count(of: &Cell<u64>, more: u64) {
    of.set(of.get() + more);
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

struct Soak {
    tunnel: Tunnel,
    secrets: Directory,
    services: Vec<Service>,
    /// Where the source listens, whichever process it is.
    ports: Vec<u16>,
    counts: Counts,
}

#[tokio::test]
#[ignore = "it takes as long as it is told to: make soak-proxy"]
async fn no_byte_is_lost_doubled_or_misdirected() {
    let seed = from_environment("PROXY_SOAK_SEED", fastrand::u64(..));
    let seconds = from_environment("PROXY_SOAK_SECONDS", 60);
    println!("PROXY_SOAK_SEED={seed} PROXY_SOAK_SECONDS={seconds}");
    let mut random = fastrand::Rng::with_seed(seed);
    let soak = Soak {
        tunnel: Tunnel::open(&SERVICES).await,
        secrets: Directory::new(),
        services: SERVICES.iter().map(|name| Service::exchanging(name)).collect(),
        ports: SERVICES.iter().map(|_| unused_port()).collect(),
        counts: Counts::default(),
    };
    soak.mount(0);
    soak.reframe(None);
    let end = Instant::now() + Duration::from_secs(seconds);
    let clients = (0..CONNECTIONS).map(|nth| soak.client(fastrand::Rng::with_seed(random.u64(..)), nth as u64, end));
    let clients: Vec<_> = clients.collect();
    let trouble = soak.trouble(random, end);
    let (ends, _) = tokio::join!(trouble, join_all(clients));
    soak.at_last(&ends).await;
    let Counts { complete, cut, bytes, cuts, session_resets, rotations, replacements, kills } = soak.counts;
    println!(
        "figure: proxy soak | {seconds} s, seed {seed}: {CONNECTIONS} connections at a time, {} complete, {} cut, {} MiB \
         compared; reframed throughout, {} links cut, {} session resets, {} rotations, {} replacements, {} kills; 0 \
         bytes wrong",
        complete.get(),
        cut.get(),
        bytes.get() >> 20,
        cuts.get(),
        session_resets.get(),
        rotations.get(),
        replacements.get(),
        kills.get(),
    );
    assert!(complete.get() > seconds, "hardly anything passed: {}", complete.get());
}

impl Soak {
    fn mount(&self, version: u64) {
        let files = secret(&self.tunnel.tokens());
        let files: Vec<_> = files.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.secrets.mount(&format!("version-{version}"), &files);
    }

    /// Everything is reframed, but for a link that has another fault.
    fn reframe(&self, fault: Option<DataFault>) {
        let reframe = SIDES.map(|side| DataFault::new(side, DataFaultKind::Reframe));
        self.tunnel.emulator.set_data_faults(fault.into_iter().chain(reframe));
    }

    fn start(&self, side: Side) -> Start<'_> {
        let start = match side {
            Side::Source => self.tunnel.source_on(&self.ports),
            Side::Destination => {
                let ports: Vec<_> = self.services.iter().map(Service::port).collect();
                self.tunnel.destination(&ports)
            }
        };
        start.token_dir(self.secrets.path())
    }

    fn address(&self, service: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[service]))
    }

    /// One connection after the other.
    async fn client(&self, mut random: fastrand::Rng, nth: u64, end: Instant) {
        let mut round = 0;
        while Instant::now() < end {
            let service = random.usize(..SERVICES.len());
            // Mostly short, now and then long.
            let mut length = || {
                let bits = if random.u8(..) < 16 { 22 } else { 15 };
                1 << random.u32(..bits)
            };
            let (most_up, most_down) = (length(), length());
            let exchange = Exchange {
                service: SERVICES[service],
                seed: (nth << 32) + round,
                up: random.usize(..most_up),
                down: random.usize(..most_down),
            };
            match exchange.run(self.address(service)).await {
                Outcome::Complete => {
                    count(&self.counts.complete, 1);
                    count(&self.counts.bytes, (exchange.up + exchange.down) as u64);
                }
                Outcome::Cut(_) => {
                    count(&self.counts.cut, 1);
                    sleep(Duration::from_millis(random.u64(10..200))).await;
                }
            }
            round += 1;
        }
    }

    /// Gives the two ends as they are at the end.
    async fn trouble(&self, mut random: fastrand::Rng, end: Instant) -> [Proxy; 2] {
        let mut ends = [self.start(Side::Source).spawn(), self.start(Side::Destination).spawn()];
        let mut version = 0;
        while Instant::now() < end {
            sleep(Duration::from_millis(random.u64(500..6000)).min(end - Instant::now())).await;
            let nth = random.usize(..2);
            let side = SIDES[nth];
            let fault = |kind| DataFault::new(side, kind).times(1);
            match random.u8(..8) {
                0..3 => {
                    count(&self.counts.cuts, 1);
                    self.reframe(Some(fault(DataFaultKind::Disconnect).after_bytes(random.u64(..200_000))));
                }
                3 => {
                    count(&self.counts.session_resets, 1);
                    self.reframe(Some(fault(DataFaultKind::SessionReset).after_bytes(random.u64(..50_000))));
                }
                4 | 5 => {
                    count(&self.counts.rotations, 1);
                    self.tunnel.rotate("ALL").await;
                    version += 1;
                    self.mount(version);
                    // Else the old one would be in use for the rest of the time.
                    self.reframe(Some(fault(DataFaultKind::Disconnect)));
                }
                6 => {
                    count(&self.counts.kills, 1);
                    ends[nth].process.kill().await;
                    ends[nth] = self.start(side).spawn();
                }
                _ => {
                    count(&self.counts.replacements, 1);
                    // A second source listens elsewhere: the first one has the ports.
                    let second = match side {
                        Side::Source => self.tunnel.source().token_dir(self.secrets.path()).spawn(),
                        Side::Destination => self.start(side).spawn(),
                    };
                    sleep(Duration::from_millis(random.u64(100..1500))).await;
                    // The first one comes back and takes its place again, or the second one stays.
                    if side == Side::Destination && random.bool() {
                        ends[nth] = second;
                    }
                }
            }
            for end in &mut ends {
                assert!(end.process.is_running(), "an end has ended: {}", end.process.output());
            }
        }
        ends
    }

    /// When the trouble is over, all services are served again.
    async fn at_last(&self, ends: &[Proxy; 2]) {
        self.reframe(None);
        let begin = Instant::now();
        for (nth, service) in SERVICES.iter().enumerate() {
            let exchange = Exchange { service, seed: u64::MAX - nth as u64, up: 1 << 20, down: 1 << 20 };
            let served = async || matches!(exchange.run(self.address(nth)).await, Outcome::Complete);
            until("it is served again", served).await;
        }
        assert!(begin.elapsed() < PATIENCE);
        let resident = ends.each_ref().map(|end| end.process.resident());
        println!(
            "figure: proxy soak | resident at the end: source {} KiB, destination {} KiB",
            resident[0], resident[1]
        );
        assert!(resident.iter().all(|kib| *kib < 128 << 10), "{resident:?} KiB");
    }
}
