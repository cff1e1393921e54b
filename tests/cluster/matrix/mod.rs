//! Every request is a crash point: each life of a Tunnel is gone through once without a fault, which
//! lists the requests of the operator's, and then once for each of them and each moment: the operator is
//! killed there, and the next one must bring the life to the same end, as the promise says.
//!
//! `make matrix` prints the table.

mod lives;
mod oracle;
mod pauses;
mod place;
mod product;
mod table;

use crate::support::tap::{Fault, Moment, Step};
use futures::FutureExt;
use futures::future::FusedFuture;
use lives::Life;
use oracle::{End, Rule, Violation};
use place::Place;
use product::Product;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use table::{Cell, Rows, Table};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What goes wrong.
const KILLS: [Fault; 3] =
    [Fault::Kill(Moment::BeforeForward), Fault::Kill(Moment::AfterCommit), Fault::Kill(Moment::AfterAnswer)];
/// Runs at once, of a product: they wait far more than they compute.
const AT_ONCE: usize = 40;
/// A run whose request did not come is made anew so often.
const TRIES: usize = 2;

/// A life that was gone through.
struct Run {
    steps: Vec<Step>,
    end: End,
    violations: Vec<Violation>,
}

/// Goes through a life, in a place of its own. `None`: the request that the fault is for never came.
async fn run(life: Life, product: Product, fault: Option<(Step, Fault)>, like: Option<&End>) -> Option<Run> {
    let place = Place::new(life, product).await;
    life.prepare(&place).await;
    place.tap.count(fault.clone());
    let mut happens = pin!(life.happen(&place).fuse());
    let (mut judged, mut next) = (None, None);
    {
        let undisturbed = async {
            (&mut happens).await;
            ended(&place, like).await
        };
        let struck = async {
            place.tap.struck().await;
            match fault {
                Some((_, Fault::Kill(_))) => place.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            run = undisturbed => judged = Some(run),
            operator = struck => next = Some(operator),
        }
    }
    let run = match judged {
        Some(run) => run,
        None => {
            if !happens.is_terminated() {
                happens.await;
            }
            ended(&place, like).await
        }
    };
    if fault.is_some() && next.is_none() && run.violations.is_empty() {
        return None;
    }
    if product == Product::Whole && !run.violations.is_empty() {
        let violations: Vec<_> = run.violations.iter().map(ToString::to_string).collect();
        eprintln!("{life}, {fault:?}: {violations:#?}");
        place.world.show_logs();
    }
    Some(run)
}

async fn ended(place: &Place, like: Option<&End>) -> Run {
    let unreached = oracle::reached(place).await.err();
    let judged = oracle::judge(place, like).await;
    let violations = unreached.into_iter().chain(judged.violations).collect();
    Run { steps: place.tap.steps(), end: judged.end, violations }
}

/// The same until its request comes.
async fn run_at(life: Life, product: Product, step: Step, fault: Fault, like: End) -> Cell {
    for _ in 0..TRIES {
        if let Some(run) = run(life, product, Some((step.clone(), fault)), Some(&like)).await {
            return Cell::Came(run.violations);
        }
    }
    Cell::DidNotCome
}

/// Goes through lives with every fault at every request.
async fn matrix(lives: &[Life], faults: &[Fault], product: Product) -> Table {
    let permits = Arc::new(Semaphore::new(if product == Product::Whole { AT_ONCE } else { AT_ONCE / 8 }));
    let mut runs = JoinSet::new();
    for (at, life) in lives.iter().copied().enumerate() {
        let (permits, faults) = (permits.clone(), faults.to_vec());
        runs.spawn(async move {
            let once = async |like: Option<&End>| {
                let _permit = permits.acquire().await;
                run(life, product, None, like).await.expect("no request is asked for")
            };
            // Twice: what comes by chance in one of them is no request of this life's.
            let first = once(None).await;
            let second = once(Some(&first.end)).await;
            let steps: Vec<Step> = first.steps.into_iter().filter(|step| second.steps.contains(step)).collect();
            let mut cells = JoinSet::new();
            for (row, step) in steps.iter().enumerate() {
                for (column, fault) in faults.iter().copied().enumerate() {
                    let (permits, step, like) = (permits.clone(), step.clone(), first.end.clone());
                    cells.spawn(async move {
                        let _permit = permits.acquire_owned().await;
                        (row, column, run_at(life, product, step, fault, like).await)
                    });
                }
            }
            let mut rows: Vec<_> = steps.into_iter().map(|step| (step, vec![Cell::DidNotCome; faults.len()])).collect();
            for (row, column, cell) in cells.join_all().await {
                rows[row].1[column] = cell;
            }
            (at, Rows { life, undisturbed: [first.violations, second.violations].concat(), rows })
        });
    }
    let mut all = runs.join_all().await;
    all.sort_by_key(|(at, _)| *at);
    Table { faults: faults.to_vec(), lives: all.into_iter().map(|(_, rows)| rows).collect() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_a_crash_point() {
    let begun = Instant::now();
    let table = matrix(&Life::ALL, &KILLS, Product::Whole).await;
    println!("{table}\n{} crashes in {:.0?}", table.came(), begun.elapsed());
    let violations = table.violations();
    assert!(violations.is_empty(), "the promise was broken:\n{}", violations.join("\n"));
    // A second look that comes by chance is no matter. If there are many, the requests were not listed right.
    assert!(table.runs() - table.came() <= table.runs() / 20, "requests did not come");
}

#[tokio::test]
async fn an_operator_is_killed_at_the_request_and_the_moment_that_is_told() {
    for (moment, opened, told) in
        [(Moment::BeforeForward, 0, false), (Moment::AfterCommit, 1, false), (Moment::AfterAnswer, 1, true)]
    {
        let place = Place::new(Life::Open, Product::Whole).await;
        place.tap.count(Some((Step { request: "AWS OpenTunnel".into(), nth: 1 }, Fault::Kill(moment))));
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
    let broken = async |product| matrix(&[Life::Open], &[after_commit], product).await;
    let (unmarked, unsearched, unrotated) =
        tokio::join!(broken(Product::Unmarked), broken(Product::Unsearched), broken(Product::Unrotated));
    for (product, table, rules) in [
        (Product::Unmarked, unmarked, &[Rule::OneTunnel, Rule::OpenedOnce][..]),
        (Product::Unsearched, unsearched, &[Rule::OneTunnel, Rule::NoOrphan, Rule::OpenedOnce]),
        (Product::Unrotated, unrotated, &[Rule::LiveTokens]),
    ] {
        println!("\n{product}:{table}");
        let seen = table.broken("AWS OpenTunnel", after_commit);
        assert!(rules.iter().all(|rule| seen.contains(rule)), "{seen:?} instead of {rules:?}");
        assert!(table.broken("PATCH tunnels/life", after_commit).is_empty(), "nothing was opened yet");
    }
}
