//! The watch of token Secrets, by label: whoever owns one that changes looks at it. Only metadata is
//! watched, so no token comes this way.

use super::owned::SecretName;
use super::relist::relisting;
use super::{PAGE, WATCH_SECONDS, stopped};
use crate::context::Context;
use crate::read::Key;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use opentunnel_api::Tunnel;
use opentunnel_api::secret::{LABEL, LABEL_VALUE};
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::watch;

/// Selects the Secrets that are watched.
pub fn selector() -> String {
    format!("{LABEL}={LABEL_VALUE}")
}

/// Watches until `stop` is true. The receiver tells when it is synced.
pub(super) fn start(
    ctx: Arc<Context>,
    namespace: Option<String>,
    stop: watch::Receiver<bool>,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + Send + 'static) {
    let api: Api<PartialObjectMeta<Secret>> = match &namespace {
        Some(namespace) => Api::namespaced(ctx.kubernetes.client.clone(), namespace),
        None => Api::all(ctx.kubernetes.client.clone()),
    };
    let (synced, told) = watch::channel(false);
    let config = Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(&selector());
    let run = async move {
        let mut listed = HashSet::new();
        let events = relisting(move || watcher(api.clone(), config.clone()));
        let events = events.backoff(super::relist::Pauses::default()).take_until(stopped(stop));
        futures::pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => {
                    listed.clear();
                    ctx.owned.fall_behind(&namespace);
                }
                Ok(Event::InitApply(secret)) => {
                    listed.insert(name_of(&secret));
                    // Before the first list has ended no Tunnel is reconciled: none has to be woken.
                    let woken = see(&ctx, &secret);
                    if *synced.borrow() {
                        woken.for_each(|key| wake(&ctx, key));
                    }
                }
                Ok(Event::InitDone) => {
                    let covered = |(n, _): &SecretName| namespace.as_ref().is_none_or(|watched| watched == n);
                    for name in ctx.owned.missing(covered, &listed) {
                        ctx.owned.lose(&name).into_iter().for_each(|key| wake(&ctx, key));
                    }
                    ctx.owned.catch_up(&namespace);
                    synced.send_replace(true);
                }
                Ok(Event::Apply(secret)) => see(&ctx, &secret).for_each(|key| wake(&ctx, key)),
                Ok(Event::Delete(secret)) => {
                    ctx.owned.lose(&name_of(&secret)).into_iter().for_each(|key| wake(&ctx, key));
                }
                Err(error) => {
                    ctx.owned.fall_behind(&namespace);
                    tracing::warn!(%error, "the watch of Secrets failed; trying again");
                }
            }
        }
    };
    (told, run)
}

fn name_of(secret: &PartialObjectMeta<Secret>) -> SecretName {
    (secret.namespace().unwrap_or_default(), secret.name_any())
}

/// Returns the Tunnels that have to look at it.
fn see(ctx: &Context, secret: &PartialObjectMeta<Secret>) -> impl Iterator<Item = Key> {
    let name = name_of(secret);
    let group = Tunnel::group(&());
    let owner = secret.owner_references().iter().find(|o| {
        o.controller == Some(true) && o.kind == Tunnel::kind(&()) && o.api_version.split('/').next() == Some(&group)
    });
    let owner = owner.map(|o| Key { namespace: name.0.clone(), name: o.name.clone(), uid: o.uid.clone() });
    ctx.owned.see(name, owner, secret.resource_version()).into_iter()
}

fn wake(ctx: &Context, key: Key) {
    let _ = ctx.wake.send(key);
}
