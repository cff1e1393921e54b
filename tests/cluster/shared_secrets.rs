//! A token Secret is not the operator's alone: other controllers, policies and the spec put keys, labels and
//! annotations on it. None of that is an edit, and all of it is kept.

use crate::support::World;
use crate::support::api_proxy::Point;
use crate::support::namespace::status;
use crate::support::policy::Mutation;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

/// Long enough for an operator that takes something for an edit to show it, several times.
const SOME_TIME: Duration = Duration::from_secs(3);

async fn secret(world: &World) -> Secret {
    world.secrets().get("plain-tokens").await.expect("it is there")
}

/// Somebody else writes to the token Secret.
async fn patch_secret(world: &World, patch: Value) -> Secret {
    let api = world.secrets();
    api.patch("plain-tokens", &PatchParams::default(), &Patch::Merge(patch)).await.expect("it can be patched")
}

/// AWS's calls, but for the poll, the rolling refresh, and the tag before a rotation.
fn calls(world: &World) -> Vec<String> {
    let calls = world.aws.calls().into_iter().map(|call| call.operation);
    calls.filter(|operation| !["ListTunnels", "DescribeTunnel", "TagResource"].contains(&operation.as_str())).collect()
}

/// Returns once the Tunnel is Ready with tokens of this generation, which AWS accepts.
async fn wait_generation(world: &World, generation: i64) {
    let what = format!("tokens of generation {generation}");
    let renewed = |t: &_| status(t).token_generation == Some(generation);
    world.wait_for("plain", &what, renewed).await;
    world.wait_ready("plain").await;
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    let live = world.aws.live_tokens(&data["tunnelId"]).expect("an open tunnel");
    assert!(data["sourceAccessToken"] == live.source, "the source's token is dead");
    assert!(data["destinationAccessToken"] == live.destination, "the destination's token is dead");
}

/// As a controller that mirrors Secrets, or one that restarts Pods: it notes something on each that it sees.
#[tokio::test]
async fn what_another_controller_writes_to_a_token_secret_every_second_stays_and_makes_no_new_tokens() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    let before = world.wait_ready("plain").await;
    let tokens = world.secret_data("plain-tokens").await.expect("a Secret");
    for n in 1..=5 {
        let n = n.to_string();
        let theirs = json!({"example.com/seen": n});
        patch_secret(
            &world,
            json!({"stringData": {"theirs": n}, "metadata": {"labels": theirs, "annotations": theirs}}),
        )
        .await;
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(calls(&world), ["OpenTunnel"], "no tokens are made for what others write");
    let tunnel = world.tunnel("plain").await;
    assert_eq!(status(&tunnel).token_generation, Some(1));
    assert_eq!(tunnel.resource_version(), before.resource_version(), "nothing is written to the Tunnel");
    let mut data = world.secret_data("plain-tokens").await.expect("a Secret");
    assert_eq!(data.remove("theirs").as_deref(), Some("5"), "what others write stays");
    assert!(data == tokens, "the operator's own keys are as they were");

    // An edit of a key of the operator's, which has nothing to do with theirs.
    patch_secret(&world, json!({"data": {"sourceAccessToken": null}})).await;
    wait_generation(&world, 2).await;
    assert_eq!(calls(&world), ["OpenTunnel", "RotateTunnelAccessToken"], "once");
    let secret = secret(&world).await;
    assert_eq!(secret.labels()["example.com/seen"], "5");
    assert_eq!(secret.annotations()["example.com/seen"], "5");
    assert_eq!(secret.data.expect("data")["theirs"].0, b"5");
}

#[tokio::test]
async fn a_policy_that_sets_managed_by_on_every_secret_that_is_written_makes_no_new_tokens() {
    let world = World::new().await;
    if !world.has_mutating_policies().await {
        return;
    }
    world.under(Mutation::StampsManagedBy).await;
    let label = "app.kubernetes.io/managed-by";
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    let before = world.wait_ready("plain").await;
    assert_eq!(secret(&world).await.labels()[label], "platform");
    sleep(SOME_TIME).await;
    assert_eq!(calls(&world), ["OpenTunnel"], "a label for people is no edit");
    assert_eq!(world.tunnel("plain").await.resource_version(), before.resource_version());
}

#[tokio::test]
async fn a_changed_managed_by_label_is_no_edit_and_the_secret_is_watched_all_the_same() {
    let world = World::new().await;
    // Only the watch of Secrets can tell: no poll comes in this time.
    let _operator = world.operator_with(&world.settings().flag("--poll-interval", "1h")).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    for value in [json!("argocd"), Value::Null] {
        let labels = json!({"app.kubernetes.io/managed-by": value});
        let patched = patch_secret(&world, json!({"metadata": {"labels": labels}})).await;
        sleep(SOME_TIME).await;
        assert_eq!(secret(&world).await.resource_version(), patched.resource_version(), "it is not written back");
    }
    assert_eq!(calls(&world), ["OpenTunnel"]);
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    wait_generation(&world, 2).await;
}

/// The Tunnel with this in the entry of its Secret.
fn with(more: &str) -> String {
    let spec = format!("{{secrets: [{{name: plain-tokens, {more}}}]}}");
    format!("{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: plain}}, spec: {spec}}}")
}

/// The Secret has these labels and annotations, beside others.
async fn assert_decorated(world: &World, labels: &[(&str, &str)], annotations: &[(&str, &str)]) {
    let secret = secret(world).await;
    for (key, value) in labels {
        assert_eq!(secret.labels().get(*key).map(String::as_str), Some(*value), "label {key}");
    }
    for (key, value) in annotations {
        assert_eq!(secret.annotations().get(*key).map(String::as_str), Some(*value), "annotation {key}");
    }
}

#[tokio::test]
async fn labels_and_annotations_of_the_spec_come_with_the_tokens_and_stay_when_these_are_new() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&with("labels: {team: edge, example.com/Empty: ''}, annotations: {example.com/note: any thing}")).await;
    world.wait_ready("plain").await;
    let labels = [("team", "edge"), ("example.com/Empty", ""), ("opentunnel.dev/secret", "tokens")];
    let annotations = [("example.com/note", "any thing")];
    assert_decorated(&world, &labels, &annotations).await;
    assert_eq!(calls(&world), ["OpenTunnel"]);
    // Written over, and made anew.
    patch_secret(&world, json!({"data": {"sourceAccessToken": null}})).await;
    wait_generation(&world, 2).await;
    assert_decorated(&world, &labels, &annotations).await;
    world.secrets().delete("plain-tokens", &DeleteParams::default()).await.expect("it is there");
    wait_generation(&world, 3).await;
    assert_decorated(&world, &labels, &annotations).await;
}

#[tokio::test]
async fn edited_labels_and_annotations_come_onto_the_secret_of_an_open_tunnel_with_the_same_tokens() {
    let world = World::new().await;
    let identity = world.identity().await;
    let _operator = world.operator_with(&world.settings().with_identity(&identity)).await;
    world.apply(&with("labels: {team: edge}, annotations: {note: one}")).await;
    world.wait_ready("plain").await;
    world.wait_event("plain", "Normal Opened").await;
    patch_secret(&world, json!({"stringData": {"theirs": "x"}, "metadata": {"labels": {"theirs": "x"}}})).await;
    let data = world.secret_data("plain-tokens").await.expect("a Secret");
    let before = world.writes_by(&identity).await.len();

    world.apply(&with("labels: {team: core, site: Bern}, annotations: {note: two}")).await;
    let observed = |t: &_| status(t).observed_generation == Some(2);
    world.wait_for("plain", "the edit observed", observed).await;
    world.wait_ready("plain").await;
    assert_decorated(&world, &[("team", "core"), ("site", "Bern"), ("theirs", "x")], &[("note", "two")]).await;
    assert!(world.secret_data("plain-tokens").await.expect("a Secret") == data, "its data is as it was");
    assert_eq!(status(&world.tunnel("plain").await).token_generation, Some(1));
    assert_eq!(calls(&world), ["OpenTunnel"], "AWS is not asked");
    world.wait_event("plain", "Normal SecretsUpdated").await;
    sleep(SOME_TIME).await;
    let writes: Vec<_> =
        world.writes_by(&identity).await[before..].iter().map(|w| format!("{} {}", w.verb, w.resource)).collect();
    assert_eq!(writes, ["update secrets", "patch tunnels/status", "create events"]);
}

#[tokio::test]
async fn labels_and_annotations_that_somebody_takes_off_or_changes_are_not_fought_over() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&with("labels: {team: edge, site: Bern}, annotations: {note: one}")).await;
    let before = world.wait_ready("plain").await;
    let theirs = json!({"labels": {"team": "platform", "site": null}, "annotations": {"note": null}});
    let patched = patch_secret(&world, json!({"metadata": theirs})).await;
    sleep(SOME_TIME).await;
    assert_eq!(secret(&world).await.resource_version(), patched.resource_version(), "it is not written back");
    assert_eq!(world.tunnel("plain").await.resource_version(), before.resource_version());
    assert_eq!(calls(&world), ["OpenTunnel"], "that is no edit");
    // The next write of the Secret brings them back.
    patch_secret(&world, json!({"data": {"sourceAccessToken": null}})).await;
    wait_generation(&world, 2).await;
    assert_decorated(&world, &[("team", "edge"), ("site", "Bern")], &[("note", "one")]).await;
}

/// Waits until this generation of the spec is observed, and the Tunnel is Ready.
async fn wait_observed(world: &World, generation: i64) {
    let observed = |t: &_| status(t).observed_generation == Some(generation);
    world.wait_for("plain", &format!("generation {generation} of the spec observed"), observed).await;
    world.wait_ready("plain").await;
}

/// The status is written last: what it says is observed has to be on the Secret, whenever the spec was edited.
#[tokio::test]
async fn labels_that_are_edited_while_tokens_are_delivered_come_onto_the_secret_all_the_same() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let _operator = world.operator_with(&world.settings().via(&proxy)).await;
    let hold = || proxy.hold(Point::BeforeForward, |request| request.is_status("Open"));
    let labelled = |n: i64| with(&format!("labels: {{edit: n{n}}}, annotations: {{edit: n{n}}}"));
    // An opening, a rotation, and an edit of the spec: each has written its Secret when the spec is edited (again).
    let mut held = hold();
    world.apply(&labelled(1)).await;
    for (edit, generation) in [(2, 1), (3, 2), (5, 2)] {
        held.reached().await;
        world.apply(&labelled(edit)).await;
        held.pass();
        wait_observed(&world, edit).await;
        let value = format!("n{edit}");
        assert_decorated(&world, &[("edit", &value)], &[("edit", &value)]).await;
        wait_generation(&world, generation).await;
        held = hold();
        match edit {
            2 => drop(patch_secret(&world, json!({"data": {"sourceAccessToken": null}})).await),
            _ => world.apply(&labelled(4)).await,
        }
    }
    assert_eq!(calls(&world), ["OpenTunnel", "RotateTunnelAccessToken"]);
}

/// AWS's clock is ahead of the operator's: the time of the opening is corrected when it is seen.
#[tokio::test]
async fn labels_that_are_edited_while_the_time_of_opening_is_corrected_come_onto_the_secret_all_the_same() {
    let world = World::new().await;
    world.aws.advance_clock(Duration::from_secs(120));
    let proxy = world.api_proxy().await;
    let _operator = world.operator_with(&world.settings().via(&proxy)).await;
    let hold = || proxy.hold(Point::BeforeForward, |request| request.is_status("Open"));
    let mut opened = hold();
    world.apply(&with("labels: {edit: n1}")).await;
    opened.reached().await;
    let mut corrected = hold();
    opened.pass();
    corrected.reached().await;
    let before = status(&world.wait_ready("plain").await).opened_at;
    world.apply(&with("labels: {edit: n2}")).await;
    corrected.pass();
    wait_observed(&world, 2).await;
    assert!(status(&world.tunnel("plain").await).opened_at > before, "it was corrected");
    assert_decorated(&world, &[("edit", "n2")], &[]).await;
}
