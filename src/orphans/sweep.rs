//! The sweep: after each round of the poller's, what [`judge`] says is done about each candidate.
//!
//! It has the last claim on CloseTunnel: a ticket of no namespace, one at a time. Whatever fails is left to
//! the next round: nothing is closed on a read that failed.

use super::{By, Candidate, Known, Scope, Shown, Verdict, judge};
use crate::clock::Mono;
use crate::config::CloseOrphans;
use crate::controller::context::{Context, Error};
use crate::controller::status::Note;
use crate::controller::watch::Watch;
use crate::crd::Tunnel;
use crate::pacer::{Key, Pacer};
use crate::tunnels::{CallError, TunnelId, Word};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Resource, ResourceExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So long what was read counts as fresh: a tunnel is closed by no older word.
const FRESH: Duration = Duration::from_secs(5);

/// The sweep of one process.
pub struct Sweep {
    ctx: Arc<Context>,
    watches: Arc<Vec<Watch>>,
    mode: CloseOrphans,
    scope: Scope,
    /// Of these was told: once is enough.
    told: HashSet<TunnelId>,
}

/// The Tunnels of namespaces, as the API server has them.
#[derive(Default)]
struct Readings(HashMap<String, (Mono, Vec<Known>)>);

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

/// Who sweeps no more knows of no orphans.
struct Sweeping(Arc<Context>);

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.metrics.orphans(0);
    }
}

impl Sweep {
    /// A sweep of the namespaces that are watched.
    pub fn new(ctx: &Arc<Context>, watches: &Arc<Vec<Watch>>, mode: CloseOrphans) -> Self {
        let scope = Scope {
            cluster: ctx.cluster.clone(),
            namespaces: watches.iter().filter_map(Watch::namespace).map(str::to_owned).collect(),
            grace: ctx.limits.recovery_grace,
        };
        Self { ctx: ctx.clone(), watches: watches.clone(), mode, scope, told: HashSet::new() }
    }

    /// Sweeps after each round, for ever; does nothing where nobody wants it. It may be dropped at any time, and
    /// run again.
    pub async fn run(&mut self) {
        let _sweeping = Sweeping(self.ctx.clone());
        while self.mode != CloseOrphans::False {
            self.ctx.poller.listed().await;
            self.sweep().await;
        }
    }

    async fn sweep(&mut self) {
        let candidates = self.ctx.poller.candidates();
        self.told.retain(|id| candidates.iter().any(|c| c.tunnel.id == *id));
        let mut readings = Readings::default();
        let mut orphans = Vec::new();
        for candidate in candidates {
            let shown = Shown::of(&candidate, self.watched(&candidate.owner.namespace));
            if judge(&candidate, &self.scope, &shown, By::Watch) != Verdict::Look {
                continue;
            }
            match self.look(&candidate, &mut readings).await {
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
            if self.mode == CloseOrphans::DryRun {
                self.tell(&candidate, &shown).await;
            } else if self.close(candidate, &mut readings).await {
                left -= 1;
                self.ctx.metrics.orphans(left);
            }
        }
    }

    /// The Tunnels of a namespace, as the watch shows them.
    fn watched(&self, namespace: &str) -> Vec<Known> {
        let tunnels = self.watches.iter().filter(|w| w.covers(namespace)).flat_map(Watch::tunnels);
        let there = tunnels.filter(|t| t.metadata.namespace.as_deref() == Some(namespace));
        there.map(|t| known(&*t, t.status.as_ref().and_then(|s| s.tunnel_id.clone()))).collect()
    }

    /// Judges by the API server's own word, which is no older than [`FRESH`].
    async fn look(&self, candidate: &Candidate, readings: &mut Readings) -> Result<(Shown, Verdict), Error> {
        let namespace = &candidate.owner.namespace;
        let oldest = Mono(self.ctx.mono().0.saturating_sub(FRESH));
        let tunnels = match readings.0.get(namespace) {
            Some((at, tunnels)) if *at > oldest => tunnels.clone(),
            _ => {
                let at = self.ctx.mono();
                let tunnels = self.list(namespace).await?;
                readings.0.insert(namespace.clone(), (at, tunnels.clone()));
                tunnels
            }
        };
        let shown = Shown::of(candidate, tunnels);
        let verdict = judge(candidate, &self.scope, &shown, By::ApiServer);
        Ok((shown, verdict))
    }

    /// Lists the Tunnels of a namespace: without a resourceVersion that is what etcd has, not a cache. The tag
    /// has a UID and no name, so they are listed; and no Tunnel that cannot be read gets into the way.
    async fn list(&self, namespace: &str) -> Result<Vec<Known>, Error> {
        let resource = ApiResource::erase::<Tunnel>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.ctx.client.clone(), namespace, &resource);
        let list = self.ctx.api("list the Tunnels", api.list(&ListParams::default())).await?;
        let tunnel = |t: &DynamicObject| t.data["status"]["tunnelId"].as_str().map(str::to_owned);
        Ok(list.iter().map(|t| known(t, tunnel(t))).collect())
    }

    /// Closes one, when nobody else wants to close any. Whether it is closed.
    async fn close(&self, candidate: Candidate, readings: &mut Readings) -> bool {
        let id = candidate.tunnel.id.clone();
        let key = Key { namespace: String::new(), name: String::new(), uid: id.to_string() };
        loop {
            let (since, shown) = match self.confirm(&candidate, readings).await {
                Ok(Some(confirmed)) => confirmed,
                Ok(None) => return false,
                Err(error) => {
                    tracing::warn!(tunnel_id = %id, error, "cannot close an orphan yet");
                    return false;
                }
            };
            let ticket = Ticket { pacer: &self.ctx.close, key: key.clone() };
            self.ctx.close.acquire(&key, Timestamp::now()).await;
            let (late, stops) = (self.ctx.mono() >= since + FRESH, self.ctx.stopping.load(Ordering::Relaxed));
            if !late && !stops {
                let outcome = self.ctx.close_tunnel(&key, &id).await;
                drop(ticket);
                return self.closed(&candidate, &shown, outcome).await;
            }
            if stops {
                return false;
            }
            // It has waited for its turn for so long that all is read anew.
            readings.0.remove(&candidate.owner.namespace);
        }
    }

    /// Asks AWS and the API server once more. `None`: it is not to be closed; else, of when their words are.
    async fn confirm(&self, candidate: &Candidate, readings: &mut Readings) -> Result<Option<(Mono, Shown)>, String> {
        let asked = self.ctx.mono();
        // Its tag was read some time ago: somebody may have taken it off since, to keep the tunnel.
        let described = self.ctx.aws.describe(&candidate.tunnel.id).await.map_err(|e| e.to_string())?;
        if !matches!(described.word, Word::Open { .. }) {
            return Ok(None);
        }
        if described.owner.as_ref() != Some(&candidate.owner) {
            self.ctx.poller.tell(&candidate.tunnel.id, described.owner, asked);
            return Ok(None);
        }
        let (shown, verdict) = self.look(candidate, readings).await.map_err(|e| e.to_string())?;
        let read = readings.0.get(&candidate.owner.namespace).map_or(asked, |(at, _)| *at);
        Ok((verdict == Verdict::Close).then_some((asked.min(read), shown)))
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
        let note = Note { warning: false, reason: "OrphanClosed".into(), note: format!("closed tunnel {id}: {why}") };
        self.event(candidate, shown, note).await;
        true
    }

    /// Tells of one, once.
    async fn tell(&mut self, candidate: &Candidate, shown: &Shown) {
        let id = &candidate.tunnel.id;
        if self.told.insert(id.clone()) {
            let why = why(candidate, shown);
            tracing::warn!(tunnel_id = %id, owner = %candidate.owner, "an orphan, which --close-orphans=true would close: {why}");
            let note = format!("--close-orphans=true would close tunnel {id}: {why}");
            self.event(candidate, shown, Note { warning: true, reason: "OrphanFound".into(), note }).await;
        }
    }

    /// An Event of the Tunnel, be it there or gone; a namespace that is gone has no Events.
    async fn event(&self, candidate: &Candidate, shown: &Shown, note: Note) {
        let name = match shown {
            Shown::HasAnother(known) => Some(known.name.clone()),
            _ => None,
        };
        let tunnel = ObjectReference {
            api_version: Some(Tunnel::api_version(&()).into()),
            kind: Some(Tunnel::kind(&()).into()),
            namespace: Some(candidate.owner.namespace.clone()),
            name,
            uid: Some(candidate.owner.uid.clone()),
            ..ObjectReference::default()
        };
        self.ctx.event_about(tunnel, note).await;
    }
}

fn known(object: &impl ResourceExt, tunnel: Option<String>) -> Known {
    Known {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        deleting: object.meta().deletion_timestamp.is_some(),
        tunnel: tunnel.map(TunnelId),
    }
}

fn why(candidate: &Candidate, shown: &Shown) -> String {
    let Candidate { owner, .. } = candidate;
    match shown {
        Shown::HasAnother(Known { name, tunnel: Some(other), .. }) => {
            format!("it was opened for Tunnel {name}, which has tunnel {other}")
        }
        _ => format!("the Tunnel that it was opened for (UID {}, in namespace {}) is gone", owner.uid, owner.namespace),
    }
}
