//! Flags, wiring, shutdown.

use clap::Parser;
use futures::future::{FutureExt, join_all};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client};
use opentunnel_operator::aws::Aws;
use opentunnel_operator::config::{CloseOrphans, Command, Run};
use opentunnel_operator::controller::abandoned;
use opentunnel_operator::controller::context::{Context, Parts};
use opentunnel_operator::controller::observe::Limits;
use opentunnel_operator::controller::scrape;
use opentunnel_operator::controller::watch::{self, Watch};
use opentunnel_operator::leader::{Election, Leadership};
use opentunnel_operator::metrics::Metrics;
use opentunnel_operator::orphans::sweep::Sweep;
use opentunnel_operator::{crd, kubernetes, telemetry};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// The limit of each request at start.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// After this time the lease is released, whatever is under way still.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Tunnels that were listed at start are all in the queue by then, so that the oldest is first.
const GATHER: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Crd => {
            serde_saphyr::to_string(&crd::definition()).map(|yaml| print!("{yaml}")).map_err(|e| e.to_string())
        }
        Command::Run(flags) => run(*flags).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("opentunnel-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Run) -> Result<(), String> {
    flags.check()?;
    telemetry::start_log(flags.log_format, &flags.log_filter)?;
    let signals = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let stopped = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping: calls in flight are finished, and what they return is written");
    };
    let listener = TcpListener::bind(flags.http_addr)
        .await
        .map_err(|e| format!("cannot listen on --http-addr {}: {e}; choose another address", flags.http_addr))?;
    let address = listener.local_addr().map_err(|e| format!("cannot listen: {e}"))?;
    tracing::info!(%address, "serving /healthz and /readyz to probes, /metrics to Prometheus");
    let ready = Arc::new(AtomicBool::new(false));
    let metrics = Arc::new(Metrics::new());
    let probes = tokio::spawn(telemetry::serve(listener, ready.clone(), metrics.clone()));
    tokio::pin!(stopped);
    let ctx = tokio::select! {
        ctx = connect(&flags, metrics) => ctx?,
        () = &mut stopped => return Ok(()),
    };
    let (ctx, woken, to_close, election) = ctx;
    let (resign, resigned) = tokio::sync::oneshot::channel::<()>();
    // Who leads is known before anything is reconciled, if it can be.
    let looked = election.as_ref().map(Election::looked);
    let mut election = tokio::spawn(async {
        match election {
            Some(election) => election.run(resigned.map(drop)).await,
            None => drop(resigned.await),
        }
    });
    if let Some(mut looked) = looked {
        tokio::select! {
            _ = looked.wait_for(|looked| *looked) => {}
            () = &mut stopped => {
                drop(resign);
                let _ = election.await;
                return Ok(());
            }
        }
    }
    let started = Instant::now();
    let (stop, stopping) = tokio::sync::watch::channel(false);
    // Each once: two watches of a namespace would be two operators that share one memory.
    let named: BTreeSet<_> = flags.watch_namespace.iter().cloned().map(Some).collect();
    let namespaces = if named.is_empty() { BTreeSet::from([None]) } else { named };
    let mut runs = JoinSet::new();
    let mut watches = Vec::new();
    for namespace in namespaces {
        let (watch, run) = Watch::start(&ctx, namespace, flags.watch_secrets, &stopping);
        watches.push(watch);
        runs.spawn(run);
    }
    let watches = Arc::new(watches);
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let mut closer = tokio::spawn(abandoned::close_all(ctx.clone(), to_close, finished.map(drop)));
    let (shared, told) = (ctx.clone(), watches.clone());
    let mut sweep = Sweep::new(&ctx, &watches, flags.close_orphans);
    let mut background = tokio::spawn(async move {
        let waking = watch::wake(&told, woken);
        let serving = async {
            join_all(told.iter().map(Watch::synced)).await;
            let scraped = (shared.clone(), told.clone());
            shared.metrics.go_live(move || scrape::snapshot(&scraped.0, &scraped.1));
            ready.store(true, Ordering::Relaxed);
            tracing::info!(region = shared.aws.region(), cluster_id = shared.cluster, "ready");
            tokio::time::sleep(GATHER).await;
            let leading = async {
                loop {
                    let term = shared.leader.gained().await;
                    // At start they are looked at without being woken.
                    if term > started {
                        watch::wake_all(&told);
                        tokio::time::sleep(GATHER).await;
                    }
                    // The sweep comes after a round of the poller's, and at no other time.
                    let poll = shared.poller.run(|| watch::watched(&shared, &told));
                    let work = async { tokio::join!(poll, sweep.run(), shared.open.run()) };
                    tokio::select! { _ = work => {}, () = shared.leader.lost(term) => {} }
                    shared.poller.forget_all();
                    [&shared.open, &shared.close, &shared.rotate].into_iter().for_each(|pacer| pacer.open_gate());
                    // They give their tickets back.
                    watch::wake_all(&told);
                }
            };
            // Who does not lead takes no tickets; but it finishes what it has in hand.
            tokio::join!(leading, shared.close.run(), shared.rotate.run());
        };
        tokio::join!(waking, serving)
    });
    let ended = "a part of the operator ended by itself, which is a bug: please report it, with the log";
    tokio::select! {
        () = &mut stopped => {}
        // Better to be started again than to look well and do nothing.
        _ = runs.join_next() => return Err(ended.into()),
        _ = &mut background => return Err(ended.into()),
        _ = &mut closer => return Err(ended.into()),
        _ = &mut election => return Err(ended.into()),
    }
    ctx.stopping.store(true, Ordering::Relaxed);
    let _ = stop.send(true);
    // What is under way is finished first, as a rule; but nobody waits for a call that hangs.
    let hands_over = async {
        let finishing = async { while runs.join_next().await.is_some() {} };
        tokio::pin!(finishing);
        let finished = tokio::time::timeout(HAND_OVER, &mut finishing).await.is_ok();
        let _ = resign.send(());
        let _ = election.await;
        if !finished {
            finishing.await;
        }
    };
    hands_over.await;
    // What was opened in vain is closed yet, as far as that can be done in the time of one call.
    drop(finish);
    let _ = tokio::time::timeout(flags.aws_timeout, closer).await;
    background.abort();
    probes.abort();
    Ok(())
}

type Connected = (
    Arc<Context>,
    tokio::sync::mpsc::UnboundedReceiver<opentunnel_operator::pacer::Key>,
    tokio::sync::mpsc::UnboundedReceiver<(opentunnel_operator::pacer::Key, opentunnel_operator::tunnels::TunnelRef)>,
    Option<Election>,
);

/// Finds the cluster and AWS, and says what to do where one is missing.
async fn connect(flags: &Run, metrics: Arc<Metrics>) -> Result<Connected, String> {
    let mut config = kubernetes::infer().await.map_err(|e| {
        format!("no Kubernetes cluster is configured ({e}): run in a Pod with a ServiceAccount, or set KUBECONFIG")
    })?;
    // A write whose answer was lost must be judged, not sent again: see Context::client.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    // A list that is never answered is made anew. A watch says something or ends before.
    config.read_timeout = Some(Duration::from_secs(watch::WATCH_SECONDS.into()) + Duration::from_secs(10));
    config.reset_reader_on_write = true;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|e| format!("the Kubernetes configuration cannot be used: {e}"))?;
    check_crd(&client, &server).await?;
    if flags.watch_secrets {
        check_secrets(&client, &flags.watch_namespace).await?;
    }
    let election = match flags.leader_elect {
        true => Some(Election::from_env(&client).await?),
        false => None,
    };
    let cluster = match &flags.cluster_id {
        Some(id) => id.clone(),
        None => cluster_id(&client).await?,
    };
    let aws = Aws::from_env(flags.aws_timeout, metrics.clone()).await.map_err(|e| e.to_string())?;
    let leader = election.as_ref().map_or_else(Leadership::always, Election::leadership);
    let (ctx, woken, to_close) = Context::new(Parts {
        client,
        aws,
        cluster,
        limits: Limits { aws_timeout: flags.aws_timeout, recovery_grace: flags.recovery_grace },
        open_rate: flags.open_rate,
        close_rate: flags.close_rate,
        poll_interval: flags.poll_interval,
        watch_secrets: flags.watch_secrets,
        look_for_orphans: flags.close_orphans != CloseOrphans::False,
        metrics,
        leader,
    });
    Ok((ctx, woken, to_close, election))
}

/// Without the rights to list them, the watch of Secrets would never be synced.
async fn check_secrets(client: &Client, namespaces: &[String]) -> Result<(), String> {
    let mut apis: Vec<Api<Secret>> = namespaces.iter().map(|n| Api::namespaced(client.clone(), n)).collect();
    if apis.is_empty() {
        apis.push(Api::all(client.clone()));
    }
    let one = ListParams::default().labels(&watch::secrets::selector()).limit(1);
    for api in apis {
        let listed = tokio::time::timeout(START_TIMEOUT, api.list_metadata(&one)).await;
        if let Ok(Err(kube::Error::Api(status))) = listed
            && status.code == 403
        {
            return Err(format!(
                "cannot list Secrets ({}): grant list and watch on them, or set --watch-secrets=false",
                status.message
            ));
        }
    }
    Ok(())
}

async fn cluster_id(client: &Client) -> Result<String, String> {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = tokio::time::timeout(START_TIMEOUT, api.get("kube-system"))
        .await
        .map_err(|_| "the API server does not answer".to_owned())?
        .map_err(|e| {
            format!("cannot read the UID of namespace kube-system ({e}): grant get on it, or set --cluster-id")
        })?;
    namespace.metadata.uid.ok_or_else(|| "namespace kube-system has no UID: set --cluster-id".into())
}

/// The CRD must be there, and have all that this operator writes: an older one would drop it silently.
async fn check_crd(client: &Client, server: &str) -> Result<(), String> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = tokio::time::timeout(START_TIMEOUT, api.get_opt("tunnels.opentunnel.dev"))
        .await
        .map_err(|_| format!("the Kubernetes API server {server} does not answer within {START_TIMEOUT:?}"))?;
    let installed = match found {
        Ok(Some(crd)) => crd,
        Ok(None) => return Err("the CustomResourceDefinition tunnels.opentunnel.dev is not installed: kubectl apply -f crds/tunnels.yaml (or: opentunnel-operator crd | kubectl apply -f -)".into()),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            tracing::warn!("cannot read the CustomResourceDefinition ({}), so its age is not checked", status.message);
            return Ok(());
        }
        Err(kube::Error::Api(status)) => return Err(format!("the Kubernetes API server {server} refuses: {}", status.message)),
        Err(e) => return Err(format!("the Kubernetes API server {server} cannot be reached ({e}): is the cluster up, and does KUBECONFIG name it?")),
    };
    match crd::missing_fields(&installed).as_slice() {
        [] => Ok(()),
        missing => Err(format!(
            "the installed CustomResourceDefinition tunnels.opentunnel.dev is too old (it lacks {}): kubectl apply -f crds/tunnels.yaml",
            missing.join(", ")
        )),
    }
}
