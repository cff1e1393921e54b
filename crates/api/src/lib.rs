//! The `Tunnel` custom resource (`opentunnel.dev/v1alpha1`): its spec, its status, its conditions and their reasons,
//! and the names of all that the operator puts on objects. It is what a program needs that reads or writes Tunnels or
//! their token [`secret`]s: plain types, without a client.

mod condition;
mod definition;
pub mod secret;
mod status;

pub use condition::{Condition, ConditionType, Reason};
pub use definition::{definition, missing_fields};
use kube::core::{Message, Rule};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use status::{Connection, ConnectionStatus, Reopen, SecretStatus, TunnelState, TunnelStatus};
use std::collections::BTreeMap;

/// Finalizer that holds a Tunnel back until its tunnel is closed (or untagged, see [`DeletionPolicy`]).
pub const FINALIZER: &str = "opentunnel.dev/close-tunnel";
/// Annotation of a Tunnel that says which attempt is opening: `<metadata.uid>/<attempt>`. It is written before
/// OpenTunnel is called; the UID makes a copied or restored manifest harmless.
pub const OPENING_ANNOTATION: &str = "opentunnel.dev/opening";
/// Tag of an AWS tunnel that says whose it is: `<cluster id>/<namespace>/<metadata.uid>/<attempt>`.
pub const OWNER_TAG: &str = "opentunnel.dev/owner";
/// Tag of an AWS tunnel: the generation of its newest tokens. It is sent with OpenTunnel and written before each
/// RotateTunnelAccessToken, so that AWS remembers what an etcd that was restored has forgotten.
pub const GENERATION_TAG: &str = "opentunnel.dev/generation";
/// Annotation of a Tunnel: any new text asks for new tokens, once.
pub const ROTATE_AT_ANNOTATION: &str = "opentunnel.dev/rotate-at";
/// Annotation of a Tunnel: which side [`ROTATE_AT_ANNOTATION`] is about, `SOURCE`, `DESTINATION` or `ALL` (the default).
pub const ROTATE_CLIENT_MODE_ANNOTATION: &str = "opentunnel.dev/rotate-client-mode";
/// The prefix of all names that are the operator's: tag keys, labels and annotations.
pub const PREFIX: &str = "opentunnel.dev/";
/// The operator's name: field manager, reporting controller, and the value of [`secret::MANAGED_BY_LABEL`].
pub const MANAGER: &str = "opentunnel-operator";

/// `status.tokenGeneration`s beyond these were counted by nobody: somebody wrote them in.
pub const GENERATIONS: std::ops::Range<i64> = 0..i64::MAX / 2;

/// AWS's default for `timeout.maxLifetimeTimeoutMinutes`: 12 hours (OpenTunnel API reference).
pub const DEFAULT_LIFETIME_MINUTES: i32 = 720;

/// An AWS IoT Secure Tunneling tunnel. The operator opens it and writes its access tokens into Secrets.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "opentunnel.dev",
    version = "v1alpha1",
    kind = "Tunnel",
    namespaced,
    shortname = "tun",
    doc = "A tunnel of AWS IoT Secure Tunneling, and the Secrets that hold its access tokens.",
    category = "aws",
    status = "TunnelStatus",
    derive = "PartialEq",
    selectable = ".spec.destination.thingName",
    selectable = ".status.tunnelId",
    printcolumn(name = "Thing", type_ = "string", json_path = ".spec.destination.thingName"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[0].reason"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Tunnel ID",
        type_ = "string",
        json_path = ".status.tunnelId",
        priority = 1
    ),
    printcolumn(
        name = "Services",
        type_ = "string",
        json_path = ".spec.destination.services",
        priority = 1
    ),
    printcolumn(
        name = "Source",
        type_ = "string",
        json_path = ".status.sourceConnection.status",
        priority = 1
    ),
    printcolumn(
        name = "Destination",
        type_ = "string",
        json_path = ".status.destinationConnection.status",
        priority = 1
    ),
    validation = Rule::new("has(self.spec.secrets) || self.metadata.name.size() <= 246").message(
        "metadata.name may have at most 246 characters, because the default Secret is called <name>-tokens: shorten the name, or name the Secrets in spec.secrets"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = immutable("description", "has(self.description) == has(oldSelf.description) && (!has(self.description) || self.description == oldSelf.description)"),
    validation = immutable("destination", "has(self.destination) == has(oldSelf.destination) && (!has(self.destination) || self.destination == oldSelf.destination)"),
    validation = immutable("timeout", "(has(self.timeout) && has(self.timeout.maxLifetimeTimeoutMinutes) ? self.timeout.maxLifetimeTimeoutMinutes : 720) == (has(oldSelf.timeout) && has(oldSelf.timeout.maxLifetimeTimeoutMinutes) ? oldSelf.timeout.maxLifetimeTimeoutMinutes : 720)"),
)]
pub struct TunnelSpec {
    /// What the tunnel is for: one line, 1-2048 characters without control characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^\\p{C}]*$')").message(
        "must be one line without control characters (a YAML block '|' ends with a newline: use '>-' or quotes)"
    ))]
    pub description: Option<String>,
    /// The device at the other end, and what is reached there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// Tags of the AWS tunnel: at most 198, because AWS takes 200 and two are the operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 198))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["key".into()]))]
    pub tags: Option<Vec<Tag>>,
    /// How long the tunnel lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// The Secrets that get the tokens: 1-8. Left out: one called `<metadata.name>-tokens` with both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub secrets: Option<Vec<TokenSecret>>,
    /// What becomes of a change of description, destination or timeout, which AWS cannot change on an open tunnel.
    #[serde(default)]
    pub update_policy: UpdatePolicy,
    /// What becomes of the AWS tunnel when the Tunnel is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// What follows when the tunnel is closed, but not by this Tunnel.
    #[serde(default)]
    pub reopen_policy: ReopenPolicy,
    /// `true` closes the tunnel, `false` opens a new one.
    #[serde(default)]
    pub suspend: bool,
}

/// A rule that keeps `field` as it is: an argument of OpenTunnel that AWS has no call to change.
fn immutable(field: &str, unchanged: &str) -> Rule {
    Rule::new(format!("self.updatePolicy == 'Recreate' || ({unchanged})"))
        .message(Message::Message(format!(
            "AWS cannot change {field} on an open tunnel: set spec.updatePolicy to Recreate (closes this tunnel and opens a new one), or delete the Tunnel and create it again"
        )))
        .field_path(format!(".{field}"))
}

/// The destination of a tunnel (OpenTunnel's `destinationConfig`).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The IoT thing, which gets its access token by MQTT: 1-128 of `a-z A-Z 0-9 : _ -`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = name_rule("thingName"))]
    pub thing_name: Option<String>,
    /// The services reached through the tunnel: 1-100 different ones, each 1-128 of `a-z A-Z 0-9 : _ -`.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 128)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(s, s.matches('^[a-zA-Z0-9:_-]+$'))").message(
            "services: each may have only letters, digits and : _ -")
    )]
    pub services: Vec<String>,
}

fn name_rule(field: &str) -> Rule {
    Rule::new("self.matches('^[a-zA-Z0-9:_-]+$')")
        .message(Message::Message(format!("{field} may have only letters, digits and : _ -")))
}

/// A tag of the AWS tunnel.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("!self.key.lowerAscii().startsWith('aws:')")
        .message("tag keys that begin with aws: belong to AWS: choose another key").field_path(".key"),
    validation = Rule::new("!self.key.startsWith('opentunnel.dev/')")
        .message("tag keys that begin with opentunnel.dev/ belong to the operator: choose another key").field_path(".key"),
)]
pub struct Tag {
    /// 1-128 letters, digits, white space and `_ . : / = + - @`.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(r"self.matches('^[\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]+$')")
        .message("a tag's key may have only letters, digits, spaces and _ . : / = + - @"))]
    pub key: String,
    /// 0-256 letters, digits, white space and `_ . : / = + - @`.
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new(r"self.matches('^[\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*$')")
        .message("a tag's value may have only letters, digits, spaces and _ . : / = + - @"))]
    pub value: String,
}

/// How long a tunnel lives (OpenTunnel's `timeoutConfig`).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Timeout {
    /// Minutes until AWS closes the tunnel: 1-720. Left out: 720.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 720))]
    pub max_lifetime_timeout_minutes: Option<i32>,
}

/// A Secret that gets tokens.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TokenSecret {
    /// Name of the Secret, in the Tunnel's namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')"
    ).message("a Secret's name may have only a-z, 0-9, - and . and begins and ends with a letter or digit"))]
    pub name: String,
    /// Which side's tokens it gets. Left out: `ALL`.
    // No default in the schema: inside a list item it makes GitOps tools see a difference for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClientMode")]
    pub client_mode: Option<ClientMode>,
    /// Labels of the Secret: at most 32. Those that others put on it are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(
        validation = not_ours("label"),
        validation = is_key("a label", "k"),
        validation = Rule::new("self.all(k, !format.labelValue().validate(self[k]).hasValue())").message(
            "a label's value may have at most 63 letters, digits and - _ . and begins and ends with a letter or digit"
        ),
    )]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations of the Secret: at most 32. Those that others put on it are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    #[x_kube(validation = not_ours("annotation"), validation = is_key("an annotation", "k.lowerAscii()"))]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A rule that keeps users from writing the operator's own labels and annotations.
fn not_ours(what: &str) -> Rule {
    Rule::new("self.all(k, !k.startsWith('opentunnel.dev/') && k != 'app.kubernetes.io/managed-by')").message(
        Message::Message(format!(
            "{what}s that begin with opentunnel.dev/, and app.kubernetes.io/managed-by, belong to the operator: choose another key"
        )),
    )
}

/// A rule that takes what the API server takes as the key of a label or an annotation: it would refuse the Secret
/// else, when the tunnel is open and paid for. The API server checks the key of an annotation in lower case.
fn is_key(of: &str, key: &str) -> Rule {
    Rule::new(format!("self.all(k, !format.qualifiedName().validate({key}).hasValue())")).message(Message::Message(
        format!(
            "the key of {of} is [DNS name/]name, where the name has at most 63 letters, digits and - _ . and begins and ends with a letter or digit"
        ),
    ))
}

/// A side of a tunnel, in AWS's words (RotateTunnelAccessToken's `clientMode`).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "UPPERCASE")]
pub enum ClientMode {
    /// The client's side.
    Source,
    /// The device's side.
    Destination,
    /// Both sides.
    #[default]
    All,
}

impl ClientMode {
    /// Whether the source's tokens belong to this mode.
    pub fn has_source(self) -> bool {
        self != Self::Destination
    }

    /// Whether the destination's tokens belong to this mode.
    pub fn has_destination(self) -> bool {
        self != Self::Source
    }

    /// The sides of this mode that `other` has not.
    pub fn without(self, other: Option<Self>) -> Option<Self> {
        let has = |side: fn(Self) -> bool| side(self) && !other.is_some_and(side);
        match (has(Self::has_source), has(Self::has_destination)) {
            (true, true) => Some(Self::All),
            (true, false) => Some(Self::Source),
            (false, true) => Some(Self::Destination),
            (false, false) => None,
        }
    }

    /// The mode that covers both.
    pub fn union(self, other: Self) -> Self {
        if self == other { self } else { Self::All }
    }
}

/// What becomes of a change that AWS cannot make on an open tunnel.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdatePolicy {
    /// It is refused.
    #[default]
    Immutable,
    /// The tunnel is closed, then a new one is opened.
    Recreate,
}

/// What follows when a tunnel is closed.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReopenPolicy {
    /// Nothing.
    #[default]
    Never,
    /// A new tunnel when the lifetime of the old one ran out.
    OnExpiry,
    /// A new tunnel, whoever closed the old one. Where somebody keeps closing it, it is opened again after 1, 2, 4 …
    /// 30 minutes: each opening costs money.
    Always,
}

/// What becomes of the AWS tunnel when its Tunnel is deleted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// CloseTunnel is called before the Tunnel goes.
    #[default]
    Close,
    /// The tunnel stays open until its lifetime ends, and is no longer this cluster's. One that
    /// was never Ready is closed all the same: nobody has its tokens.
    Retain,
}

/// Schema of a Kubernetes time: RFC 3339.
struct Time;

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time"})
    }
}
