//! The token Secrets, pure: what is in them, and what one that exists is to a Tunnel.

use super::observe::{Answer, SecretState};
use super::validate::{Desired, SecretRef};
use crate::crd::{self, ClientMode, GENERATIONS};
use crate::tunnels::{Side, Tokens, TunnelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The wanted Secrets as states.
pub fn states(
    secrets: Option<&[Option<Secret>]>,
    desired: &Desired,
    answer: Option<(&Answer, &str)>,
) -> Vec<SecretState> {
    let secrets = secrets.into_iter().flatten();
    let state = |(secret, wanted): (&Option<Secret>, &SecretRef)| {
        let digest = answer.map(|(a, region)| {
            let data = Some(secret_data(wanted.mode, &a.tokens, &a.tunnel.id, region));
            data_digest(&Secret { data, ..Secret::default() })
        });
        secret_state(secret.as_ref(), &desired.key.uid, digest.as_deref())
    };
    secrets.zip(&desired.secrets).map(state).collect()
}

/// The data of a token Secret. The variables that AWS's local proxy reads are there for one side
/// alone: with both, a Pod's `envFrom` could not say which it is.
pub fn secret_data(mode: ClientMode, tokens: &Tokens, id: &TunnelId, region: &str) -> BTreeMap<String, ByteString> {
    let source = tokens.source.as_ref().filter(|_| mode.has_source());
    let destination = tokens.destination.as_ref().filter(|_| mode.has_destination());
    let mut data = BTreeMap::new();
    let mut put = |key: &str, value: &str| data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
    put("tunnelId", &id.0);
    put("region", region);
    let mut put_side = |name: &str, side: &Side| {
        put(&format!("{name}AccessToken"), side.access_token.expose());
        put(&format!("{name}ClientToken"), side.client_token.expose());
        if mode != ClientMode::All {
            put("AWSIOT_TUNNEL_ACCESS_TOKEN", side.access_token.expose());
            put("AWSIOT_TUNNEL_CLIENT_TOKEN", side.client_token.expose());
            put("AWSIOT_TUNNEL_REGION", region);
        }
    };
    source.iter().for_each(|side| put_side("source", side));
    destination.iter().for_each(|side| put_side("destination", side));
    data
}

/// What a Secret of a wanted name is to the Tunnel with `uid`.
fn secret_state(secret: Option<&Secret>, uid: &str, answer_digest: Option<&str>) -> SecretState {
    let Some(secret) = secret else {
        return SecretState::Missing;
    };
    let controlled =
        secret.meta().owner_references.iter().flatten().any(|o| o.uid == uid && o.controller == Some(true));
    if !controlled {
        return SecretState::Foreign;
    }
    if secret.metadata.deletion_timestamp.is_some() {
        return SecretState::Terminating;
    }
    let generation = secret.annotations().get(crd::GENERATION_ANNOTATION).and_then(|g| g.parse().ok());
    let generation = generation.filter(|g| GENERATIONS.contains(g));
    let digest = data_digest(secret);
    SecretState::Ours {
        generation: generation.unwrap_or(0),
        sound: secret.immutable != Some(true) && secret.type_.as_deref() == Some(crd::SECRET_TYPE),
        holds_answer: answer_digest == Some(digest.as_str()),
        digest,
    }
}

/// SHA-256 over a Secret's keys and values, each with its length, so that no two data are alike.
pub fn data_digest(secret: &Secret) -> String {
    let mut hash = Sha256::new();
    for (key, value) in secret.data.iter().flatten() {
        for part in [key.as_bytes(), &value.0] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    hex(&hash.finalize())
}

/// SHA-256 over the names and digests of all the Tunnel's Secrets: `status.tokensDigest`. `None`
/// unless all are this Tunnel's.
pub fn tokens_digest(desired: &Desired, secrets: &[SecretState]) -> Option<String> {
    let mut hash = Sha256::new();
    for (wanted, state) in desired.secrets.iter().zip(secrets) {
        let SecretState::Ours { digest, .. } = state else {
            return None;
        };
        hash.update(format!("{}={digest}\n", wanted.name));
    }
    Some(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether the Secrets hold what was written into them for what is recorded.
pub fn are_kept(desired: &Desired, secrets: &[SecretState]) -> bool {
    let record = &desired.record;
    let sound = secrets.iter().all(
        |s| matches!(s, SecretState::Ours { generation, sound: true, .. } if *generation == record.token_generation),
    );
    sound && record.tokens_digest.is_some() && record.tokens_digest == tokens_digest(desired, secrets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    fn secret(uid: &str, controller: bool, generation: &str) -> Secret {
        let owner = OwnerReference { uid: uid.into(), controller: Some(controller), ..OwnerReference::default() };
        let mut secret = Secret { type_: Some(crd::SECRET_TYPE.into()), ..Secret::default() };
        secret.metadata.owner_references = Some(vec![owner]);
        secret.annotations_mut().insert(crd::GENERATION_ANNOTATION.into(), generation.into());
        secret
    }

    fn generation(text: &str) -> i64 {
        match secret_state(Some(&secret("uid", true, text)), "uid", None) {
            SecretState::Ours { generation, .. } => generation,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_secret_that_this_uid_controls_is_ours() {
        assert_eq!(secret_state(None, "uid", None), SecretState::Missing);
        assert_eq!(secret_state(Some(&secret("other", true, "1")), "uid", None), SecretState::Foreign);
        assert_eq!(secret_state(Some(&secret("uid", false, "1")), "uid", None), SecretState::Foreign);
        assert_eq!(secret_state(Some(&Secret::default()), "uid", None), SecretState::Foreign);
        assert_eq!(generation("3"), 3);
    }

    #[test]
    fn a_generation_that_nobody_counted_to_is_none() {
        for forged in ["9223372036854775807", "-1", "x", ""] {
            assert_eq!(generation(forged), 0, "{forged}");
        }
    }

    #[test]
    fn no_two_data_have_one_digest() {
        let digest = |pairs: &[(&str, &str)]| {
            let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
            data_digest(&Secret { data: Some(data), ..Secret::default() })
        };
        assert_ne!(digest(&[("a", "bc")]), digest(&[("ab", "c")]));
        assert_ne!(digest(&[("a", "b"), ("c", "d")]), digest(&[("a", "bcd")]));
    }
}
