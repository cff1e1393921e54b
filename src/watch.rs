//! The watches: what they show, and whom they wake.

pub mod owned;
pub mod relist;
pub mod secrets;
pub mod stored;

use crate::context::Context;
use crate::controller::{error_policy, traced};
use crate::crd;
use crate::event::Notice;
use crate::kubernetes::reference;
use crate::poller::Watched;
use crate::read::{Key, claim};
use crate::step::Lane;
use crate::telemetry::Readiness;
use crate::tunnels::{InAccount, TunnelId};
use futures::future::OptionFuture;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::controller::Controller;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use opentunnel_api::{FINALIZER, Tunnel, TunnelState};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// A watch that the API server does not end by then is taken for dead (5 s later).
pub const WATCH_SECONDS: u32 = 30;

/// Objects in a page of a list. A page is in memory as a whole, in several forms: kube's pages of 500 are what a start
/// takes most memory for. (A streaming list would need no page, but kube asks for one from resourceVersion 0: a cache may
/// answer it from the past, and what a list shows is the proof that nothing was missed.)
const PAGE: u32 = 100;

/// Reconciles at once; more wait. Each takes some kB, and kube polls all of them whenever one wakes. A reconcile may wait
/// for AWS's answer as long as `--aws-timeout`. So this is the bound of the calls in flight: 50 a second where AWS takes
/// 3 s, and 10 a second where it is silent.
const RECONCILES: u16 = 200;

/// Takes in what a watch shows before a reconcile sees it.
struct Intake {
    ctx: Arc<Context>,
    store: Store<Tunnel>,
    namespace: Option<String>,
    listed: HashSet<Key>,
    /// What was told of Tunnels that cannot be read, by UID.
    told: HashMap<String, String>,
}

impl Intake {
    /// Returns what the store is to be told.
    fn take(&mut self, event: watcher::Event<DynamicObject>) -> Option<watcher::Event<Tunnel>> {
        let namespace = self.namespace.clone();
        let covered = |key: &Key| namespace.as_deref().is_none_or(|n| n == key.namespace);
        match event {
            watcher::Event::Apply(object) => match self.read(object) {
                Ok(tunnel) => {
                    self.see(&tunnel, true);
                    Some(watcher::Event::Apply(tunnel))
                }
                // Nobody may act on what it was before.
                Err(unreadable) => Some(watcher::Event::Delete(*unreadable)),
            },
            watcher::Event::InitApply(object) => {
                let read = self.read(object);
                let listed: &Tunnel = read.as_ref().unwrap_or_else(|unreadable| unreadable);
                self.listed.extend(Key::of(&listed.metadata));
                let tunnel = read.ok()?;
                self.see(&tunnel, false);
                Some(watcher::Event::InitApply(tunnel))
            }
            watcher::Event::Delete(object) => {
                let tunnel = stored::read(object).unwrap_or_else(|unreadable| unreadable.readable);
                if let Ok(key) = Key::of(&tunnel.metadata) {
                    self.told.remove(&key.uid);
                    self.ctx.gone(&key, self.ctx.memories.remove(&key));
                }
                Some(watcher::Event::Delete(tunnel))
            }
            watcher::Event::Init => {
                self.listed.clear();
                self.ctx.memories.wipe_all(covered);
                Some(watcher::Event::Init)
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                for key in self.ctx.memories.missing(covered, &listed) {
                    self.ctx.gone(&key, self.ctx.memories.remove(&key));
                }
                self.told.retain(|uid, _| listed.iter().any(|key| key.uid == *uid));
                Some(watcher::Event::InitDone)
            }
        }
    }

    /// Reads a Tunnel. One that cannot be read waits until it can, and its owner is told (`Err`: what can be read
    /// of it). One that is being deleted needs no more than that: its tunnel is closed, and it goes.
    fn read(&mut self, object: DynamicObject) -> Result<Tunnel, Box<Tunnel>> {
        let unreadable = match stored::read(object) {
            Ok(tunnel) => {
                self.told.remove(tunnel.metadata.uid.as_deref().unwrap_or_default());
                return Ok(tunnel);
            }
            Err(unreadable) => *unreadable,
        };
        let (what, tunnel) = (unreadable.what, unreadable.readable);
        let Ok(key) = Key::of(&tunnel.metadata) else { return Err(Box::new(tunnel)) };
        if tunnel.metadata.deletion_timestamp.is_some() {
            return Ok(tunnel);
        }
        // What it was, and what was wiped from it, is not seen.
        self.ctx.memories.add(key.clone(), false, self.ctx.clock.mono());
        self.ctx.memories.wipe(&key);
        self.ctx.account.pacers.give_back(&key, None);
        if self.told.insert(key.uid.clone(), what.clone()).as_ref() != Some(&what) {
            let message = format!(
                "the Tunnel cannot be read, so nothing is done for it ({what}): correct the field, or delete the Tunnel and apply it again"
            );
            tracing::warn!(namespace = key.namespace, tunnel = key.name, "{message}");
            let ctx = self.ctx.clone();
            let notice = Notice { warning: true, reason: "Unreadable".into(), message };
            tokio::spawn(async move {
                // Each replica logs it; the one that leads tells.
                ctx.leader.gained().await;
                let tunnel = reference(&key.namespace, Some(&key.name), &key.uid);
                ctx.kubernetes.publish(tunnel, notice).await;
            });
        }
        Err(Box::new(tunnel))
    }

    /// A Tunnel that comes by a live event, and was not there before, was created just now: a list
    /// cannot tell. What was wiped from it is seen here only: a reconcile may come too late.
    fn see(&self, tunnel: &Tunnel, live: bool) {
        let Ok(key) = Key::of(&tunnel.metadata) else { return };
        let now = Traces::of(tunnel);
        let before = self.store.get(&ObjectRef::from_obj(tunnel)).filter(|t| t.uid() == tunnel.uid());
        // A reconcile may wait for the departure of its call: a turn that was given for what the spec was is not used. Or
        // it waits for the answer, which is judged on what the spec is.
        let edited = before.as_ref().is_some_and(|before| before.metadata.generation != tunnel.metadata.generation);
        if edited || tunnel.metadata.deletion_timestamp.is_some() {
            self.ctx.account.pacers.lane(Lane::Open).withdraw(&key);
            self.ctx.memories.edit(&key);
        }
        let before = before.map_or_else(Traces::default, |before| Traces::of(&before));
        if (before.finalizer && !now.finalizer) || (before.claim && !now.claim) || (before.tunnel && !now.tunnel) {
            self.ctx.memories.wipe(&key);
        }
        let untouched = live && now == Traces::default();
        self.ctx.things.see(tunnel, &key);
        self.ctx.memories.add(key, untouched, self.ctx.clock.mono());
    }
}

/// What an operator leaves on a Tunnel that it works on.
#[derive(Default, PartialEq)]
struct Traces {
    finalizer: bool,
    claim: bool,
    tunnel: bool,
}

impl Traces {
    fn of(tunnel: &Tunnel) -> Self {
        let uid = tunnel.metadata.uid.as_deref().unwrap_or_default();
        Self {
            finalizer: tunnel.finalizers().iter().any(|f| f == FINALIZER),
            claim: claim(tunnel.metadata.annotations.as_ref(), uid).is_some(),
            tunnel: tunnel.status.as_ref().is_some_and(|status| status.tunnel_id.is_some()),
        }
    }
}

/// A namespace (or all of them) that is watched.
pub struct Watch {
    store: Store<Tunnel>,
    wake: mpsc::UnboundedSender<ObjectRef<Tunnel>>,
    namespace: Option<String>,
    synced: Vec<watch::Receiver<bool>>,
}

impl Watch {
    /// Watches and reconciles until `stop` is true; the future ends when the last reconcile has.
    pub fn start(
        ctx: &Arc<Context>,
        namespace: Option<String>,
        watch_secrets: bool,
        readiness: &Arc<Readiness>,
        stop: &watch::Receiver<bool>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        // Any object: one that is no Tunnel that can be read must not end the watch of all.
        let tunnels = ApiResource::erase::<Tunnel>(&());
        let api: Api<DynamicObject> = match &namespace {
            Some(namespace) => Api::namespaced_with(ctx.kubernetes.client.clone(), namespace, &tunnels),
            None => Api::all_with(ctx.kubernetes.client.clone(), &tunnels),
        };
        let (store, writer) = reflector::store();
        let (wake, woken) = mpsc::unbounded_channel();
        let mut intake = Intake {
            ctx: ctx.clone(),
            store: store.clone(),
            namespace: namespace.clone(),
            listed: HashSet::new(),
            told: HashMap::new(),
        };
        let (listed, synced) = watch::channel(false);
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let (told, watched) = (readiness.clone(), readiness.clone());
        let stream = relist::relisting(move || watcher(api.clone(), config.clone()))
            .backoff(relist::Pauses::default())
            .filter_map(move |event| {
                std::future::ready(match event {
                    Ok(event) => intake.take(event).map(Ok),
                    Err(error) => {
                        if crd::is_absent(&error) {
                            told.crd(Some(crd::ABSENT.into()));
                            tracing::warn!("{}", crd::ABSENT);
                        } else {
                            tracing::warn!(%error, "the watch of Tunnels failed; trying again");
                        }
                        Some(Err(error))
                    }
                })
            })
            .reflect(writer)
            .inspect(move |event| {
                if matches!(event, Ok(watcher::Event::InitDone)) {
                    watched.crd(None);
                    listed.send_replace(true);
                }
            })
            .applied_objects();
        let run = Controller::for_stream(stream, store.clone())
            .with_config(kube::runtime::controller::Config::default().concurrency(RECONCILES))
            .reconcile_on(unfold(woken))
            .graceful_shutdown_on(stopped(stop.clone()))
            .run(traced, error_policy, ctx.clone())
            .for_each(|_| std::future::ready(()));
        let of_secrets = watch_secrets.then(|| secrets::start(ctx.clone(), namespace.clone(), stop.clone()));
        let (secrets_synced, secrets) = of_secrets.unzip();
        let mut listed_secrets = secrets_synced.clone();
        let (stop, listed) = (stop.clone(), synced.clone());
        let run = async move {
            // The Controller cannot end before it has a list; nothing is being reconciled then.
            let before_the_list = async {
                stopped(stop).await;
                if *listed.borrow() {
                    std::future::pending().await
                }
            };
            // What a reconcile reads is no older than the list of Secrets: what changes after it wakes.
            let reconcile = async {
                if let Some(listed) = &mut listed_secrets {
                    let _ = listed.wait_for(|listed| *listed).await;
                }
                run.await
            };
            let run = async {
                tokio::select! { () = reconcile => {}, () = before_the_list => {} }
            };
            tokio::join!(run, OptionFuture::from(secrets));
        };
        let synced = [synced].into_iter().chain(secrets_synced).collect();
        (Self { store, wake, namespace, synced }, run)
    }

    /// Waits until what it watches is synced. (The store's own `wait_until_ready` wakes only the last of
    /// those who wait, and the Controller waits too.)
    pub async fn synced(&self) {
        for mut synced in self.synced.clone() {
            let _ = synced.wait_for(|synced| *synced).await;
        }
    }

    /// The Tunnels that it shows.
    pub fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        self.store.state()
    }

    /// Whether it watches a namespace.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == namespace)
    }

    fn watched(&self, ctx: &Context) -> Vec<Watched> {
        let watched = |tunnel: &Arc<Tunnel>| {
            let status = tunnel.status.as_ref()?;
            let id = TunnelId(status.tunnel_id.clone()?);
            let elsewhere = ctx.account.aws.has(status.tunnel_arn.as_deref().unwrap_or_default()) == InAccount::No;
            if elsewhere || status.state == Some(TunnelState::Closed) {
                return None;
            }
            let opened_at = status.opened_at.unwrap_or(Timestamp::UNIX_EPOCH);
            Some(Watched { key: Key::of(&tunnel.metadata).ok()?, id, opened_at, tunnel: tunnel.clone() })
        };
        self.store.state().iter().filter_map(watched).collect()
    }
}

/// The tunnels that are open as far as the watches show.
pub fn watched(ctx: &Context, watches: &[Watch]) -> Vec<Watched> {
    watches.iter().flat_map(|watch| watch.watched(ctx)).collect()
}

/// Wakes all Tunnels, the oldest first.
pub fn wake_all(watches: &[Watch]) {
    let mut all: Vec<_> =
        watches.iter().flat_map(|watch| watch.tunnels().into_iter().map(move |t| (watch, t))).collect();
    all.sort_by_key(|(_, tunnel)| tunnel.creation_timestamp());
    for (watch, tunnel) in all {
        let _ = watch.wake.send(ObjectRef::from_obj(&tunnel));
    }
}

/// Hands the keys of those to be woken to their watches.
pub async fn wake(watches: &[Watch], mut woken: mpsc::UnboundedReceiver<Key>) {
    while let Some(key) = woken.recv().await {
        for watch in watches.iter().filter(|w| w.covers(&key.namespace)) {
            // One that is gone (or was made again under the same name) is not reconciled for the old one.
            let tunnel = ObjectRef::new(&key.name).within(&key.namespace);
            if watch.store.get(&tunnel).is_some_and(|t| t.uid().as_ref() == Some(&key.uid)) {
                let _ = watch.wake.send(tunnel);
            }
        }
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn unfold<T: Send + 'static>(receiver: mpsc::UnboundedReceiver<T>) -> impl Stream<Item = T> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}
