//! What users and others do to a Tunnel's Secrets, and an operator that is pointed elsewhere: the open
//! tunnel is kept, and live tokens come back by rotation.

use crate::support::api_proxy::{self, Point};
use crate::support::namespace::{main_condition, secret_names, status};
use crate::support::{LIMIT, World};
use axum::http::StatusCode;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use opentunnel_api::{MANAGER, Tunnel, secret};
use secure_tunneling_emulator::TunnelStatus;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

async fn patch_secret(world: &World, patch: Value) {
    let api = world.secrets();
    api.patch("plain-tokens", &PatchParams::default(), &Patch::Merge(patch)).await.expect("it can be patched");
}

/// Ready with tokens of this generation, which AWS accepts; one tunnel in all.
async fn assert_renewed(world: &World, generation: i64) {
    wait_generation(world, generation).await;
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    let live = world.aws.live_tokens(&data["tunnelId"]).expect("an open tunnel");
    assert!(data["sourceAccessToken"] == live.source, "the source's token is dead");
    assert!(data["destinationAccessToken"] == live.destination, "the destination's token is dead");
    assert_eq!(world.aws.tunnels().len(), 1, "no second tunnel");
}

fn rotations(world: &World) -> usize {
    world.aws.calls().iter().filter(|c| c.operation == "RotateTunnelAccessToken").count()
}

#[tokio::test]
async fn a_lost_an_edited_and_an_immutable_secret_comes_back_by_rotation_once() {
    let world = World::new().await;
    // Only the watch of Secrets can tell: no poll comes in this time.
    let _operator = world.operator_with(&world.settings().flag("--poll-interval", "1h")).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let edits = [
        json!({"stringData": {"sourceAccessToken": "edited"}}),
        json!({"data": {"sourceAccessToken": null}}),
        json!({"metadata": {"annotations": {"opentunnel.dev/token-generation": null}}}),
        json!({"metadata": {"labels": {secret::LABEL: null}}}),
        json!({"immutable": true}),
    ];
    let times = edits.len() as i64;
    for (generation, edit) in (2..).zip(edits) {
        patch_secret(&world, edit).await;
        assert_renewed(&world, generation).await;
    }
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    assert_renewed(&world, times + 2).await;

    let secret = world.secrets().get("plain-tokens").await.expect("it is there");
    assert_eq!(secret.labels()[secret::LABEL], secret::LABEL_VALUE);
    assert_eq!(secret.labels()[secret::MANAGED_BY_LABEL], MANAGER);
    assert_eq!(secret.immutable, None);
    assert_eq!(rotations(&world) as i64, times + 1, "each once");
}

#[tokio::test]
async fn a_secret_that_was_lost_or_edited_while_no_operator_ran_comes_back() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    operator.kill();
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    let operator = world.operator().await;
    assert_renewed(&world, 2).await;
    operator.kill();
    patch_secret(&world, json!({"stringData": {"sourceAccessToken": "edited"}})).await;
    let operator = world.operator().await;
    assert_renewed(&world, 3).await;
    operator.kill();
    // The type of a Secret cannot be changed: another one of the name, which is this Tunnel's too.
    let mut other = world.secrets().get("plain-tokens").await.expect("it is there");
    (other.type_, other.metadata.resource_version) = (Some("Opaque".into()), None);
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    world.secrets().create(&Default::default(), &other).await.expect("the name is free");
    let _operator = world.operator().await;
    assert_renewed(&world, 4).await;
    let secret = world.secrets().get("plain-tokens").await.expect("it is there");
    assert_eq!(secret.type_.as_deref(), Some(secret::TYPE));
    assert_eq!(rotations(&world), 3, "each once");
}

#[tokio::test]
async fn without_a_watch_of_secrets_a_lost_one_is_noticed_at_the_next_poll() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let _operator = world.operator_with(&world.settings().via(&proxy).flag("--watch-secrets", "false")).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    assert_renewed(&world, 2).await;
    assert_eq!(rotations(&world), 1);
    let lists = proxy.count(|r| r.method == "GET" && r.path.ends_with("/secrets"));
    assert_eq!(lists, 0, "Secrets are neither listed nor watched");
}

#[tokio::test]
async fn a_lost_secret_of_one_side_leaves_the_other_sides_tokens_alone() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&with_secrets("[{name: s, clientMode: SOURCE}, {name: d, clientMode: DESTINATION}]")).await;
    world.wait_ready("plain").await;
    let before = world.secret_data("s").await.expect("a Secret");
    world.secrets().delete("d", &DeleteParams::default()).await.expect("it is there");
    let tunnel = wait_generation(&world, 2).await;
    assert!(world.secret_data("s").await.expect("a Secret") == before, "it holds what it held");
    assert_live(&world, &tunnel, &[("s", true, false), ("d", false, true)]).await;
}

#[tokio::test]
async fn a_lost_secret_that_a_quota_refuses_is_told_and_the_others_tokens_stay_live() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let _operator = world.operator_with(&world.settings().via(&proxy).flag("--poll-interval", "1h")).await;
    world.apply(&with_secrets("[{name: a}, {name: b, clientMode: SOURCE}]")).await;
    let tunnel = world.wait_ready("plain").await;
    let refusal = api_proxy::failure(StatusCode::FORBIDDEN, "secrets \"b\" is forbidden: exceeded quota");
    proxy.answer(StatusCode::FORBIDDEN, refusal, |r| r.is_secret_write());
    world.secrets().delete("b", &DeleteParams::default()).await.expect("it is there");
    let told = world.wait_condition("plain", ("Ready", "False", "Rotating")).await;
    let message = &main_condition(&told).expect("a condition").message;
    assert!(message.contains("exceeded quota"), "{message}");
    let live = world.aws.live_tokens(status(&tunnel).tunnel_id.as_ref().expect("an ID")).expect("it is open");
    assert!(world.secret_data("a").await.expect("it stays")["sourceAccessToken"] == live.source, "it was revoked");
    assert_eq!(rotations(&world), 0);
    proxy.answer_no_more();
    let tunnel = wait_generation(&world, 2).await;
    assert_live(&world, &tunnel, &[("a", true, true), ("b", true, false)]).await;
}

#[tokio::test]
async fn a_namespace_that_is_deleted_gets_no_secret_back_and_goes() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let said = world.kubectl(&["delete", "namespace", &world.name, "--timeout=60s"]).await;
    assert!(said.ok, "{}", said.err);
    assert_eq!(world.aws.tunnels()[0].status, TunnelStatus::Closed);
    assert_eq!(rotations(&world), 0, "nothing is rotated for a Secret that nobody will have");
}

/// Waits until the Tunnel is Ready with tokens of this generation.
async fn wait_generation(world: &World, generation: i64) -> Tunnel {
    world
        .wait_for("plain", &format!("Ready with tokens of generation {generation}"), |t| {
            let ready = status(t).conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            ready && status(t).token_generation == Some(generation)
        })
        .await
}

/// The status names these Secrets and no other is there; each holds the live tokens of the sides (name, source,
/// destination) that it is to hold, and no others.
async fn assert_live(world: &World, tunnel: &Tunnel, secrets: &[(&str, bool, bool)]) {
    live(world, tunnel, secrets).await.expect("the Secrets hold the live tokens");
}

/// The same, or what is wrong.
async fn live(world: &World, tunnel: &Tunnel, secrets: &[(&str, bool, bool)]) -> Result<(), String> {
    let names = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let wanted = names(secrets.iter().map(|(name, ..)| (*name).to_owned()).collect());
    let live = world.aws.live_tokens(status(tunnel).tunnel_id.as_ref().expect("an ID")).expect("it is open");
    let there = world.secrets().list(&Default::default()).await.expect("a list");
    for names in [
        names(secret_names(tunnel).into_iter().map(str::to_owned).collect()),
        names(there.iter().map(ResourceExt::name_any).collect()),
    ] {
        if names != wanted {
            return Err(format!("{names:?} instead of {wanted:?}"));
        }
    }
    for (name, source, destination) in secrets {
        let data = world.secret_data(name).await.ok_or_else(|| format!("no Secret {name}"))?;
        let holds = |key: &str, token: &String| data.get(key).map(|held| held == token);
        if holds("sourceAccessToken", &live.source) != source.then_some(true) {
            return Err(format!("the source in {name}"));
        }
        if holds("destinationAccessToken", &live.destination) != destination.then_some(true) {
            return Err(format!("the destination in {name}"));
        }
        if data.contains_key("AWSIOT_TUNNEL_ACCESS_TOKEN") == (source == destination) {
            return Err(format!("the local proxy's names in {name}"));
        }
    }
    Ok(())
}

fn with_secrets(secrets: &str) -> String {
    format!(
        "{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: plain}}, spec: {{secrets: {secrets}}}}}"
    )
}

/// Waits until this generation of the spec is observed, and the Tunnel is Ready.
async fn wait_observed(world: &World, generation: i64) -> Tunnel {
    world
        .wait_for("plain", &format!("generation {generation} observed"), |t| {
            let ready = status(t).conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            ready && status(t).observed_generation == Some(generation)
        })
        .await
}

#[tokio::test]
async fn the_secrets_of_an_open_tunnel_follow_the_spec() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&with_secrets("[{name: a}]")).await;
    world.wait_ready("plain").await;
    let first = world.secret_data("a").await.expect("a Secret");
    let steps = [
        // One more, with what the first holds; the first renamed; a mode that shrinks: the tokens stay.
        ("[{name: a}, {name: b, clientMode: SOURCE}]", &[("a", true, true), ("b", true, false)][..], 0),
        ("[{name: c}, {name: b, clientMode: SOURCE}]", &[("c", true, true), ("b", true, false)], 0),
        ("[{name: b, clientMode: SOURCE}, {name: c}]", &[("b", true, false), ("c", true, true)], 0),
        ("[{name: c, clientMode: SOURCE}]", &[("c", true, false)], 0),
        // A side that none holds any more: it alone is rotated.
        (
            "[{name: c, clientMode: SOURCE}, {name: d, clientMode: DESTINATION}]",
            &[("c", true, false), ("d", false, true)],
            1,
        ),
        ("[{name: c}]", &[("c", true, true)], 1),
    ];
    for (generation, (spec, secrets, rotated)) in (2..).zip(steps) {
        world.apply(&with_secrets(spec)).await;
        let tunnel = wait_observed(&world, generation).await;
        assert_live(&world, &tunnel, secrets).await;
        assert_eq!(rotations(&world), rotated, "rotations after {spec}");
        for (name, source, _) in secrets {
            let data = world.secret_data(name).await.expect("a Secret");
            for key in ["sourceAccessToken", "sourceClientToken"].iter().filter(|_| *source) {
                assert!(data[*key] == first[*key], "{key} of {name} is the one of the beginning");
            }
        }
    }
    assert_eq!(world.aws.tunnels().len(), 1);
}

#[tokio::test]
async fn two_operators_do_not_get_into_each_others_way_with_the_secrets() {
    let world = World::new().await;
    let _operators = (world.operator().await, world.operator().await);
    world.apply(&with_secrets("[{name: a}]")).await;
    world.wait_ready("plain").await;
    let steps = [
        ("[{name: a}, {name: b, clientMode: SOURCE}]", &[("a", true, true), ("b", true, false)][..]),
        ("[{name: b, clientMode: SOURCE}]", &[("b", true, false)]),
        ("[{name: b}]", &[("b", true, true)]),
        ("[{name: a}]", &[("a", true, true)]),
    ];
    for (generation, (spec, secrets)) in (2..).zip(steps) {
        world.apply(&with_secrets(spec)).await;
        wait_live(&world, generation, secrets).await;
    }
    let before = status(&world.tunnel("plain").await).token_generation;
    world.secrets().delete("a", &DeleteParams::default()).await.expect("it is there");
    let renewed = |t: &Tunnel| status(t).token_generation > before;
    world.wait_for("plain", "new tokens", renewed).await;
    wait_live(&world, 5, &[("a", true, true)]).await;
    assert_eq!(world.aws.tunnels().len(), 1);
}

/// Two operators may rotate one after the other, so it may be Ready for a moment with tokens that the second is about
/// to revoke: it ends with live ones.
async fn wait_live(world: &World, generation: i64, secrets: &[(&str, bool, bool)]) {
    let begun = Instant::now();
    loop {
        let tunnel = wait_observed(world, generation).await;
        match live(world, &tunnel, secrets).await {
            Ok(()) => return,
            Err(wrong) => assert!(begun.elapsed() < LIMIT, "{wrong}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_secret_whose_name_is_taken_stalls_an_open_tunnel_until_it_is_free() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&with_secrets("[{name: a}]")).await;
    world.wait_ready("plain").await;
    let said = world.kubectl(&["create", "secret", "generic", "b", "--from-literal=mine=yes"]).await;
    assert!(said.ok, "{}", said.err);
    world.apply(&with_secrets("[{name: a}, {name: b, clientMode: SOURCE}]")).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "SecretConflict")).await;
    assert!(main_condition(&tunnel).is_some_and(|c| c.message.contains("Secret b exists")));
    assert_eq!(world.secret_data("b").await.expect("it stands")["mine"], "yes");
    world.secrets().delete("b", &DeleteParams::default()).await.expect("it is there");
    touch(&world).await;
    let tunnel = wait_generation(&world, 2).await;
    assert_live(&world, &tunnel, &[("a", true, true), ("b", true, false)]).await;
    assert_eq!(world.aws.tunnels().len(), 1);
}

#[tokio::test]
async fn a_secret_that_somebody_else_takes_over_is_somebody_elses_until_it_is_given_back() {
    let world = World::new().await;
    let _operator = world.operator_with(&world.settings().flag("--poll-interval", "1h")).await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_ready("plain").await;
    let owned = world.secrets().get("plain-tokens").await.expect("it is there").metadata.owner_references;
    world.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: other}}").await;
    let said = world.kubectl(&["get", "configmap", "other", "-o", "jsonpath={.metadata.uid}"]).await;
    let other =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": said.out, "controller": true}]);
    patch_secret(&world, json!({"metadata": {"ownerReferences": other}})).await;
    let stalled = world.wait_condition("plain", ("Ready", "False", "SecretConflict")).await;
    let message = &main_condition(&stalled).expect("a condition").message;
    assert!(message.contains("controlled by ConfigMap other"), "{message}");
    assert!(world.aws.live_tokens(status(&tunnel).tunnel_id.as_ref().expect("an ID")).is_some(), "it stays open");
    patch_secret(&world, json!({"metadata": {"ownerReferences": owned}})).await;
    assert_renewed(&world, 2).await;
}

#[tokio::test]
async fn a_secret_that_nobody_owns_any_more_is_taken_over_again_with_new_tokens() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    patch_secret(&world, json!({"metadata": {"ownerReferences": null}})).await;
    assert_renewed(&world, 2).await;
    let secret = world.secrets().get("plain-tokens").await.expect("it is there");
    assert_eq!(secret.metadata.owner_references.expect("an owner")[0].name, "plain");
}

/// The watch does not see a Secret without the operator's label: the Tunnel looks again after a minute, or
/// when it changes.
async fn touch(world: &World) {
    let said = world.kubectl(&["label", "tunnel", "plain", "looked=at", "--overwrite"]).await;
    assert!(said.ok, "{}", said.err);
}

#[tokio::test]
async fn a_forged_generation_stops_nothing() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let forge =
        |generation: &str| json!({"metadata": {"annotations": {"opentunnel.dev/token-generation": generation}}});
    patch_secret(&world, forge("41")).await;
    assert_renewed(&world, 42).await;
    patch_secret(&world, forge("9223372036854775807")).await;
    assert_renewed(&world, 43).await;
    assert_eq!(rotations(&world), 2, "each once");
}

#[tokio::test]
async fn a_secret_of_somebody_elses_that_comes_during_the_opening_keeps_the_tunnel() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut secret = proxy.hold(Point::BeforeForward, |r| r.is_secret_write_in_earnest());
    let _operator = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    secret.reached().await;
    let foreign = Secret {
        metadata: kube::core::ObjectMeta { name: Some("plain-tokens".into()), ..Default::default() },
        ..Secret::default()
    };
    world.secrets().create(&Default::default(), &foreign).await.expect("the name is free");
    secret.pass();
    let tunnel = world.wait_condition("plain", ("Ready", "False", "SecretConflict")).await;
    let id = status(&tunnel).tunnel_id.clone().expect("the tunnel is kept");
    assert!(world.aws.live_tokens(&id).is_some(), "it is open");
    assert!(world.secret_data("plain-tokens").await.expect("it stands").is_empty(), "nothing is written to it");
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    touch(&world).await;
    assert_renewed(&world, 2).await;
}

#[tokio::test]
async fn a_secret_that_cannot_go_holds_up_no_end() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_ready("plain").await;
    patch_secret(&world, json!({"metadata": {"finalizers": ["example.com/hold"]}})).await;
    world.aws.close(status(&tunnel).tunnel_id.as_ref().expect("an ID")).expect("it is open");
    world.wait_condition("plain", ("Ended", "True", "Closed")).await;
    patch_secret(&world, json!({"metadata": {"finalizers": null}})).await;
    world.wait_no_secret("plain-tokens").await;
}

#[tokio::test]
async fn an_operator_of_another_region_leaves_a_tunnel_alone() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    operator.kill();
    let elsewhere = world.operator_with(&world.settings().env("AWS_REGION", "eu-west-1")).await;
    world.wait_condition("plain", ("Ready", "False", "WrongAccount")).await;
    assert!(world.secret_data("plain-tokens").await.is_some(), "its Secret stays");
    elsewhere.kill();
    assert_eq!(world.aws.tunnels()[0].status, TunnelStatus::Open);
    let _back = world.operator().await;
    assert_renewed(&world, 2).await;
}

#[tokio::test]
async fn a_secret_that_may_not_be_written_is_told_and_the_tokens_are_kept_in_hand() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let refusal = api_proxy::failure(StatusCode::FORBIDDEN, "secrets is forbidden: no rights");
    proxy.answer(StatusCode::FORBIDDEN, refusal, |r| r.is_secret_write());
    let _operator = world.operator_with(&world.settings().via(&proxy)).await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "Opening")).await;
    let message = main_condition(&tunnel).expect("a condition").message.clone();
    assert!(message.contains("secrets is forbidden: no rights"), "{message}");
    proxy.answer_no_more();
    assert_renewed(&world, 1).await;
    assert_eq!(rotations(&world), 0, "the tokens in hand are the ones that come");
}
