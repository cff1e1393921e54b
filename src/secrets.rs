//! The token Secrets: what is in them, and what is read off one that exists. Pure.

use crate::read::{Key, Object, SecretSpec};
use crate::tunnels::{Side, Token, Tokens, TunnelId, hexadecimal};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use opentunnel_api::secret::{self as names, is_own_key, token_keys};
use opentunnel_api::{ClientMode, GENERATIONS, MANAGER, Tunnel};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A Secret's data.
pub type Data = BTreeMap<String, ByteString>;

/// A Secret that concerns a Tunnel, as the API server has it.
#[derive(Clone, Debug)]
pub struct SecretFacts {
    /// Its name.
    pub name: String,
    /// `None`: there is none.
    pub found: Option<FoundSecret>,
    /// SHA-256 of what would be in it with the tokens of the answer that is in hand.
    pub sha256_of_answer: Option<String>,
}

/// A Secret that exists.
#[derive(Clone, Debug)]
pub struct FoundSecret {
    /// The UID of the object that controls it.
    pub controller: Option<String>,
    /// Nobody controls it, and it was a token Secret: a backup without owners, or an owner that was deleted without it.
    pub leftover: bool,
    /// An earlier Tunnel of the same name controls it.
    pub predecessor: bool,
    /// Who has it, for people: "controlled by ...".
    pub holder: String,
    /// Who has written to it beside the operator, and what, for people.
    pub editors: Option<String>,
    /// It is being deleted, and somebody's finalizer holds it back.
    pub terminating: bool,
    /// The generation of its tokens; 0 where the annotation cannot be read.
    pub generation: i64,
    /// SHA-256 of the operator's own keys and their values.
    pub sha256: String,
    /// It can be updated, and Pods find in it what they expect: it is not immutable, and of the right type.
    pub sound: bool,
    /// It has the label that the watch of Secrets selects by.
    pub labelled: bool,
    /// It has the labels and annotations that the spec names.
    pub decorated: bool,
    /// The side whose tokens it has, and no others.
    pub mode: Option<ClientMode>,
    /// Its tokens.
    pub tokens: Tokens,
}

/// The names of the Secrets that concern a Tunnel: those that it wants, then those that held its tokens, then all
/// others that are its own (`owned`). A deletion needs none: no trouble with Secrets may hold it up.
pub fn names(object: &Object, owned: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    if object.deleted_at.is_some() {
        return names;
    }
    let wanted = object.spec.secrets.iter().map(|s| s.name.clone());
    let recorded = object.record.secrets.iter().flatten().map(|s| s.name.clone());
    for name in wanted.chain(recorded).chain(owned) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What is read off a Secret of the namespace of `key`. `wanted`: what the spec says of it.
pub fn found(secret: &Secret, key: &Key, wanted: Option<&SecretSpec>) -> FoundSecret {
    let controller = secret.meta().owner_references.iter().flatten().find(|o| o.controller == Some(true));
    let labelled = secret.labels().get(names::LABEL).is_some_and(|value| value == names::LABEL_VALUE);
    let typed = secret.type_.as_deref() == Some(names::TYPE);
    let leftover =
        controller.is_none() && typed && labelled && secret.annotations().contains_key(names::TUNNEL_ID_ANNOTATION);
    let of_a_tunnel = |o: &OwnerReference| o.kind == Tunnel::kind(&()) && o.api_version == Tunnel::api_version(&());
    let generation = secret.annotations().get(names::GENERATION_ANNOTATION).and_then(|g| g.parse().ok());
    let has = |have: &BTreeMap<String, String>, want: &BTreeMap<String, String>| {
        want.iter().all(|(key, value)| have.get(key) == Some(value))
    };
    FoundSecret {
        controller: controller.map(|o| o.uid.clone()),
        leftover,
        predecessor: controller.is_some_and(|o| of_a_tunnel(o) && o.name == key.name && o.uid != key.uid),
        holder: controller
            .map_or_else(|| "controlled by nobody".into(), |o| format!("controlled by {} {}", o.kind, o.name)),
        editors: editors(secret),
        terminating: secret.metadata.deletion_timestamp.is_some(),
        // Somebody's number leaves room for those that come after it. That of another Tunnel's life is none.
        generation: generation.filter(|g| !leftover && (0..GENERATIONS.end / 2).contains(g)).unwrap_or(0),
        sha256: secret.data.as_ref().map_or_else(|| sha256(&Data::new()), sha256),
        sound: secret.immutable != Some(true) && typed,
        labelled,
        decorated: wanted.is_none_or(|w| has(secret.labels(), &w.labels) && has(secret.annotations(), &w.annotations)),
        mode: mode_of(secret),
        tokens: tokens_of(secret),
    }
}

/// Who has written the operator's own keys, or what makes a Secret unusable, by `managedFields`.
fn editors(secret: &Secret) -> Option<String> {
    let mut editors: Vec<String> = Vec::new();
    for entry in secret.metadata.managed_fields.iter().flatten() {
        let manager = entry.manager.as_deref().unwrap_or("somebody unknown");
        let Some(fields) = entry.fields_v1.as_ref().filter(|_| manager != MANAGER) else { continue };
        let keys = fields.0.get("f:data").and_then(|data| data.as_object()).into_iter().flatten();
        let keys = keys.filter_map(|(key, _)| key.strip_prefix("f:")).filter(|key| is_own_key(key));
        let mut what: Vec<String> = keys.map(|key| format!("data.{key}")).collect();
        what.extend(
            ["immutable", "type"].iter().filter(|f| fields.0.get(format!("f:{f}")).is_some()).map(|f| (*f).into()),
        );
        if !what.is_empty() {
            editors.push(format!("{manager} ({})", what.join(", ")));
        }
    }
    editors.dedup();
    (!editors.is_empty()).then(|| editors.join("; "))
}

/// The operator's own keys of a token Secret. The variables that AWS's local proxy reads are there for one side
/// alone: with both, a Pod's `envFrom` could not say which it is.
pub fn data(mode: ClientMode, tokens: &Tokens, id: &TunnelId, region: &str) -> Data {
    let source = tokens.source.as_ref().filter(|_| mode.has_source());
    let destination = tokens.destination.as_ref().filter(|_| mode.has_destination());
    let mut data = Data::new();
    let mut put = |key: &str, value: &str| data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
    put(names::TUNNEL_ID, &id.0);
    put(names::REGION, region);
    let mut put_side = |access_key: &str, client_key: &str, side: &Side| {
        put(access_key, side.access_token.expose());
        put(client_key, side.client_token.expose());
        if mode != ClientMode::All {
            put(names::PROXY_ACCESS_TOKEN, side.access_token.expose());
            put(names::PROXY_CLIENT_TOKEN, side.client_token.expose());
            put(names::PROXY_REGION, region);
        }
    };
    if let Some(side) = source {
        put_side(names::SOURCE_ACCESS_TOKEN, names::SOURCE_CLIENT_TOKEN, side);
    }
    if let Some(side) = destination {
        put_side(names::DESTINATION_ACCESS_TOKEN, names::DESTINATION_CLIENT_TOKEN, side);
    }
    data
}

/// A Secret as this Tunnel's, but for its tokens. What others have put on it stays: their keys, labels, annotations and
/// finalizers.
pub fn prepared(object: &Object, wanted: &SecretSpec, mut secret: Secret) -> Secret {
    secret.metadata.name = Some(wanted.name.clone());
    secret.metadata.namespace = Some(object.key.namespace.clone());
    secret.metadata.managed_fields = None;
    secret.metadata.owner_references = Some(vec![OwnerReference {
        api_version: Tunnel::api_version(&()).into(),
        kind: Tunnel::kind(&()).into(),
        name: object.key.name.clone(),
        uid: object.key.uid.clone(),
        controller: Some(true),
        // As Kubernetes' own controllers set it; OpenShift then asks for rights on tunnels/finalizers.
        block_owner_deletion: Some(true),
    }]);
    let labels = names::LABELS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    secret.labels_mut().extend(wanted.labels.clone().into_iter().chain(labels));
    secret.annotations_mut().extend(wanted.annotations.clone());
    secret.type_ = Some(names::TYPE.into());
    secret.string_data = None;
    secret
}

/// Puts tokens into a [`prepared`] Secret.
pub fn fill(secret: &mut Secret, own: Data, id: &TunnelId, generation: i64) {
    for (name, value) in [
        (names::TUNNEL_ID_ANNOTATION, id.to_string()),
        (names::GENERATION_ANNOTATION, generation.to_string()),
        (names::DIGEST_ANNOTATION, sha256(&own)),
    ] {
        secret.annotations_mut().insert(name.into(), value);
    }
    let data = secret.data.get_or_insert_default();
    data.retain(|key, _| !is_own_key(key));
    data.extend(own);
}

/// The mode whose tokens a Secret has, and no others.
fn mode_of(secret: &Secret) -> Option<ClientMode> {
    let data = secret.data.as_ref()?;
    let present = data.keys().filter(|key| token_keys(ClientMode::All).contains(&key.as_str())).count();
    let fits = |mode: &ClientMode| {
        let keys = token_keys(*mode);
        keys.len() == present && keys.iter().all(|key| data.contains_key(*key))
    };
    [ClientMode::Source, ClientMode::Destination, ClientMode::All].into_iter().find(fits)
}

fn tokens_of(secret: &Secret) -> Tokens {
    let token = |key: &str| {
        let value = secret.data.as_ref()?.get(key)?;
        Some(Token::new(std::str::from_utf8(&value.0).ok()?.to_owned()))
    };
    let side = |access_key: &str, client_key: &str| {
        Some(Side { access_token: token(access_key)?, client_token: token(client_key)? })
    };
    Tokens {
        source: side(names::SOURCE_ACCESS_TOKEN, names::SOURCE_CLIENT_TOKEN),
        destination: side(names::DESTINATION_ACCESS_TOKEN, names::DESTINATION_CLIENT_TOKEN),
    }
}

/// SHA-256 over the operator's own keys and their values, each with its length, so that no two data are alike.
pub fn sha256(data: &Data) -> String {
    let mut hash = Sha256::new();
    for (key, value) in data.iter().filter(|(key, _)| is_own_key(key)) {
        for part in [key.as_bytes(), &value.0] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    hexadecimal(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &str) -> Side {
        Side { access_token: Token::new(format!("{name}-access")), client_token: Token::new(format!("{name}-client")) }
    }

    fn both() -> Tokens {
        Tokens { source: Some(side("source")), destination: Some(side("destination")) }
    }

    fn own(mode: ClientMode) -> Data {
        data(mode, &both(), &TunnelId("t".into()), "us-east-1")
    }

    /// A token Secret after `change`, as it is read.
    fn read(mode: ClientMode, change: impl FnOnce(&mut Secret)) -> FoundSecret {
        let mut secret = Secret { type_: Some(names::TYPE.into()), ..Secret::default() };
        secret.labels_mut().insert(names::LABEL.into(), names::LABEL_VALUE.into());
        secret.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Tunnel::api_version(&()).into(),
            kind: Tunnel::kind(&()).into(),
            name: "sensor".into(),
            uid: "u".into(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        fill(&mut secret, own(mode), &TunnelId("t".into()), 3);
        change(&mut secret);
        found(&secret, &key(), None)
    }

    fn key() -> Key {
        Key { namespace: "edge".into(), name: "sensor".into(), uid: "u".into() }
    }

    fn put(secret: &mut Secret, key: &str, value: &[u8]) {
        secret.data.get_or_insert_default().insert(key.into(), ByteString(value.to_vec()));
    }

    #[test]
    fn the_one_who_controls_a_secret_is_told() {
        let owned = |controller| {
            let owner = OwnerReference { uid: "u".into(), controller, ..OwnerReference::default() };
            read(ClientMode::All, |s| s.metadata.owner_references = Some(vec![owner])).controller
        };
        assert_eq!(owned(Some(true)).as_deref(), Some("u"));
        assert_eq!(owned(Some(false)), None);
        assert_eq!(read(ClientMode::All, |s| s.metadata.owner_references = None).controller, None);
    }

    #[test]
    fn a_generation_that_nobody_counted_to_is_none() {
        let generation = |text: &str| {
            let text = text.to_owned();
            read(ClientMode::All, |s| drop(s.annotations_mut().insert(names::GENERATION_ANNOTATION.into(), text)))
                .generation
        };
        assert_eq!(generation("7"), 7);
        for forged in ["9223372036854775807", "-1", "x", ""] {
            assert_eq!(generation(forged), 0, "{forged}");
        }
    }

    #[test]
    fn only_the_operators_own_keys_count_for_the_digest() {
        let digest = |change: fn(&mut Secret)| read(ClientMode::Source, change).sha256;
        let written = sha256(&own(ClientMode::Source));
        assert_eq!(digest(|_| ()), written);
        assert_eq!(digest(|s| put(s, "theirs", b"x")), written);
        assert_eq!(digest(|s| drop(s.annotations_mut().insert("theirs".into(), "x".into()))), written);
        assert_ne!(digest(|s| put(s, names::REGION, b"elsewhere")), written);
        assert_ne!(digest(|s| put(s, names::DESTINATION_ACCESS_TOKEN, b"x")), written);
        assert_ne!(digest(|s| drop(s.data.get_or_insert_default().remove(names::REGION))), written);
    }

    #[test]
    fn soundness_and_label_are_told() {
        let is = |change: fn(&mut Secret)| {
            let found = read(ClientMode::Source, change);
            (found.sound, found.labelled)
        };
        assert_eq!(is(|_| ()), (true, true));
        assert_eq!(is(|s| s.immutable = Some(true)), (false, true));
        assert_eq!(is(|s| s.type_ = Some("Opaque".into())), (false, true));
        assert_eq!(is(|s| s.labels_mut().clear()), (true, false));
        let stamped = |s: &mut Secret| drop(s.labels_mut().insert(names::MANAGED_BY_LABEL.into(), "platform".into()));
        assert_eq!(is(stamped), (true, true), "a policy's value is no edit");
    }

    #[test]
    fn the_mode_of_a_secret_is_told_by_its_own_keys_alone() {
        for mode in [ClientMode::Source, ClientMode::Destination, ClientMode::All] {
            assert_eq!(read(mode, |s| put(s, "theirAccessToken", b"x")).mode, Some(mode));
        }
        let lacks = |s: &mut Secret| drop(s.data.get_or_insert_default().remove(names::SOURCE_CLIENT_TOKEN));
        assert_eq!(read(ClientMode::All, lacks).mode, None);
        assert_eq!(found(&Secret::default(), &key(), None).mode, None);
    }

    #[test]
    fn the_tokens_of_a_secret_are_read_back() {
        let tokens = read(ClientMode::All, |_| ()).tokens;
        assert!(tokens.source.is_some_and(|s| s.access_token.expose() == "source-access"));
        assert!(tokens.destination.is_some_and(|s| s.client_token.expose() == "destination-client"));
        let no_text = read(ClientMode::Source, |s| put(s, names::SOURCE_ACCESS_TOKEN, &[0xff])).tokens;
        assert!(!no_text.have(ClientMode::Source));
    }

    #[test]
    fn what_others_have_put_on_a_secret_is_kept_and_what_the_operator_wrote_before_is_not() {
        let mut tunnel = Tunnel::new("sensor", opentunnel_api::TunnelSpec::default());
        tunnel.metadata.namespace = Some(key().namespace);
        tunnel.metadata.uid = Some(key().uid);
        tunnel.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Default::default()));
        let object = crate::read::read(&tunnel).unwrap();
        let mut before = Secret::default();
        put(&mut before, "theirs", b"kept");
        put(&mut before, names::DESTINATION_ACCESS_TOKEN, b"dead");
        before.labels_mut().insert("theirs".into(), "kept".into());
        before.labels_mut().insert(names::MANAGED_BY_LABEL.into(), "platform".into());
        before.annotations_mut().insert("theirs".into(), "kept".into());
        before.metadata.finalizers = Some(vec!["theirs".into()]);
        let wanted = SecretSpec {
            name: "x".into(),
            mode: ClientMode::Source,
            labels: BTreeMap::from([("team".into(), "edge".into())]),
            annotations: BTreeMap::from([("note".into(), "ours".into())]),
        };
        let mut secret = prepared(&object, &wanted, before);
        fill(&mut secret, own(ClientMode::Source), &TunnelId("t".into()), 4);
        let data = secret.data.clone().unwrap();
        assert_eq!(data["theirs"].0, b"kept");
        assert!(!data.contains_key(names::DESTINATION_ACCESS_TOKEN));
        assert_eq!(data[names::PROXY_ACCESS_TOKEN].0, b"source-access");
        assert_eq!((secret.labels()["theirs"].as_str(), secret.labels()["team"].as_str()), ("kept", "edge"));
        for (label, value) in names::LABELS {
            assert_eq!(secret.labels()[label], value);
        }
        assert_eq!((secret.annotations()["theirs"].as_str(), secret.annotations()["note"].as_str()), ("kept", "ours"));
        assert_eq!(secret.metadata.finalizers, Some(vec!["theirs".into()]));
        let found = found(&secret, &key(), Some(&wanted));
        assert!(found.decorated && found.sound && found.generation == 4);
        let more = SecretSpec { labels: BTreeMap::from([("team".into(), "core".into())]), ..wanted };
        assert!(!super::found(&secret, &key(), Some(&more)).decorated);
    }

    #[test]
    fn no_two_data_have_one_digest() {
        let digest = |pairs: &[(&str, &str)]| {
            sha256(&pairs.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect())
        };
        assert_ne!(
            digest(&[(names::REGION, "a"), (names::TUNNEL_ID, "bc")]),
            digest(&[(names::REGION, "ab"), (names::TUNNEL_ID, "c")])
        );
        assert_ne!(digest(&[(names::REGION, "a")]), digest(&[(names::TUNNEL_ID, "a")]));
    }

    fn controlled_by(kind: &str, name: &str, uid: &str) -> OwnerReference {
        let api_version = if kind == "Tunnel" { Tunnel::api_version(&()).into() } else { "apps/v1".into() };
        let (kind, name, uid) = (kind.into(), name.into(), uid.into());
        OwnerReference { api_version, kind, name, uid, controller: Some(true), block_owner_deletion: None }
    }

    #[test]
    fn who_has_a_secret_is_told_by_its_controller() {
        let of = |owner: OwnerReference| {
            let found = read(ClientMode::All, |s| s.metadata.owner_references = Some(vec![owner]));
            (found.predecessor, found.leftover, found.holder)
        };
        let by = |kind: &str, name: &str| format!("controlled by {kind} {name}");
        assert_eq!(of(controlled_by("Tunnel", "sensor", "u")), (false, false, by("Tunnel", "sensor")), "its own");
        assert_eq!(of(controlled_by("Tunnel", "sensor", "earlier")), (true, false, by("Tunnel", "sensor")));
        assert_eq!(of(controlled_by("Tunnel", "other", "v")), (false, false, by("Tunnel", "other")));
        assert_eq!(of(controlled_by("Deployment", "sensor", "v")), (false, false, by("Deployment", "sensor")));
        let foreign = OwnerReference { api_version: "example.com/v1".into(), ..controlled_by("Tunnel", "sensor", "v") };
        assert_eq!(of(foreign), (false, false, by("Tunnel", "sensor")), "a Tunnel of another kind");
    }

    #[test]
    fn a_token_secret_that_nobody_controls_is_a_leftover_and_its_generation_is_of_another_life() {
        let is = |change: fn(&mut Secret)| {
            let found = read(ClientMode::All, |s| {
                s.metadata.owner_references = None;
                change(s);
            });
            (found.leftover, found.generation)
        };
        assert_eq!(is(|_| ()), (true, 0));
        let owned_only = |s: &mut Secret| {
            let owner = OwnerReference { controller: None, ..controlled_by("ConfigMap", "x", "x") };
            s.metadata.owner_references = Some(vec![owner]);
        };
        assert_eq!(is(owned_only), (true, 0), "whoever owns it does not control it");
        assert_eq!(is(|s| s.type_ = Some("Opaque".into())), (false, 3));
        assert_eq!(is(|s| s.labels_mut().clear()), (false, 3));
        assert_eq!(is(|s| drop(s.annotations_mut().remove(names::TUNNEL_ID_ANNOTATION))), (false, 3));
        let owned = |s: &mut Secret| s.metadata.owner_references = Some(vec![controlled_by("Tunnel", "sensor", "u")]);
        assert_eq!(is(owned), (false, 3));
    }

    #[test]
    fn who_has_edited_a_secret_is_told_with_what_he_has_written() {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
        use serde_json::json;
        let of = |entries: Vec<(Option<&str>, serde_json::Value)>| {
            let entry = |(manager, fields): (Option<&str>, serde_json::Value)| ManagedFieldsEntry {
                manager: manager.map(str::to_owned),
                fields_v1: Some(FieldsV1(fields)),
                ..ManagedFieldsEntry::default()
            };
            let entries = entries.into_iter().map(entry).collect();
            read(ClientMode::All, |s| s.metadata.managed_fields = Some(entries)).editors
        };
        let data = |key: &str| json!({"f:data": {".": {}, format!("f:{key}"): {}}});
        assert_eq!(of(vec![]), None);
        assert_eq!(of(vec![(Some(MANAGER), data("region"))]), None, "the operator");
        assert_eq!(of(vec![(Some("kubectl"), data("theirs"))]), None, "what is the user's own is no edit");
        assert_eq!(of(vec![(Some("kubectl"), json!({"f:metadata": {"f:labels": {}}}))]), None);
        assert_eq!(of(vec![(Some("kubectl"), data("region"))]).as_deref(), Some("kubectl (data.region)"));
        assert_eq!(of(vec![(None, json!({"f:immutable": {}}))]).as_deref(), Some("somebody unknown (immutable)"));
        let both = of(vec![
            (Some("a"), data("tunnelId")),
            (Some(MANAGER), data("region")),
            (Some("b"), json!({"f:type": {}})),
        ]);
        assert_eq!(both.as_deref(), Some("a (data.tunnelId); b (type)"));
        assert_eq!(of(vec![(Some("x"), json!([]))]), None);
    }
}
