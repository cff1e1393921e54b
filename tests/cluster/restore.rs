//! etcd is restored from an older state, as from a backup: Kubernetes has forgotten what AWS and the operator know.
//! Each case is gone through by an operator that is kept running and by one that is started anew.

use crate::matrix::lives::{Life, NAME};
use crate::matrix::oracle::{self, End};
use crate::matrix::place::{Next, Place};
use crate::matrix::product::Product;
use crate::matrix::undisturbed;
use crate::support::api_proxy::{Request, failure};
use crate::support::outage::Outage;
use crate::support::sight::Sight;
use crate::support::{LIMIT, World};
use axum::http::StatusCode;
use futures::future::join_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use secure_tunneling_emulator::TunnelStatus;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Writes that etcd forgets, beside those of the cases: a watch that went on from where it was would see nothing
/// for a long time.
const FORGOTTEN: usize = 500;

/// The sweep of orphans leaves a tunnel alone for five minutes.
const SWEPT_AFTER: Duration = Duration::from_secs(400);

/// What etcd knows and what has happened since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// A Tunnel is Ready; nothing since.
    Ready,
    /// A Tunnel that nobody has done anything for; it is Ready since.
    Created,
    /// A claim; it is Ready since.
    Claimed,
    /// A Ready Tunnel; its Secret was lost since, and came back with new tokens.
    Rotated,
    /// A rotation is claimed; it is Ready since.
    Rotating,
    /// A Ready Tunnel; it was deleted since, and its tunnel closed.
    Deleted,
    /// A Ready Tunnel; somebody closed its tunnel since, and it has Ended.
    Closed,
    /// The same, but the watch has not shown it.
    ClosedUnseen,
    /// Nothing; a Tunnel was created since, and is Ready.
    Unknown,
}

impl Case {
    const ALL: [Self; 9] = [
        Self::Ready,
        Self::Created,
        Self::Claimed,
        Self::Rotated,
        Self::Rotating,
        Self::Deleted,
        Self::Closed,
        Self::ClosedUnseen,
        Self::Unknown,
    ];

    /// The API server refuses it, so that the operator comes no further than the snapshot shows it.
    fn refuses(self) -> Option<fn(&Request) -> bool> {
        match self {
            Self::Created => Some(Request::is_claim),
            Self::Claimed | Self::Rotating => Some(Request::is_secret_write_in_earnest),
            _ => None,
        }
    }

    /// What happens before the snapshot.
    async fn before(self, place: &mut Place) {
        if self == Self::Rotating {
            Life::Open.happen(place).await;
            place.begins_with(&place.world.wait_ready(NAME).await);
        }
        let mut before = 0;
        if let Some(refused) = self.refuses() {
            before = place.api.count(refused);
            let busy = StatusCode::SERVICE_UNAVAILABLE;
            place.api.answer(busy, failure(busy, "later"), refused);
        }
        match self {
            Self::Unknown => {}
            Self::Rotating => Life::SecretLost.happen(place).await,
            _ => Life::Open.happen(place).await,
        }
        match self.refuses() {
            Some(refused) => place.api.more_than(before, refused).await,
            None if self == Self::Unknown => {}
            None => place.begins_with(&place.world.wait_ready(NAME).await),
        }
    }

    /// What happens between the snapshot and the restoration.
    async fn since(self, place: &mut Place) {
        place.api.answer_no_more();
        place.life = match self {
            Self::Rotated | Self::Rotating => Life::SecretLost,
            Self::Deleted => Life::Delete,
            Self::Closed | Self::ClosedUnseen => Life::ClosedByOthers,
            _ => Life::Open,
        };
        if self == Self::ClosedUnseen {
            place.tap.eyes.see(Sight::Blind);
        }
        if !matches!(self, Self::Ready | Self::Created | Self::Claimed | Self::Rotating) {
            place.life.happen(place).await;
        }
        oracle::reached(place).await.expect("it ends well before etcd is restored");
        // As what comes back is judged.
        place.life = match self {
            Self::Rotating => Life::SecretLost,
            Self::Deleted | Self::Closed | Self::ClosedUnseen => Life::ClosedByOthers,
            _ => Life::Open,
        };
    }

    /// What is wrong after the restoration.
    async fn judge(self, place: &Place, end: &End) -> Vec<String> {
        place.tap.eyes.see(Sight::Clear);
        match self {
            // Its tunnel is nobody's: the sweep closes it. Who applies the manifest again gets a tunnel of its own.
            Self::Unknown => {
                place.world.aws.advance_clock(SWEPT_AFTER);
                Life::Open.happen(place).await;
                place.world.wait_ready(NAME).await;
                let open = || place.world.aws.tunnels().iter().filter(|t| t.status == TunnelStatus::Open).count();
                let swept = async {
                    while open() != 1 {
                        sleep(Duration::from_millis(100)).await;
                    }
                };
                return if timeout(LIMIT, swept).await.is_ok() { vec![] } else { vec![format!("{} are open", open())] };
            }
            // AWS's tag remembers the rotation that etcd has forgotten.
            Self::Rotated => {
                let live = async || {
                    let held = place.world.secret_data("life-tokens").await?;
                    let live = place.world.aws.live_tokens(held.get("tunnelId")?)?;
                    Some(held["sourceAccessToken"] == live.source)
                };
                let mended = async {
                    while live().await != Some(true) {
                        sleep(Duration::from_millis(100)).await;
                    }
                };
                if timeout(LIMIT, mended).await.is_err() {
                    return vec!["the restored Secret holds tokens that AWS has revoked".into()];
                }
            }
            _ => {}
        }
        let unreached = oracle::reached(place).await.err();
        let judged = oracle::judge(place, Some(end)).await;
        unreached.into_iter().chain(judged.violations).map(|violation| violation.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_restored_from_an_older_state_is_followed() {
    let begun = Instant::now();
    let outage = Outage::take().await;
    let cases = Case::ALL.iter().flat_map(|case| [(*case, true), (*case, false)]);
    let places = cases.map(|(case, kept)| async move {
        let mut place = Place::on(World::on(outage.plane).await, Life::Open, Product::Whole).await;
        case.before(&mut place).await;
        (case, kept, place)
    });
    let ends = async { (undisturbed(Life::Open).await, undisturbed(Life::ClosedByOthers).await) };
    let (places, (ready, closed)) = tokio::join!(join_all(places), ends);
    let snapshot = outage.snapshot().await;

    let happens = places.into_iter().map(|(case, kept, mut place)| async move {
        case.since(&mut place).await;
        (case, kept, place)
    });
    let places = join_all(happens).await;
    forget(&places[0].2.world).await;
    let restarted = || places.iter().filter(|(_, kept, _)| !kept).map(|(_, _, place)| place);
    outage.restore(&snapshot, || restarted().for_each(|place| place.tap.kill())).await;
    let _next: Vec<Next> = join_all(restarted().map(|place| place.next(None))).await;

    let (ready, closed) = (&ready, &closed);
    let judged = join_all(places.iter().map(|(case, _, place)| async move {
        let end = if place.life == Life::ClosedByOthers { closed } else { ready };
        case.judge(place, end).await
    }))
    .await;
    let broken = judged.iter().filter(|violations| !violations.is_empty()).count();
    println!(
        "figure: etcd restored | {} cases ({} states, the operator kept running and started anew), {broken} broken; {:.0} s",
        places.len(),
        Case::ALL.len(),
        begun.elapsed().as_secs_f64()
    );
    for ((case, kept, place), violations) in places.iter().zip(&judged).filter(|(_, v)| !v.is_empty()) {
        eprintln!("{case:?}, operator kept: {kept}: {violations:#?}");
        place.world.show_logs();
    }
    assert_eq!(broken, 0, "the promise was broken");
}

/// Writes that nobody will know of.
async fn forget(world: &World) {
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.name);
    let config_map = |n: usize| serde_json::from_value(json!({"metadata": {"name": format!("n{n}")}}));
    for n in 0..FORGOTTEN {
        api.create(&Default::default(), &config_map(n).expect("a ConfigMap")).await.expect("it can be made");
    }
}
