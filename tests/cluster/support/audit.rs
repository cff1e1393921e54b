//! The API server's audit log: what the operator wrote, counted exactly.

use super::LIMIT;
use super::control_plane::ControlPlane;
use super::namespace::Namespace;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::Deserialize;
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The operator's user.
const OPERATOR: &str = "system:serviceaccount:opentunnel-system:opentunnel-operator";

/// A request that changes something, or would have done. Displayed as `patch tunnels/status a: 200`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// create, update, patch or delete.
    pub verb: String,
    /// As `tunnels`, `tunnels/status`, `secrets`, `events`.
    pub resource: String,
    /// The object's name; empty where the API server makes it up.
    pub name: String,
    /// The HTTP status of the answer.
    pub code: u16,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}: {}", self.verb, self.resource, self.name, self.code)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    verb: String,
    user: User,
    object_ref: Option<Object>,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Object {
    namespace: String,
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

/// The operator's writes in a namespace, in the order of their answers.
pub async fn writes(namespace: &Namespace) -> Vec<Write> {
    settled(namespace).await;
    lines(&namespace.name)
        .into_iter()
        .filter(|line| line.stage == "ResponseComplete" && line.user.username == OPERATOR)
        .filter(|line| ["create", "update", "patch", "delete", "deletecollection"].contains(&line.verb.as_str()))
        .map(|line| {
            let object = line.object_ref.unwrap_or_default();
            let resource = match object.subresource.as_str() {
                "" => object.resource,
                sub => format!("{}/{sub}", object.resource),
            };
            Write {
                verb: line.verb,
                resource,
                name: object.name,
                code: line.response_status.map_or(0, |status| status.code),
            }
        })
        .collect()
}

/// Returns once what was answered before stands in the log: a request of our own, made now, does.
async fn settled(namespace: &Namespace) {
    let marker = format!("marker-{}", uuid::Uuid::new_v4());
    let api: Api<ConfigMap> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let found = api.get_opt(&marker).await.expect("the API server answers");
    assert!(found.is_none(), "nobody has made {marker}");
    let deadline = Instant::now() + LIMIT;
    while !ControlPlane::get().audit_log().contains(&marker) {
        assert!(Instant::now() < deadline, "the audit log says nothing of a request");
        sleep(Duration::from_millis(10)).await;
    }
}

fn lines(namespace: &str) -> Vec<Line> {
    let log = ControlPlane::get().audit_log();
    let ours = log.lines().filter(|line| line.contains(namespace));
    let lines = ours.filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines.filter(|line| line.object_ref.as_ref().is_some_and(|o| o.namespace == namespace)).collect()
}
