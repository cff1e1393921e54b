//! Two replicas of the operator, each with a credential of its own, behind two proxies of its own; what becomes
//! of their processes.

use super::counts::Counts;
use super::plan::{Blow, Bounds, Release};
use super::weather::Weather;
use crate::matrix::product::Product;
use crate::support::World;
use crate::support::api_proxy::ApiProxy;
use crate::support::aws_proxy::AwsProxy;
use crate::support::operator::{Operator, Settings};
use crate::support::world::Identity;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until};

/// As a Pod's terminationGracePeriodSeconds.
const END_LIMIT: Duration = Duration::from_secs(30);
/// A process that gave up is started again after this time.
const RESTART: Duration = Duration::from_millis(500);

/// A replica.
pub struct Replica {
    world: Arc<World>,
    /// What tells its writes.
    pub identity: Identity,
    _api: ApiProxy,
    _aws: AwsProxy,
    settings: Settings,
    /// The program that is tested.
    tested: PathBuf,
    operator: Operator,
    counts: Arc<Counts>,
}

/// Flags of `run` beyond those of every test.
const FLAGS: [(&str, &str); 3] = [("--poll-interval", "2s"), ("--aws-timeout", "2s"), ("--recovery-grace", "7100ms")];

impl Release {
    /// The settings, for a process of this release.
    fn run_by(self, settings: &Settings, tested: &Path) -> Settings {
        let mut settings = settings.clone();
        settings.program = match self {
            Self::Previous => env::var_os("OPENTUNNEL_PREVIOUS_BIN").expect("as make upgrade sets it").into(),
            Self::This => tested.to_owned(),
        };
        settings
    }
}

impl Replica {
    /// One that runs, in a calm weather yet.
    pub async fn new(
        world: &Arc<World>,
        bounds: &Bounds,
        first: Release,
        namespaces: &[String],
        weather: &Arc<Weather>,
        product: Product,
        counts: &Arc<Counts>,
    ) -> Self {
        let identity = world.identity().await;
        let api = ApiProxy::start(&identity.kubeconfig, world.file("kubeconfig"), None).await;
        let aws = AwsProxy::start(&world.aws, None).await;
        product.breaks(&aws);
        product.breaks_writes(&api);
        api.meets(weather.clone());
        aws.meets(weather.clone());
        let rate = bounds.rate().to_string();
        // A product that is broken shows it sooner where two work at once.
        let settings = if product == Product::Whole { world.electing().await } else { world.settings() };
        let settings = settings
            .via(&api)
            .env("AWS_ENDPOINT_URL", aws.endpoint())
            .flag("--watch-namespace", &namespaces.join(","))
            .flag("--open-rate", &rate)
            .flag("--close-rate", &rate);
        let settings = FLAGS.iter().fold(settings, |settings, (name, value)| settings.flag(name, value));
        let tested = settings.program.clone();
        let settings = first.run_by(&settings, &tested);
        let operator = world.operator_with(&settings).await;
        let (world, counts) = (world.clone(), counts.clone());
        Self { world, identity, _api: api, _aws: aws, settings, tested, operator, counts }
    }

    /// Goes through what is to become of it; it runs at the end, as far as the weather lets it.
    pub async fn live(mut self, begun: Instant, end: Duration, blows: Vec<(Duration, Blow)>) -> Self {
        for (at, blow) in blows {
            self.keep(begun + at).await;
            match blow {
                Blow::Kill(pause) => {
                    self.signal("KILL").await;
                    self.counts.killed.add();
                    self.end(pause).await;
                }
                Blow::Terminate(pause) => {
                    self.counts.terminated.add();
                    self.signal("TERM").await;
                    self.end(pause).await;
                }
                Blow::Roll(release) => {
                    self.counts.rolled.add();
                    self.settings = release.run_by(&self.settings, &self.tested);
                    self.signal("TERM").await;
                    self.end(Duration::ZERO).await;
                }
                Blow::Pause(time) => {
                    self.counts.paused.add();
                    self.signal("STOP").await;
                    sleep(time).await;
                    self.signal("CONT").await;
                }
            }
        }
        self.keep(begun + end).await;
        self
    }

    /// Returns once it runs, and is ready: nothing is wrong any more.
    pub async fn recover(&mut self) {
        if !self.operator.runs() {
            self.start();
        }
        self.operator.ready().await;
    }

    /// As a kubelet: a process that gave up (at its start, when a request failed) is started again.
    async fn keep(&mut self, until: Instant) {
        while Instant::now() < until {
            if !self.operator.runs() {
                self.counts.gave_up.add();
                sleep(RESTART).await;
                self.start();
            }
            sleep_until(until.min(Instant::now() + Duration::from_millis(200))).await;
        }
    }

    /// Returns once it has ended, and the next one is started.
    async fn end(&mut self, pause: Duration) {
        let limit = Instant::now() + END_LIMIT;
        while self.operator.runs() {
            assert!(Instant::now() < limit, "an operator does not end within {END_LIMIT:?} of a signal");
            sleep(Duration::from_millis(5)).await;
        }
        sleep(pause).await;
        self.start();
    }

    fn start(&mut self) {
        self.operator = self.world.spawn(&self.settings);
    }

    async fn signal(&self, name: &str) {
        let kill = Command::new("kill").arg(format!("-{name}")).arg(self.operator.pid().to_string()).output().await;
        kill.expect("there is a kill");
    }
}
