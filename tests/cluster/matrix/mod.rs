//! Every request is a point where something goes wrong: each life of a Tunnel is gone through once without
//! a fault, which lists the requests of the operator's, and then once for each of them and each fault: the
//! life must come to the same end, as the promise says. The operator is killed there, or gets something else
//! than the service's answer.
//!
//! `make matrix` prints the tables.

pub mod lives;
pub mod oracle;
mod pauses;
pub mod place;
pub mod product;
pub mod table;

use crate::support::api_proxy::Point;
use crate::support::faults::{Comes, Instead};
use crate::support::sight::Sight;
use crate::support::tap::{Fault, Moment, Step};
use futures::FutureExt;
use futures::future::FusedFuture;
use lives::Life;
use oracle::{End, Rule, Violation};
use place::Place;
use product::Product;
use std::collections::VecDeque;
use std::pin::pin;
use table::{Cell, Rows, Table};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Of the operator.
const KILLS: [Fault; 3] =
    [Fault::Kill(Moment::BeforeForward), Fault::Kill(Moment::AfterCommit), Fault::Kill(Moment::AfterAnswer)];
/// Those that `make test` goes through with faults other than kills: they have requests of every kind.
const MAIN_LIVES: [Life; 4] = [Life::Open, Life::SecretLost, Life::Delete, Life::ClosedByOthers];
/// Runs at once: they wait far more than they compute.
static AT_ONCE: Semaphore = Semaphore::const_new(24);
/// Runs at once of a product that is broken.
static BROKEN_AT_ONCE: Semaphore = Semaphore::const_new(5);
/// A run whose request did not come is made anew so often.
const TRIES: usize = 2;

/// A life that was gone through.
struct Run {
    /// Requests of the operator that lived at its end.
    steps: Vec<Step>,
    end: End,
    violations: Vec<Violation>,
}

impl Product {
    fn permits(self) -> &'static Semaphore {
        if self == Self::Whole { &AT_ONCE } else { &BROKEN_AT_ONCE }
    }
}

/// Goes through a life, in a place of its own. `None`: a request that a fault is for never came.
async fn run(life: Life, product: Product, faults: &[(Step, Fault)], like: Option<&End>) -> Option<Run> {
    let _permit = product.permits().acquire().await;
    let place = Place::new(life, product).await;
    life.prepare(&place).await;
    place.tap.count(faults.to_vec());
    let mut happens = pin!(life.happen(&place).fuse());
    let mut left = faults.iter().collect::<VecDeque<_>>();
    let mut doors = None;
    let run = loop {
        let goes_on = async {
            if !happens.is_terminated() {
                (&mut happens).await;
            }
            ended(&place, like).await
        };
        tokio::select! {
            run = goes_on => break run,
            () = place.tap.struck_times(faults.len() - left.len() + 1), if !left.is_empty() => {}
        }
        // It is judged when what the fault leads to is over.
        if let Some((_, Fault::Kill(_))) = left.pop_front() {
            doors = Some(place.next(doors.as_ref()).await);
        }
    };
    if !left.is_empty() && run.violations.is_empty() {
        return None;
    }
    if product == Product::Whole && !run.violations.is_empty() {
        let violations: Vec<_> = run.violations.iter().map(ToString::to_string).collect();
        eprintln!("{life}, {faults:?}: {violations:#?}");
        place.world.show_logs();
    }
    Some(run)
}

async fn ended(place: &Place, like: Option<&End>) -> Run {
    let unreached = oracle::reached(place).await.err();
    place.tap.eyes.clear().await;
    let judged = oracle::judge(place, like).await;
    let violations = unreached.into_iter().chain(judged.violations).collect();
    Run { steps: place.tap.steps(), end: judged.end, violations }
}

/// The same until its requests come.
async fn run_at(life: Life, product: Product, faults: Vec<(Step, Fault)>, like: End) -> Cell {
    for _ in 0..TRIES {
        if let Some(run) = run(life, product, &faults, Some(&like)).await {
            return Cell::Came(run.violations);
        }
    }
    Cell::DidNotCome
}

/// What is listed of a life, after faults that come before.
struct Listed {
    end: End,
    steps: Vec<Step>,
    violations: Vec<Violation>,
}

/// Goes through it twice: what comes by chance in one of them is no request of this life's. `None`: what comes
/// before did not.
async fn list(life: Life, product: Product, before: &[(Step, Fault)], like: Option<&End>) -> Option<Listed> {
    let first = run(life, product, before, like).await?;
    let second = run(life, product, before, Some(like.unwrap_or(&first.end))).await?;
    let steps = first.steps.into_iter().filter(|step| second.steps.contains(step)).collect();
    Some(Listed { end: first.end, steps, violations: [first.violations, second.violations].concat() })
}

/// How a life ends that nothing goes wrong in.
pub async fn undisturbed(life: Life) -> End {
    run(life, Product::Whole, &[], None).await.expect("no request is asked for").end
}

/// Goes on from what was listed, with every fault at every request.
async fn rows(life: Life, product: Product, before: &[(Step, Fault)], listed: Listed, faults: &[Fault]) -> Rows {
    let mut cells = JoinSet::new();
    let mut rows = Vec::new();
    for (row, step) in listed.steps.into_iter().enumerate() {
        let can = |fault: &Fault| if fault.befalls(&step) { Cell::DidNotCome } else { Cell::Cannot };
        for (column, fault) in faults.iter().copied().enumerate().filter(|(_, fault)| fault.befalls(&step)) {
            let (like, all) = (listed.end.clone(), [before, &[(step.clone(), fault)]].concat());
            cells.spawn(async move { (row, column, run_at(life, product, all, like).await) });
        }
        rows.push((step.clone(), faults.iter().map(can).collect::<Vec<_>>()));
    }
    for (row, column, cell) in cells.join_all().await {
        rows[row].1[column] = cell;
    }
    rows.retain(|(_, cells)| !cells.iter().all(|cell| matches!(cell, Cell::Cannot)));
    Rows { life: life.to_string(), undisturbed: listed.violations, rows }
}

/// Goes through lives with every fault at every request.
async fn matrix(lives: &[Life], faults: &[Fault], product: Product) -> Table {
    let of_a_life = lives.iter().map(|life| async move {
        let listed = list(*life, product, &[], None).await.expect("no request is asked for");
        rows(*life, product, &[], listed, faults).await
    });
    Table { faults: faults.to_vec(), lives: futures::future::join_all(of_a_life).await }
}

/// Kills the operator at these requests, once they are carried out, and the next one at each of its own.
async fn second_crashes(lives: &[Life], first: impl Fn(&Step) -> bool + Copy) -> Table {
    let (product, kill) = (Product::Whole, Fault::Kill(Moment::AfterCommit));
    let of_a_life = lives.iter().map(|life| async move {
        let listed = list(*life, product, &[], None).await.expect("no request is asked for");
        let end = &listed.end;
        let of_a_step = listed.steps.iter().filter(|step| first(step)).map(|step| async move {
            let before = [(step.clone(), kill)];
            let listed = list(*life, product, &before, Some(end)).await?;
            let rows = rows(*life, product, &before, listed, &[kill]).await;
            Some(Rows { life: format!("{life}, and an operator was killed {kill} of {step}"), ..rows })
        });
        futures::future::join_all(of_a_step).await.into_iter().flatten().collect::<Vec<_>>()
    });
    Table { faults: vec![kill], lives: futures::future::join_all(of_a_life).await.concat() }
}

/// Panics if it was broken.
pub fn promise_held(table: &Table) {
    let violations = table.violations();
    assert!(violations.is_empty(), "the promise was broken:\n{}", violations.join("\n"));
    // A second look that comes by chance is no matter. If there are many, the requests were not listed right.
    assert!(table.missed() <= 1 + table.runs() / 20, "requests did not come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_a_crash_point() {
    let begun = Instant::now();
    let table = matrix(&Life::KILLED, &KILLS, Product::Whole).await;
    println!("{table}\nfigure: crash matrix | {}", table.figures(begun.elapsed()));
    promise_held(&table);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make matrix"]
async fn every_request_of_a_later_life_is_a_crash_point() {
    let begun = Instant::now();
    let table = matrix(&Life::LATER, &KILLS, Product::Whole).await;
    println!("{table}\nfigure: crash matrix, later lives | {}", table.figures(begun.elapsed()));
    promise_held(&table);
}

/// Goes through lives while the operator's watches show things late or in part, from each request on.
pub async fn sights(lives: &[Life], sights: &[Sight], from: impl Fn(&Step) -> bool + Copy) -> Table {
    let faults: Vec<Fault> = sights.iter().copied().map(Fault::Sight).collect();
    let all = &faults;
    let of_a_life = lives.iter().map(|life| async move {
        let mut listed = list(*life, Product::Whole, &[], None).await.expect("no request is asked for");
        listed.steps.insert(0, Step::start());
        listed.steps.retain(from);
        rows(*life, Product::Whole, &[], listed, all).await
    });
    Table { lives: futures::future::join_all(of_a_life).await, faults }
}

async fn stand_every_fault(lives: &[Life]) {
    let begun = Instant::now();
    let kubernetes = Instead::OF_KUBERNETES.map(Fault::Kubernetes);
    let aws = Instead::OF_AWS.map(Fault::Aws);
    let (kubernetes, aws) =
        tokio::join!(matrix(lives, &kubernetes, Product::Whole), matrix(lives, &aws, Product::Whole));
    for (service, table) in [("the API server", &kubernetes), ("AWS", &aws)] {
        println!("\nfrom {service}:{table}\nfigure: fault matrix, {service} | {}", table.figures(begun.elapsed()));
    }
    promise_held(&kubernetes);
    promise_held(&aws);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_lives_stand_every_fault_at_every_request() {
    stand_every_fault(&MAIN_LIVES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make matrix"]
async fn all_lives_stand_every_fault_at_every_request() {
    stand_every_fault(&Life::ALL).await;
}

async fn stands_a_second_crash(lives: &[Life], first: impl Fn(&Step) -> bool + Copy) {
    let begun = Instant::now();
    let table = second_crashes(lives, first).await;
    println!("{table}\nfigure: second crash | {}", table.figures(begun.elapsed()));
    promise_held(&table);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_crash_in_the_recovery_of_a_tunnel_changes_nothing() {
    stands_a_second_crash(&[Life::Open], |step| step.request == "AWS OpenTunnel").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make matrix"]
async fn a_second_crash_in_the_recovery_from_any_first_one_changes_nothing() {
    stands_a_second_crash(&[Life::Open, Life::SecretLost], |_| true).await;
}

#[tokio::test]
async fn an_operator_is_killed_at_the_request_and_the_moment_that_is_told() {
    for (moment, opened, told) in
        [(Moment::BeforeForward, 0, false), (Moment::AfterCommit, 1, false), (Moment::AfterAnswer, 1, true)]
    {
        let place = Place::new(Life::Open, Product::Whole).await;
        place.tap.count([(Step { request: "AWS OpenTunnel".into(), nth: 1 }, Fault::Kill(moment))]);
        Life::Open.happen(&place).await;
        place.tap.struck().await;
        let (tunnels, log) = (place.world.aws.tunnels().len(), place.world.logs().concat());
        assert_eq!((tunnels, log.contains("opened a tunnel")), (opened, told), "{moment:?}");
        assert!(place.world.secret_data("life-tokens").await.is_none(), "nothing was done after {moment:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_matrix_sees_that_a_product_is_broken() {
    let after_commit = Fault::Kill(Moment::AfterCommit);
    let lost = Fault::Aws(Instead { point: Point::AfterCommit, comes: Comes::End });
    let broken = async |product, fault| matrix(&[Life::Open], &[fault], product).await;
    let (unmarked, unsearched, unrotated, living) = tokio::join!(
        broken(Product::Unmarked, after_commit),
        broken(Product::Unsearched, after_commit),
        broken(Product::Unrotated, after_commit),
        broken(Product::Unsearched, lost),
    );
    for (product, fault, table, rules) in [
        (Product::Unmarked, after_commit, unmarked, &[Rule::OneTunnel, Rule::OpenedOnce][..]),
        (Product::Unsearched, after_commit, unsearched, &[Rule::OneTunnel, Rule::NoOrphan, Rule::OpenedOnce]),
        (Product::Unrotated, after_commit, unrotated, &[Rule::LiveTokens]),
        (Product::Unsearched, lost, living, &[Rule::OneTunnel, Rule::NoOrphan, Rule::OpenedOnce]),
    ] {
        println!("\n{product}:{table}");
        let seen = table.broken("AWS OpenTunnel", fault);
        assert!(rules.iter().all(|rule| seen.contains(rule)), "{seen:?} instead of {rules:?}");
        assert!(table.broken("PATCH tunnels/life", fault).is_empty(), "nothing was opened yet");
    }
}
