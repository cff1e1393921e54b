//! The CustomResourceDefinition: whether it is installed, and what is told while it is not.

use crate::kubernetes::{START_LIMIT, at_start};
use crate::telemetry::Readiness;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::runtime::watcher;
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::sleep;

/// Between two looks for it at start.
const LOOK: Duration = Duration::from_secs(2);
/// What is told while it is absent.
pub const ABSENT: &str = "the CustomResourceDefinition tunnels.opentunnel.dev is not installed: kubectl apply -f \
                          crds/tunnels.yaml (or: opentunnel-operator crd | kubectl apply -f -); the operator waits for it";

/// Returns once it is there, with all that this operator writes: an older one would drop it silently. One that is being
/// deleted counts, because its Tunnels have to be finished: the API server waits for that.
///
/// # Errors
/// A text for people: it is too old, or the API server does not answer.
pub async fn installed(client: &Client, server: &str, readiness: &Readiness) -> Result<(), String> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut told = false;
    let installed = loop {
        let found = at_start(|| api.get_opt("tunnels.opentunnel.dev"))
            .await
            .ok_or_else(|| format!("the Kubernetes API server {server} does not answer within {START_LIMIT:?}"))?;
        match found {
            Ok(Some(crd)) => break crd,
            Ok(None) => {
                readiness.crd(Some(ABSENT.into()));
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{ABSENT}");
                }
                sleep(LOOK).await;
            }
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(
                    "cannot read the CustomResourceDefinition ({}), so its age is not checked",
                    status.message
                );
                return Ok(());
            }
            Err(kube::Error::Api(status)) => {
                return Err(format!("the Kubernetes API server {server} refuses: {}", status.message));
            }
            Err(e) => {
                return Err(format!(
                    "the Kubernetes API server {server} cannot be reached ({e}): is the cluster up, and does KUBECONFIG name it?"
                ));
            }
        }
    };
    readiness.crd(None);
    match opentunnel_api::missing_fields(&installed).as_slice() {
        [] => Ok(()),
        missing => Err(format!(
            "the installed CustomResourceDefinition tunnels.opentunnel.dev is too old (it lacks {}): kubectl apply -f crds/tunnels.yaml",
            missing.join(", ")
        )),
    }
}

/// Whether a watch of Tunnels failed since the API server knows no Tunnels. It then answers "404 page not found", which
/// is no answer of the Kubernetes API.
pub fn is_absent(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error)) = error else { return false };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
