//! Token Secrets among other people's tools: policies, other controllers, backups, deleted and applied again at once.

use crate::support::World;
use crate::support::namespace::{main_condition, status};
use crate::support::policy::Mutation;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use opentunnel_api::Tunnel;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

/// Long enough for what is done again and again to show.
const SOME_TIME: Duration = Duration::from_secs(4);

fn message(tunnel: &Tunnel) -> String {
    main_condition(tunnel).expect("a condition").message.clone()
}

async fn assert_live(world: &World) {
    let tunnel = world.wait_ready("plain").await;
    world.assert_live(&tunnel, "plain-tokens").await;
}

async fn patch_secret(world: &World, manager: &str, patch: Value) {
    let params = PatchParams { field_manager: Some(manager.into()), ..PatchParams::default() };
    world.secrets().patch("plain-tokens", &params, &Patch::Merge(patch)).await.expect("it can be patched");
}

async fn rests_with_secret_modified(world: &World) -> Tunnel {
    let stalled = world.wait_condition("plain", ("Ready", "False", "SecretModified")).await;
    let (rotations, writes) = (world.calls_of("RotateTunnelAccessToken"), world.writes().await.len());
    assert!(rotations <= 3, "{rotations} rotations");
    sleep(SOME_TIME).await;
    assert_eq!(world.calls_of("RotateTunnelAccessToken"), rotations, "it rests");
    // The Event of the condition may come yet.
    assert!(world.writes().await.len() <= writes + 1, "nothing is written");
    assert_eq!(world.calls_of("OpenTunnel"), 1, "never by a second tunnel");
    stalled
}

#[tokio::test]
async fn a_policy_that_changes_what_is_written_is_told_and_tokens_are_not_made_for_ever() {
    let mutations =
        [Mutation::MakesImmutable, Mutation::DropsAnnotations, Mutation::DropsLabels, Mutation::RewritesRegion];
    let each = mutations.map(async |mutation| {
        let world = World::new().await;
        if !world.has_mutating_policies().await {
            return;
        }
        world.under(mutation).await;
        let operator = world.operator().await;
        world.apply(PLAIN).await;
        let stalled = rests_with_secret_modified(&world).await;
        assert!(message(&stalled).contains("admission policy or webhook"), "{}", message(&stalled));
        // A restart does not begin anew.
        let rotations = world.calls_of("RotateTunnelAccessToken");
        operator.kill();
        let _operator = world.operator().await;
        sleep(SOME_TIME).await;
        assert_eq!(world.calls_of("RotateTunnelAccessToken"), rotations, "{mutation:?}");
        world.delete("plain").await;
        world.wait_no_tunnel("plain").await;
    });
    futures::future::join_all(each).await;
}

#[tokio::test]
async fn another_controller_that_overwrites_a_key_is_named_and_the_tokens_come_when_it_stops() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    // Each time that the operator has put its own value back.
    let overwrite = async {
        loop {
            let data = world.secret_data("plain-tokens").await.unwrap_or_default();
            if data.get("sourceAccessToken").is_some_and(|value| value != "theirs") {
                patch_secret(&world, "external-secrets", json!({"stringData": {"sourceAccessToken": "theirs"}})).await;
            }
            sleep(Duration::from_millis(300)).await;
        }
    };
    let stalled = tokio::select! {
        () = overwrite => unreachable!(),
        stalled = rests_with_secret_modified(&world) => stalled,
    };
    let told = message(&stalled);
    assert!(told.contains("external-secrets (data.sourceAccessToken)"), "{told}");
    let conditions = status(&stalled).conditions.clone().unwrap_or_default();
    assert!(conditions.iter().any(|c| c.type_ == "Stalled"), "a person has to do something");
}

#[tokio::test]
async fn deleted_and_applied_again_while_the_old_secret_is_still_there_waits_for_it() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    // As where the garbage collector is slow.
    patch_secret(&world, "test", json!({"metadata": {"finalizers": ["example.com/slow"]}})).await;
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    world.apply(PLAIN).await;
    sleep(Duration::from_secs(7)).await;
    let waiting = world.tunnel("plain").await;
    let condition = main_condition(&waiting).expect("it is told after 5 s");
    assert_eq!((condition.reason.as_str(), condition.status.as_str()), ("Opening", "False"), "{}", condition.message);
    assert_eq!(world.calls_of("OpenTunnel"), 1, "nothing is opened before the name is free");
    patch_secret(&world, "test", json!({"metadata": {"finalizers": null}})).await;
    let free = Instant::now();
    world.wait_ready("plain").await;
    println!("figure: deleted and applied again: Ready after the old Secret is gone | {:.1?}", free.elapsed());
    assert_live(&world).await;
    assert!(!world.events("plain").await.iter().any(|event| event.starts_with("Warning")));
}

#[tokio::test]
async fn a_secret_that_a_backup_brought_back_is_taken_over_with_new_tokens() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "opentunnel.dev/tunnel-tokens",
        "metadata": {
            "name": "plain-tokens", "labels": {"opentunnel.dev/secret": "tokens", "theirs": "x"},
            "annotations": {"opentunnel.dev/tunnel-id": "gone", "opentunnel.dev/token-generation": "7"},
        },
        "stringData": {"sourceAccessToken": "dead", "tunnelId": "gone"},
    });
    world.apply(&secret.to_string()).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    assert_live(&world).await;
    let secret = world.secrets().get("plain-tokens").await.expect("it is there");
    assert_eq!(secret.owner_references()[0].name, "plain");
    assert_eq!(secret.labels()["theirs"], "x");
    // And one whose Tunnel was deleted without it.
    let said = world.kubectl(&["delete", "tun", "plain", "--cascade=orphan"]).await;
    assert!(said.ok, "{}", said.err);
    world.wait_no_tunnel("plain").await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    assert_live(&world).await;
    assert_eq!(world.calls_of("OpenTunnel"), 2);
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_not_taken_over_and_the_message_says_whose_it_is() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let secret = |labels: &str| {
        format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: plain-tokens, labels: {labels}}}, stringData: {{a: b}}}}"
        )
    };
    world.apply(&secret("{opentunnel.dev/secret: tokens}")).await;
    world.apply(PLAIN).await;
    let stalled = world.wait_condition("plain", ("Ready", "False", "SecretConflict")).await;
    assert!(message(&stalled).contains("controlled by nobody"), "{}", message(&stalled));
    assert_eq!(world.calls_of("OpenTunnel"), 0);
    world.secrets().delete("plain-tokens", &Default::default()).await.expect("it is there");
    assert_live(&world).await;
}

#[tokio::test]
async fn a_name_that_moves_from_one_tunnel_to_another_in_one_commit_arrives() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let tunnel = |name: &str, secret: &str| {
        format!(
            "{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: {name}}}, spec: {{secrets: [{{name: {secret}}}]}}}}"
        )
    };
    world.apply(&tunnel("old", "moved")).await;
    world.wait_ready("old").await;
    world.apply(&tunnel("new", "moved")).await;
    let stalled = world.wait_condition("new", ("Ready", "False", "SecretConflict")).await;
    assert!(message(&stalled).contains("controlled by Tunnel old"), "{}", message(&stalled));
    world.apply(&tunnel("old", "other")).await;
    world.wait_ready("new").await;
    world.wait_ready("old").await;
}

#[tokio::test]
async fn what_a_policy_refuses_is_not_paid_for() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": format!("{}-no-tokens", world.name)},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE"]}
            ]},
            "validations": [{"expression": "object.type != 'opentunnel.dev/tunnel-tokens'", "message": "ask the platform team first"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": format!("{}-no-tokens", world.name)},
        "spec": {
            "policyName": format!("{}-no-tokens", world.name), "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": world.name}}},
        },
    });
    world.apply(&policy.to_string()).await;
    world.apply(&binding.to_string()).await;
    let probe = "{apiVersion: v1, kind: Secret, type: opentunnel.dev/tunnel-tokens, metadata: {name: probe}}";
    let begun = Instant::now();
    while world.kubectl_with(probe, &["create", "--dry-run=server", "-f", "-"]).await.ok {
        assert!(begun.elapsed() < Duration::from_secs(30), "the policy has no effect");
        sleep(Duration::from_millis(100)).await;
    }
    world.apply(PLAIN).await;
    let waiting = world.wait_condition("plain", ("Ready", "False", "Opening")).await;
    assert!(message(&waiting).contains("ask the platform team first"), "{}", message(&waiting));
    sleep(SOME_TIME).await;
    assert_eq!(world.calls_of("OpenTunnel"), 0);
    for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
        let said = world.kubectl(&["delete", kind, &format!("{}-no-tokens", world.name)]).await;
        assert!(said.ok, "{}", said.err);
    }
}

#[tokio::test]
async fn the_dry_run_is_made_once_for_a_namespace() {
    const BACKLOG: usize = 20;
    let world = World::new().await;
    // The operator looks at all of a backlog at once.
    let manifests: Vec<_> = (0..BACKLOG).map(|n| PLAIN.replace("plain", &format!("t{n}"))).collect();
    world.apply(&manifests.join("\n---\n")).await;
    let _operator = world.operator().await;
    for n in 0..BACKLOG {
        world.wait_ready(&format!("t{n}")).await;
    }
    world.apply(&PLAIN.replace("plain", "later")).await;
    world.wait_ready("later").await;
    let creates: Vec<String> = world.writes().await.iter().map(ToString::to_string).collect();
    let creates = creates.iter().filter(|write| write.starts_with("create secrets")).count();
    assert_eq!(creates, BACKLOG + 2, "a Secret each, and one trial");
}

#[tokio::test]
async fn what_may_be_left_out_is_unchanged_when_it_is_applied_again() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let fields = [
        "description: x",
        "destination: {services: [SSH]}",
        "destination: {thingName: t, services: [b, a]}",
        "tags: [{key: k, value: \"\"}]",
        "timeout: {}",
        "timeout: {maxLifetimeTimeoutMinutes: 720}",
        "secrets: [{name: NAME-a}, {name: NAME-b, clientMode: ALL, labels: {}, annotations: {}}]",
        "updatePolicy: Immutable",
        "deletionPolicy: Close",
        "reopenPolicy: Never",
        "suspend: false",
        "",
        "description: x, destination: {services: [SSH]}, tags: [], timeout: {}, secrets: [{name: NAME-s}], updatePolicy: Recreate, deletionPolicy: Retain, reopenPolicy: Always, suspend: true",
    ];
    let manifests: Vec<String> = fields
        .iter()
        .enumerate()
        .map(|(n, spec)| {
            let spec = spec.replace("NAME", &format!("t{n}"));
            format!("apiVersion: opentunnel.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: t{n}}}\nspec: {{{spec}}}\n")
        })
        .collect();
    let all = manifests.join("---\n");
    world.apply(&all).await;
    for n in 0..fields.len() - 1 {
        world.wait_ready(&format!("t{n}")).await;
    }
    let again = world.try_apply(&all).await;
    let changed: Vec<_> = again.out.lines().filter(|line| !line.ends_with("unchanged")).collect();
    assert!(again.ok && changed.is_empty(), "{changed:?} {}", again.err);
}
