//! A Tunnel object becomes types that hold nothing invalid: what its spec wants, and what the operator has recorded
//! on it. Pure.

use crate::record::{Phase, Record};
use crate::tunnels::{Attempt, DestinationConfig, OpenRequest, Tags};
use crate::whose::{Claimant, Named};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use opentunnel_api::{
    ClientMode, Condition, DEFAULT_LIFETIME_MINUTES, DeletionPolicy, FINALIZER, OPENING_ANNOTATION, PREFIX,
    ROTATE_AT_ANNOTATION, ROTATE_CLIENT_MODE_ANNOTATION, Reason, ReopenPolicy, TokenSecret, Tunnel, TunnelSpec,
    UpdatePolicy,
};
use std::collections::BTreeMap;

/// Which Tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: two Tunnels of the same name, one after the other, are two keys.
    pub uid: String,
}

impl Key {
    /// Which Tunnel this is the metadata of.
    ///
    /// # Errors
    /// A field is absent that every object of an API server has.
    pub fn of(meta: &ObjectMeta) -> Result<Self, Incomplete> {
        Ok(Self {
            namespace: meta.namespace.clone().ok_or(Incomplete("namespace"))?,
            name: meta.name.clone().ok_or(Incomplete("name"))?,
            uid: meta.uid.clone().ok_or(Incomplete("uid"))?,
        })
    }
}

/// A Tunnel object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Which.
    pub key: Key,
    /// `metadata.resourceVersion`: every write is conditioned by it.
    pub resource_version: Option<String>,
    /// `metadata.creationTimestamp`.
    pub created_at: Timestamp,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.deletionTimestamp`: deletion was asked for.
    pub deleted_at: Option<Timestamp>,
    /// Finalizers of others: they are kept.
    pub other_finalizers: Vec<String>,
    /// What is wanted.
    pub spec: Spec,
    /// What the operator has recorded.
    pub record: Record,
    /// The conditions as they stand.
    pub conditions: Vec<Condition>,
    /// The rotation that its annotations ask for.
    pub rotate: Option<RotateRequest>,
}

/// A rotation that the annotations ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateRequest {
    /// The value of `opentunnel.dev/rotate-at`: each is carried out once.
    pub value: String,
    /// Which sides. `None`: there is no such side as the annotation names.
    pub mode: Option<ClientMode>,
}

/// What a Tunnel wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A tunnel that is open, with its live tokens in the Secrets.
    Open,
    /// No tunnel.
    Down(Down),
}

/// Why a Tunnel wants no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// Its deletion was asked for.
    Deleted,
    /// `spec.suspend`.
    Suspended,
    /// The tunnel was opened with a spec that is no longer the Tunnel's, or its close has begun: a new one follows.
    Outdated,
}

/// What the spec of a Tunnel says.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Arguments of OpenTunnel.
    pub request: OpenRequest,
    /// How long the tunnel lives.
    pub lifetime: SignedDuration,
    /// The Secrets that get the tokens. Never empty.
    pub secrets: Vec<SecretSpec>,
    /// Whether a change that AWS cannot make on an open tunnel makes a new one.
    pub update_policy: UpdatePolicy,
    /// What becomes of the tunnel when the Tunnel is deleted.
    pub deletion_policy: DeletionPolicy,
    /// What follows when the tunnel is closed by others.
    pub reopen_policy: ReopenPolicy,
    /// No tunnel is wanted for now.
    pub suspend: bool,
}

impl Spec {
    /// The tags that the tunnel is to have, beside the operator's own two. A default one gives way.
    pub fn tags(&self, defaults: &Tags) -> Tags {
        let mut tags = defaults.clone();
        tags.extend(self.request.tags.iter().cloned());
        tags
    }
}

/// A Secret that gets tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecretSpec {
    /// Its name, in the Tunnel's namespace.
    pub name: String,
    /// Which sides' tokens.
    pub mode: ClientMode,
    /// Labels that it gets beside the operator's own.
    pub labels: BTreeMap<String, String>,
    /// Annotations that it gets beside the operator's own.
    pub annotations: BTreeMap<String, String>,
}

impl Object {
    /// What the Tunnel wants.
    pub fn goal(&self) -> Goal {
        match self.record.phase() {
            _ if self.deleted_at.is_some() => Goal::Down(Down::Deleted),
            _ if self.spec.suspend => Goal::Down(Down::Suspended),
            // Whoever has made it known that it is being closed may have called CloseTunnel: there is no way back.
            Phase::Open(tunnel) | Phase::Ready(tunnel) if tunnel.closes_for().is_some() => Goal::Down(Down::Outdated),
            Phase::Open(tunnel) | Phase::Ready(tunnel)
                if self.spec.update_policy == UpdatePolicy::Recreate
                    && tunnel.opened_with.as_ref().is_some_and(|with| *with != self.spec.request.digest()) =>
            {
                Goal::Down(Down::Outdated)
            }
            _ => Goal::Open,
        }
    }

    /// Its tunnel has ended, and another is wanted.
    pub fn reopens(&self) -> bool {
        let Phase::Ended(tunnel) = self.record.phase() else { return false };
        let by_policy = match tunnel.end_reason.or(self.record.reported) {
            Some(Reason::Expired) => self.spec.reopen_policy != ReopenPolicy::Never,
            Some(Reason::Closed) => self.spec.reopen_policy == ReopenPolicy::Always,
            Some(Reason::Suspended | Reason::Recreating) => true,
            _ => false,
        };
        by_policy && self.goal() == Goal::Open
    }

    /// A tunnel of its that is not known was opened after this time, by the API server's clock or AWS's.
    pub fn opened_after(&self) -> Timestamp {
        match self.record.phase() {
            Phase::Ended(tunnel) => tunnel.closed_at.map_or(self.created_at, |at| at.max(self.created_at)),
            _ => self.created_at,
        }
    }

    /// The claim is that of the tunnel that its status names: nobody has claimed since.
    pub fn claim_is_settled(&self) -> bool {
        let attempt = self.record.tunnel.as_ref().and_then(|t| t.attempt.as_ref());
        attempt.is_some() && attempt == self.record.claim.as_ref()
    }

    /// The rotation that its annotations ask for, and that was not carried out yet.
    pub fn wanted_rotation(&self) -> Option<&RotateRequest> {
        self.rotate.as_ref().filter(|rotate| self.record.handled_rotate_at.as_ref() != Some(&rotate.value))
    }

    /// The sides that any of the wanted Secrets needs.
    pub fn client_mode(&self) -> ClientMode {
        self.spec.secrets.iter().map(|s| s.mode).reduce(ClientMode::union).unwrap_or_default()
    }

    /// The API server removes it with this write: it was deleted, and nobody's finalizer is left.
    pub fn is_released(&self) -> bool {
        self.deleted_at.is_some() && !self.record.finalizer && self.other_finalizers.is_empty()
    }

    /// As far as it matters to whose a tunnel is.
    pub fn claimant(&self) -> Claimant {
        Claimant {
            key: self.key.clone(),
            down: self.goal() != Goal::Open,
            claim: self.record.claim.clone(),
            tunnel: self
                .record
                .tunnel
                .as_ref()
                .map(|t| Named { id: t.reference.id.clone(), attempt: t.attempt.clone() }),
            reopens: self.reopens(),
        }
    }
}

/// An object that the API server cannot have sent.
#[derive(Debug, thiserror::Error)]
#[error("the Tunnel has no metadata.{0}: it does not come from an API server")]
pub struct Incomplete(&'static str);

/// Reads a Tunnel. The CRD's schema has refused what AWS would refuse.
///
/// # Errors
/// A field is absent that every object of an API server has.
pub fn read(tunnel: &Tunnel) -> Result<Object, Incomplete> {
    let meta = &tunnel.metadata;
    let key = Key::of(meta)?;
    let created_at = meta.creation_timestamp.as_ref().ok_or(Incomplete("creationTimestamp"))?.0;
    let spec = spec(&tunnel.spec, &key);
    let status = tunnel.status.as_ref();
    Ok(Object {
        resource_version: meta.resource_version.clone(),
        created_at,
        generation: meta.generation.unwrap_or_default(),
        deleted_at: meta.deletion_timestamp.as_ref().map(|t| t.0),
        other_finalizers: tunnel.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect(),
        record: Record {
            finalizer: tunnel.finalizers().iter().any(|f| f == FINALIZER),
            claim: claim(tunnel.metadata.annotations.as_ref(), &key.uid),
            ..status.map_or_else(Record::default, |status| Record::of(status, spec.lifetime))
        },
        conditions: status.and_then(|status| status.conditions.clone()).unwrap_or_default(),
        rotate: rotate(meta.annotations.as_ref()),
        spec,
        key,
    })
}

/// The attempt that claims to open for the Tunnel with this UID.
pub fn claim(annotations: Option<&BTreeMap<String, String>>, uid: &str) -> Option<Attempt> {
    let (claimed, attempt) = annotations?.get(OPENING_ANNOTATION)?.split_once('/')?;
    (claimed == uid && Attempt::fits(attempt)).then(|| Attempt(attempt.to_owned()))
}

/// Bytes of the annotation's value that count: the status has room for so many characters.
const ROTATE_AT_LIMIT: usize = 1024;

fn rotate(annotations: Option<&BTreeMap<String, String>>) -> Option<RotateRequest> {
    let annotations = annotations?;
    let value = annotations.get(ROTATE_AT_ANNOTATION).filter(|value| !value.is_empty())?;
    let mode = match annotations.get(ROTATE_CLIENT_MODE_ANNOTATION).map(|mode| mode.trim().to_ascii_uppercase()) {
        None => Some(ClientMode::All),
        Some(mode) => match mode.as_str() {
            "SOURCE" => Some(ClientMode::Source),
            "DESTINATION" => Some(ClientMode::Destination),
            "ALL" | "" => Some(ClientMode::All),
            _ => None,
        },
    };
    Some(RotateRequest { value: value[..value.floor_char_boundary(ROTATE_AT_LIMIT)].to_owned(), mode })
}

fn spec(spec: &TunnelSpec, key: &Key) -> Spec {
    let lifetime_minutes = spec.timeout.as_ref().and_then(|t| t.max_lifetime_timeout_minutes);
    let secrets = match &spec.secrets {
        Some(secrets) if !secrets.is_empty() => secrets.iter().map(secret).collect(),
        _ => vec![SecretSpec { name: format!("{}-tokens", key.name), ..SecretSpec::default() }],
    };
    // A looser CRD may have let one through that says whose the tunnel is.
    let tags = spec.tags.iter().flatten().filter(|t| !t.key.starts_with(PREFIX));
    let destination = spec.destination.as_ref();
    Spec {
        request: OpenRequest {
            description: spec.description.clone(),
            destination: destination
                .map(|d| DestinationConfig { thing_name: d.thing_name.clone(), services: d.services.clone() }),
            tags: tags.map(|t| (t.key.clone(), t.value.clone())).collect(),
            lifetime_minutes,
        },
        lifetime: SignedDuration::from_mins(lifetime_minutes.unwrap_or(DEFAULT_LIFETIME_MINUTES).into()),
        secrets,
        update_policy: spec.update_policy,
        deletion_policy: spec.deletion_policy,
        reopen_policy: spec.reopen_policy,
        suspend: spec.suspend,
    }
}

fn secret(secret: &TokenSecret) -> SecretSpec {
    SecretSpec {
        name: secret.name.clone(),
        mode: secret.client_mode.unwrap_or_default(),
        labels: secret.labels.clone().unwrap_or_default(),
        annotations: secret.annotations.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
