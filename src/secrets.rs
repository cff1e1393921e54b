//! The token Secrets: what is in them, and what is read off one that exists. Pure.

use crate::read::{Goal, Key, Object, SecretSpec};
use crate::tunnels::{Side, Token, Tokens, TunnelId, hexadecimal};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use opentunnel_api::secret::{self as names, is_own_key, token_keys};
use opentunnel_api::{ClientMode, GENERATIONS, MANAGER, SecretStatus, Tunnel};
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
    /// Its resourceVersion.
    pub version: Option<String>,
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

/// The Secrets of a Ready Tunnel, as they were recorded, if nobody has touched one of them since (`unchanged`) and nothing
/// else is wanted of them. Their tokens are not known so: they are read where they are needed.
pub fn as_recorded(
    object: &Object,
    names: &[String],
    unchanged: impl Fn(&SecretStatus) -> bool,
) -> Option<Vec<SecretFacts>> {
    let record = &object.record;
    let observed = record.observed_generation == Some(object.generation) && object.goal() == Goal::Open;
    let recorded = record.secrets.as_ref().filter(|_| record.is_ready() && observed)?;
    let fact = |name: &String| {
        let recorded = recorded.iter().find(|secret| secret.name == *name).filter(|secret| unchanged(secret))?;
        let wanted = object.spec.secrets.iter().find(|secret| secret.name == *name)?;
        let found = FoundSecret {
            controller: Some(object.key.uid.clone()),
            leftover: false,
            predecessor: false,
            holder: String::new(),
            editors: None,
            terminating: false,
            version: recorded.resource_version.clone(),
            generation: record.token_generation,
            sha256: recorded.sha256.clone(),
            sound: true,
            labelled: true,
            decorated: true,
            mode: Some(wanted.mode),
            tokens: Tokens::default(),
        };
        Some(SecretFacts { name: name.clone(), found: Some(found), sha256_of_answer: None })
    };
    names.iter().map(fact).collect()
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
        version: secret.metadata.resource_version.clone(),
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
mod tests;
