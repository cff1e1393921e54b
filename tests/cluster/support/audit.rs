//! The API server's audit log: what the operator wrote, counted exactly. It is read once, as it grows:
//! hundreds of tests ask.

use super::LIMIT;
use super::control_plane::ControlPlane;
use super::namespace::Namespace;
use super::world::CREDENTIAL_ID;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The operator's user.
pub const OPERATOR: &str = "system:serviceaccount:opentunnel-system:opentunnel-operator";
/// What the name begins with that shows how far the log goes, see [`settled`].
const MARKER: &str = "audit-marker-";

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
#[serde(default, rename_all = "camelCase")]
struct Object {
    namespace: String,
    api_group: String,
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

/// What was read of the log.
#[derive(Default)]
struct Read {
    bytes: u64,
    writes: Vec<Entry>,
    markers: HashSet<String>,
}

/// A write of the operator's user, in the log.
struct Entry {
    namespace: String,
    credentials: Vec<String>,
    write: Write,
}

/// By control plane.
static READ: Mutex<BTreeMap<PathBuf, Read>> = Mutex::new(BTreeMap::new());

/// The operator's writes in a namespace, in the order of their answers.
pub async fn writes(namespace: &Namespace) -> Vec<Write> {
    settled(namespace).await;
    select(namespace.plane, |entry| entry.namespace == namespace.name)
}

/// The writes under a credential, wherever, in the order of their answers. `namespace` is any.
pub async fn writes_by(namespace: &Namespace, credential: &str) -> Vec<Write> {
    settled(namespace).await;
    select(namespace.plane, |entry| entry.credentials.iter().any(|id| id == credential))
}

/// The rights that were used under a credential, as RBAC writes them: `patch opentunnel.dev/tunnels/status`,
/// `get /namespaces/kube-system`. What was refused is not in it. `namespace` is any.
pub async fn rights_used(namespace: &Namespace, credential: &str) -> BTreeSet<String> {
    settled(namespace).await;
    let log = namespace.plane.audit_log_from(0);
    let lines = log.lines().filter(|line| line.contains(credential));
    let lines = lines.filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let by = |line: &Line| line.user.extra.get(CREDENTIAL_ID).is_some_and(|ids| ids.iter().any(|id| id == credential));
    lines
        .filter(by)
        .filter(|line| line.response_status.as_ref().is_some_and(|status| status.code != 403))
        .filter_map(|line| Some((line.verb, line.object_ref?)))
        .map(|(verb, o)| {
            // A request for a namespace counts as one in it.
            let clusters = o.namespace.is_empty() || o.resource == "namespaces";
            let named = if clusters && !o.name.is_empty() { format!("/{}", o.name) } else { String::new() };
            let sub = if o.subresource.is_empty() { String::new() } else { format!("/{}", o.subresource) };
            format!("{verb} {}/{}{sub}{named}", o.api_group, o.resource)
        })
        .collect()
}

fn select(plane: &ControlPlane, is: impl Fn(&Entry) -> bool) -> Vec<Write> {
    with_log(plane, |log| log.writes.iter().filter(|entry| is(entry)).map(|entry| entry.write.clone()).collect())
}

/// Returns once what was answered before stands in the log: a request of our own, made now, does.
async fn settled(namespace: &Namespace) {
    let marker = format!("{MARKER}{}", uuid::Uuid::new_v4());
    let api: Api<ConfigMap> = Api::namespaced(namespace.client.clone(), &namespace.name);
    let found = api.get_opt(&marker).await.expect("the API server answers");
    assert!(found.is_none(), "nobody has made {marker}");
    let deadline = Instant::now() + LIMIT;
    while !with_log(namespace.plane, |log| log.markers.remove(&marker)) {
        assert!(Instant::now() < deadline, "the audit log says nothing of a request");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Looks at the log, as far as it goes.
fn with_log<T>(plane: &ControlPlane, look: impl FnOnce(&mut Read) -> T) -> T {
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    let read = read.entry(plane.dir.clone()).or_default();
    let new = plane.audit_log_from(read.bytes);
    // The last line may not be whole yet.
    let whole = new.rfind('\n').map_or("", |end| &new[..=end]);
    read.bytes += whole.len() as u64;
    whole.lines().for_each(|line| read.note(line));
    look(read)
}

impl Read {
    fn note(&mut self, line: &str) {
        if !line.contains(OPERATOR) && !line.contains(MARKER) {
            return;
        }
        let Ok(mut line) = serde_json::from_str::<Line>(line) else { return };
        let object = line.object_ref.unwrap_or_default();
        if object.name.starts_with(MARKER) {
            self.markers.insert(object.name);
            return;
        }
        // An election goes on for ever, and is nothing of a Tunnel's.
        let writes = ["create", "update", "patch", "delete", "deletecollection"].contains(&line.verb.as_str())
            && object.resource != "leases";
        if line.stage != "ResponseComplete" || line.user.username != OPERATOR || !writes {
            return;
        }
        let resource = match object.subresource.as_str() {
            "" => object.resource,
            sub => format!("{}/{sub}", object.resource),
        };
        let code = line.response_status.map_or(0, |status| status.code);
        let write = Write { verb: line.verb, resource, name: object.name, code };
        let credentials = line.user.extra.remove(CREDENTIAL_ID).unwrap_or_default();
        self.writes.push(Entry { namespace: object.namespace, credentials, write });
    }
}
