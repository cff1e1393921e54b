//! Surplus tunnels: they were opened in vain, for a Tunnel that is gone, or under an attempt that was superseded.
//! They are closed in the background, because no reconcile comes for them any more.

use crate::clock::Mono;
use crate::context::Context;
use crate::read::{Key, Object, read};
use crate::step::Lane;
use crate::tunnels::{Attempt, CallErrorKind, Life, Owner, TunnelId, TunnelRef};
use crate::whose::{Claimant, Whose, whose};
use jiff::Timestamp;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// No tunnel lives longer than 12 hours.
const LONGEST_LIFE: Duration = Duration::from_secs(12 * 3600 + 600);
/// The longest pause between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Closes what comes until `finish`, then what is left.
pub async fn close_all(
    ctx: Arc<Context>,
    mut surplus: mpsc::UnboundedReceiver<Surplus>,
    finish: impl Future<Output = ()>,
) {
    let mut closing = JoinSet::new();
    tokio::pin!(finish);
    loop {
        let next = tokio::select! {
            next = surplus.recv() => next,
            Some(_) = closing.join_next() => continue,
            () = &mut finish, if !surplus.is_closed() => {
                surplus.close();
                continue;
            }
        };
        let Some(next) = next else { break };
        let ctx = ctx.clone();
        closing.spawn(async move { close(&ctx, &next).await });
    }
    while closing.join_next().await.is_some() {}
}

/// A tunnel that may be surplus.
#[derive(Clone, Debug)]
pub struct Surplus {
    /// The Tunnel that it was opened for.
    pub key: Key,
    /// Under this attempt.
    pub attempt: Attempt,
    /// Which.
    pub tunnel: TunnelRef,
}

/// What becomes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was adopted since: it is the Tunnel's.
    Keep,
    /// The Tunnel names no tunnel. If this one were closed now, another process could adopt it at the same moment, and
    /// would have a closed tunnel.
    Wait,
    /// Nobody wants it.
    Close,
}

/// What becomes of a tunnel, by the Tunnel that it was opened for as it is now. `None`: that is gone. Pure.
pub fn judge(id: &TunnelId, owner: &Owner, claimant: Option<&Claimant>) -> Verdict {
    match claimant.map(|claimant| whose(id, owner, &owner.cluster, claimant)) {
        Some(Whose::Named) => Verdict::Keep,
        Some(Whose::Adoptable) => Verdict::Wait,
        Some(Whose::Surplus | Whose::Foreign) | None => Verdict::Close,
    }
}

async fn close(ctx: &Context, surplus: &Surplus) {
    let Surplus { key, tunnel, .. } = surplus;
    let ticket = Key { uid: format!("{}/{}", key.uid, tunnel.id), ..key.clone() };
    let begun = ctx.clock.mono();
    let mut pause = Duration::from_secs(1);
    let pacer = ctx.account.pacers.lane(Lane::Close);
    while ctx.clock.mono() < begun + LONGEST_LIFE {
        pacer.acquire(&ticket, Timestamp::now()).await;
        let done = try_close(ctx, surplus, &ticket, begun).await;
        pacer.give_back(&ticket);
        if done {
            return;
        }
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(MAX_BACKOFF);
    }
}

/// Whether nothing is left to do.
async fn try_close(ctx: &Context, surplus: &Surplus, ticket: &Key, begun: Mono) -> bool {
    let Surplus { key, attempt, tunnel } = surplus;
    let read_now = ctx.kubernetes.read_tunnel(key).await;
    let object = match read_now.map(|found| found.map(|t| t.unwrap_or_else(|unreadable| unreadable.readable))) {
        Ok(found) => match found.map(|tunnel| read(&tunnel)).transpose() {
            Ok(object) => object,
            Err(_) => return false,
        },
        Err(error) => {
            tracing::warn!(tunnel_id = %tunnel.id, %error, "cannot tell yet whether a tunnel is surplus");
            return false;
        }
    };
    let claimant = object.as_ref().map(Object::claimant);
    match judge(&tunnel.id, &ctx.account.owner(key, attempt), claimant.as_ref()) {
        Verdict::Keep => return true,
        Verdict::Wait => return false,
        Verdict::Close => {}
    }
    let error = match ctx.account.close_tunnel(ticket, &tunnel.id, None, || true).await {
        None => return false,
        Some(Ok(())) => {
            tracing::info!(tunnel_id = %tunnel.id, "closed a surplus tunnel");
            return true;
        }
        Some(Err(error)) => error,
    };
    tracing::warn!(tunnel_id = %tunnel.id, %error, "cannot close a surplus tunnel; trying again");
    // Not-found may be told of a tunnel that was opened a moment ago.
    let settled = ctx.clock.mono() > begun + ctx.limits.recovery_grace;
    match error.kind {
        CallErrorKind::NotFound => settled,
        CallErrorKind::InvalidRequest => match ctx.account.poller.read(&tunnel.id).await.map(|d| d.description.life) {
            Ok(Life::Closed { .. }) => true,
            Ok(Life::NotFound) => settled,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::whose::Named;

    #[test]
    fn a_surplus_tunnel_is_closed_once_its_tunnel_names_another_or_is_gone() {
        let key = Key { namespace: "edge".into(), name: "sensor".into(), uid: "u".into() };
        let owner =
            Owner { cluster: "c".into(), namespace: "edge".into(), uid: "u".into(), attempt: Attempt("a".into()) };
        let verdict = |named: Option<&str>, claim: &str| {
            let tunnel = named.map(|id| Named { id: TunnelId(id.into()), attempt: Some(Attempt("a".into())) });
            let (key, claim) = (key.clone(), Some(Attempt(claim.into())));
            judge(&TunnelId("t".into()), &owner, Some(&Claimant { key, down: false, claim, tunnel, reopens: false }))
        };
        assert_eq!(verdict(Some("t"), "b"), Verdict::Keep, "it was adopted");
        assert_eq!(verdict(None, "b"), Verdict::Wait, "it may be adopted in this very moment");
        assert_eq!(verdict(Some("s"), "a"), Verdict::Close);
        assert_eq!(verdict(Some("s"), "b"), Verdict::Close);
        assert_eq!(verdict(Some("s"), "a"), Verdict::Close, "its own has ended, and no other is wanted");
        // It names one that has ended and was opened under this attempt, and it wants another.
        let reopens = |by: &str| {
            let tunnel = Some(Named { id: TunnelId("s".into()), attempt: Some(Attempt(by.into())) });
            let (key, claim) = (key.clone(), Some(Attempt("b".into())));
            judge(&TunnelId("t".into()), &owner, Some(&Claimant { key, down: false, claim, tunnel, reopens: true }))
        };
        assert_eq!(reopens("z"), Verdict::Wait, "it may be adopted as the next one");
        assert_eq!(reopens("a"), Verdict::Close, "its attempt's tunnel has ended");
        assert_eq!(judge(&TunnelId("t".into()), &owner, None), Verdict::Close, "the Tunnel is gone");
    }
}
