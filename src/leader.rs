//! Leader election over a Lease (coordination.k8s.io/v1): of several replicas one works, the others stand by.
//!
//! It keeps replicas from working against each other and from spending AWS's quota twice. What keeps them from
//! opening a tunnel twice is the claim (docs/protocol.md), whoever leads. The rules are in [`candidate`], which is
//! pure; this file talks to the API server and hands out [`Leadership`].

pub mod candidate;

use crate::clock::Mono;
use candidate::{Candidate, Holder, Next, Record, Right, Timing};
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The Lease's name.
pub const LEASE: &str = "opentunnel-operator";
/// The times are client-go's defaults (`LeaseDuration`, `RenewDeadline`, `RetryPeriod`). A standby looks every
/// second, twice as often: then a Lease that is released has a new holder in little more than that. It looks by a
/// GET of one object: a watch would be told sooner, and may be dead without anybody noticing.
pub const TIMING: Timing = Timing {
    lease: Duration::from_secs(15),
    deadline: Duration::from_secs(10),
    renew: Duration::from_secs(2),
    look: Duration::from_secs(1),
};
/// The limit of one request: within the deadline a renewal is tried more than once.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// After a request that failed, and not because somebody else was first.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether this process leads. It is asked before everything that is begun.
pub struct Leadership {
    /// Where [`Mono`] counts from.
    start: Instant,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Clone, Copy)]
enum State {
    /// There is no election.
    Always,
    /// There is one.
    Elected(Option<Right>),
}

impl Leadership {
    /// Of a process that leads whoever else does.
    pub fn always() -> Arc<Self> {
        Self::with(State::Always)
    }

    fn with(state: State) -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), state: Mutex::new(state), changed: watch::Sender::new(()) })
    }

    /// Since when this process leads, without a break. `None`: it does not. It is the clock that tells, at the moment
    /// of asking: a process that was paused knows it when it wakes.
    pub fn since(&self) -> Option<Instant> {
        match self.state() {
            State::Always => Some(self.start),
            State::Elected(right) => {
                right.filter(|right| self.now() < right.until).map(|right| self.start + right.since.0)
            }
        }
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.since().is_some()
    }

    /// Returns once it leads: since when.
    pub async fn gained(&self) -> Instant {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(since) = self.since() {
                return since;
            }
            let _ = changed.changed().await;
        }
    }

    /// Returns once it does not lead any more, or anew since another moment.
    pub async fn lost(&self, term: Instant) {
        let mut changed = self.changed.subscribe();
        while self.since() == Some(term) {
            let until = match self.state() {
                State::Elected(Some(right)) => right.until,
                _ => return std::future::pending().await,
            };
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep(until.0.saturating_sub(self.now().0)) => {}
            }
        }
    }

    fn now(&self) -> Mono {
        Mono(self.start.elapsed())
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, right: Option<Right>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Elected(right);
        self.changed.send_replace(());
    }
}

/// A candidacy.
pub struct Election {
    api: Api<Lease>,
    /// As `edge/opentunnel-operator`, for people.
    place: String,
    me: String,
    /// What the identity of every process of this Pod begins with. A process that finds the Lease with one that is not its
    /// own goes on where its predecessor was: kubelet starts a container anew only when it has ended.
    pod: Option<String>,
    candidate: Candidate<String>,
    /// The Lease as it was last seen.
    lease: Option<Lease>,
    leadership: Arc<Leadership>,
    looked: watch::Sender<bool>,
    /// What was last told, so that it is told once.
    told: Option<String>,
    trouble: Option<String>,
}

enum Failure {
    /// Somebody else was first.
    Conflict,
    Told(String),
}

impl Election {
    /// A candidacy for the Lease in a namespace. `name` is for people: whose it is, is told by a random ID behind it.
    /// `pod`: the UID of the Pod, if this is the only process in it that takes part. (The name would not do: where a node
    /// was lost, a Pod of that name may be made elsewhere while the old one still runs.)
    pub fn new(client: Client, namespace: &str, name: &str, pod: Option<&str>) -> Self {
        let pod = pod.map(|uid| format!("{name}_{uid}_"));
        Self {
            api: Api::namespaced(client, namespace),
            place: format!("{namespace}/{LEASE}"),
            me: format!("{}{}", pod.clone().unwrap_or_else(|| format!("{name}_")), uuid::Uuid::new_v4()),
            pod,
            candidate: Candidate::new(TIMING),
            lease: None,
            leadership: Leadership::with(State::Elected(None)),
            looked: watch::Sender::new(false),
            told: None,
            trouble: None,
        }
    }

    /// A candidacy as the environment says: POD_NAMESPACE (else the context's namespace, which in a Pod is the
    /// ServiceAccount's) has the Lease, POD_NAME is the name, POD_UID the Pod.
    ///
    /// # Errors
    /// A text for people: rights are missing.
    pub async fn from_env(client: &Client) -> Result<Self, String> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let namespace = set("POD_NAMESPACE").unwrap_or_else(|| client.default_namespace().into());
        let hostname = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let name = set("POD_NAME").or_else(|| set("HOSTNAME")).or_else(hostname).unwrap_or_else(|| LEASE.into());
        check_rights(client, &namespace).await?;
        Ok(Self::new(client.clone(), &namespace, name.trim(), set("POD_UID").as_deref()))
    }

    /// Who leads.
    pub fn leadership(&self) -> Arc<Leadership> {
        self.leadership.clone()
    }

    /// Becomes true once it is known whether this process leads, or that it cannot be known yet.
    pub fn looked(&self) -> watch::Receiver<bool> {
        self.looked.subscribe()
    }

    /// Takes part until `stop`; then gives the lease back, so that another one need not wait until it runs out.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let pause = match self.candidate.next(self.now()) {
                Next::Read => self.read().await,
                Next::Write(version) => self.write(version).await,
                Next::Wait(until) => {
                    self.tell();
                    let wait = until.0.saturating_sub(self.now().0);
                    tokio::select! {
                        () = sleep(wait) => self.candidate.waited(self.now()),
                        () = &mut stop => break,
                    }
                    false
                }
            };
            self.leadership.set(self.candidate.right());
            if pause {
                self.tell();
                tokio::select! { () = sleep(PAUSE) => {}, () = &mut stop => break }
            }
        }
        self.release().await;
    }

    fn now(&self) -> Mono {
        self.leadership.now()
    }

    /// Whether there has to be a pause before the next request.
    async fn read(&mut self) -> bool {
        match self.call("read", self.api.get_opt(LEASE)).await {
            Ok(lease) => {
                let record = lease.as_ref().map(|lease| self.record(lease));
                self.lease = lease;
                self.candidate.read(record, self.now());
                self.trouble = None;
                false
            }
            Err(failure) => self.failed(failure),
        }
    }

    async fn write(&mut self, version: Option<String>) -> bool {
        let begun = self.now();
        let params = PostParams::default();
        let seen = self.lease.clone().filter(|lease| version.is_some() && lease.resource_version() == version);
        let outcome = match (version, seen) {
            (None, _) => {
                let lease = self.mine(Lease::default());
                self.call("create", self.api.create(&params, &lease)).await
            }
            (Some(_), Some(seen)) => {
                let lease = self.mine(seen);
                self.call("update", self.api.replace(LEASE, &params, &lease)).await
            }
            (Some(_), None) => Err(Failure::Conflict),
        };
        match outcome {
            Ok(lease) => {
                self.candidate.written(self.record(&lease), begun, self.now());
                self.lease = Some(lease);
                self.trouble = None;
                false
            }
            Err(failure) => self.failed(failure),
        }
    }

    /// Nobody has to wait for a lease that nobody uses any more. If it fails, the lease runs out.
    async fn release(&mut self) {
        self.candidate.resigns();
        self.leadership.set(None);
        let Some(mut lease) = self.lease.take().filter(|lease| self.is_mine(lease)) else { return };
        // As client-go's ReleaseOnCancel: the duration may not be 0.
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        match self.call("release", self.api.replace(LEASE, &PostParams::default(), &lease)).await {
            Ok(_) => tracing::info!(lease = self.place, "the Lease is released"),
            Err(Failure::Conflict) => {}
            Err(Failure::Told(words)) => tracing::warn!("{words}; others wait until it runs out"),
        }
    }

    /// The same Lease, whoever's it is, as this candidate's.
    fn mine(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(Timestamp::now());
        let renews = self.is_mine(&lease);
        lease.metadata.name = Some(LEASE.into());
        // The API server tells it anew.
        lease.metadata.managed_fields = None;
        let spec = lease.spec.get_or_insert_default();
        if !renews {
            let led_before = spec.acquire_time.replace(now.clone()).is_some();
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(led_before.into()));
        }
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(TIMING.lease.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        holder(lease) == Some(&self.me)
    }

    fn record(&self, lease: &Lease) -> Record<String> {
        let holder = match holder(lease) {
            None => Holder::Nobody,
            Some(holder) if *holder == self.me => Holder::Me,
            Some(holder) if self.pod.as_ref().is_some_and(|pod| holder.starts_with(pod)) => Holder::Predecessor,
            Some(_) => Holder::Other,
        };
        let lasts = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let lasts = Duration::from_secs(u64::try_from(lasts).unwrap_or_default());
        Record { holder, version: lease.resource_version().unwrap_or_default(), lasts }
    }

    async fn call<T>(&self, what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        let place = &self.place;
        match timeout(CALL_LIMIT, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Failure::Conflict),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                Err(Failure::Told(missing_rights(&status.message)))
            }
            Ok(Err(kube::Error::Api(status))) => {
                Err(Failure::Told(format!("cannot {what} the Lease {place}: {} ({})", status.message, status.code)))
            }
            Ok(Err(error)) => Err(Failure::Told(format!("cannot {what} the Lease {place}: {error}"))),
            Err(_) => Err(Failure::Told(format!(
                "cannot {what} the Lease {place}: the API server did not answer within {CALL_LIMIT:?}"
            ))),
        }
    }

    fn failed(&mut self, failure: Failure) -> bool {
        self.candidate.failed();
        match failure {
            Failure::Conflict => false,
            Failure::Told(words) => {
                if self.trouble.as_ref() != Some(&words) {
                    tracing::warn!("{words}; trying again");
                    self.trouble = Some(words);
                }
                true
            }
        }
    }

    /// Who leads, as far as it is known.
    fn tell(&mut self) {
        self.looked.send_replace(true);
        let leader = if self.candidate.leads(self.now()) {
            self.me.clone()
        } else {
            match self.lease.as_ref().and_then(holder).filter(|holder| **holder != self.me) {
                Some(holder) => holder.clone(),
                None => "nobody".into(),
            }
        };
        if self.told.as_ref() == Some(&leader) {
            return;
        }
        let (lease, identity) = (&self.place, &self.me);
        if leader == self.me {
            tracing::info!(lease, identity, "leading");
        } else {
            tracing::info!(lease, identity, leader, "standby: nothing is begun here");
        }
        self.told = Some(leader);
    }
}

/// Asks the API server what this process may do with the Lease: a right that lacks would be noticed only when it is
/// its turn to lead.
async fn check_rights(client: &Client, namespace: &str) -> Result<(), String> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let checks = ["get", "create", "update"].map(async |verb| {
        let attributes = ResourceAttributes {
            group: Some("coordination.k8s.io".into()),
            resource: Some("leases".into()),
            // A create is asked for without a name.
            name: (verb != "create").then(|| LEASE.into()),
            namespace: Some(namespace.into()),
            verb: Some(verb.into()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        // Who may not even ask is told when the request is refused.
        match timeout(CALL_LIMIT, reviews.create(&PostParams::default(), &review)).await {
            Ok(Ok(SelfSubjectAccessReview { status: Some(status), .. })) if !status.allowed => Some(verb),
            _ => None,
        }
    });
    let denied: Vec<&str> = futures::future::join_all(checks).await.into_iter().flatten().collect();
    match denied.as_slice() {
        [] => Ok(()),
        verbs => {
            let verbs = verbs.join(", ");
            Err(missing_rights(&format!("no right to {verbs} the Lease {LEASE} in namespace {namespace}")))
        }
    }
}

/// What to say where RBAC refuses.
fn missing_rights(words: &str) -> String {
    format!(
        "no leader can be elected ({words}): grant get, create and update on leases.coordination.k8s.io there, say with \
         POD_NAMESPACE in which namespace the Lease {LEASE} is to be, or run a single operator with --leader-elect=false"
    )
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}
