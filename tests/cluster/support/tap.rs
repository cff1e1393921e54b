//! Counts the requests of an operator, to the API server and to AWS alike, and does something about one
//! of them: so every request is a place where something can go wrong.

use super::api_proxy::{Cut, Point, Request};
use super::faults::Instead;
use super::operator::Operator;
use super::sight::{Eyes, Sight};
use axum::body::{Body, to_bytes};
use axum::http::Response;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// An operator that has an answer shows it by its next request, or has none to make after this time.
const DELIVERY: Duration = Duration::from_millis(500);

/// A request, and the how many'th of its kind it is. Its place in the list of all is the k of "the k-th
/// request"; it is told by its name, because requests of the poller come in between those of a
/// reconcile, and a number would then mean another one in another run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// As `PATCH tunnels/life/status` or `AWS OpenTunnel`.
    pub request: String,
    /// From 1.
    pub nth: usize,
}

impl Step {
    /// Before the first request.
    pub fn start() -> Self {
        Self { request: "(before)".into(), nth: 1 }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nth {
            1 => f.write_str(&self.request),
            nth => write!(f, "{} #{nth}", self.request),
        }
    }
}

/// What goes wrong at a request. Another kind of fault is another variant, and its lines in [`Tap::pass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the operator.
    Kill(Moment),
    /// The operator lives, and gets something else than the API server's answer.
    Kubernetes(Instead),
    /// The operator lives, and gets something else than AWS's answer.
    Aws(Instead),
    /// The operator lives, and from then on its watches show things late, or in part.
    Sight(Sight),
}

impl Fault {
    /// Whether it may happen to this request.
    pub fn befalls(self, step: &Step) -> bool {
        let aws = step.request.starts_with("AWS ");
        match self {
            Self::Kill(_) | Self::Sight(_) => true,
            Self::Kubernetes(instead) => !aws && instead.befalls(step.request.starts_with("GET ")),
            Self::Aws(_) => aws,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill(Moment::BeforeForward) => "killed before",
            Self::Kill(Moment::AfterCommit) => "after commit",
            Self::Kill(Moment::AfterAnswer) => "after answer",
            Self::Kubernetes(instead) | Self::Aws(instead) => return instead.fmt(f),
            Self::Sight(sight) => return sight.fmt(f),
        })
    }
}

/// When the operator is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The service does not know of the request, and never will.
    BeforeForward,
    /// The service has carried it out; the operator does not know.
    AfterCommit,
    /// The operator has the answer; nothing that it does about it reaches anybody.
    AfterAnswer,
}

#[derive(Default)]
struct State {
    counts: bool,
    steps: Vec<Step>,
    /// Reads since the last write.
    read: HashSet<String>,
    /// When the last request of a Tunnel's came.
    last: Option<Instant>,
    /// The first is the next one.
    faults: VecDeque<(Step, Fault)>,
    /// The operator's end has come: no request of its passes any more.
    shut: bool,
    /// It came before the operator was handed over.
    doomed: bool,
    /// The door of the operator that lives.
    door: usize,
    victim: Option<Operator>,
}

/// What the proxies of one operator (and of the one after it) tell of every request.
pub struct Tap {
    polls: bool,
    /// What its operator sees of watches.
    pub eyes: Arc<Eyes>,
    state: Mutex<State>,
    struck: watch::Sender<usize>,
    /// A request came while the operator's end had come.
    refused: Notify,
    own: Weak<Self>,
}

impl Tap {
    /// One that counts nothing yet. `polls`: the first ListTunnels counts.
    pub fn new(polls: bool) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            polls,
            eyes: Arc::default(),
            state: Mutex::default(),
            struck: watch::Sender::new(0),
            refused: Notify::new(),
            own: own.clone(),
        })
    }

    /// The operator that a fault is for.
    pub fn holds(&self, operator: Operator) {
        let mut state = self.lock();
        state.victim = Some(operator);
        if std::mem::take(&mut state.doomed) {
            drop(state);
            self.kill();
        }
    }

    /// Counts from now on, and lets faults happen: a second one after the first, among the requests of the
    /// operator that comes after a killed one.
    pub fn count(&self, faults: impl IntoIterator<Item = (Step, Fault)>) {
        let mut state = self.lock();
        state.counts = true;
        state.faults = faults.into_iter().collect();
        if let Some((_, Fault::Sight(sight))) = state.faults.pop_front_if(|(step, _)| *step == Step::start()) {
            self.eyes.see(sight);
            self.strike();
        }
    }

    /// What was counted of the present operator.
    pub fn steps(&self) -> Vec<Step> {
        self.lock().steps.clone()
    }

    /// Returns once no request of a Tunnel's has come for so long.
    pub async fn quiet(&self, time: Duration) {
        let begun = Instant::now();
        loop {
            let since = self.lock().last.unwrap_or(begun).max(begun).elapsed();
            match time.checked_sub(since) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    }

    /// Sends the operator a signal, as `STOP`.
    pub fn signal(&self, name: &str) {
        self.lock().victim.as_ref().expect("there is an operator").signal(name);
    }

    /// Kills the operator, if there is one still.
    pub fn end(&self) {
        let victim = self.lock().victim.take();
        drop(victim);
    }

    /// Returns once the fault has happened.
    pub async fn struck(&self) {
        self.struck_times(1).await;
    }

    /// Returns once so many faults have happened.
    pub async fn struck_times(&self, times: usize) {
        let _ = self.struck.subscribe().wait_for(|struck| *struck >= times).await;
    }

    /// Lets a request pass, or what is to happen to it happen.
    pub async fn pass(
        &self,
        door: usize,
        request: &Request,
        forward: impl Future<Output = Result<Response<Body>, Cut>>,
    ) -> Result<Response<Body>, Cut> {
        let moment = match self.arrives(door, request)? {
            None => return forward.await,
            Some(Fault::Kill(moment)) => moment,
            Some(Fault::Sight(sight)) => {
                self.eyes.see(sight);
                self.strike();
                return forward.await;
            }
            Some(Fault::Kubernetes(instead) | Fault::Aws(instead)) => {
                let _strikes = Strikes(self);
                if instead.point == Point::AfterCommit {
                    let _ = to_bytes(forward.await?.into_body(), usize::MAX).await;
                }
                return instead.answer(request).await;
            }
        };
        if moment == Moment::BeforeForward {
            self.kill();
            return Err(Cut);
        }
        let answer = forward.await;
        if moment == Moment::AfterCommit || answer.is_err() {
            self.kill();
            return Err(Cut);
        }
        let (parts, body) = answer?.into_parts();
        let body = to_bytes(body, usize::MAX).await.map_err(|_| Cut)?;
        let tap = self.own.upgrade().ok_or(Cut)?;
        tokio::spawn(async move {
            let _ = timeout(DELIVERY, tap.refused.notified()).await;
            tap.kill();
        });
        Ok(Response::from_parts(parts, body.into()))
    }

    /// Counts a request. `Some`: it is the one that the fault is for.
    fn arrives(&self, door: usize, request: &Request) -> Result<Option<Fault>, Cut> {
        let mut state = self.lock();
        if state.shut || door != state.door {
            self.refused.notify_one();
            return Err(Cut);
        }
        // The election goes on by itself.
        if request.path.contains("/leases") {
            return Ok(None);
        }
        let polled = request.calls("ListTunnels") || (request.operation.is_none() && request.query.contains("watch="));
        if !polled {
            state.last = Some(Instant::now());
        }
        if !state.counts {
            return Ok(None);
        }
        let Some(step) = self.step(&mut state, request) else { return Ok(None) };
        state.steps.push(step.clone());
        let Some((_, fault)) = state.faults.pop_front_if(|(at, _)| *at == step) else { return Ok(None) };
        state.shut = matches!(fault, Fault::Kill(_));
        Ok(Some(fault))
    }

    /// What counts: every request of a Tunnel's life that comes in each run. Left out are
    /// - what a process sends at its start, whatever there is to do: it comes again with the next one,
    ///   before anything of a Tunnel's (reads outside of the namespace; the first list and the watch);
    /// - a read that was made before and after which nothing was written: how many reconciles there are
    ///   in between depends on when events come, and none of them changes anything;
    /// - ListTunnels but for the first, in lives that last a round of the poller: it comes every second.
    fn step(&self, state: &mut State, request: &Request) -> Option<Step> {
        let (name, reads, event) = match &request.operation {
            Some(operation) if operation == "ListTunnels" => {
                let first = !state.steps.iter().any(|step| step.request.ends_with(operation));
                (self.polls && first).then(|| (format!("AWS {operation}"), true, false))?
            }
            Some(operation) => (format!("AWS {operation}"), operation == "DescribeTunnel", false),
            None => {
                let (_, namespaced) = request.path.split_once("/namespaces/")?;
                let (_, object) = namespaced.split_once('/')?;
                let (reads, dry) = (request.method == "GET", request.query.contains("dryRun=All"));
                if reads && !object.contains('/') {
                    return None;
                }
                let dry_run = if dry { " (dry run)" } else { "" };
                (format!("{} {object}{dry_run}", request.method), reads || dry, object == "events")
            }
        };
        if reads && !state.read.insert(name.clone()) {
            return None;
        }
        // Nothing depends on an Event.
        if !reads && !event {
            state.read.clear();
        }
        let nth = 1 + state.steps.iter().filter(|step| step.request == name).count();
        Some(Step { request: name, nth })
    }

    /// Kills the operator: the next one comes in by the next door.
    pub fn kill(&self) {
        let mut state = self.lock();
        let Some(victim) = state.victim.take() else {
            state.doomed = true;
            return;
        };
        drop(state);
        // Returns once it is no more.
        drop(victim);
        let mut state = self.lock();
        state.shut = false;
        state.door += 1;
        // What the next one does is listed anew.
        state.steps.clear();
        state.read.clear();
        drop(state);
        self.strike();
    }

    fn strike(&self) {
        self.struck.send_modify(|times| *times += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fault has happened when this is dropped: also where the operator gives a request up.
struct Strikes<'a>(&'a Tap);

impl Drop for Strikes<'_> {
    fn drop(&mut self) {
        self.0.strike();
    }
}
