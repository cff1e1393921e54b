//! The token Secrets, pure: what is in them, and what one that exists is to a Tunnel.

use super::observe::{Answer, Observed, SecretState};
use super::validate::{Desired, SHORTEST_DIGEST, SecretRef};
use crate::crd::{self, ClientMode, GENERATIONS};
use crate::tunnels::{Side, Token, Tokens, TunnelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;

/// `status.tokensDigest` has as many characters at the most.
const DIGESTS_LIMIT: usize = 128;

/// The Secrets that concern a Tunnel, by name: the wanted ones in their order, then those that it wants
/// no more.
pub type Read = Vec<(String, Option<Secret>)>;

/// The names of the Secrets that concern a Tunnel. `owned` are those that the watch shows as its own.
pub fn names(desired: &Desired, owned: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = desired.secrets.iter().map(|s| s.name.clone()).collect();
    for name in desired.record.kept.iter().map(|k| k.name.clone()).chain(owned) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What was read, as states.
pub fn states(
    read: &[(String, Option<Secret>)],
    desired: &Desired,
    answer: Option<(&Answer, &str)>,
) -> Vec<SecretState> {
    let state = |(index, (name, secret)): (usize, &(String, Option<Secret>))| {
        let digest = answer.zip(desired.secrets.get(index)).map(|((a, region), wanted)| {
            let data = Some(secret_data(wanted.mode, &a.tokens, &a.tunnel.id, region));
            data_digest(&Secret { data, ..Secret::default() })
        });
        let kept = desired.record.kept.iter().find(|k| k.name == *name).map(|k| k.digest.as_str());
        secret_state(secret.as_ref(), &desired.key.uid, kept, digest.as_deref())
    };
    read.iter().enumerate().map(state).collect()
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

/// What a Secret is to the Tunnel with `uid`. `kept` is what is recorded of its data's digest.
fn secret_state(secret: Option<&Secret>, uid: &str, kept: Option<&str>, answer: Option<&str>) -> SecretState {
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
    // Somebody's number leaves room for those that come after it.
    let generation = generation.filter(|g| (0..GENERATIONS.end / 2).contains(g));
    let digest = data_digest(secret);
    let sound = secret.immutable != Some(true) && secret.type_.as_deref() == Some(crd::SECRET_TYPE);
    // Without its label the watch would not see what becomes of it.
    let labelled = secret.labels().get(crd::MANAGED_BY_LABEL).is_some_and(|v| v == crd::MANAGER);
    SecretState::Ours {
        generation: generation.unwrap_or(0),
        sound,
        intact: sound && labelled && kept.is_some_and(|kept| digest.starts_with(kept)),
        mode: mode_of(secret),
        holds_answer: labelled && answer == Some(digest.as_str()),
        digest,
    }
}

const KEYS: [(ClientMode, &[&str]); 3] = [
    (ClientMode::Source, &["sourceAccessToken", "sourceClientToken"]),
    (ClientMode::Destination, &["destinationAccessToken", "destinationClientToken"]),
    (ClientMode::All, &["sourceAccessToken", "sourceClientToken", "destinationAccessToken", "destinationClientToken"]),
];

/// The mode whose tokens a Secret has, and no others.
fn mode_of(secret: &Secret) -> Option<ClientMode> {
    let data = secret.data.as_ref()?;
    let tokens = |key: &&String| key.ends_with("AccessToken") || key.ends_with("ClientToken");
    let present: Vec<&String> = data.keys().filter(tokens).collect();
    let fits =
        |(_, keys): &&(ClientMode, &[&str])| keys.len() == present.len() && keys.iter().all(|k| data.contains_key(*k));
    KEYS.iter().find(fits).map(|(mode, _)| *mode)
}

/// The tokens in the Secrets that are as they were recorded when the Tunnel last was Ready.
pub fn kept_tokens(read: &[(String, Option<Secret>)], states: &[SecretState]) -> Tokens {
    let intact = read.iter().zip(states).filter(|(_, state)| matches!(state, SecretState::Ours { intact: true, .. }));
    intact.filter_map(|((_, secret), _)| secret.as_ref()).map(tokens_of).fold(Tokens::default(), Tokens::or)
}

fn tokens_of(secret: &Secret) -> Tokens {
    let token = |key: String| {
        let value = secret.data.as_ref()?.get(&key)?;
        Some(Token::new(std::str::from_utf8(&value.0).ok()?.to_owned()))
    };
    let side = |name: &str| {
        let access_token = token(format!("{name}AccessToken"))?;
        Some(Side { access_token, client_token: token(format!("{name}ClientToken"))? })
    };
    Tokens { source: side("source"), destination: side("destination") }
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

/// What `status.tokensDigest` says of these Secrets: the SHA-256 of each one's data, in their order, all
/// cut to the same length so that they fit. `None` unless all are this Tunnel's.
pub fn tokens_digest(secrets: &[SecretState]) -> Option<String> {
    let width = DIGESTS_LIMIT.checked_div(secrets.len())?.clamp(SHORTEST_DIGEST, 64);
    let digest = |state: &SecretState| match state {
        SecretState::Ours { digest, .. } => Some(digest.get(..width).unwrap_or(digest).to_owned()),
        _ => None,
    };
    secrets.iter().map(digest).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The sides of a Ready Tunnel that need new tokens: those of Secrets that were lost or edited, and those
/// that no Secret holds yet. What a Secret that is as it was recorded holds needs none.
pub fn to_rotate(desired: &Desired, observed: &Observed) -> Option<ClientMode> {
    let record = &desired.record;
    let held = observed.secrets.iter().chain(&observed.former).filter_map(|state| match state {
        SecretState::Ours { intact: true, mode, .. } => *mode,
        _ => None,
    });
    let held = held.reduce(ClientMode::union);
    let needed = desired.secrets.iter().zip(&observed.secrets).filter_map(|(wanted, state)| {
        let known = record.kept.iter().any(|k| k.name == wanted.name);
        let as_recorded = matches!(state,
            SecretState::Ours { generation, intact: true, .. } if *generation == record.token_generation);
        // Beyond the present generation: written in by somebody.
        let forged = matches!(state, SecretState::Ours { generation, .. } if *generation > record.token_generation);
        match state {
            SecretState::Terminating => None,
            _ if (known && !as_recorded) || forged => Some(wanted.mode),
            _ => wanted.mode.without(held),
        }
    });
    needed.reduce(ClientMode::union)
}

/// Whether the Secrets that the spec names, and no others, hold the sides that it says.
pub fn are_arranged(desired: &Desired, observed: &Observed) -> bool {
    let kept = &desired.record.kept;
    let holds = |(wanted, state): (&SecretRef, &SecretState)| {
        let recorded = kept.iter().any(|k| k.name == wanted.name);
        recorded && matches!(state, SecretState::Ours { mode, .. } if *mode == Some(wanted.mode))
    };
    let all = desired.secrets.iter().zip(&observed.secrets).all(holds);
    all && kept.len() == desired.secrets.len() && !observed.former.iter().any(|s| matches!(s, SecretState::Ours { .. }))
}

#[cfg(test)]
mod tests {
    use super::super::validate::kept;
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
        match secret_state(Some(&secret("uid", true, text)), "uid", None, None) {
            SecretState::Ours { generation, .. } => generation,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_secret_that_this_uid_controls_is_ours() {
        assert_eq!(secret_state(None, "uid", None, None), SecretState::Missing);
        assert_eq!(secret_state(Some(&secret("other", true, "1")), "uid", None, None), SecretState::Foreign);
        assert_eq!(secret_state(Some(&secret("uid", false, "1")), "uid", None, None), SecretState::Foreign);
        assert_eq!(secret_state(Some(&Secret::default()), "uid", None, None), SecretState::Foreign);
        assert_eq!(generation("3"), 3);
    }

    #[test]
    fn a_generation_that_nobody_counted_to_is_none() {
        for forged in ["9223372036854775807", "-1", "x", ""] {
            assert_eq!(generation(forged), 0, "{forged}");
        }
    }

    fn side(name: &str) -> Side {
        Side { access_token: Token::new(format!("{name}-access")), client_token: Token::new(format!("{name}-client")) }
    }

    /// A Secret of this Tunnel's with the tokens of `mode`, and its digest.
    fn held(mode: ClientMode, change: impl FnOnce(&mut Secret)) -> (Secret, String) {
        let tokens = Tokens { source: Some(side("source")), destination: Some(side("destination")) };
        let mut secret = secret("uid", true, "1");
        secret.labels_mut().insert(crd::MANAGED_BY_LABEL.into(), crd::MANAGER.into());
        secret.data = Some(secret_data(mode, &tokens, &TunnelId("t".into()), "us-east-1"));
        let digest = data_digest(&secret);
        change(&mut secret);
        (secret, digest)
    }

    fn data(secret: &mut Secret) -> &mut BTreeMap<String, ByteString> {
        secret.data.get_or_insert_default()
    }

    #[test]
    fn a_secret_is_intact_as_long_as_nobody_touches_what_counts() {
        let intact = |change: fn(&mut Secret)| {
            let (secret, digest) = held(ClientMode::Source, change);
            let state = secret_state(Some(&secret), "uid", Some(&digest[..SHORTEST_DIGEST]), None);
            matches!(state, SecretState::Ours { intact: true, .. })
        };
        assert!(intact(|_| ()));
        assert!(intact(|s| drop(s.annotations_mut().insert("theirs".into(), "x".into()))));
        assert!(!intact(|s| s.immutable = Some(true)));
        assert!(!intact(|s| s.type_ = Some("Opaque".into())));
        assert!(!intact(|s| s.labels_mut().clear()));
        assert!(!intact(|s| drop(data(s).insert("mine".into(), ByteString(vec![1])))));
        assert!(!intact(|s| drop(data(s).remove("region"))));
        let (secret, _) = held(ClientMode::Source, |_| ());
        let unknown = secret_state(Some(&secret), "uid", None, None);
        assert!(matches!(unknown, SecretState::Ours { intact: false, .. }), "nothing is recorded of it");
    }

    #[test]
    fn the_mode_of_a_secret_is_told_by_its_keys_alone() {
        for mode in [ClientMode::Source, ClientMode::Destination, ClientMode::All] {
            assert_eq!(mode_of(&held(mode, |_| ()).0), Some(mode));
        }
        assert_eq!(mode_of(&held(ClientMode::All, |s| drop(data(s).remove("sourceClientToken"))).0), None);
        assert_eq!(mode_of(&Secret::default()), None);
    }

    #[test]
    fn tokens_are_taken_from_intact_secrets_and_no_others() {
        let taken = |intact| {
            let (secret, digest) = held(ClientMode::All, |_| ());
            let kept = if intact { digest } else { "0".repeat(64) };
            let state = secret_state(Some(&secret), "uid", Some(&kept), None);
            kept_tokens(&[("a".into(), Some(secret))], &[state])
        };
        let tokens = taken(true);
        assert!(tokens.source.is_some_and(|s| s.access_token.expose() == "source-access"));
        assert!(tokens.destination.is_some_and(|s| s.client_token.expose() == "destination-client"));
        assert!(!taken(false).have(ClientMode::Source));
        let (secret, _) =
            held(ClientMode::Source, |s| drop(data(s).insert("sourceAccessToken".into(), ByteString(vec![0xff]))));
        assert!(!tokens_of(&secret).have(ClientMode::Source), "no text");
    }

    #[test]
    fn the_digests_of_one_to_eight_secrets_are_read_back_as_they_were_recorded() {
        for count in 1..=8 {
            let states: Vec<_> = (0..count)
                .map(|n| {
                    let (secret, _) = held(ClientMode::All, |s| drop(data(s).insert("n".into(), ByteString(vec![n]))));
                    secret_state(Some(&secret), "uid", None, None)
                })
                .collect();
            let names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
            let recorded = tokens_digest(&states).expect("all are there");
            assert!(recorded.len() <= DIGESTS_LIMIT);
            let kept = kept(names.clone(), &recorded);
            assert_eq!(kept.iter().map(|k| k.name.clone()).collect::<Vec<_>>(), names);
            for (kept, state) in kept.iter().zip(&states) {
                let SecretState::Ours { digest, .. } = state else { unreachable!() };
                assert!(digest.starts_with(&kept.digest) && kept.digest.len() >= SHORTEST_DIGEST);
            }
        }
        assert_eq!(tokens_digest(&[SecretState::Missing]), None);
        for (names, digests) in
            [(1, ""), (2, "0123456789abcdef0"), (3, "0123456789abcdef"), (1, "ü0123456789abcdef"), (0, "x")]
        {
            assert_eq!(kept(vec!["a".into(); names], digests), [], "{names} names, {digests:?}");
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
