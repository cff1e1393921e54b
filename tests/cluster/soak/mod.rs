//! The soak: many Tunnels, created, changed and deleted at random, two replicas that are killed and paused at
//! random, requests that meet every fault at random. Then all is well again, and the promise must hold.
//!
//! `make soak` runs a long one. SOAK_SEED repeats a plan, SOAK_TUNNELS and SOAK_SECONDS say how much of it.

mod account;
mod acts;
mod counts;
mod ledger;
mod oracle;
mod plan;
mod replicas;
mod scenario;
mod weather;

use crate::matrix::product::Product;
use crate::support::promise::{Rule, Violation};
use counts::Counts;
use fastrand::Rng;
use oracle::Seen;
use plan::{Acts, Bounds, Plan, Release};
use replicas::Replica;
use scenario::Scenario;
use std::collections::{BTreeSet, HashMap};
use std::env;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use weather::Weather;

/// What is under way when the faults stop has met its last one by then.
const LAST_FAULT: Duration = Duration::from_secs(4);
/// So long nothing is written before it is taken for quiet.
const QUIET: Duration = Duration::from_secs(3);
/// Between two lines about what is not settled.
const PROGRESS: Duration = Duration::from_secs(30);
/// What a bug says of itself in a log.
const BUGS: [&str; 3] = ["panicked at", "which is a bug", "report this as a bug"];

/// What came of a soak.
struct Outcome {
    seed: u64,
    bounds: Bounds,
    counts: Arc<Counts>,
    violations: Vec<Violation>,
    /// Writes in the time of silence.
    written: usize,
}

async fn soak(plan: Plan, product: Product) -> Outcome {
    let (seed, bounds) = (plan.seed, plan.bounds);
    let counts = Arc::new(Counts::default());
    let mut scenario = Scenario::new(&bounds, counts.clone()).await;
    let world = scenario.world.clone();
    let mut rng = Rng::with_seed(!seed);
    let weather = Weather::new(rng.fork(), counts.clone());
    account::end(&world.aws, &bounds);
    let namespaces = scenario.namespaces();
    let begun = Instant::now();
    let mut lives = Vec::new();
    for blows in plan.blows {
        let replica = Replica::new(&world, &bounds, plan.first, &namespaces, &weather, product, &counts).await;
        lives.push(tokio::spawn(replica.live(Instant::now(), bounds.faults, blows)));
    }
    let (changing, aws, rng) = (weather.clone(), world.clone(), rng.fork());
    let faults = tokio::spawn(async move {
        tokio::join!(changing.change(), account::change(&aws.aws, &bounds, rng));
    });
    scenario.go(Instant::now(), &plan.moves, bounds.faults).await;

    weather.end();
    faults.abort();
    let _ = faults.await;
    account::end(&world.aws, &bounds);
    sleep(LAST_FAULT).await;
    let mut replicas = Vec::new();
    for live in lives {
        let mut replica = live.await.expect("a replica does not panic");
        replica.recover().await;
        replicas.push(replica);
    }
    println!("{:>5.0?}: the faults are over; {counts}", begun.elapsed());
    scenario.end_reopening().await;
    let quiet = settle(&mut scenario, &replicas).await;
    println!("{:>5.0?}: {}", begun.elapsed(), if quiet { "all is quiet" } else { "it is not quiet" });
    let before = writes(&scenario, &replicas).await;
    sleep(bounds.silence).await;
    let mut known: HashMap<String, usize> = HashMap::new();
    before.into_iter().for_each(|write| *known.entry(write).or_default() += 1);
    let mut written = writes(&scenario, &replicas).await;
    written.retain(|write| known.get_mut(write).and_then(|n| n.checked_sub(1).map(|less| *n = less)).is_none());

    let more = written.len();
    if more > 0 {
        eprintln!("written after the end: {written:#?}");
        let of = |slot: &ledger::Slot| written.iter().any(|write| write.contains(&slot.name));
        (0..scenario.slots.len()).filter(|n| of(&scenario.slots[*n])).take(5).for_each(|n| scenario.show(n));
    }
    let seen = Seen::now(&scenario).await;
    for number in 0..scenario.slots.len() {
        scenario.untouched(number).await;
        for violation in seen.judge(&scenario, number).await {
            scenario.violated(number, violation);
        }
    }
    let mut violations: Vec<Violation> = scenario.violations.iter().map(|(_, v)| v.clone()).collect();
    if more > 0 {
        violations.push(Violation { rule: Rule::Silence, what: format!("{more} writes after the end") });
    }
    for bug in BUGS.iter().filter(|bug| world.logs().iter().any(|log| log.contains(**bug))) {
        violations.push(Violation { rule: Rule::State, what: format!("an operator says: {bug}") });
    }
    if product == Product::Whole {
        let mut wrong: Vec<usize> = scenario.violations.iter().map(|(number, _)| *number).collect();
        wrong.dedup();
        wrong.iter().take(5).for_each(|number| scenario.show(*number));
    }
    Outcome { seed, bounds, counts, violations, written: more }
}

/// Returns once all Tunnels are as they should be and nothing is written any more. `false`: they never are.
async fn settle(scenario: &mut Scenario, replicas: &[Replica]) -> bool {
    let limit = Instant::now() + scenario.bounds.settle;
    let (mut short, mut progress) = (false, Instant::now() + PROGRESS);
    while Instant::now() < limit {
        let seen = Seen::now(scenario).await;
        let mut numbers = 0..scenario.slots.len();
        let unsettled = numbers.find_map(|number| Some((number, seen.unsettled(scenario, number, short)?)));
        if let Some((number, why)) = unsettled.as_ref().filter(|_| Instant::now() >= progress) {
            progress += PROGRESS;
            println!("       {} is not settled: {why}", scenario.slots[*number].name);
        }
        if unsettled.is_some() || (short && scenario.bounds.is_swept() && seen.orphans() > 0) {
            sleep(Duration::from_millis(500)).await;
        } else if !short {
            // Those of a short life have all been open.
            short = true;
            scenario.age();
        } else {
            let before = writes(scenario, replicas).await.len();
            sleep(QUIET).await;
            if writes(scenario, replicas).await.len() == before {
                return true;
            }
        }
    }
    false
}

/// All that the replicas have written, but for Leases, and for what is told 2 min after each opening: that no destination
/// has connected.
async fn writes(scenario: &Scenario, replicas: &[Replica]) -> Vec<String> {
    let mut all = Vec::new();
    for replica in replicas {
        let writes = scenario.world.writes_by(&replica.identity).await;
        let others =
            writes.iter().filter(|w| w.resource != "leases" && (&*w.verb, &*w.resource) != ("create", "events"));
        all.extend(others.map(ToString::to_string));
    }
    for namespace in scenario.all() {
        let events = namespace.all_events().await.into_iter();
        all.extend(events.filter(|event| !event.contains("DestinationNotConnected")));
    }
    all
}

impl Outcome {
    fn count(&self, rules: &[Rule]) -> usize {
        self.violations.iter().filter(|violation| rules.contains(&violation.rule)).count()
    }

    fn print(&self) {
        let Self { seed, bounds, counts, violations, written } = self;
        violations.iter().for_each(|violation| println!("violated: {violation}"));
        println!(
            "figure: soak | seed {seed}, {} Tunnels, {:.0?}, {counts}; {} doubled, {} leaked, {} dead tokens, {} not in their state; {written} writes in the {:.0?} after",
            bounds.tunnels,
            bounds.faults,
            self.count(&[Rule::OneTunnel, Rule::OpenedOnce]),
            self.count(&[Rule::NoOrphan]),
            self.count(&[Rule::LiveTokens]),
            self.count(&[Rule::State]),
            bounds.silence,
        );
    }
}

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

async fn seeded(seed: u64, tunnels: usize, seconds: u64) -> Outcome {
    let again = format!("SOAK_SEED={seed} SOAK_TUNNELS={tunnels} SOAK_SECONDS={seconds} make soak");
    println!("seed {seed}; this plan again: {again}");
    let outcome = soak(Plan::new(seed, Bounds::new(tunnels, seconds), Acts::All), Product::Whole).await;
    outcome.print();
    println!("seed {seed}; this plan again: {again}");
    outcome
}

/// One that every run repeats, and one that no other run has, unless SOAK_SEED says which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_promise_holds_under_random_faults_and_kills_with_two_replicas() {
    let tunnels = from_env("SOAK_TUNNELS").unwrap_or(20);
    let seconds = from_env("SOAK_SECONDS").unwrap_or(35);
    let long = env::var_os("SOAK_SECONDS").is_some();
    let outcomes = match from_env("SOAK_SEED") {
        Some(seed) => vec![seeded(seed, tunnels, seconds).await],
        None if long => vec![seeded(fastrand::u64(..), tunnels, seconds).await],
        None => {
            let both = tokio::join!(seeded(1, tunnels, seconds), seeded(fastrand::u64(..), tunnels, seconds));
            vec![both.0, both.1]
        }
    };
    for Outcome { seed, violations, .. } in outcomes {
        let violations: Vec<_> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "the promise was broken (seed {seed}):\n{}", violations.join("\n"));
    }
}

/// The last release and this one, side by side: forward, back and forward again; and one that ends by the way back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes the last release: make upgrade"]
async fn the_promise_holds_while_releases_are_rolled_forward_and_back() {
    use Release::{Previous, This};
    let bounds = Bounds::new(from_env("SOAK_TUNNELS").unwrap_or(20), from_env("SOAK_SECONDS").unwrap_or(60));
    let seed = from_env("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    for releases in [&[This, Previous, This][..], &[This, Previous]] {
        println!("seed {seed}, rolled from Previous to {releases:?}");
        let outcome = soak(Plan::new(seed, bounds, Acts::All).rolled_to(releases), Product::Whole).await;
        outcome.print();
        let violations: Vec<_> = outcome.violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "the promise was broken (seed {seed}):\n{}", violations.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_soak_sees_that_a_product_is_broken() {
    // It may never be quiet.
    let bounds = Bounds { settle: Duration::from_secs(25), silence: Duration::from_secs(2), ..Bounds::new(24, 25) };
    let broken = async |product, seed| {
        let outcome = soak(Plan::new(seed, bounds, Acts::First), product).await;
        outcome.violations.iter().map(|violation| violation.rule).collect::<BTreeSet<Rule>>()
    };
    // That two meet at the same Tunnel is chance: there are plans in which none do.
    let (unmarked, unsearched, unrotated, unconditioned, again) = tokio::join!(
        broken(Product::Unmarked, 3),
        broken(Product::Unsearched, 3),
        broken(Product::Unrotated, 3),
        broken(Product::Unconditioned, 3),
        broken(Product::Unconditioned, 2),
    );
    let unconditioned = &unconditioned | &again;
    for (product, seen, rules) in [
        (Product::Unmarked, unmarked, &[Rule::OpenedOnce, Rule::NoOrphan][..]),
        (Product::Unsearched, unsearched, &[Rule::OpenedOnce]),
        (Product::Unrotated, unrotated, &[Rule::LiveTokens]),
        // Two that overwrite each other: what one has opened, or rotated, is lost.
        (Product::Unconditioned, unconditioned, &[Rule::OpenedOnce, Rule::OneTunnel, Rule::LiveTokens]),
    ] {
        println!("{product}: {seen:?}");
        // Which of them shows in so short a time is chance.
        assert!(rules.iter().any(|rule| seen.contains(rule)), "{product}: {seen:?}, none of {rules:?}");
    }
}
