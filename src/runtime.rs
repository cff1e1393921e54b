//! Wires the parts, starts them, and stops them.

mod connect;

use crate::config::Run;
use crate::context::Context;
use crate::leader::Election;
use crate::metrics::{Metrics, scrape};
use crate::read::Key;
use crate::surplus::Surplus;
use crate::telemetry::Readiness;
use crate::watch::{self, Watch};
use crate::{surplus, telemetry, traces};
use futures::future::{FutureExt, join_all};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// After this time the Lease is released, whatever is under way still.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Tunnels that were listed at start are all in the queue by then, so that the oldest is first.
const GATHER: Duration = Duration::from_millis(200);
/// A part of the operator has ended by itself.
const BUG: &str = "a part of the operator ended by itself, which is a bug: please report it, with the log";

/// Runs the operator until it is asked to stop.
///
/// # Errors
/// A text for people: what is missing or wrong, and what to do.
pub async fn run(flags: Run) -> Result<(), String> {
    flags.check()?;
    telemetry::start_log(flags.log_format, &flags.log_filter)?;
    traces::start();
    let stopped = asked_to_stop()?;
    let readiness = Arc::new(Readiness::default());
    let metrics = Arc::new(Metrics::new());
    let probes = serve(&flags, readiness.clone(), metrics.clone())?;
    tokio::pin!(stopped);
    let connected = tokio::select! {
        connected = connect::connect(&flags, metrics, readiness.clone()) => connected?,
        () = &mut stopped => return Ok(()),
    };
    let candidacy = Candidacy::start(connected.election);
    tokio::select! {
        () = candidacy.looked() => {}
        () = &mut stopped => {
            candidacy.end().await;
            return Ok(());
        }
    }
    let mut parts = Parts::start(&flags, connected.ctx, connected.woken, connected.surplus, readiness);
    let mut candidacy = candidacy;
    tokio::select! {
        () = &mut stopped => {}
        // Better to be started again than to look well and do nothing.
        () = parts.any_ends() => return Err(BUG.into()),
        _ = &mut candidacy.election => return Err(BUG.into()),
    }
    parts.stop(candidacy, flags.aws_timeout).await;
    traces::stop().await;
    probes.abort();
    Ok(())
}

/// Ends when the process is asked to stop.
fn asked_to_stop() -> Result<impl Future<Output = ()>, String> {
    let signals = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping: calls in flight are finished, and what they return is written");
    })
}

fn serve(
    flags: &Run,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
) -> Result<JoinHandle<std::io::Result<()>>, String> {
    let listener = telemetry::bind(flags.http_addr)
        .map_err(|e| format!("cannot listen on --http-addr {}: {e}; choose another address", flags.http_addr))?;
    let address = listener.local_addr().map_err(|e| format!("cannot listen: {e}"))?;
    tracing::info!(%address, "serving /healthz and /readyz to probes, /metrics to Prometheus");
    Ok(tokio::spawn(telemetry::serve(listener, readiness, metrics)))
}

/// This process's part in the election.
struct Candidacy {
    election: JoinHandle<()>,
    looked: Option<tokio::sync::watch::Receiver<bool>>,
    resign: oneshot::Sender<()>,
}

impl Candidacy {
    /// `election`: `None`: there is none.
    fn start(election: Option<Election>) -> Self {
        let (resign, resigned) = oneshot::channel();
        let looked = election.as_ref().map(Election::looked);
        let election = tokio::spawn(async {
            match election {
                Some(election) => election.run(resigned.map(drop)).await,
                None => drop(resigned.await),
            }
        });
        Self { election, looked, resign }
    }

    /// Who leads is known before anything is reconciled, if it can be.
    async fn looked(&self) {
        if let Some(mut looked) = self.looked.clone() {
            let _ = looked.wait_for(|looked| *looked).await;
        }
    }

    /// Gives the Lease back.
    async fn end(self) {
        drop(self.resign);
        let _ = self.election.await;
    }
}

/// What runs until the process is asked to stop.
struct Parts {
    ctx: Arc<Context>,
    stop: tokio::sync::watch::Sender<bool>,
    watches: JoinSet<()>,
    closer: JoinHandle<()>,
    finish_closing: oneshot::Sender<()>,
    background: JoinHandle<()>,
}

impl Parts {
    fn start(
        flags: &Run,
        ctx: Arc<Context>,
        woken: mpsc::UnboundedReceiver<Key>,
        to_close: mpsc::UnboundedReceiver<Surplus>,
        readiness: Arc<Readiness>,
    ) -> Self {
        let started = Instant::now();
        let (stop, stopping) = tokio::sync::watch::channel(false);
        // Each once: two watches of a namespace would be two operators that share one memory.
        let named: BTreeSet<_> = flags.watch_namespace.iter().cloned().map(Some).collect();
        let namespaces = if named.is_empty() { BTreeSet::from([None]) } else { named };
        let (mut watches, mut shown) = (JoinSet::new(), Vec::new());
        for namespace in namespaces {
            let (watch, run) = Watch::start(&ctx, namespace, flags.watch_secrets, &readiness, &stopping);
            shown.push(watch);
            watches.spawn(run);
        }
        let (finish_closing, finished) = oneshot::channel::<()>();
        let closer = tokio::spawn(surplus::close_all(ctx.clone(), to_close, finished.map(drop)));
        let background = tokio::spawn(work(ctx.clone(), Arc::new(shown), woken, readiness, started));
        Self { ctx, stop, watches, closer, finish_closing, background }
    }

    /// Ends when any part does, which it should not.
    async fn any_ends(&mut self) {
        tokio::select! {
            _ = self.watches.join_next() => {}
            _ = &mut self.background => {}
            _ = &mut self.closer => {}
        }
    }

    async fn stop(mut self, candidacy: Candidacy, aws_timeout: Duration) {
        self.ctx.stopping.store(true, Ordering::Relaxed);
        let _ = self.stop.send(true);
        // What is under way is finished first, as a rule; but nobody waits for a call that hangs.
        let finishing = async { while self.watches.join_next().await.is_some() {} };
        tokio::pin!(finishing);
        let finished = tokio::time::timeout(HAND_OVER, &mut finishing).await.is_ok();
        candidacy.end().await;
        if !finished {
            finishing.await;
        }
        self.ctx.memories.stop_traces();
        // Surplus tunnels are closed yet, as far as that can be done in the time of one call.
        drop(self.finish_closing);
        let _ = tokio::time::timeout(aws_timeout, self.closer).await;
        self.background.abort();
    }
}

/// What serves all Tunnels.
async fn work(
    ctx: Arc<Context>,
    watches: Arc<Vec<Watch>>,
    woken: mpsc::UnboundedReceiver<Key>,
    readiness: Arc<Readiness>,
    started: Instant,
) {
    let waking = watch::wake(&watches, woken);
    let serving = async {
        join_all(watches.iter().map(Watch::synced)).await;
        let scraped = (ctx.clone(), watches.clone());
        ctx.metrics.go_live(move || scrape::snapshot(&scraped.0, &scraped.1));
        readiness.synced();
        tracing::info!(region = ctx.account.aws.region(), cluster_id = ctx.account.cluster, "ready");
        if watches.iter().any(|watch| !watch.tunnels().is_empty()) {
            tokio::time::sleep(GATHER).await;
        }
        // A replica that does not lead takes no tickets; but it finishes what it has in hand.
        tokio::join!(lead(&ctx, &watches, started), ctx.account.run());
    };
    tokio::join!(waking, serving);
}

/// Leads whenever this process does.
async fn lead(ctx: &Context, watches: &[Watch], started: Instant) {
    loop {
        let term = ctx.leader.gained().await;
        // At start they are looked at without being woken.
        if term > started {
            watch::wake_all(watches);
            tokio::time::sleep(GATHER).await;
        }
        tokio::select! {
            () = ctx.account.lead(ctx, watches) => {}
            () = ctx.leader.lost(term) => {}
        }
        ctx.account.step_down();
        // They give their tickets back.
        watch::wake_all(watches);
    }
}
