//! A Tunnel object becomes types that hold nothing invalid: what its spec wants, and what the operator has recorded
//! on it. Pure.

use crate::record::Record;
use crate::tunnels::{Attempt, DestinationConfig, OpenRequest};
use crate::whose::Claimant;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use opentunnel_api::{
    ClientMode, Condition, DEFAULT_LIFETIME_MINUTES, DeletionPolicy, FINALIZER, OPENING_ANNOTATION, PREFIX,
    TokenSecret, Tunnel, TunnelSpec,
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
    /// What becomes of the tunnel when the Tunnel is deleted.
    pub deletion_policy: DeletionPolicy,
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
        if self.deleted_at.is_some() { Goal::Down(Down::Deleted) } else { Goal::Open }
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
            tunnel: self.record.tunnel.as_ref().map(|t| (t.reference.id.clone(), t.state)),
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
        spec,
        key,
    })
}

/// The attempt that claims to open for the Tunnel with this UID.
pub fn claim(annotations: Option<&BTreeMap<String, String>>, uid: &str) -> Option<Attempt> {
    let (claimed, attempt) = annotations?.get(OPENING_ANNOTATION)?.split_once('/')?;
    (claimed == uid && !attempt.is_empty()).then(|| Attempt(attempt.to_owned()))
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
        deletion_policy: spec.deletion_policy,
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
mod tests {
    use super::*;
    use opentunnel_api::Reason;
    use serde_json::json;

    fn tunnel(annotations: serde_json::Value, status: serde_json::Value) -> Object {
        let metadata = json!({
            "name": "sensor", "namespace": "edge", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": annotations,
        });
        let tunnel: Tunnel =
            serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap();
        read(&tunnel).unwrap()
    }

    #[test]
    fn a_claim_that_was_copied_from_another_object_is_none() {
        let claim = |value: &str| tunnel(json!({OPENING_ANNOTATION: value}), json!(null)).record.claim;
        assert_eq!(claim("u/a"), Some(Attempt("a".into())));
        for copied in ["other/a", "u/", "u", ""] {
            assert_eq!(claim(copied), None, "{copied}");
        }
    }

    #[test]
    fn the_main_condition_is_found_by_its_type_wherever_it_stands() {
        let condition = |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let reported =
            |conditions: serde_json::Value| tunnel(json!({}), json!({"conditions": conditions})).record.reported;
        assert_eq!(reported(json!([condition("Theirs", "Closed"), condition("Ready", "Open")])), Some(Reason::Open));
        assert_eq!(reported(json!([condition("Ready", "Open"), condition("Ended", "Closed")])), Some(Reason::Closed));
        assert_eq!(reported(json!([condition("Stalled", "AccessDenied")])), None);
        assert_eq!(reported(json!([])), None);
    }

    #[test]
    fn what_is_left_out_of_a_secret_is_both_sides() {
        let mut tunnel = Tunnel::new("sensor", TunnelSpec::default());
        let key = Key { namespace: "edge".into(), name: "sensor".into(), uid: "u".into() };
        let secrets = |tunnel: &Tunnel| spec(&tunnel.spec, &key).secrets;
        assert_eq!((secrets(&tunnel)[0].name.as_str(), secrets(&tunnel)[0].mode), ("sensor-tokens", ClientMode::All));
        tunnel.spec.secrets = Some(vec![TokenSecret { name: "x".into(), ..TokenSecret::default() }]);
        assert_eq!((secrets(&tunnel)[0].name.as_str(), secrets(&tunnel)[0].mode), ("x", ClientMode::All));
    }
}
