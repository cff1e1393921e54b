//! The API server's audit log: what the operator wrote, counted exactly.

use super::LIMIT;
use super::control_plane::ControlPlane;
use super::namespace::Namespace;
use super::world::CREDENTIAL_ID;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::Deserialize;
use std::collections::HashMap;
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
    #[serde(default)]
    extra: HashMap<String, Vec<String>>,
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
    let lines = lines(&namespace.name).into_iter();
    lines
        .filter(|line| line.user.username == OPERATOR)
        .filter(|line| line.object_ref.as_ref().is_some_and(|o| o.namespace == namespace.name))
        .filter_map(write)
        .collect()
}

/// The writes under a credential, wherever, in the order of their answers. `namespace` is any.
pub async fn writes_by(namespace: &Namespace, credential: &str) -> Vec<Write> {
    settled(namespace).await;
    let lines = lines(credential).into_iter();
    let by = |line: &Line| line.user.extra.get(CREDENTIAL_ID).is_some_and(|ids| ids.iter().any(|id| id == credential));
    lines.filter(by).filter_map(write).collect()
}

fn write(line: Line) -> Option<Write> {
    let writes = ["create", "update", "patch", "delete", "deletecollection"].contains(&line.verb.as_str());
    if line.stage != "ResponseComplete" || !writes {
        return None;
    }
    let object = line.object_ref.unwrap_or_default();
    let resource = match object.subresource.as_str() {
        "" => object.resource,
        sub => format!("{}/{sub}", object.resource),
    };
    Some(Write {
        verb: line.verb,
        resource,
        name: object.name,
        code: line.response_status.map_or(0, |status| status.code),
    })
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

/// The lines that have `text` in them.
fn lines(text: &str) -> Vec<Line> {
    let log = ControlPlane::get().audit_log();
    log.lines().filter(|line| line.contains(text)).filter_map(|line| serde_json::from_str(line).ok()).collect()
}
