//! What all reconciles share, and the requests to the API server that need nothing else.

use super::decision::Lane;
use super::memories::Memories;
use super::observe::{Answer, AnswerOf, Limits, Memory};
use super::ours::Ours;
use super::owned::Owned;
use super::status::Note;
use super::validate;
use super::watch::stored::{self, Unreadable};
use crate::aws::Aws;
use crate::clock::{Mono, Now};
use crate::crd::{MANAGER, Tunnel};
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::pacer::{Key, Pacer};
use crate::poller::{self, Poller};
use crate::tunnels::{CallError, Operation, TunnelId, TunnelRef};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The limit of one request to the API server.
const API_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Whether this process leads: if not, nothing new is begun either.
    pub leader: Arc<Leadership>,
    /// What is remembered of each Tunnel.
    pub memories: Memories,
    /// Which Secrets are whose.
    pub owned: Owned,
    /// Which AWS tunnels are whose.
    pub ours: Ours,
    /// Tunnels that are to be woken.
    pub wake: mpsc::UnboundedSender<Key>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// A failed reconcile. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error("cannot {what}: {}", words(source))]
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
    /// It is no Tunnel that this operator knows.
    #[error("the Tunnel cannot be read ({0}): correct the field, or delete the Tunnel")]
    Unreadable(String),
    /// A bug.
    #[error("no end after {0} steps, the last one {1}: please report this as a bug")]
    Endless(usize, String),
    /// Another one. What it said is not kept: it may hold anything.
    #[error("a panic: please report this as a bug, with the place that the log has")]
    Panic,
}

/// An API server's refusal in its own words, not as the whole object that they came in.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

impl Error {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }

    pub(super) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// By quota, policy or rights: trying on at once changes nothing.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 422))
    }

    /// A create in a namespace that is being deleted is refused, for this cause.
    pub(super) fn is_namespace_ending(&self) -> bool {
        let Self::Api { source: kube::Error::Api(status), .. } = self else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    }
}

/// The Tunnel as this reconcile sees it.
pub struct View {
    pub(super) tunnel: Arc<Tunnel>,
    /// When it was last read or written here; `None`: as the watch had it.
    pub(super) read_at: Option<Mono>,
    pub(super) gone: bool,
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
    /// Secrets are watched. If not, each Tunnel looks at its own at every poll.
    pub watch_secrets: bool,
    /// Tunnels that no Tunnel has are looked at.
    pub look_for_orphans: bool,
    /// See [`Context::metrics`].
    pub metrics: Arc<Metrics>,
    /// See [`Context::leader`].
    pub leader: Arc<Leadership>,
}

/// AWS's quota for RotateTunnelAccessToken (Service Quotas: 10 a second).
const ROTATE_RATE: f64 = 10.0;

impl Context {
    /// A context, the keys of Tunnels that are to be woken, and tunnels to be closed.
    pub fn new(parts: Parts) -> (Arc<Self>, mpsc::UnboundedReceiver<Key>, mpsc::UnboundedReceiver<(Key, TunnelRef)>) {
        let start = Instant::now();
        let (wake, woken) = mpsc::unbounded_channel();
        let (abandoned, to_close) = mpsc::unbounded_channel();
        let pacer = |operation, rate| Arc::new(Pacer::new(rate, parts.metrics.waits(operation), wake.clone()));
        let poller = Poller::new(
            parts.aws.clone(),
            parts.cluster.clone(),
            poller::Rounds {
                interval: parts.poll_interval,
                wake_all: !parts.watch_secrets,
                unknown_after: parts.look_for_orphans.then_some(parts.limits.recovery_grace),
            },
            start,
            wake.clone(),
        );
        let context = Self {
            open: pacer(Operation::OpenTunnel, parts.open_rate),
            close: pacer(Operation::CloseTunnel, parts.close_rate),
            rotate: pacer(Operation::RotateTunnelAccessToken, ROTATE_RATE),
            poller: Arc::new(poller),
            client: parts.client,
            aws: parts.aws,
            cluster: parts.cluster,
            limits: parts.limits,
            abandoned,
            start,
            stopping: AtomicBool::new(false),
            leader: parts.leader,
            memories: Memories::default(),
            owned: Owned::default(),
            ours: Ours::default(),
            wake,
            metrics: parts.metrics,
        };
        (Arc::new(context), woken, to_close)
    }

    /// Since when this process leads without a break; `None`: it does not.
    pub(super) fn term(&self) -> Option<Mono> {
        self.leader.since().map(|since| Mono(since.saturating_duration_since(self.start)))
    }

    pub(crate) fn mono(&self) -> Mono {
        Mono(self.start.elapsed())
    }

    pub(super) fn now(&self) -> Now {
        Now { wall: Timestamp::now(), mono: self.mono() }
    }

    pub(super) fn lane(&self, lane: Lane) -> &Pacer {
        match lane {
            Lane::Open => &self.open,
            Lane::Close => &self.close,
            Lane::Rotate => &self.rotate,
        }
    }

    /// Gives tickets back, but for one lane.
    pub(super) fn give_back(&self, key: &Key, keep: Option<Lane>) {
        for lane in [Lane::Open, Lane::Close, Lane::Rotate] {
            if keep != Some(lane) {
                self.lane(lane).give_back(key);
            }
        }
    }

    /// A Tunnel is gone. What was opened for it, and stands nowhere, is closed.
    pub(super) fn gone(&self, key: &Key, memory: Option<Memory>) {
        self.give_back(key, None);
        self.poller.forget(key);
        self.ours.forget(key);
        if let Some(Answer { of: AnswerOf::Open(_), tunnel, .. }) = memory.and_then(|m| m.answer) {
            let _ = self.abandoned.send((key.clone(), tunnel));
        }
    }

    /// The Tunnel as it is now, uncached, be it one that can be read or not. `None`: it is gone (one of its name may
    /// be there).
    pub(super) async fn read_tunnel(&self, key: &Key) -> Result<Option<Result<Tunnel, Box<Unreadable>>>, Error> {
        let tunnels = ApiResource::erase::<Tunnel>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &tunnels);
        let object = self.api("read the Tunnel", api.get_opt(&key.name)).await?;
        Ok(object.filter(|object| object.metadata.uid.as_ref() == Some(&key.uid)).map(stored::read))
    }

    /// A request to the API server, with a time limit.
    pub(crate) async fn api<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let answer = tokio::time::timeout(API_TIMEOUT, request).await.map_err(|_| Error::Timeout(what))?;
        answer.map_err(|source| Error::Api { what, source })
    }

    /// CloseTunnel, whose turn `ticket` has.
    pub(crate) async fn close_tunnel(&self, ticket: &Key, id: &TunnelId) -> Result<(), CallError> {
        self.close.begin(ticket);
        let outcome = self.aws.close(id).await;
        self.close.end(ticket, &outcome);
        if outcome.is_ok() {
            self.open.probe_now();
        }
        outcome
    }

    /// Publishes an event of a Tunnel.
    pub(super) async fn event(&self, tunnel: &Tunnel, note: Note) {
        self.event_about(tunnel.object_ref(&()), note).await;
    }

    /// Publishes an event. It is told once and may be lost: nothing depends on it. (kube's Recorder
    /// repeats the note of an earlier event, and fails for names of more than 236 characters.)
    pub(crate) async fn event_about(&self, regarding: ObjectReference, note: Note) {
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let mut text = note.note;
        text.truncate(text.floor_char_boundary(1024)); // events.k8s.io/v1: at most 1 kB
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some("tunnel-".into()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(note.reason.clone()),
            reason: Some(note.reason),
            note: Some(text),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(regarding),
            reporting_controller: Some(MANAGER.into()),
            reporting_instance: Some(MANAGER.into()),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Err(error) = self.api("publish an event", api.create(&Default::default(), &event)).await {
            tracing::debug!(%error, "an event was lost");
        }
    }
}
