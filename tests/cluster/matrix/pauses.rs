//! The leader stands still (SIGSTOP) for longer than its lease, at every request of a life and every moment; the
//! other one takes over; then it goes on (SIGCONT). The fence is the claim, not the lease: the promise holds.

use super::lives::{Life, NAME};
use super::oracle::{self, End, Rule, Violation};
use super::place::Place;
use super::product::Product;
use crate::support::api_proxy::{Point, Request};
use crate::support::tap::Step;
use futures::future::join_all;
use secure_tunneling_emulator::TunnelStatus;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// An opening and a rotation.
const LIVES: [Life; 2] = [Life::Open, Life::SecretLost];
/// Runs at once. Each has two operators.
static AT_ONCE: Semaphore = Semaphore::const_new(20);
/// A run whose request did not come is made anew so often.
const TRIES: usize = 2;
/// Far more than there is between two requests of a life.
const QUIET: Duration = Duration::from_secs(2);

/// Where the leader stands still.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// The service does not know of the request, and never will: when the process goes on, it is too late for it.
    Before,
    /// The service has carried it out, the answer waits for the process.
    AfterCommit,
    /// The process has the answer.
    AfterAnswer,
    /// The service carries it out only when the other one has brought the life to its end, but before the process
    /// goes on.
    Late,
}

/// When it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Resumed {
    /// As soon as the other one leads.
    Amid,
    /// When that one has brought the life to its end.
    After,
}

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::AfterCommit, Moment::AfterAnswer];
const RESUMED: [Resumed; 2] = [Resumed::Amid, Resumed::After];

/// Lists the requests of a life, and how it ends.
async fn list(life: Life) -> (Vec<Step>, End) {
    let once = async || {
        let place = Place::new(life, Product::Whole).await;
        life.prepare(&place).await;
        place.tap.count(None);
        life.happen(&place).await;
        assert!(oracle::reached(&place).await.is_ok(), "nothing goes wrong");
        let judged = oracle::judge(&place, None).await;
        assert!(judged.violations.is_empty());
        (place.tap.steps(), judged.end)
    };
    let ((first, end), (second, _)) = tokio::join!(once(), once());
    (first.into_iter().filter(|step| second.contains(step)).collect(), end)
}

/// As the tap names it.
fn name(request: &Request) -> String {
    if let Some(operation) = &request.operation {
        return format!("AWS {operation}");
    }
    let object = request.path.split_once("/namespaces/").and_then(|(_, rest)| Some(rest.split_once('/')?.1));
    let dry_run = if request.query.contains("dryRun=All") { " (dry run)" } else { "" };
    format!("{} {}{dry_run}", request.method, object.unwrap_or_default())
}

/// `None`: the request never came.
async fn run(life: Life, step: &Step, moment: Moment, resumed: Resumed, like: &End) -> Option<Vec<Violation>> {
    let _permit = AT_ONCE.acquire().await;
    let (place, _second) = Place::with_two(life).await;
    let leader = place.world.holder().await.expect("the first one leads");
    life.prepare(&place).await;
    place.tap.count(None);
    let proxy = if step.request.starts_with("AWS ") { &*place.aws } else { &*place.api };
    let point = match moment {
        Moment::Before | Moment::Late => Point::BeforeForward,
        Moment::AfterCommit | Moment::AfterAnswer => Point::AfterCommit,
    };
    let (tap, at) = (place.tap.clone(), step.clone());
    let mut held = proxy.hold(point, move |request| name(request) == at.request && tap.steps().contains(&at));
    life.happen(&place).await;
    let never = async {
        let _ = oracle::reached(&place).await;
        sleep(QUIET).await;
    };
    tokio::select! {
        biased;
        () = held.reached() => {}
        () = never => return None,
    }
    let mut held = Some(held);
    if moment == Moment::AfterAnswer {
        held.take().expect("it is held").pass();
    }
    place.tap.signal("STOP");
    place.world.next_holder(Some(&leader)).await;
    let mut violations = Vec::new();
    if resumed == Resumed::After {
        violations.extend(oracle::reached(&place).await.err());
    }
    if let Some(held) = held.take_if(|_| moment == Moment::Late) {
        held.pass();
        sleep(QUIET).await;
    }
    place.tap.signal("CONT");
    match (moment, held) {
        (Moment::AfterCommit, Some(held)) => held.pass(),
        (_, held) => drop(held),
    }
    // It has to be so still when what the process does about it has come: one more rotation may follow.
    for _ in 0..2 {
        violations.extend(oracle::reached(&place).await.err());
        sleep(QUIET).await;
        place.tap.quiet(QUIET).await;
    }
    violations.extend(oracle::reached(&place).await.err());
    violations.extend(oracle::judge(&place, Some(like)).await.violations);
    // No check can come later than the last one: a process that stands still just when its call leaves makes it when it
    // goes on. It closes what it opened then; that OpenTunnel was called again is the promise's own exception.
    let tunnels = place.world.aws.tunnels();
    let closed = tunnels.iter().filter(|tunnel| tunnel.status == TunnelStatus::Closed).count();
    if moment == Moment::AfterAnswer
        && step.request == format!("PATCH tunnels/{NAME}")
        && (tunnels.len(), closed) == (2, 1)
    {
        println!(
            "figure: leader paused in the moment of its OpenTunnel, {life}, resumed {resumed:?} | 1 opened, and closed"
        );
        violations.retain(|v| v.rule != Rule::OpenedOnce && !v.what.starts_with("it ended as"));
    }
    assert_ne!(place.world.holder().await.as_deref(), Some(leader.as_str()), "it does not lead any more");
    if !violations.is_empty() {
        let told: Vec<_> = violations.iter().map(ToString::to_string).collect();
        eprintln!("{life}, {moment:?} {step}, resumed {resumed:?}: {told:#?} ({NAME} in {})", place.world.name);
        place.world.show_logs();
    }
    Some(violations)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_for_longer_than_its_lease_breaks_nothing() {
    let begun = Instant::now();
    let of_a_life = LIVES.map(async |life| {
        let (steps, end) = list(life).await;
        let end = &end;
        let points = steps.into_iter().flat_map(|step| MOMENTS.map(|moment| (step.clone(), moment)));
        let points = points.flat_map(|(step, moment)| RESUMED.map(|resumed| (step.clone(), moment, resumed)));
        join_all(points.map(async |(step, moment, resumed)| {
            let mut came = None;
            for _ in 0..TRIES {
                came = run(life, &step, moment, resumed, end).await;
                if came.is_some() {
                    break;
                }
            }
            let told = came.as_ref().map_or("did not come".to_owned(), |violations| match violations.as_slice() {
                [] => "ok".to_owned(),
                broken => broken.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            });
            println!("{life}: {moment:?} {step}, resumed {resumed:?}: {told}");
            came.map(|violations| violations.is_empty())
        }))
        .await
    });
    let points: Vec<Option<bool>> = join_all(of_a_life).await.concat();
    let came: Vec<bool> = points.iter().copied().flatten().collect();
    let broken = came.iter().filter(|held| !**held).count();
    println!("figure: leader paused longer than the lease, then resumed | {} points, {broken} broken", came.len());
    println!("in {:.0?}", begun.elapsed());
    assert_eq!(broken, 0, "the promise was broken");
    assert!(points.len() - came.len() <= points.len() / 20, "requests did not come");
}

/// Nobody else knows that the tokens of a Ready Tunnel are dead: who does, claims one more rotation, and whoever leads
/// makes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotate_that_is_carried_out_after_the_next_leaders_is_made_good() {
    let (life, step) = (Life::SecretLost, Step { request: "AWS RotateTunnelAccessToken".into(), nth: 1 });
    let (_, end) = list(life).await;
    let violations = run(life, &step, Moment::Late, Resumed::After, &end).await.expect("it comes");
    assert!(violations.is_empty(), "{:?}", violations.iter().map(ToString::to_string).collect::<Vec<_>>());
}
