//! The sweep: after each round of the poller's, what [`judge`] says is done about each candidate.
//!
//! It has the last claim on CloseTunnel: a ticket of no namespace, one at a time. Whatever fails is left to
//! the next round: nothing is closed on a read that failed.

use super::{By, Candidate, Scope, Shown, Verdict, judge};
use crate::clock::Mono;
use crate::config::CloseOrphans;
use crate::context::Context;
use crate::error::Error;
use crate::event::Notice;
use crate::kubernetes::reference;
use crate::metrics::Metrics;
use crate::pacer::Pacer;
use crate::read::{Key, read};
use crate::step::Lane;
use crate::tunnels::{CallError, TunnelId};
use crate::watch::{Watch, stored};
use crate::whose::{Claimant, Named};
use jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams};
use opentunnel_api::Tunnel;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long what was read counts as fresh: no tunnel is closed on anything older.
const FRESH: Duration = Duration::from_secs(5);

/// The sweep of one account.
pub struct Sweep {
    mode: CloseOrphans,
    scope: Scope,
    /// Of these was told: once is enough.
    told: Mutex<HashSet<TunnelId>>,
}

/// The Tunnels of namespaces, as the API server has them.
#[derive(Default)]
struct Readings(HashMap<String, (Mono, Vec<Claimant>)>);

/// A ticket that is given back whatever happens: the sweep may be ended at any await.
struct Ticket<'a> {
    pacer: &'a Pacer,
    key: Key,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.pacer.give_back(&self.key);
    }
}

/// A process that does not sweep any more knows of no orphans.
struct Sweeping<'a>(&'a Metrics);

impl Drop for Sweeping<'_> {
    fn drop(&mut self) {
        self.0.orphans(0);
    }
}

/// One sweep.
struct Pass<'a> {
    sweep: &'a Sweep,
    ctx: &'a Context,
    watches: &'a [Watch],
    readings: Readings,
}

impl Sweep {
    /// A sweep of what `scope` covers.
    pub fn new(mode: CloseOrphans, scope: Scope) -> Self {
        Self { mode, scope, told: Mutex::default() }
    }

    /// Sweeps after each round, for ever; does nothing where nobody wants it. It may be dropped at any time, and
    /// run again.
    pub async fn run(&self, ctx: &Context, watches: &[Watch]) {
        let _sweeping = Sweeping(&ctx.metrics);
        if self.mode == CloseOrphans::False {
            return;
        }
        loop {
            ctx.account.poller.listed().await;
            Pass { sweep: self, ctx, watches, readings: Readings::default() }.run().await;
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, HashSet<TunnelId>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    async fn run(&mut self) {
        let candidates = self.ctx.account.poller.candidates();
        self.sweep.told().retain(|id| candidates.iter().any(|c| c.tunnel.id == *id));
        let mut orphans = Vec::new();
        for candidate in candidates {
            let shown = Shown::of(&candidate, self.watched(&candidate.owner.namespace));
            match (judge(&candidate, &self.sweep.scope, &shown, By::Watch), shown) {
                (Verdict::Look, _) => {}
                (Verdict::Search, Shown::Opening(Claimant { key, .. })) => {
                    tracing::info!(tunnel_id = %candidate.tunnel.id, "a tunnel has come to light that its Tunnel does not know of");
                    self.ctx.account.poller.search(&key, candidate.created_at, self.ctx.clock.mono());
                    continue;
                }
                _ => continue,
            }
            match self.look(&candidate).await {
                Ok((shown, Verdict::Close)) => orphans.push((candidate, shown)),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(tunnel_id = %candidate.tunnel.id, %error, "cannot tell yet whose a tunnel is");
                }
            }
        }
        self.ctx.metrics.orphans(orphans.len());
        let mut left = orphans.len();
        for (candidate, shown) in orphans {
            if self.sweep.mode == CloseOrphans::DryRun {
                self.tell(&candidate, &shown).await;
            } else if self.close(candidate).await {
                left -= 1;
                self.ctx.metrics.orphans(left);
            }
        }
    }

    /// The Tunnels of a namespace, as the watch shows them.
    fn watched(&self, namespace: &str) -> Vec<Claimant> {
        let tunnels = self.watches.iter().filter(|w| w.covers(namespace)).flat_map(Watch::tunnels);
        let there = tunnels.filter(|t| t.metadata.namespace.as_deref() == Some(namespace));
        there.filter_map(|tunnel| Some(read(&tunnel).ok()?.claimant())).collect()
    }

    /// Judges by what the API server has, which is no older than [`FRESH`].
    async fn look(&mut self, candidate: &Candidate) -> Result<(Shown, Verdict), Error> {
        let namespace = &candidate.owner.namespace;
        let oldest = Mono(self.ctx.clock.mono().0.saturating_sub(FRESH));
        let tunnels = match self.readings.0.get(namespace) {
            Some((at, tunnels)) if *at > oldest => tunnels.clone(),
            _ => {
                let at = self.ctx.clock.mono();
                let tunnels = self.list(namespace).await?;
                self.readings.0.insert(namespace.clone(), (at, tunnels.clone()));
                tunnels
            }
        };
        let shown = Shown::of(candidate, tunnels);
        let verdict = judge(candidate, &self.sweep.scope, &shown, By::ApiServer);
        Ok((shown, verdict))
    }

    /// Lists the Tunnels of a namespace: without a resourceVersion that is what etcd has, not a cache. The tag
    /// has a UID and no name, so they are listed; and no Tunnel that cannot be read gets into the way.
    async fn list(&self, namespace: &str) -> Result<Vec<Claimant>, Error> {
        let resource = ApiResource::erase::<Tunnel>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.ctx.kubernetes.client.clone(), namespace, &resource);
        let all = ListParams::default();
        let list = self.ctx.kubernetes.request("list the Tunnels", || api.list(&all)).await?;
        let tunnels = list.into_iter().map(|t| stored::read(t).unwrap_or_else(|unreadable| unreadable.readable));
        Ok(tunnels.filter_map(|tunnel| Some(read(&tunnel).ok()?.claimant())).collect())
    }

    /// Closes one, when nobody else wants to close any. Whether it is closed.
    async fn close(&mut self, candidate: Candidate) -> bool {
        let id = candidate.tunnel.id.clone();
        let key = Key { namespace: String::new(), name: String::new(), uid: id.to_string() };
        loop {
            let (since, shown) = match self.confirm(&candidate).await {
                Ok(Some(confirmed)) => confirmed,
                Ok(None) => return false,
                Err(error) => {
                    tracing::warn!(tunnel_id = %id, error, "cannot close an orphan yet");
                    return false;
                }
            };
            let pacer = self.ctx.account.pacers.lane(Lane::Close);
            let ticket = Ticket { pacer, key: key.clone() };
            pacer.acquire(&key, Timestamp::now()).await;
            let fresh = (since + FRESH).0.saturating_sub(self.ctx.clock.mono().0);
            let goes_on = || !self.ctx.is_stopping();
            let outcome = self.ctx.account.close_tunnel(&key, &id, Some(Instant::now() + fresh), goes_on).await;
            drop(ticket);
            match outcome {
                Some(outcome) => return self.closed(&candidate, &shown, outcome).await,
                None if !goes_on() => return false,
                None => {}
            }
            // It has waited for its turn for so long that all is read anew.
            self.readings.0.remove(&candidate.owner.namespace);
        }
    }

    /// Asks AWS and the API server once more. `None`: it is not to be closed; else, of when their answers are.
    async fn confirm(&mut self, candidate: &Candidate) -> Result<Option<(Mono, Shown)>, String> {
        // Its tag was read some time ago: somebody may have taken it off since, to keep the tunnel.
        let answer = self.ctx.account.poller.read(&candidate.tunnel.id).await.map_err(|e| e.to_string())?;
        if answer.owner() != Some(&candidate.owner) {
            return Ok(None);
        }
        let (shown, verdict) = self.look(candidate).await.map_err(|e| e.to_string())?;
        let read = self.readings.0.get(&candidate.owner.namespace).map_or(answer.asked, |(at, _)| *at);
        Ok((verdict == Verdict::Close).then_some((answer.asked.min(read), shown)))
    }

    async fn closed(&self, candidate: &Candidate, shown: &Shown, outcome: Result<(), CallError>) -> bool {
        let id = &candidate.tunnel.id;
        if let Err(error) = outcome {
            tracing::warn!(tunnel_id = %id, %error, "cannot close an orphan; it is looked at again in the next round");
            return false;
        }
        let why = why(candidate, shown);
        tracing::info!(tunnel_id = %id, owner = %candidate.owner, "closed an orphan: {why}");
        self.ctx.metrics.orphan_closed();
        let message = format!("closed tunnel {id}: {why}");
        self.publish(candidate, shown, Notice { warning: false, reason: "OrphanClosed".into(), message }).await;
        true
    }

    /// Tells of one, once.
    async fn tell(&self, candidate: &Candidate, shown: &Shown) {
        let id = &candidate.tunnel.id;
        let new = self.sweep.told().insert(id.clone());
        if new {
            let why = why(candidate, shown);
            tracing::warn!(tunnel_id = %id, owner = %candidate.owner, "an orphan, which --close-orphans=true would close: {why}");
            let message = format!("--close-orphans=true would close tunnel {id}: {why}");
            self.publish(candidate, shown, Notice { warning: true, reason: "OrphanFound".into(), message }).await;
        }
    }

    /// An Event of the Tunnel, be it there or gone; a namespace that is gone has no Events.
    async fn publish(&self, candidate: &Candidate, shown: &Shown, notice: Notice) {
        let name = match shown {
            Shown::HasAnother(claimant) => Some(claimant.key.name.as_str()),
            _ => None,
        };
        let owner = &candidate.owner;
        self.ctx.kubernetes.publish(reference(&owner.namespace, name, &owner.uid), notice).await;
    }
}

fn why(candidate: &Candidate, shown: &Shown) -> String {
    let Candidate { owner, .. } = candidate;
    match shown {
        Shown::HasAnother(Claimant { key, tunnel: Some(Named { id: other, .. }), .. }) => {
            format!("it was opened for Tunnel {}, which has tunnel {other}", key.name)
        }
        _ => format!("the Tunnel that it was opened for (UID {}, in namespace {}) is gone", owner.uid, owner.namespace),
    }
}
