//! A Tunnel as it is stored, which may be one that this operator cannot read: it was stored under another CRD,
//! or somebody has written the status. It must not stop the others. Pure.

use crate::aws::clean;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use opentunnel_api::{PREFIX, Tunnel, TunnelSpec, TunnelStatus};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Characters of what is wrong that are told: values of any length are part of it.
const WORDS_LIMIT: usize = 400;

/// A Tunnel that cannot be read as it is.
#[derive(Debug)]
pub struct Unreadable {
    /// Which field, and what is wrong with it.
    pub what: String,
    /// The fields that can be read: enough to close its tunnel and to let it go, and for nothing else.
    pub readable: Tunnel,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    spec: TunnelSpec,
    status: Option<TunnelStatus>,
}

/// Reads a Tunnel.
///
/// # Errors
/// A field has a value that no Tunnel can have.
pub fn read(object: DynamicObject) -> Result<Tunnel, Box<Unreadable>> {
    let DynamicObject { metadata, data, .. } = object;
    let metadata = slim(metadata);
    match serde_path_to_error::deserialize::<_, Body>(&data) {
        Ok(Body { spec, status }) => Ok(Tunnel { metadata, spec, status }),
        Err(error) => {
            let mut what = clean(&format!("{}: {}", error.path(), error.inner()));
            what.truncate(what.floor_char_boundary(WORDS_LIMIT));
            let readable =
                Tunnel { metadata, spec: fields_of(&data["spec"]), status: Some(fields_of(&data["status"])) };
            Err(Box::new(Unreadable { what, readable }))
        }
    }
}

/// Without what nobody reads, which may be more than all the rest: who wrote which field, and kubectl's copy of the
/// manifest. It stays in memory as long as the Tunnel is there.
fn slim(mut metadata: ObjectMeta) -> ObjectMeta {
    let annotations = metadata.annotations.take().unwrap_or_default();
    let own: BTreeMap<_, _> = annotations.into_iter().filter(|(key, _)| key.starts_with(PREFIX)).collect();
    metadata.annotations = Some(own).filter(|own| !own.is_empty());
    ObjectMeta { managed_fields: None, labels: None, owner_references: None, ..metadata }
}

/// The fields that can be read by themselves; the others are as if they were left out.
fn fields_of<T: DeserializeOwned + Default>(value: &Value) -> T {
    let readable = |(name, value): (&String, &Value)| {
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        T::deserialize(Value::Object(alone.clone())).is_ok().then_some(alone)
    };
    let fields: Map<_, _> = value.as_object().into_iter().flatten().filter_map(readable).flatten().collect();
    T::deserialize(Value::Object(fields)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentunnel_api::{DeletionPolicy, TunnelState};
    use serde_json::json;

    fn object(data: Value) -> DynamicObject {
        let mut object = json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": "a"}});
        object.as_object_mut().unwrap().extend(data.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_cannot_be_read_is_told_by_its_field() {
        for (data, told) in [
            (json!({"spec": {"timeout": "60"}}), "spec.timeout: invalid type: string \"60\""),
            (json!({"spec": {"secrets": {"name": "a"}}}), "spec.secrets: invalid type: map"),
            (json!({"spec": {"tags": [{"key": "a", "value": "b"}, {"key": 7}]}}), "spec.tags[1].key: invalid type"),
            (json!({"spec": {"destination": {}}}), "spec.destination: missing field `services`"),
            (json!({"spec": {}, "status": {"openedAt": "never"}}), "status.openedAt: "),
            (json!({"spec": 7}), "spec: invalid type"),
        ] {
            let what = read(object(data.clone())).unwrap_err().what;
            assert!(what.starts_with(told), "{data}: {what}");
        }
        let long = read(object(json!({"spec": {"timeout": "\u{1b}[2J\n".repeat(10_000)}}))).unwrap_err().what;
        assert!(long.len() <= WORDS_LIMIT && !long.contains(['\n', '\u{1b}']), "{long}");
    }

    #[test]
    fn of_the_metadata_what_the_operator_reads_is_kept() {
        let annotations =
            json!({"opentunnel.dev/opening": "u/a", "kubectl.kubernetes.io/last-applied-configuration": "{}"});
        let mut metadata = json!({
            "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2,
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z", "finalizers": ["f"],
        });
        let kept = metadata.clone();
        metadata["annotations"] = annotations;
        metadata["labels"] = json!({"a": "b"});
        metadata["managedFields"] = json!([{"manager": "kubectl"}]);
        let read = read(object(json!({"metadata": metadata}))).unwrap();
        let mut read = serde_json::to_value(read.metadata).unwrap();
        let annotations = read.as_object_mut().unwrap().remove("annotations");
        assert_eq!(annotations, Some(json!({"opentunnel.dev/opening": "u/a"})));
        assert_eq!(read, kept);
    }

    #[test]
    fn what_is_left_out_is_no_mistake() {
        for data in [json!({}), json!({"spec": {}}), json!({"spec": {}, "status": {"observedGeneration": -1}})] {
            assert_eq!(read(object(data)).unwrap().spec, TunnelSpec::default());
        }
    }

    #[test]
    fn enough_can_be_read_to_close_its_tunnel() {
        let status = json!({"tunnelId": "t", "tunnelArn": "arn", "state": "OPEN", "expiresAt": 7});
        let spec = json!({"deletionPolicy": "Retain", "timeout": "60", "secrets": [{"name": "a"}]});
        let readable = read(object(json!({"spec": spec, "status": status}))).unwrap_err().readable;
        assert_eq!(readable.metadata.name.as_deref(), Some("a"));
        assert_eq!(readable.spec.deletion_policy, DeletionPolicy::Retain);
        assert_eq!((readable.spec.timeout, readable.spec.secrets.unwrap().len()), (None, 1));
        let status = readable.status.unwrap();
        assert_eq!(
            (status.tunnel_id.as_deref(), status.state, status.expires_at),
            (Some("t"), Some(TunnelState::Open), None)
        );
    }
}
