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
mod tests {
    use super::*;
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

    #[test]
    fn a_rotation_is_asked_for_by_a_value_and_a_side() {
        let asked = |annotations: serde_json::Value| tunnel(annotations, json!(null)).rotate.map(|r| (r.value, r.mode));
        let of_side = |side: &str| asked(json!({ROTATE_AT_ANNOTATION: "1", ROTATE_CLIENT_MODE_ANNOTATION: side}));
        let with = |mode| Some(("1".to_owned(), mode));
        assert_eq!(asked(json!({})), None);
        assert_eq!(asked(json!({ROTATE_AT_ANNOTATION: ""})), None);
        assert_eq!(asked(json!({ROTATE_CLIENT_MODE_ANNOTATION: "SOURCE"})), None, "a side alone asks for nothing");
        assert_eq!(asked(json!({ROTATE_AT_ANNOTATION: "1"})), with(Some(ClientMode::All)));
        for (side, expected) in [
            ("SOURCE", Some(ClientMode::Source)),
            ("destination", Some(ClientMode::Destination)),
            (" All ", Some(ClientMode::All)),
            ("", Some(ClientMode::All)),
            ("BOTH", None),
            ("SOURCE,DESTINATION", None),
        ] {
            assert_eq!(of_side(side), with(expected), "{side:?}");
        }
        // The status has room for so many.
        for (value, length) in
            [("x".repeat(5000), 1024), ("ü".repeat(600), 1024), (format!("x{}", "ü".repeat(600)), 1023)]
        {
            let kept = asked(json!({ROTATE_AT_ANNOTATION: value.clone()})).unwrap().0;
            assert!(value.starts_with(&kept) && kept.len() == length, "{}", kept.len());
        }
    }

    #[test]
    fn a_value_is_wanted_until_it_is_handled() {
        let wanted = |handled: Option<&str>| {
            tunnel(json!({ROTATE_AT_ANNOTATION: "2"}), json!({"lastHandledRotateAt": handled}))
                .wanted_rotation()
                .is_some()
        };
        assert_eq!([None, Some("1"), Some("2")].map(wanted), [true, true, false]);
        let long = "x".repeat(5000);
        let handled = json!({"lastHandledRotateAt": &long[..1024]});
        assert!(tunnel(json!({ROTATE_AT_ANNOTATION: long}), handled).wanted_rotation().is_none(), "a long one too");
    }

    /// A Tunnel with this spec, whose tunnel is in this state and ends, or has ended, for this reason.
    fn with_tunnel(spec: serde_json::Value, state: &str, end_reason: Option<&str>) -> Object {
        let metadata = json!({
            "name": "sensor", "namespace": "edge", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {OPENING_ANNOTATION: "u/a"},
        });
        let status = json!({"tunnelId": "t", "state": state, "endReason": end_reason, "attempt": "a"});
        let tunnel = json!({"metadata": metadata, "spec": spec, "status": status});
        read(&serde_json::from_value(tunnel).unwrap()).unwrap()
    }

    #[test]
    fn another_tunnel_is_wanted_after_the_end_as_the_spec_says() {
        for (policy, expired, closed) in [("Never", false, false), ("OnExpiry", true, false), ("Always", true, true)] {
            let reopens = |reason: &str| with_tunnel(json!({"reopenPolicy": policy}), "CLOSED", Some(reason)).reopens();
            assert_eq!((reopens("Expired"), reopens("Closed")), (expired, closed), "{policy}");
            assert!(reopens("Suspended") && reopens("Recreating"), "{policy}: it was not the end of it");
            assert!(!reopens("Nonsense"), "{policy}");
        }
        let always = || json!({"reopenPolicy": "Always"});
        assert!(!with_tunnel(always(), "OPEN", Some("Closed")).reopens(), "it has not ended");
        assert!(!tunnel(json!({}), json!(null)).reopens(), "there was none");
        let suspended = json!({"reopenPolicy": "Always", "suspend": true});
        for reason in ["Expired", "Closed", "Suspended", "Recreating"] {
            assert!(!with_tunnel(suspended.clone(), "CLOSED", Some(reason)).reopens(), "{reason}: it is suspended");
            let deleted =
                Object { deleted_at: Some(Timestamp::UNIX_EPOCH), ..with_tunnel(always(), "CLOSED", Some(reason)) };
            assert!(!deleted.reopens(), "{reason}: it is being deleted");
        }
        // An operator that did not know of end reasons left the condition alone.
        let condition = json!({"type": "Ended", "status": "True", "reason": "Expired", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut old = tunnel(json!({}), json!({"tunnelId": "t", "state": "CLOSED", "conditions": [condition]}));
        assert!(!old.reopens());
        old.spec.reopen_policy = ReopenPolicy::OnExpiry;
        assert!(old.reopens());
    }

    #[test]
    fn what_is_wanted_follows_from_the_spec_and_from_what_is_begun() {
        let goal = |spec: serde_json::Value, end_reason: Option<&str>| with_tunnel(spec, "OPEN", end_reason).goal();
        assert_eq!(goal(json!({}), None), Goal::Open);
        assert_eq!(goal(json!({"suspend": true}), None), Goal::Down(Down::Suspended));
        assert_eq!(goal(json!({}), Some("Suspended")), Goal::Down(Down::Outdated), "there is no way back");
        assert_eq!(goal(json!({}), Some("Recreating")), Goal::Down(Down::Outdated));
        assert_eq!(goal(json!({"suspend": true}), Some("Recreating")), Goal::Down(Down::Suspended));
        assert_eq!(goal(json!({}), Some("Closed")), Goal::Open, "nobody closes for that");
        assert_eq!(with_tunnel(json!({}), "CLOSED", Some("Suspended")).goal(), Goal::Open);
        let mut outdated = with_tunnel(json!({"updatePolicy": "Recreate"}), "OPEN", None);
        assert_eq!(outdated.goal(), Goal::Open, "nobody knows with what it was opened");
        outdated.record.tunnel.as_mut().unwrap().opened_with = Some("another".into());
        assert_eq!(outdated.goal(), Goal::Down(Down::Outdated));
        outdated.record.tunnel.as_mut().unwrap().opened_with = Some(outdated.spec.request.digest());
        assert_eq!(outdated.goal(), Goal::Open);
        outdated.spec.request.lifetime_minutes = Some(1);
        assert_eq!(outdated.goal(), Goal::Down(Down::Outdated));
        outdated.spec.update_policy = UpdatePolicy::Immutable;
        assert_eq!(outdated.goal(), Goal::Open);
        outdated.deleted_at = Some(Timestamp::UNIX_EPOCH);
        assert_eq!(outdated.goal(), Goal::Down(Down::Deleted));
    }

    #[test]
    fn a_claim_is_settled_while_it_is_that_of_the_tunnel_that_is_named() {
        let mut object = with_tunnel(json!({}), "CLOSED", Some("Closed"));
        assert!(object.claim_is_settled());
        object.record.claim = Some(Attempt("b".into()));
        assert!(!object.claim_is_settled());
        object.record.claim = None;
        assert!(!object.claim_is_settled());
        object.record.tunnel.as_mut().unwrap().attempt = None;
        assert!(!object.claim_is_settled(), "nobody recorded who opened it");
        object.record.tunnel = None;
        assert!(!object.claim_is_settled());
    }

    #[test]
    fn whoever_looks_for_the_next_tunnel_looks_after_the_end_of_the_last() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut object = with_tunnel(json!({}), "CLOSED", Some("Closed"));
        assert_eq!(object.opened_after(), object.created_at, "nobody recorded when it was closed");
        for (closed_at, expected) in [(at(2_000_000_000), at(2_000_000_000)), (at(1), object.created_at)] {
            object.record.tunnel.as_mut().unwrap().closed_at = Some(closed_at);
            assert_eq!(object.opened_after(), expected);
        }
        object.record.tunnel.as_mut().unwrap().state = opentunnel_api::TunnelState::Open;
        assert_eq!(object.opened_after(), object.created_at);
    }
}
