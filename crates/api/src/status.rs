//! What the operator reports on a Tunnel.

use crate::{Condition, Time};
use jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator knows of the tunnel. Never a token.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// The `metadata.generation` that this status speaks of; -1 before the first write.
    pub observed_generation: Option<i64>,
    /// AWS's ID of the tunnel.
    #[schemars(length(max = 128))]
    pub tunnel_id: Option<String>,
    /// AWS's ARN of the tunnel.
    #[schemars(length(max = 1600))]
    pub tunnel_arn: Option<String>,
    /// AWS's state of the tunnel: OPEN or CLOSED.
    pub state: Option<TunnelState>,
    /// When the tunnel was opened.
    #[schemars(with = "Option<Time>")]
    pub opened_at: Option<Timestamp>,
    /// When its lifetime ends: AWS closes it then.
    #[schemars(with = "Option<Time>")]
    pub expires_at: Option<Timestamp>,
    /// When it was closed.
    #[schemars(with = "Option<Time>")]
    pub closed_at: Option<Timestamp>,
    /// Why it was closed, or is being closed: `Expired`, `Closed`, `Suspended` or `Recreating`.
    #[schemars(length(max = 64))]
    pub end_reason: Option<String>,
    /// The attempt that opened it: see the annotation `opentunnel.dev/opening`.
    #[schemars(length(max = 128))]
    pub attempt: Option<String>,
    /// SHA-256 of the description, destination and timeout that it was opened with, in hexadecimal.
    #[schemars(length(max = 64))]
    pub opened_with: Option<String>,
    /// Whether the source is connected.
    pub source_connection: Option<Connection>,
    /// Whether the destination is connected.
    pub destination_connection: Option<Connection>,
    /// The Secrets that hold its tokens. Not set until the Tunnel is Ready for the first time.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub secrets: Option<Vec<SecretStatus>>,
    /// Counts the tokens' generations: an opening is one, each rotation is one. A Secret is written
    /// only over a lower generation.
    pub token_generation: Option<i64>,
    /// The keys of the tags that the operator sets on the tunnel. Other tags are left alone.
    #[schemars(length(max = 398), inner(length(max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tag_keys: Option<Vec<String>>,
    /// The value of the annotation `opentunnel.dev/rotate-at` that was carried out last.
    #[schemars(length(max = 1024))]
    pub last_handled_rotate_at: Option<String>,
    /// When the next tunnel is opened, where `reopenPolicy` wants one.
    pub reopen: Option<Reopen>,
    /// The conditions, the main one (`Ready` or `Ended`) first.
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Option<Vec<Condition>>,
}

/// AWS's state of a tunnel.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum TunnelState {
    /// It can be used.
    Open,
    /// It is gone for good: AWS cannot open it again.
    Closed,
}

/// Whether a side of a tunnel is connected.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// CONNECTED or DISCONNECTED.
    pub status: ConnectionStatus,
    /// When that changed last, by AWS.
    #[serde(default)]
    #[schemars(with = "Option<Time>")]
    pub last_updated_at: Option<Timestamp>,
}

/// AWS's state of a side's connection.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum ConnectionStatus {
    /// It is.
    Connected,
    /// It is not.
    Disconnected,
}

/// When the next tunnel is opened.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Reopen {
    /// Tunnels in a row that were closed before their lifetime was over.
    pub count: i32,
    /// Not before this time.
    #[serde(default)]
    #[schemars(with = "Option<Time>")]
    pub not_before: Option<Timestamp>,
}

/// A Secret that holds tokens.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretStatus {
    /// Its name, in the Tunnel's namespace.
    #[schemars(length(max = 253))]
    pub name: String,
    /// SHA-256 of the operator's own keys in it, in hexadecimal: how an edit is noticed.
    #[schemars(length(max = 64))]
    pub sha256: String,
    /// Its resourceVersion when it was written or read last: while that stands, nobody has touched it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub resource_version: Option<String>,
}
