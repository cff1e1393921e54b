//! Finds the cluster and AWS, and says what to do where one is missing.

use crate::account::{Account, Use};
use crate::aws::Aws;
use crate::clock::Clock;
use crate::config::{CloseOrphans, Run};
use crate::context::{Context, TakesSecrets, Things};
use crate::crd;
use crate::facts::Limits;
use crate::kubernetes::{self, Kubernetes, START_TIMEOUT, at_start};
use crate::leader::{Election, Leadership};
use crate::memory::store::Memories;
use crate::metrics::Metrics;
use crate::orphans::Scope;
use crate::orphans::sweep::Sweep;
use crate::poller::Rounds;
use crate::read::Key;
use crate::surplus::Surplus;
use crate::telemetry::Readiness;
use crate::watch::owned::OwnedSecrets;
use crate::watch::{self, WATCH_SECONDS};
use futures::future::{OptionFuture, try_join};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::ListParams;
use kube::{Api, Client};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::mpsc;

/// What the other parts begin with.
pub(super) struct Connected {
    pub(super) ctx: Arc<Context>,
    /// Tunnels that are to be woken.
    pub(super) woken: mpsc::UnboundedReceiver<Key>,
    /// Surplus tunnels that are to be closed.
    pub(super) surplus: mpsc::UnboundedReceiver<Surplus>,
    /// `None`: this process leads whoever else does.
    pub(super) election: Option<Election>,
}

pub(super) async fn connect(
    flags: &Run,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
) -> Result<Connected, String> {
    let config = kubernetes::infer().await.map_err(|e| {
        format!("no Kubernetes cluster is configured ({e}): run in a Pod with a ServiceAccount, or set KUBECONFIG")
    })?;
    let server = config.cluster_url.to_string();
    let kubernetes = Kubernetes::new(config, Duration::from_secs(WATCH_SECONDS.into()))
        .map_err(|e| format!("the Kubernetes configuration cannot be used: {e}"))?;
    let client = &kubernetes.client;
    let secrets = OptionFuture::from(flags.watch_secrets.then(|| check_secrets(client, &flags.watch_namespace)));
    let election = OptionFuture::from(flags.leader_elect.then(|| Election::from_env(client)));
    let cluster = async {
        match &flags.cluster_id {
            Some(id) => Ok(id.clone()),
            None => cluster_id(client).await,
        }
    };
    let aws = Aws::from_env(flags.aws_timeout, metrics.clone(), readiness.clone());
    // At once, because each is a way to somebody else; what is told is what has to be put right first. Rights are asked for
    // once, so the API server has to answer by then.
    let checked = async {
        crd::installed(client, &server, &readiness).await?;
        Ok::<_, String>(tokio::join!(secrets, election))
    };
    let others = async { Ok(tokio::join!(cluster, aws)) };
    let ((secrets, election), (cluster, aws)) = try_join(checked, others).await?;
    secrets.transpose()?;
    let (election, cluster, aws) = (election.transpose()?, cluster?, aws.map_err(|e| e.to_string())?);
    let leader = election.as_ref().map_or_else(Leadership::always, Election::leadership);
    let (clock, (wake, woken)) = (Clock::new(), mpsc::unbounded_channel());
    let (account, surplus) = Account::new(aws, how_to_use(flags, cluster), clock, &metrics, &wake);
    let ctx = Context {
        kubernetes,
        account,
        limits: limits(flags),
        clock,
        leader,
        stopping: AtomicBool::new(false),
        memories: Memories::default(),
        owned: OwnedSecrets::default(),
        takes_secrets: TakesSecrets::default(),
        things: Things::default(),
        wake,
        metrics,
    };
    Ok(Connected { ctx: Arc::new(ctx), woken, surplus, election })
}

fn limits(flags: &Run) -> Limits {
    Limits { aws_timeout: flags.aws_timeout, recovery_grace: flags.recovery_grace }
}

fn how_to_use(flags: &Run, cluster: String) -> Use {
    let scope = Scope {
        cluster: cluster.clone(),
        namespaces: flags.watch_namespace.iter().cloned().collect(),
        grace: flags.recovery_grace,
    };
    Use {
        cluster,
        default_tags: flags.default_tag.iter().cloned().collect(),
        open_rate: flags.open_rate,
        close_rate: flags.close_rate,
        rounds: Rounds {
            interval: flags.poll_interval,
            wake_all: !flags.watch_secrets,
            unknown_after: (flags.close_orphans != CloseOrphans::False).then_some(flags.recovery_grace),
        },
        sweep: Sweep::new(flags.close_orphans, scope),
    }
}

/// Without the rights to list them, the watch of Secrets would never be synced.
async fn check_secrets(client: &Client, namespaces: &[String]) -> Result<(), String> {
    let mut apis: Vec<Api<Secret>> = namespaces.iter().map(|n| Api::namespaced(client.clone(), n)).collect();
    if apis.is_empty() {
        apis.push(Api::all(client.clone()));
    }
    let one = ListParams::default().labels(&watch::secrets::selector()).limit(1);
    for api in apis {
        // Whatever else it says, the watch will meet it, and try again.
        if let Ok(Err(kube::Error::Api(status))) = tokio::time::timeout(START_TIMEOUT, api.list_metadata(&one)).await
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
    let namespace =
        at_start(|| api.get("kube-system")).await.ok_or("the API server does not answer")?.map_err(|e| {
            let denied = matches!(&e, kube::Error::Api(status) if status.code == 403);
            let advice = if denied { ": grant get on it, or set --cluster-id" } else { "" };
            format!("cannot read the UID of namespace kube-system ({e}){advice}")
        })?;
    namespace.metadata.uid.ok_or_else(|| "namespace kube-system has no UID: set --cluster-id".into())
}
