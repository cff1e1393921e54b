//! `deploy/policies` and `deploy/user-roles.yaml`: what each refuses, as the users of a cluster see it.

use crate::support::control_plane::{SYSTEM_NAMESPACE, repository};
use crate::support::namespace::{Namespace, Said};
use crate::support::{LIMIT, World};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A sample of `deploy/policies`, for this world's namespace in place of `edge`.
fn sample(world: &World, file: &str) -> String {
    let text = fs::read_to_string(repository().join("deploy/policies").join(file)).expect("a sample");
    let ours = ["namespace: edge", "metadata.name: edge", "name: tunnels-of-edge", "name: opentunnel-limits-edge"]
        .iter()
        .fold(text.clone(), |text, edge| text.replace(edge, &edge.replace("edge", &world.name)));
    assert_ne!(ours, text);
    ours
}

fn tunnel(name: &str, spec: Value) -> String {
    json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

/// What the limits of the sample allow.
fn allowed() -> Value {
    json!({
        "destination": {"thingName": "pump-7", "services": ["SSH"]}, "timeout": {"maxLifetimeTimeoutMinutes": 60},
    })
}

fn but(change: Value) -> Value {
    let mut spec = allowed();
    for (field, value) in change.as_object().expect("fields") {
        spec[field] = value.clone();
    }
    spec
}

/// Applies as a user (`None`: the administrator), until the API server says what is wanted: a policy or a role has effect
/// some time after it was applied.
async fn in_the_end(what: &str, attempt: impl AsyncFn() -> Said, wanted: impl Fn(&Said) -> bool) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let said = attempt().await;
        if wanted(&said) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {} {}", said.out, said.err);
        sleep(Duration::from_millis(100)).await;
    }
}

fn refused(said: &Said, words: &str) -> bool {
    !said.ok && said.err.contains(words)
}

fn assert_refused(said: &Said, words: &str) {
    assert!(refused(said, words), "wanted: {words}: {} {}", said.out, said.err);
}

async fn patch(world: &World, name: &str, patch: Value) -> Said {
    world.kubectl(&["patch", "tunnel", name, "--type=merge", "-p", &patch.to_string()]).await
}

#[tokio::test]
async fn the_limits_of_a_namespace_refuse_what_goes_beyond_them() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let said = world.kubectl_with(&sample(&world, "limits.yaml"), &["apply", "-n", SYSTEM_NAMESPACE, "-f", "-"]).await;
    assert!(said.ok && said.err.is_empty(), "{}", said.err);
    let dry =
        async |spec: Value| world.kubectl_with(&tunnel("trial", spec), &["apply", "--dry-run=server", "-f", "-"]).await;
    let many = "at most 120 minutes";
    let long = but(json!({"timeout": {"maxLifetimeTimeoutMinutes": 121}}));
    in_the_end("the limits have no effect", async || dry(long.clone()).await, |said| refused(said, many)).await;
    let thing = |thing: &str, services: Value| json!({"destination": {"thingName": thing, "services": services}});
    for (change, words) in [
        (thing("sensor-50", json!(["SSH"])), "must match pump-.*|sensor-4[0-9], and is \"sensor-50\""),
        (thing("my-pump-7", json!(["SSH"])), "must match"),
        (json!({"destination": {"services": ["SSH"]}}), "and is \"\""),
        (thing("pump-7", json!(["SSH", "TELNET"])), "services may have only SSH, HTTPS"),
        (json!({"timeout": {}}), "this one would for 720"),
        (json!({"reopenPolicy": "Always"}), "spec.reopenPolicy may be only Never, OnExpiry"),
    ] {
        assert_refused(&dry(but(change)).await, words);
    }
    for change in [json!({}), thing("sensor-42", json!(["SSH", "HTTPS"])), json!({"reopenPolicy": "OnExpiry"})] {
        let said = dry(but(change)).await;
        assert!(said.ok, "{}", said.err);
    }
    // The operator works under it.
    world.apply(&tunnel("pump-7", allowed())).await;
    world.wait_ready("pump-7").await;

    // Narrower limits hold for what is opened from now on, and stop neither an end nor the operator.
    let limits = json!({"data": {"maxMinutes": "30"}}).to_string();
    let config = format!("tunnels-of-{}", world.name);
    let edit = ["patch", "configmap", &config, "-n", SYSTEM_NAMESPACE, "--type=merge", "-p", &limits];
    assert!(world.kubectl(&edit).await.ok);
    in_the_end("the limits stay", async || dry(allowed()).await, |said| refused(said, "at most 30")).await;
    assert!(patch(&world, "pump-7", json!({"spec": {"suspend": true}})).await.ok);
    world.wait_condition("pump-7", ("Ended", "True", "Suspended")).await;
    assert_refused(&patch(&world, "pump-7", json!({"spec": {"suspend": false}})).await, "at most 30");
    let rotate = json!({"metadata": {"annotations": {"opentunnel.dev/rotate-at": "x"}}});
    assert!(patch(&world, "pump-7", rotate).await.ok);
    world.delete("pump-7").await;
    world.wait_no_tunnel("pump-7").await;
    assert_eq!(world.calls_of("OpenTunnel"), 1);

    // Without its ConfigMap a namespace has no Tunnels at all.
    assert!(world.kubectl(&["delete", "configmap", &config, "-n", SYSTEM_NAMESPACE]).await.ok);
    in_the_end("limits that are gone", async || dry(allowed()).await, |said| !said.ok).await;
}

/// Applies as a user of this group, with the role in this world's namespace.
async fn as_user(world: &World, user: &str, group: &str, manifest: &str) -> Said {
    let args = ["apply", "--as", user, "--as-group", group, "--as-group=system:authenticated", "-f", "-"];
    world.kubectl_with(manifest, &args).await
}

async fn bind(namespace: &Namespace, role: &str, user: &str) {
    let said = namespace.kubectl(&["create", "rolebinding", user, "--clusterrole", role, "--user", user]).await;
    assert!(said.ok, "{}", said.err);
    // A controller fills these roles, some time after deploy/ was applied.
    let may = async || namespace.kubectl(&["auth", "can-i", "get", "tunnels.opentunnel.dev", "--as", user]).await;
    in_the_end("the role has no rights on Tunnels", may, |said| said.ok).await;
}

#[tokio::test]
async fn a_tunnel_to_a_thing_takes_the_right_to_open_it() {
    let world = World::new().await;
    let _operator = world.operator().await;
    for user in ["alice", "bob"] {
        bind(&world, "edit", user).await;
    }
    let said = world.kubectl_with(&sample(&world, "things-by-role.yaml"), &["apply", "-f", "-"]).await;
    assert!(said.ok && said.err.is_empty(), "{}", said.err);
    let to = |thing: &str| {
        tunnel(thing, json!({"destination": {"thingName": thing, "services": ["SSH"]}, "updatePolicy": "Recreate"}))
    };
    // Where the label is not, nothing is refused.
    let said = as_user(&world, "bob", "field-team", &to("pump-9")).await;
    assert!(said.ok, "{}", said.err);
    let label = ["label", "namespace", &world.name, "example.com/tunnels=by-role"];
    assert!(world.kubectl(&label).await.ok);
    let words = "may not open a tunnel to thing pump-7 in namespace";
    // A dry run: one that came before the policy would create it, and be judged no more.
    let bob = async || world.kubectl_with(&to("pump-7"), &["apply", "--as=bob", "--dry-run=server", "-f", "-"]).await;
    in_the_end("the policy has no effect", bob, |said| refused(said, words)).await;

    let said = as_user(&world, "alice", "pump-team", &to("pump-7")).await;
    assert!(said.ok, "{}", said.err);
    world.wait_ready("pump-7").await;
    let said = as_user(&world, "alice", "pump-team", &to("pump-6")).await;
    assert_refused(&said, "user alice may not open a tunnel to thing pump-6");
    let nothing = tunnel("nothing", json!({"destination": {"services": ["SSH"]}}));
    assert_refused(&as_user(&world, "alice", "pump-team", &nothing).await, "to no thing in particular");
    // Nor by a change of one that is there.
    let moved = to("pump-7").replace(r#""thingName":"pump-7""#, r#""thingName":"pump-9""#);
    assert_ne!(moved, to("pump-7"));
    assert_refused(&as_user(&world, "alice", "pump-team", &moved).await, "thing pump-9");

    // Whoever may edit the namespace may close it; to open it again takes the right.
    let bob = |suspend: bool| {
        let spec = json!({"spec": {"suspend": suspend}}).to_string();
        let world = &world;
        async move { world.kubectl(&["patch", "tunnel", "pump-7", "--as=bob", "--type=merge", "-p", &spec]).await }
    };
    assert!(bob(true).await.ok);
    world.wait_condition("pump-7", ("Ended", "True", "Suspended")).await;
    assert_refused(&bob(false).await, words);
    let said = world.kubectl(&["delete", "tunnel", "pump-7", "--as=bob", "--wait=false"]).await;
    assert!(said.ok, "{}", said.err);
    world.wait_no_tunnel("pump-7").await;
    // Nobody gives this right to himself.
    let rule = json!({"apiGroups": ["opentunnel.dev"], "resources": ["things"], "verbs": ["open"]});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "mine"}, "rules": [rule],
    });
    let said = world.kubectl_with(&role.to_string(), &["create", "--as=bob", "-f", "-"]).await;
    assert_refused(&said, "User \"bob\" cannot create resource \"roles\"");
}

#[tokio::test]
async fn who_views_a_namespace_opens_nothing_and_who_edits_it_does_so_there_alone() {
    let (world, other) = (World::new().await, Namespace::new().await);
    bind(&world, "view", "viewer").await;
    bind(&world, "edit", "editor").await;
    let manifest = tunnel("pump-7", allowed());
    assert_refused(
        &as_user(&world, "viewer", "all", &manifest).await,
        "User \"viewer\" cannot create resource \"tunnels\"",
    );
    let said = as_user(&world, "editor", "all", &manifest).await;
    assert!(said.ok, "{}", said.err);
    for args in [
        &["delete", "tunnel", "pump-7"][..],
        &["annotate", "tunnel", "pump-7", "opentunnel.dev/rotate-at=x"],
        &["patch", "tunnel", "pump-7", "--type=merge", "-p", r#"{"spec": {"suspend": true}}"#],
    ] {
        assert_refused(&world.kubectl(&[args, &["--as=viewer"]].concat()).await, "User \"viewer\" cannot");
    }
    assert_refused(
        &other.kubectl_with(&manifest, &["apply", "--as=editor", "-f", "-"]).await,
        "User \"editor\" cannot get resource \"tunnels\"",
    );
}

#[test]
fn each_sample_is_tried() {
    let dir = fs::read_dir(repository().join("deploy/policies")).expect("samples");
    let mut files: Vec<_> = dir.map(|entry| entry.expect("a file").file_name().into_string().expect("UTF-8")).collect();
    files.sort();
    assert_eq!(files, ["limits.yaml", "things-by-role.yaml"]);
}
