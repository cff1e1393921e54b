//! Watches Tunnels and reconciles each: the way through the code, as a table of contents.

pub mod act;
pub mod decide;
pub mod observe;
pub mod status;
pub mod validate;

use crate::aws::Aws;
use crate::crd::{MANAGER, State, Tunnel};
use crate::pacer::{Gate, Key, Pacer};
use crate::poller::{Poller, Watched};
use crate::tunnels::TunnelRef;
use act::Act;
use decide::{Change, Decision, Lane};
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use observe::{Limits, Memory, Mono, Now, Observed};
use status::Note;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// The limit of one request to the API server.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// More steps than any way through [`decide`] has: a loop is a bug, and is ended as an error.
const MAX_STEPS: usize = 64;
/// The longest pause after a reconcile that failed.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// A watch that the API server does not end by then is taken for dead (5 s later).
const WATCH_SECONDS: u32 = 240;

/// What all reconciles share.
pub struct Context {
    /// The API server. Its requests are not repeated by the client: a write whose answer was lost
    /// must be judged, not sent again.
    pub client: Client,
    /// The gateway.
    pub aws: Aws,
    /// The cluster's ID, in every owner tag.
    pub cluster: String,
    /// Settings.
    pub limits: Limits,
    /// The pacer of OpenTunnel.
    pub open: Arc<Pacer>,
    /// The pacer of CloseTunnel.
    pub close: Arc<Pacer>,
    /// The pacer of RotateTunnelAccessToken.
    pub rotate: Arc<Pacer>,
    /// The one who asks AWS what there is.
    pub poller: Arc<Poller>,
    /// Tunnels that were opened in vain go there to be closed.
    pub abandoned: mpsc::UnboundedSender<(Key, TunnelRef)>,
    /// Where [`Mono`] counts from.
    pub start: Instant,
    /// Nothing new is begun any more.
    pub stopping: AtomicBool,
    memories: Mutex<HashMap<Key, Memory>>,
}

/// A failed reconcile. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error("cannot {what}: {source}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// Its words.
        #[source]
        source: kube::Error,
    },
    /// The API server did not answer in time.
    #[error("cannot {0}: the API server did not answer within {API_TIMEOUT:?}")]
    Timeout(&'static str),
    /// The object cannot be read.
    #[error(transparent)]
    Incomplete(#[from] validate::Incomplete),
    /// A bug.
    #[error("no end after {MAX_STEPS} steps, the last one {0}: please report this as a bug")]
    Endless(String),
}

impl Error {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }

    fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }
}

/// The Tunnel as this reconcile sees it.
pub struct View {
    tunnel: Arc<Tunnel>,
    /// When it was last read or written here; `None`: as the watch had it.
    read_at: Option<Mono>,
    gone: bool,
}

/// The parts of a [`Context`] that the caller makes.
pub struct Parts {
    /// See [`Context::client`].
    pub client: Client,
    /// See [`Context::aws`].
    pub aws: Aws,
    /// See [`Context::cluster`].
    pub cluster: String,
    /// See [`Context::limits`].
    pub limits: Limits,
    /// OpenTunnel calls per second.
    pub open_rate: f64,
    /// CloseTunnel calls per second.
    pub close_rate: f64,
    /// Between two rounds of ListTunnels.
    pub poll_interval: Duration,
}

/// AWS's quota for RotateTunnelAccessToken (Service Quotas: 10 a second).
const ROTATE_RATE: f64 = 10.0;

impl Context {
    /// A context, the keys of Tunnels that are to be woken, and tunnels to be closed.
    pub fn new(parts: Parts) -> (Arc<Self>, mpsc::UnboundedReceiver<Key>, mpsc::UnboundedReceiver<(Key, TunnelRef)>) {
        let start = Instant::now();
        let (wake, woken) = mpsc::unbounded_channel();
        let (abandoned, to_close) = mpsc::unbounded_channel();
        let pacer = |rate| Arc::new(Pacer::new(rate, wake.clone()));
        let poller = Poller::new(parts.aws.clone(), parts.cluster.clone(), parts.poll_interval, start, wake.clone());
        let context = Self {
            open: pacer(parts.open_rate),
            close: pacer(parts.close_rate),
            rotate: pacer(ROTATE_RATE),
            poller: Arc::new(poller),
            client: parts.client,
            aws: parts.aws,
            cluster: parts.cluster,
            limits: parts.limits,
            abandoned,
            start,
            stopping: AtomicBool::new(false),
            memories: Mutex::default(),
        };
        (Arc::new(context), woken, to_close)
    }

    fn mono(&self) -> Mono {
        Mono(self.start.elapsed())
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::now(), mono: self.mono() }
    }

    fn lane(&self, lane: Lane) -> &Pacer {
        match lane {
            Lane::Open => &self.open,
            Lane::Close => &self.close,
            Lane::Rotate => &self.rotate,
        }
    }

    /// Gives tickets back, but for one lane.
    fn give_back(&self, key: &Key, keep: Option<Lane>) {
        for lane in [Lane::Open, Lane::Close, Lane::Rotate] {
            if keep != Some(lane) {
                self.lane(lane).give_back(key);
            }
        }
    }

    fn memories(&self) -> MutexGuard<'_, HashMap<Key, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request to the API server, with a time limit.
    async fn api<T>(&self, what: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        let answer = tokio::time::timeout(API_TIMEOUT, request).await.map_err(|_| Error::Timeout(what))?;
        answer.map_err(|source| Error::Api { what, source })
    }

    /// Publishes an event. It is told once and may be lost: nothing depends on it. (kube's Recorder
    /// repeats the note of an earlier event, and fails for names of more than 236 characters.)
    async fn event(&self, tunnel: &Tunnel, note: Note) {
        let mut text = note.note;
        text.truncate(text.floor_char_boundary(1024)); // events.k8s.io/v1: at most 1 kB
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some("tunnel-".into()),
                namespace: tunnel.namespace(),
                ..ObjectMeta::default()
            },
            action: Some(note.reason.clone()),
            reason: Some(note.reason),
            note: Some(text),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(tunnel.object_ref(&())),
            reporting_controller: Some(MANAGER.into()),
            reporting_instance: Some(MANAGER.into()),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &tunnel.namespace().unwrap_or_default());
        if let Err(error) = self.api("publish an event", api.create(&Default::default(), &event)).await {
            tracing::debug!(%error, "an event was lost");
        }
    }
}

/// One reconcile: five steps, again and again, each time with one effect, until there is nothing to do
/// for now. What is remembered of a Tunnel is taken out meanwhile: there is one reconcile at a time.
async fn reconcile(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    let key = validate::validate(&tunnel)?.key;
    let mut memory = ctx.memories().remove(&key).unwrap_or_else(|| Memory::new(false, ctx.mono()));
    let outcome = steps(tunnel, &ctx, &mut memory).await;
    match &outcome {
        Ok(_) => memory.errors = 0,
        Err(_) => {
            ctx.give_back(&key, None);
            memory.errors += 1;
        }
    }
    ctx.memories().insert(key, memory);
    outcome
}

async fn steps(tunnel: Arc<Tunnel>, ctx: &Context, memory: &mut Memory) -> Result<Action, Error> {
    let mut view = View { tunnel: newest(tunnel, memory), read_at: None, gone: false };
    let mut secrets: Option<Vec<Option<Secret>>> = None;
    let mut last = None;
    for _ in 0..MAX_STEPS {
        // 1. What the object says. Needs nobody.
        let desired = validate::validate(&view.tunnel)?;
        // 2. What else there is. Reads the Secrets, unless they were read already.
        if secrets.is_none() {
            secrets = Some(read_secrets(ctx, &desired).await?);
        }
        let now = ctx.now();
        memory.note(&desired, now);
        let observed = observed(ctx, &desired, &view, secrets.as_deref(), memory);
        // 3. What to do. Needs nobody.
        let decision = decide::decide(&desired, &observed, &ctx.limits, now);
        tracing::debug!(?decision);
        let begins = matches!(
            decision,
            Decision::Claim(None) | Decision::Record(Change::Rotating { .. } | Change::Adopted { .. })
        );
        if begins && ctx.stopping.load(Ordering::Relaxed) {
            return Ok(Action::await_change());
        }
        last = Some(decision.clone());
        // 4. Do it: one effect. 5. Where it is a status write, status.rs says what is written.
        let mut act = Act { ctx, desired: &desired, view: &mut view, secrets: &mut secrets, memory, now };
        if let Some(wait) = act.act(decision).await? {
            let until = wait.until.map(|until| until.0.saturating_sub(ctx.mono().0));
            return Ok(until.map_or_else(Action::await_change, Action::requeue));
        }
    }
    Err(Error::Endless(format!("{last:?}")))
}

/// The watch may lag behind what this process has written.
fn newest(watched: Arc<Tunnel>, memory: &mut Memory) -> Arc<Tunnel> {
    let version = |t: &Tunnel| t.resource_version().and_then(|v| v.parse::<u64>().ok());
    match memory.written.take() {
        Some(written) if version(&written) > version(&watched) => {
            memory.written = Some(written.clone());
            written
        }
        _ => watched,
    }
}

async fn read_secrets(ctx: &Context, desired: &validate::Desired) -> Result<Vec<Option<Secret>>, Error> {
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &desired.key.namespace);
    let mut secrets = Vec::with_capacity(desired.secrets.len());
    for wanted in &desired.secrets {
        secrets.push(ctx.api("read the Secret", api.get_opt(&wanted.name)).await?);
    }
    Ok(secrets)
}

fn observed<'a>(
    ctx: &Context,
    desired: &validate::Desired,
    view: &View,
    secrets: Option<&[Option<Secret>]>,
    memory: &'a Memory,
) -> Observed<'a> {
    let answer = memory.answer.as_ref().map(|a| (a, ctx.aws.region()));
    let gate: Option<Gate> = ctx.open.gate();
    Observed {
        read_at: view.read_at,
        gone: view.gone,
        secrets: act::states(secrets, desired, answer),
        memory,
        search: ctx.poller.found(&desired.key),
        heard: desired.record.tunnel.as_ref().and_then(|t| ctx.poller.heard(&t.tunnel.id)),
        reads_fail: ctx.poller.failing(),
        open: ctx.open.turn(&desired.key),
        close: ctx.close.turn(&desired.key),
        rotate: ctx.rotate.turn(&desired.key),
        gate,
    }
}

fn error_policy(tunnel: Arc<Tunnel>, error: &Error, ctx: Arc<Context>) -> Action {
    let errors = validate::validate(&tunnel)
        .ok()
        .and_then(|desired| ctx.memories().get(&desired.key).map(|m| m.errors))
        .unwrap_or(1);
    let pause = Duration::from_millis(100).saturating_mul(1 << errors.min(16)).min(MAX_BACKOFF);
    tracing::warn!(
        namespace = tunnel.namespace().unwrap_or_default(),
        name = tunnel.name_any(),
        %error,
        "reconcile failed; trying again in {pause:.1?}"
    );
    Action::requeue(pause.mul_f64(0.5 + 0.5 * fastrand::f64()))
}

/// Notes what the watch shows before a reconcile sees it. A Tunnel that comes by a live event, and was
/// not there before, was created just now: a list cannot tell.
fn note_event(ctx: &Context, store: &Store<Tunnel>, event: &watcher::Event<Tunnel>) {
    match event {
        watcher::Event::Apply(tunnel) | watcher::Event::InitApply(tunnel) => {
            let live = matches!(event, watcher::Event::Apply(_));
            let known = store.get(&ObjectRef::from_obj(tunnel)).is_some_and(|t| t.uid() == tunnel.uid());
            let Ok(desired) = validate::validate(tunnel) else {
                return;
            };
            let untouched =
                !desired.record.finalizer && desired.record.claim.is_none() && desired.record.tunnel.is_none();
            let now = ctx.mono();
            if !known {
                ctx.memories().entry(desired.key).or_insert_with(|| Memory::new(live && untouched, now));
            }
        }
        watcher::Event::Delete(tunnel) => {
            if let Ok(desired) = validate::validate(tunnel) {
                ctx.memories().remove(&desired.key);
                ctx.give_back(&desired.key, None);
                ctx.poller.forget(&desired.key);
            }
        }
        watcher::Event::Init | watcher::Event::InitDone => {}
    }
}

/// A namespace (or all of them) that is watched.
pub struct Watch {
    store: Store<Tunnel>,
    wake: mpsc::UnboundedSender<ObjectRef<Tunnel>>,
    namespace: Option<String>,
    synced: watch::Receiver<bool>,
}

impl Watch {
    /// Watches and reconciles until `stop`; the future ends when the last reconcile has.
    pub fn start(
        ctx: &Arc<Context>,
        namespace: Option<String>,
        stop: impl Future<Output = ()> + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let api: Api<Tunnel> = match &namespace {
            Some(namespace) => Api::namespaced(ctx.client.clone(), namespace),
            None => Api::all(ctx.client.clone()),
        };
        let (store, writer) = reflector::store();
        let (wake, woken) = mpsc::unbounded_channel();
        let (noting, noted) = (ctx.clone(), store.clone());
        let (listed, synced) = watch::channel(false);
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let stream = watcher(api, config)
            .default_backoff()
            .modify(|tunnel| tunnel.managed_fields_mut().clear())
            .inspect(move |event| match event {
                Ok(event) => note_event(&noting, &noted, event),
                Err(error) => tracing::warn!(%error, "the watch of Tunnels failed; trying again"),
            })
            .reflect(writer)
            .inspect(move |event| {
                if matches!(event, Ok(watcher::Event::InitDone)) {
                    listed.send_replace(true);
                }
            })
            .applied_objects();
        let run = Controller::for_stream(stream, store.clone())
            .reconcile_on(unfold(woken))
            .graceful_shutdown_on(stop)
            .run(traced, error_policy, ctx.clone())
            .for_each(|_| std::future::ready(()));
        (Self { store, wake, namespace, synced }, run)
    }

    /// Waits until the watch is synced. (The store's own `wait_until_ready` wakes only the last of
    /// those who wait, and the Controller waits too.)
    pub async fn synced(&self) {
        let _ = self.synced.clone().wait_for(|synced| *synced).await;
    }

    /// Whether it watches a namespace.
    fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == namespace)
    }

    fn watched(&self) -> Vec<Watched> {
        let watched = |tunnel: &Arc<Tunnel>| {
            let desired = validate::validate(tunnel).ok()?;
            let recorded = desired.record.tunnel.filter(|t| t.state == State::Open)?;
            Some(Watched { key: desired.key, id: recorded.tunnel.id, opened_at: recorded.opened_at })
        };
        self.store.state().iter().filter_map(watched).collect()
    }
}

/// The tunnels that all watches think open.
pub fn watched(watches: &[Watch]) -> Vec<Watched> {
    watches.iter().flat_map(Watch::watched).collect()
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

async fn traced(tunnel: Arc<Tunnel>, ctx: Arc<Context>) -> Result<Action, Error> {
    use tracing::Instrument;
    let span =
        tracing::info_span!("reconcile", namespace = tunnel.namespace().unwrap_or_default(), name = tunnel.name_any());
    reconcile(tunnel, ctx).instrument(span).await
}

fn unfold<T: Send + 'static>(receiver: mpsc::UnboundedReceiver<T>) -> impl Stream<Item = T> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}
