//! The way to the API server: its configuration, and the requests that need nothing else.

use crate::error::{API_TIMEOUT, Error};
use crate::event::Notice;
use crate::read::Key;
use crate::traces;
use crate::watch::stored::{self, Unreadable};
use hyper_util::client::proxy::matcher::Matcher;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::config::InferConfigError;
use kube::{Api, Client, Config, Resource};
use opentelemetry::trace::SpanKind;
use opentunnel_api::{MANAGER, Tunnel};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// The API server. The client repeats no request: a write whose answer was lost must be judged, not sent again.
#[derive(Clone)]
pub struct Kubernetes {
    /// For requests that this file has no function for, which go through [`Kubernetes::request`].
    pub client: Client,
    in_flight: Arc<Semaphore>,
}

/// Requests in flight at once; more wait. A start looks at all Tunnels at once: without a bound that is a storm, which
/// the API server's priority and fairness refuses, and whose answers all lie in memory. Watches and the Lease are not
/// counted.
const IN_FLIGHT: usize = 32;

impl Kubernetes {
    /// With a configuration as [`infer`] has it. `watch_limit`: a watch says something, or ends, within this time.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(mut config: Config, watch_limit: Duration) -> kube::Result<Self> {
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(5));
        // A list that is never answered is made anew.
        config.read_timeout = Some(watch_limit + Duration::from_secs(10));
        config.reset_reader_on_write = true;
        Ok(Self { client: Client::try_from(config)?, in_flight: Arc::new(Semaphore::new(IN_FLIGHT)) })
    }

    /// A request, with a time limit from when it is sent. It is made when there is room for it.
    ///
    /// # Errors
    /// The API server refused, or did not answer in time. `what` is said to people: "cannot {what}".
    pub async fn request<T, F: Future<Output = kube::Result<T>>>(
        &self,
        what: &'static str,
        request: impl FnOnce() -> F,
    ) -> Result<T, Error> {
        let mut span = traces::sent(what, SpanKind::Client);
        // Nobody closes the semaphore: an error is as good as a permit.
        let _permit = self.in_flight.acquire().await;
        let answer = match tokio::time::timeout(API_TIMEOUT, Box::pin(request())).await {
            Ok(answer) => answer.map_err(|source| Error::Api { what, source }),
            Err(_) => Err(Error::Timeout(what)),
        };
        span.answered(answer.as_ref().err());
        answer
    }

    /// The Tunnel as it is now, uncached, be it one that can be read or not. `None`: it is gone (another one of its
    /// name may be there).
    pub async fn read_tunnel(&self, key: &Key) -> Result<Option<Result<Tunnel, Box<Unreadable>>>, Error> {
        let tunnels = ApiResource::erase::<Tunnel>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &tunnels);
        let object = self.request("read the Tunnel", || api.get_opt(&key.name)).await?;
        Ok(object.filter(|object| object.metadata.uid.as_ref() == Some(&key.uid)).map(stored::read))
    }

    /// Publishes an Event. It is told once and may be lost: nothing depends on it. (kube's Recorder
    /// repeats the note of an earlier Event, and fails for names of more than 236 characters.)
    pub async fn publish(&self, regarding: ObjectReference, notice: Notice) {
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let mut note = notice.message;
        note.truncate(note.floor_char_boundary(1024)); // events.k8s.io/v1: at most 1 kB
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some("tunnel-".into()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(notice.reason.clone()),
            reason: Some(notice.reason),
            note: Some(note),
            type_: Some(if notice.warning { "Warning" } else { "Normal" }.into()),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(regarding),
            reporting_controller: Some(MANAGER.into()),
            reporting_instance: Some(MANAGER.into()),
            ..Event::default()
        };
        let (api, params) = (Api::<Event>::namespaced(self.client.clone(), &namespace), PostParams::default());
        if let Err(error) = self.request("publish an event", || api.create(&params, &event)).await {
            tracing::debug!(%error, "an event was lost");
        }
    }
}

/// The limit of each request at start.
pub const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a request at start is made again.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// The longest pause between two of them.
const START_PAUSE: Duration = Duration::from_secs(5);

/// A request at start, which is made again for a minute while the API server is busy: it refuses by its priority and
/// fairness (429), or fails (5xx). `None`: it does not answer.
pub async fn at_start<T, F: Future<Output = kube::Result<T>>>(request: impl Fn() -> F) -> Option<kube::Result<T>> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(200);
    loop {
        let answer = tokio::time::timeout(START_TIMEOUT, request()).await.ok();
        let busy = |error: &kube::Error| match error {
            kube::Error::Api(status) if status.code == 429 || status.code >= 500 => {
                let after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                Some(pause.max(Duration::from_secs(after.into())))
            }
            _ => None,
        };
        let wait = match &answer {
            None => Some(pause),
            Some(answer) => answer.as_ref().err().and_then(busy),
        };
        let Some(wait) = wait.map(|wait| wait.min(START_PAUSE)).filter(|wait| begun.elapsed() + *wait < START_LIMIT)
        else {
            return answer;
        };
        tracing::info!("the API server is busy; trying again in {wait:.1?}");
        tokio::time::sleep(wait.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause *= 2;
    }
}

/// What an Event about a Tunnel refers to. `name`: where it is known.
pub fn reference(namespace: &str, name: Option<&str>, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(Tunnel::api_version(&()).into()),
        kind: Some(Tunnel::kind(&()).into()),
        namespace: Some(namespace.to_owned()),
        name: name.map(str::to_owned),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// The configuration that kubectl would use, else the Pod's own, which no proxy has a part in.
///
/// # Errors
/// There is neither.
pub async fn infer() -> Result<Config, InferConfigError> {
    let mut config = Config::infer().await?;
    // kube sends all servers of a kubeconfig through HTTPS_PROXY: it asks NO_PROXY about the proxy, where
    // kubectl asks it about the server. A `proxy-url` in the kubeconfig stays as it is, as with kubectl.
    let from_environment = ["HTTPS_PROXY", "https_proxy"].iter().any(|name| {
        let proxy = std::env::var(name).ok().and_then(|value| value.parse().ok());
        proxy.is_some() && proxy == config.proxy_url
    });
    if from_environment && Matcher::from_env().intercept(&config.cluster_url).is_none() {
        config.proxy_url = None;
    }
    Ok(config)
}
