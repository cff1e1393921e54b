//! Stale and unseen: what happens while the operator's watches show it late, in part or not at all. Its own
//! writes and the user's deletions reach it late; what it does by then must be right all the same.

use crate::matrix::lives::Life;
use crate::matrix::{promise_held, sights};
use crate::support::sight::Sight;
use crate::support::tap::Step;
use tokio::time::Instant;

/// An opening, a deletion, a Secret that is lost, a claim that is wiped.
const LIVES: [Life; 4] = [Life::Open, Life::Delete, Life::SecretLost, Life::Replaced];

async fn judged(from: impl Fn(&Step) -> bool + Copy) {
    let begun = Instant::now();
    let table = sights(&LIVES, &Sight::ALL, from).await;
    println!("{table}\nfigure: stale and unseen | {}", table.figures(begun.elapsed()));
    promise_held(&table);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_watch_shows_late_or_not_at_all_changes_nothing() {
    // The others: make matrix.
    let starts = [Step::start().request, "AWS OpenTunnel".into(), "PATCH tunnels/life/status".into()];
    let starts = &starts;
    judged(|step| step.nth == 1 && starts.contains(&step.request)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make matrix"]
async fn what_a_watch_shows_wrongly_from_any_request_on_changes_nothing() {
    judged(|_| true).await;
}
