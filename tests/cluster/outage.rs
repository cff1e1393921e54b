//! The API server is away while Tunnels are open, and while they are opened, deleted, or get new tokens: then it
//! comes back, and each life ends as if it had not been.

use crate::matrix::lives::Life;
use crate::matrix::oracle::{self, End};
use crate::matrix::place::Place;
use crate::matrix::product::Product;
use crate::matrix::undisturbed;
use crate::support::api_proxy::{Point, Request};
use crate::support::outage::{Away, Outage};
use crate::support::{LIMIT, World};
use futures::future::join_all;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// When it goes away.
#[derive(Clone, Copy)]
enum When {
    /// Before anything happens; nothing happens.
    AtRest,
    /// Before something happens in AWS.
    Before,
    /// The answer of this request of the operator's to the API server is lost.
    Api(Point, fn(&Request) -> bool),
    /// While AWS is asked. Its answer comes.
    Aws(Point, fn(&Request) -> bool),
}

use Point::{AfterCommit, BeforeForward};
use When::{Api, AtRest, Aws, Before};

const CASES: [(Life, When); 16] = [
    (Life::Open, AtRest),
    (Life::Open, Api(BeforeForward, Request::is_claim)),
    (Life::Open, Api(AfterCommit, Request::is_claim)),
    (Life::Open, Aws(AfterCommit, |request| request.calls("OpenTunnel"))),
    (Life::Open, Api(BeforeForward, Request::is_secret_write)),
    (Life::Open, Api(AfterCommit, Request::is_secret_write)),
    (Life::Open, Api(BeforeForward, |request| request.is_status("Open"))),
    (Life::Open, Api(AfterCommit, |request| request.is_status("Open"))),
    (Life::OpenAnswerLost, Api(AfterCommit, |request| request.is_status("Rotating"))),
    (Life::SecretLost, Api(AfterCommit, |request| request.is_status("Rotating"))),
    (Life::SecretLost, Aws(AfterCommit, |request| request.calls("RotateTunnelAccessToken"))),
    (Life::SecretLost, Api(AfterCommit, |request| request.is_status("Open"))),
    (Life::Delete, Aws(AfterCommit, |request| request.calls("CloseTunnel"))),
    (Life::Delete, Api(BeforeForward, |request| request.method == "PATCH" && request.path.ends_with("/tunnels/life"))),
    (Life::ClosedByOthers, Before),
    (Life::Expiry, Before),
];

async fn case(outage: &Outage, life: Life, when: When) -> (Place, Option<crate::support::api_proxy::Held>) {
    let place = Place::on(World::on(outage.plane).await, life, Product::Whole).await;
    life.prepare(&place).await;
    let mut held = match when {
        AtRest | Before => None,
        Api(point, matches) => Some(place.api.hold(point, matches)),
        Aws(point, matches) => Some(place.aws.hold(point, matches)),
    };
    match (when, &mut held) {
        (Before, _) => {}
        (_, Some(held)) => {
            life.happen(&place).await;
            held.reached().await;
        }
        (_, None) => {
            life.happen(&place).await;
            oracle::reached(&place).await.expect("it ends well");
        }
    }
    (place, held)
}

fn opened(place: &Place) -> usize {
    place.world.aws.calls().iter().filter(|call| call.operation == "OpenTunnel").count()
}

async fn stands(away: Away, time: Duration) {
    let begun = Instant::now();
    let outage = Outage::take().await;
    let lives: HashSet<Life> = CASES.iter().map(|(life, _)| *life).collect();
    let ends = join_all(lives.into_iter().map(|life| async move { (life, undisturbed(life).await) }));
    let cases = join_all(CASES.iter().map(|(life, when)| case(&outage, *life, *when)));
    let (ends, cases) = tokio::join!(ends, cases);
    let ends: HashMap<Life, End> = ends.into_iter().collect();

    outage.begin(away).await;
    let left = Instant::now();
    let mut places = Vec::new();
    for ((place, held), (life, when)) in cases.into_iter().zip(CASES) {
        let before = opened(&place);
        match (when, held) {
            (Aws(..), Some(held)) => held.pass(),
            (_, Some(held)) => held.cut(),
            (Before, None) => life.happen(&place).await,
            (_, None) => {}
        }
        places.push((place, before));
    }
    sleep(time.saturating_sub(left.elapsed())).await;
    let openings: Vec<usize> = places.iter().map(|(place, before)| opened(place) - before).collect();
    outage.end(away).await;

    let (back, ends) = (Instant::now(), &ends);
    let judged = join_all(places.iter().map(|(place, _)| async move {
        let unreached = oracle::reached(place).await.err();
        let recovered = back.elapsed();
        let judged = oracle::judge(place, Some(&ends[&place.life])).await;
        let violations = unreached.into_iter().chain(judged.violations).map(|violation| violation.to_string());
        (recovered, violations.collect::<Vec<_>>())
    }))
    .await;
    let broken = judged.iter().filter(|(_, violations)| !violations.is_empty()).count();
    let slowest = judged.iter().map(|(recovered, _)| *recovered).max().unwrap_or_default();
    println!(
        "figure: API server away {:.0} s, {away:?} | {} lives, {broken} broken, {} OpenTunnel calls meanwhile; the last has ended {:.0} s after it is back; {:.0} s",
        time.as_secs_f64(),
        places.len(),
        openings.iter().sum::<usize>(),
        slowest.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
    );
    for (at, (_, violations)) in judged.iter().enumerate().filter(|(_, (_, violations))| !violations.is_empty()) {
        eprintln!("case {at} ({}): {violations:#?}", CASES[at].0);
        places[at].0.world.show_logs();
    }
    assert_eq!(broken, 0, "the promise was broken");
    // What cannot be claimed is not opened.
    assert!(openings.iter().all(|calls| *calls == 0), "{openings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_hangs_for_a_while_changes_nothing() {
    stands(Away::Paused, Duration::from_secs(15)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_killed_and_comes_back_changes_nothing() {
    stands(Away::Stopped, Duration::from_secs(15)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make matrix"]
async fn an_api_server_that_hangs_for_a_minute_changes_nothing() {
    stands(Away::Paused, Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make matrix"]
async fn an_api_server_that_is_killed_and_comes_back_after_a_minute_changes_nothing() {
    stands(Away::Stopped, Duration::from_secs(60)).await;
}

/// `kubectl replace --force`, and delete and apply, as Flux's force does: the garbage collector has not taken the old
/// token Secret yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_replaced_while_the_garbage_collector_stands_still_waits_for_it() {
    const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
    const COLLECTOR: &str = "kube-controller-manager";
    let outage = Outage::take().await;
    for replace in [&[&["replace", "--force", "-f", "-"][..]][..], &[&["delete", "-f", "-"], &["apply", "-f", "-"]]] {
        let world = World::on(outage.plane).await;
        let _operator = world.operator().await;
        world.apply(PLAIN).await;
        world.wait_ready("plain").await;
        let old = world.secrets().get("plain-tokens").await.expect("it is there").metadata.uid;
        outage.plane.order("pause", COLLECTOR);
        for args in replace {
            let said = world.kubectl_with(PLAIN, args).await;
            assert!(said.ok, "{args:?}: {}", said.err);
        }
        sleep(Duration::from_secs(6)).await;
        let waiting = world.wait_condition("plain", ("Ready", "False", "Opening")).await;
        let conditions = waiting.status.and_then(|status| status.conditions).unwrap_or_default();
        assert!(conditions.iter().all(|c| c.type_ != "Stalled"), "nobody has to do anything");
        assert_eq!(world.calls_of("OpenTunnel"), 1, "nothing is paid for before the name is free");
        outage.plane.order("resume", COLLECTOR);
        let is_old = async || {
            let secret = world.secrets().get_opt("plain-tokens").await.expect("the API server answers");
            secret.is_some_and(|secret| secret.metadata.uid == old)
        };
        let deadline = Instant::now() + LIMIT;
        while is_old().await {
            assert!(Instant::now() < deadline, "the garbage collector does not go on");
            sleep(Duration::from_millis(50)).await;
        }
        let free = Instant::now();
        let tunnel = world.wait_ready("plain").await;
        println!("figure: {}: Ready after the old Secret is gone | {:.1?}", replace[0][0], free.elapsed());
        world.assert_live(&tunnel, "plain-tokens").await;
        assert!(!world.events("plain").await.iter().any(|event| event.starts_with("Warning")));
    }
}
