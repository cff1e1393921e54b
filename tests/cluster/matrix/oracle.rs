//! What the promise (docs/protocol.md) says of a Tunnel whose life is over, whatever went wrong in it.

use super::lives::{Ending, Life, NAME};
use super::place::Place;
use super::product::Product;
use crate::support::LIMIT;
use crate::support::promise::dead_tokens;
pub use crate::support::promise::{Rule, Violation};
use kube::api::ListParams;
use kube::runtime::wait::await_condition;
use opentunnel_api::{OWNER_TAG, PREFIX, Tunnel};
use secure_tunneling_emulator::{TunnelInfo, TunnelStatus};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// A product that is broken on purpose may never get there.
const LIMIT_OF_BROKEN: Duration = Duration::from_secs(20);
/// Longer than a round of the poller.
const ROUND: Duration = Duration::from_millis(2500);

/// How a life ended, without what differs from run to run (IDs, times, generations, words).
#[derive(Clone, Debug, PartialEq)]
pub struct End(Value);

/// What there is when a life is over.
pub struct Judged {
    /// How it ended.
    pub end: End,
    /// What was wrong.
    pub violations: Vec<Violation>,
}

struct Oracle<'a> {
    place: &'a Place,
    violations: Vec<Violation>,
}

/// Returns once the life has ended; the reason, if it does not.
pub async fn reached(place: &Place) -> Result<(), Violation> {
    let limit = if place.product == Product::Whole { LIMIT } else { LIMIT_OF_BROKEN };
    let ending = place.ending();
    let wait = await_condition(place.world.tunnels(), NAME, move |tunnel: Option<&Tunnel>| ending.is_reached(tunnel));
    let state = |what: String| Violation { rule: Rule::State, what };
    match timeout(limit, wait).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(state(format!("it cannot be watched: {error}"))),
        Err(_) => return Err(state(format!("not {ending:?} after {limit:?}"))),
    }
    // AWS's clock was advanced: the time of the opening is corrected when AWS tells it.
    if place.life == Life::Reopened {
        let corrected = async {
            loop {
                let tunnel = place.world.tunnel(NAME).await;
                let opened_at = tunnel.status.and_then(|status| status.opened_at);
                let created_at = place.world.aws.tunnels().first().map(|t| t.created_at);
                if opened_at.zip(created_at).is_some_and(|(a, b)| a.duration_since(b).abs().as_secs() < 60) {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(limit, corrected).await.map_err(|_| state("the time of its opening is not AWS's".into()))?;
    }
    // The garbage collector takes them.
    let collected = async {
        while !place.secrets().await.is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    match ending {
        Ending::Gone => timeout(limit, collected).await.map_err(|_| state("the Secrets stay".into())),
        _ => Ok(()),
    }
}

/// Judges a life that has ended. `like`: the end that it should have.
pub async fn judge(place: &Place, like: Option<&End>) -> Judged {
    let mut oracle = Oracle { place, violations: Vec::new() };
    oracle.silence().await;
    let tunnel = place.world.tunnels().get_opt(NAME).await.expect("the API server answers");
    oracle.tunnels(tunnel.as_ref());
    oracle.openings();
    oracle.tokens(tunnel.as_ref()).await;
    let end = oracle.end(tunnel.as_ref()).await;
    if like.is_some_and(|like| *like != end) {
        oracle.violated(Rule::State, format!("it ended as {}", end.0));
    }
    Judged { end, violations: oracle.violations }
}

impl Oracle<'_> {
    fn violated(&mut self, rule: Rule, what: String) {
        self.violations.push(Violation { rule, what });
    }

    /// What follows at once (an Event) comes within a round of the poller; after that, nothing.
    async fn silence(&mut self) {
        sleep(ROUND).await;
        let before = self.place.world.writes().await;
        sleep(ROUND).await;
        let after = self.place.world.writes().await;
        let more: Vec<String> = after.iter().skip(before.len()).map(ToString::to_string).collect();
        if !more.is_empty() {
            self.violated(Rule::Silence, format!("it is written on: {more:?}"));
        }
    }

    fn tunnels(&mut self, tunnel: Option<&Tunnel>) {
        let known = tunnel.and_then(|t| t.status.as_ref()?.tunnel_id.as_ref());
        let tunnels = self.place.world.aws.tunnels();
        let open: Vec<_> = tunnels.iter().filter(|t| t.status == TunnelStatus::Open).collect();
        let wanted = self.place.life.open_tunnels();
        if open.len() != wanted {
            self.violated(Rule::OneTunnel, format!("{} tunnels are open, not {wanted}", open.len()));
        }
        for orphan in open.iter().filter(|t| t.tags.contains_key(OWNER_TAG) && known != Some(&t.tunnel_id)) {
            self.violated(Rule::NoOrphan, format!("tunnel {} is open, and no Tunnel's", orphan.tunnel_id));
        }
    }

    fn openings(&mut self) {
        let calls = self.place.world.aws.calls();
        let opened = calls.iter().filter(|c| c.operation == "OpenTunnel" && c.tunnel_id.is_some()).count();
        if opened != self.place.life.openings() {
            self.violated(Rule::OpenedOnce, format!("OpenTunnel was carried out {opened} times"));
        }
    }

    async fn tokens(&mut self, tunnel: Option<&Tunnel>) {
        if !tunnel.is_some_and(|tunnel| Ending::Ready(0).is_reached(Some(tunnel))) {
            return;
        }
        let id = tunnel.and_then(|t| t.status.as_ref()?.tunnel_id.clone()).unwrap_or_default();
        let world = &self.place.world;
        self.violations.extend(dead_tokens(world, &world.aws, &id, self.place.life.secrets()).await);
    }

    async fn end(&self, tunnel: Option<&Tunnel>) -> End {
        let status = tunnel.and_then(|t| t.status.clone()).unwrap_or_default();
        let conditions: Vec<_> =
            status.conditions.iter().flatten().map(|c| [&c.type_, &c.status, &c.reason].map(String::as_str)).collect();
        let names: Vec<_> = status.secrets.iter().flatten().map(|secret| &secret.name).collect();
        let mut tunnels: Vec<_> = self
            .place
            .world
            .aws
            .tunnels()
            .iter()
            .map(|t| (t.status, t.tags.contains_key(OWNER_TAG), others(t)))
            .collect();
        tunnels.sort_by_key(|(status, marked, _)| (*status == TunnelStatus::Closed, *marked));
        End(json!({
            "tunnel": tunnel.is_some(),
            "finalizers": tunnel.map(|t| &t.metadata.finalizers),
            "state": status.state,
            "conditions": conditions,
            "secrets": {"status": names, "exist": self.place.secrets().await},
            "aws": tunnels,
        }))
    }
}

/// The tags that are the user's.
fn others(tunnel: &TunnelInfo) -> Vec<(String, String)> {
    let tags = tunnel.tags.clone().into_iter();
    tags.filter(|(key, _)| !key.starts_with(PREFIX) && tunnel.status == TunnelStatus::Open).collect()
}

impl Place {
    /// The names of the Secrets that exist.
    pub async fn secrets(&self) -> Vec<String> {
        let list = self.world.secrets().list_metadata(&ListParams::default()).await.expect("the API server answers");
        list.items.into_iter().filter_map(|secret| secret.metadata.name).collect()
    }
}
