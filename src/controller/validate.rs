//! Step 1, pure: the Tunnel as it is stored becomes what it wants and what it records, in types
//! that hold nothing invalid.

use crate::crd::{
    ClientMode, DEFAULT_LIFETIME_MINUTES, DeletionPolicy, FINALIZER, GENERATIONS, OPENING_ANNOTATION, Reason, State,
    Tunnel,
};
use crate::pacer::Key;
use crate::tunnels::{Attempt, DestinationConfig, OpenRequest, TunnelId, TunnelRef};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

/// The fewest characters of a SHA-256 that are recorded: 64 bits.
pub const SHORTEST_DIGEST: usize = 16;

/// A Tunnel object: what its spec wants, and what the operator has recorded on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Namespace, name and UID.
    pub key: Key,
    /// `metadata.creationTimestamp`.
    pub created_at: Timestamp,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.deletionTimestamp`: deletion was asked for.
    pub deleted_at: Option<Timestamp>,
    /// What becomes of the AWS tunnel then.
    pub deletion_policy: DeletionPolicy,
    /// Arguments of OpenTunnel.
    pub request: OpenRequest,
    /// How long the tunnel lives.
    pub lifetime: SignedDuration,
    /// The Secrets that get the tokens. Never empty.
    pub secrets: Vec<SecretRef>,
    /// What stands on the object.
    pub record: Record,
}

/// A Secret that gets tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretRef {
    /// Its name, in the Tunnel's namespace.
    pub name: String,
    /// Which sides' tokens.
    pub mode: ClientMode,
}

/// What the operator has recorded on a Tunnel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Its finalizer stands.
    pub finalizer: bool,
    /// The attempt that claims to open. An annotation that names another UID was copied: none.
    pub claim: Option<Attempt>,
    /// The AWS tunnel.
    pub tunnel: Option<RecordedTunnel>,
    /// `status.tokenGeneration`, 0 before the first.
    pub token_generation: i64,
    /// The Tunnel was Ready once: `status.tokensDigest` stands.
    pub ready_once: bool,
    /// The Secrets that held its tokens when it last was Ready, from `status.secrets` and
    /// `status.tokensDigest`. Empty where the two do not fit.
    pub kept: Vec<KeptSecret>,
    /// The reason of the main condition.
    pub reported: Option<Reason>,
    /// `status.observedGeneration`.
    pub observed_generation: Option<i64>,
}

/// A Secret that held tokens when the Tunnel last was Ready.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptSecret {
    /// Its name.
    pub name: String,
    /// What is recorded of its data's SHA-256: the first characters of it.
    pub digest: String,
}

/// The AWS tunnel as status has it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedTunnel {
    /// ID and ARN.
    pub tunnel: TunnelRef,
    /// OPEN or CLOSED.
    pub state: State,
    /// `status.openedAt`.
    pub opened_at: Timestamp,
    /// `status.expiresAt`.
    pub expires_at: Timestamp,
}

impl Desired {
    /// The sides that any of the Secrets needs.
    pub fn client_mode(&self) -> ClientMode {
        self.secrets.iter().map(|s| s.mode).reduce(ClientMode::union).unwrap_or_default()
    }

    /// Whether a Secret of this name is to get tokens.
    pub fn wants(&self, name: &str) -> bool {
        self.secrets.iter().any(|s| s.name == name)
    }
}

/// An object that the API server cannot have sent.
#[derive(Debug, thiserror::Error)]
#[error("the Tunnel has no metadata.{0}: it does not come from an API server")]
pub struct Incomplete(&'static str);

/// Reads a Tunnel. The CRD's schema has refused what AWS would refuse.
pub fn validate(tunnel: &Tunnel) -> Result<Desired, Incomplete> {
    let meta = &tunnel.metadata;
    let key = Key {
        namespace: meta.namespace.clone().ok_or(Incomplete("namespace"))?,
        name: meta.name.clone().ok_or(Incomplete("name"))?,
        uid: meta.uid.clone().ok_or(Incomplete("uid"))?,
    };
    let created_at = meta.creation_timestamp.as_ref().ok_or(Incomplete("creationTimestamp"))?.0;
    let spec = &tunnel.spec;
    let lifetime_minutes = spec.timeout.as_ref().and_then(|t| t.max_lifetime_timeout_minutes);
    let lifetime = SignedDuration::from_mins(lifetime_minutes.unwrap_or(DEFAULT_LIFETIME_MINUTES).into());
    let secrets = match &spec.secrets {
        Some(secrets) if !secrets.is_empty() => {
            secrets.iter().map(|s| SecretRef { name: s.name.clone(), mode: s.client_mode }).collect()
        }
        _ => vec![SecretRef { name: format!("{}-tokens", key.name), mode: ClientMode::All }],
    };
    // A looser CRD may have let one through that says whose the tunnel is.
    let tags = spec.tags.iter().flatten().filter(|t| !t.key.starts_with("opentunnel.dev/"));
    let request = OpenRequest {
        description: spec.description.clone(),
        destination: spec
            .destination
            .as_ref()
            .map(|d| DestinationConfig { thing_name: d.thing_name.clone(), services: d.services.clone() }),
        tags: tags.map(|t| (t.key.clone(), t.value.clone())).collect(),
        lifetime_minutes,
    };
    Ok(Desired {
        created_at,
        generation: meta.generation.unwrap_or_default(),
        deleted_at: meta.deletion_timestamp.as_ref().map(|t| t.0),
        deletion_policy: spec.deletion_policy,
        request,
        lifetime,
        secrets,
        record: record(tunnel, &key.uid, lifetime),
        key,
    })
}

fn record(tunnel: &Tunnel, uid: &str, lifetime: SignedDuration) -> Record {
    let claim = tunnel
        .annotations()
        .get(OPENING_ANNOTATION)
        .and_then(|value| value.split_once('/'))
        .filter(|(claimed_uid, attempt)| *claimed_uid == uid && !attempt.is_empty())
        .map(|(_, attempt)| Attempt(attempt.to_owned()));
    let status = tunnel.status.clone().unwrap_or_default();
    let recorded = status.tunnel_id.map(|id| {
        let opened_at = status.opened_at.unwrap_or(Timestamp::UNIX_EPOCH);
        RecordedTunnel {
            tunnel: TunnelRef { id: TunnelId(id), arn: status.tunnel_arn.unwrap_or_default() },
            state: status.state.unwrap_or(State::Open),
            opened_at,
            expires_at: status.expires_at.unwrap_or_else(|| opened_at.saturating_add(lifetime).unwrap_or(opened_at)),
        }
    });
    let reason = status.conditions.as_ref().and_then(|c| c.first()).and_then(|c| Reason::parse(&c.reason));
    Record {
        finalizer: tunnel.finalizers().iter().any(|f| f == FINALIZER),
        claim,
        tunnel: recorded,
        token_generation: status.token_generation.filter(|g| GENERATIONS.contains(g)).unwrap_or_default(),
        ready_once: status.tokens_digest.is_some(),
        kept: kept(status.secrets.unwrap_or_default(), &status.tokens_digest.unwrap_or_default()),
        reported: reason,
        observed_generation: status.observed_generation,
    }
}

/// The digests stand one after the other, all of the same length, in the order of the names.
pub(super) fn kept(names: Vec<String>, digests: &str) -> Vec<KeptSecret> {
    let width = digests.len().checked_div(names.len()).unwrap_or_default();
    if width < SHORTEST_DIGEST || width * names.len() != digests.len() || !digests.is_ascii() {
        return Vec::new();
    }
    let digests = (0..).step_by(width).map(|at| digests[at..at + width].to_owned());
    names.into_iter().zip(digests).map(|(name, digest)| KeptSecret { name, digest }).collect()
}
