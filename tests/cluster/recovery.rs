//! What users and others do to a Tunnel's Secrets, and an operator that is pointed elsewhere: the open
//! tunnel is kept, and live tokens come back by rotation.

use crate::support::World;
use crate::support::api_proxy::{self, Point};
use crate::support::namespace::{main_condition, status};
use axum::http::StatusCode;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use secure_tunneling_emulator::TunnelStatus;
use serde_json::{Value, json};

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

async fn patch_secret(world: &World, patch: Value) {
    let api = world.secrets();
    api.patch("plain-tokens", &PatchParams::default(), &Patch::Merge(patch)).await.expect("it can be patched");
}

/// The operator looks at a Tunnel's Secrets when the Tunnel changes.
async fn touch(world: &World) {
    let said = world.kubectl(&["label", "tunnel", "plain", "looked=at", "--overwrite"]).await;
    assert!(said.ok, "{}", said.err);
}

/// Ready with tokens of this generation, which AWS accepts; one tunnel in all.
async fn assert_renewed(world: &World, generation: i64) {
    world
        .wait_for("plain", &format!("Ready with tokens of generation {generation}"), |t| {
            let ready = status(t).conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            ready && status(t).token_generation == Some(generation)
        })
        .await;
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    let live = world.aws.live_tokens(&data["tunnelId"]).expect("an open tunnel");
    assert!(data["sourceAccessToken"] == live.source, "the source's token is dead");
    assert!(data["destinationAccessToken"] == live.destination, "the destination's token is dead");
    assert_eq!(world.aws.tunnels().len(), 1, "no second tunnel");
}

async fn rotations(world: &World) -> usize {
    world.aws.calls().iter().filter(|c| c.operation == "RotateTunnelAccessToken").count()
}

#[tokio::test]
async fn a_lost_an_edited_and_an_immutable_secret_come_back_by_rotation() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    touch(&world).await;
    assert_renewed(&world, 2).await;
    patch_secret(&world, json!({"stringData": {"sourceAccessToken": "edited"}})).await;
    world.kubectl(&["label", "tunnel", "plain", "looked-"]).await;
    assert_renewed(&world, 3).await;
    patch_secret(&world, json!({"immutable": true})).await;
    touch(&world).await;
    assert_renewed(&world, 4).await;
    assert_eq!(rotations(&world).await, 3, "each once");
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
    touch(&world).await;
    assert_renewed(&world, 42).await;
    patch_secret(&world, forge("9223372036854775807")).await;
    world.kubectl(&["label", "tunnel", "plain", "looked-"]).await;
    assert_renewed(&world, 43).await;
    assert_eq!(rotations(&world).await, 2, "each once");
}

#[tokio::test]
async fn a_secret_of_somebody_elses_that_comes_during_the_opening_keeps_the_tunnel() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut secret = proxy.hold(Point::BeforeForward, |r| r.is_secret_write());
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
    assert_eq!(rotations(&world).await, 0, "the tokens in hand are the ones that come");
}
