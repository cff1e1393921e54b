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
    tunnel.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Default::default()));
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
    let both =
        of(vec![(Some("a"), data("tunnelId")), (Some(MANAGER), data("region")), (Some("b"), json!({"f:type": {}}))]);
    assert_eq!(both.as_deref(), Some("a (data.tunnelId); b (type)"));
    assert_eq!(of(vec![(Some("x"), json!([]))]), None);
}
