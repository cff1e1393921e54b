//! Tunnels that were opened in vain: for a Tunnel that is gone, or under an attempt that was superseded.
//! They are closed in the background, because no reconcile comes for them any more.

use super::context::Context;
use crate::clock::Mono;
use crate::pacer::Key;
use crate::tunnels::{CallErrorKind, TunnelRef, Word};
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
    mut abandoned: mpsc::UnboundedReceiver<(Key, TunnelRef)>,
    finish: impl Future<Output = ()>,
) {
    let mut closing = JoinSet::new();
    tokio::pin!(finish);
    loop {
        let next = tokio::select! {
            next = abandoned.recv() => next,
            Some(_) = closing.join_next() => continue,
            () = &mut finish, if !abandoned.is_closed() => {
                abandoned.close();
                continue;
            }
        };
        let Some((key, tunnel)) = next else { break };
        let ctx = ctx.clone();
        closing.spawn(async move { close(&ctx, &key, &tunnel).await });
    }
    while closing.join_next().await.is_some() {}
}

async fn close(ctx: &Context, key: &Key, tunnel: &TunnelRef) {
    let ticket = Key { uid: format!("{}/{}", key.uid, tunnel.id), ..key.clone() };
    let begun = ctx.mono();
    let mut pause = Duration::from_secs(1);
    while ctx.mono() < begun + LONGEST_LIFE {
        ctx.close.acquire(&ticket, Timestamp::now()).await;
        let done = try_close(ctx, key, &ticket, tunnel, begun).await;
        ctx.close.give_back(&ticket);
        if done {
            return;
        }
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(MAX_BACKOFF);
    }
}

/// Whether nothing is left to do.
async fn try_close(ctx: &Context, key: &Key, ticket: &Key, tunnel: &TunnelRef, begun: Mono) -> bool {
    // It may have been adopted since it was given up: then it is somebody's.
    let read = ctx.read_tunnel(key).await;
    match read.map(|read| read.map(|t| t.unwrap_or_else(|unreadable| unreadable.readable))) {
        Ok(Some(t)) => match t.status.and_then(|s| s.tunnel_id) {
            Some(id) if id == tunnel.id.0 => return true,
            Some(_) => {}
            // Whoever searches may adopt it in the very moment of the close, and have a closed one.
            None => return false,
        },
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(tunnel_id = %tunnel.id, %error, "cannot tell yet whether a tunnel was opened in vain");
            return false;
        }
    }
    let error = match ctx.close_tunnel(ticket, &tunnel.id).await {
        Ok(()) => {
            tracing::info!(tunnel_id = %tunnel.id, "closed a tunnel that was opened in vain");
            return true;
        }
        Err(error) => error,
    };
    tracing::warn!(tunnel_id = %tunnel.id, %error, "cannot close a tunnel that was opened in vain; trying again");
    // Not-found may be told of a tunnel that was opened a moment ago.
    let settled = ctx.mono() > begun + ctx.limits.recovery_grace;
    match error.kind {
        CallErrorKind::NotFound => settled,
        CallErrorKind::InvalidRequest => match ctx.aws.describe(&tunnel.id).await.map(|d| d.word) {
            Ok(Word::Closed { .. }) => true,
            Ok(Word::NotFound) => settled,
            _ => false,
        },
        _ => false,
    }
}
