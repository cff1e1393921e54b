//! Flux and Argo CD with real Tunnels: what dev/gitops, which has their own libraries, makes of them; and
//! `deploy/gitops/example`.

use crate::support::World;
use crate::support::control_plane::repository;
use crate::support::namespace::{Said, status};
use kube::api::{Patch, PatchParams};
use opentunnel_api::Tunnel;
use secure_tunneling_emulator::TunnelStatus;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs dev/gitops.
async fn gitops(args: &[&str], stdin: &str) -> Said {
    let Some(program) = std::env::var_os("OPENTUNNEL_GITOPS") else {
        panic!("OPENTUNNEL_GITOPS is not set: `make test` sets it; for `cargo test`, `make gitops` prints the line")
    };
    let mut command = Command::new(&program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().unwrap_or_else(|e| {
        panic!("OPENTUNNEL_GITOPS ({}) cannot be run ({e}): `make gitops` builds it", program.display())
    });
    let mut pipe = process.stdin.take().expect("a pipe");
    pipe.write_all(stdin.as_bytes()).await.expect("it reads");
    drop(pipe);
    let output = process.wait_with_output().await.expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

/// What Flux makes of these manifests, as `wait: true` has it: it returns when all are Current, or one has failed.
async fn flux(world: &World, manifests: &str, force: bool) -> Said {
    let kubeconfig = world.plane.kubeconfig.to_str().expect("a path");
    let args = ["flux", kubeconfig, "--force"];
    gitops(if force { &args } else { &args[..2] }, manifests).await
}

fn manifest(world: &World, spec: Value) -> String {
    let metadata = json!({"name": "pump-7", "namespace": world.name});
    json!({"apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel", "metadata": metadata, "spec": spec}).to_string()
}

fn change(world: &World, what: &str) -> String {
    format!("Tunnel/{}/pump-7 {what}\n", world.name)
}

async fn id(world: &World) -> String {
    status(&world.tunnel("pump-7").await).tunnel_id.clone().expect("an ID")
}

fn open_tunnels(world: &World) -> usize {
    world.aws.tunnels().iter().filter(|tunnel| tunnel.status == TunnelStatus::Open).count()
}

#[tokio::test]
async fn flux_waits_for_a_tunnel_finds_no_drift_and_undoes_what_kubectl_changes() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let wanted = manifest(&world, json!({"destination": {"services": ["SSH"]}, "secrets": [{"name": "a"}]}));
    let said = flux(&world, &wanted, false).await;
    assert!(said.ok, "{}", said.err);
    assert_eq!(said.out, change(&world, "created"));
    let tunnel = world.tunnel("pump-7").await;
    assert!(status(&tunnel).tunnel_id.is_some(), "it has waited");
    // What the operator has written since is no drift.
    let version = world.wait_ready("pump-7").await.metadata.resource_version;
    for _ in 0..2 {
        let said = flux(&world, &wanted, false).await;
        assert_eq!(said.out, change(&world, "unchanged"), "{}", said.err);
    }
    assert_eq!(world.tunnel("pump-7").await.metadata.resource_version, version);

    // The next round takes back what people have done with kubectl, though git says nothing of it ...
    let suspend = ["patch", "tunnel", "pump-7", "--type=merge", "-p", r#"{"spec": {"suspend": true}}"#];
    assert!(world.kubectl(&suspend).await.ok);
    world.wait_condition("pump-7", ("Ended", "True", "Suspended")).await;
    let said = flux(&world, &wanted, false).await;
    assert_eq!(said.out, change(&world, "configured"), "{}", said.err);
    world.wait_ready("pump-7").await;
    assert_eq!(world.calls_of("OpenTunnel"), 2);

    // ... unless the Tunnel says that it is to be kept.
    let merge =
        wanted.replace(r#""metadata":{"#, r#""metadata":{"annotations":{"kustomize.toolkit.fluxcd.io/ssa":"Merge"},"#);
    assert_ne!(merge, wanted);
    let said = flux(&world, &merge, false).await;
    assert_eq!(said.out, change(&world, "configured"), "{}", said.err);
    assert!(world.kubectl(&suspend).await.ok);
    world.wait_condition("pump-7", ("Ended", "True", "Suspended")).await;
    let said = flux(&world, &merge, false).await;
    assert!(said.ok, "Ended is no failure: {}", said.err);
    assert_eq!(said.out, change(&world, "unchanged"));
    assert_eq!(world.calls_of("OpenTunnel"), 2);
}

#[tokio::test]
async fn force_of_flux_closes_the_tunnel_at_a_wrong_value_and_recreate_does_not() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let spec = |minutes: i32, policy: &str| {
        let timeout = json!({"maxLifetimeTimeoutMinutes": minutes});
        manifest(&world, json!({"timeout": timeout, "updatePolicy": policy}))
    };
    assert!(flux(&world, &spec(60, "Recreate"), false).await.ok);
    let first = id(&world).await;
    // A wrong value is refused, and the tunnel stays.
    let said = flux(&world, &spec(7200, "Recreate"), false).await;
    assert!(!said.ok && said.err.contains("(Invalid)"), "{}", said.err);
    assert_eq!((id(&world).await, open_tunnels(&world)), (first.clone(), 1));
    // Another value is carried out.
    assert!(flux(&world, &spec(120, "Recreate"), false).await.ok);
    let second = id(&world).await;
    assert_ne!(second, first);
    // Under Immutable it is refused; Flux says why.
    assert!(flux(&world, &spec(120, "Immutable"), false).await.ok);
    let said = flux(&world, &spec(60, "Immutable"), false).await;
    assert!(said.err.contains("set spec.updatePolicy to Recreate"), "{}", said.err);
    assert_eq!(id(&world).await, second);
    // `force` makes a new one of it: another object.
    let said = flux(&world, &spec(60, "Immutable"), true).await;
    assert!(said.ok, "{}", said.err);
    assert_ne!(id(&world).await, second);
    // And of a wrong value nothing at all.
    let said = flux(&world, &spec(7200, "Immutable"), true).await;
    assert!(!said.ok && said.err.contains("(Invalid)"), "{}", said.err);
    world.wait_no_tunnel("pump-7").await;
    assert_eq!((open_tunnels(&world), world.calls_of("OpenTunnel")), (0, 3));
}

#[tokio::test]
async fn flux_fails_at_once_at_a_tunnel_that_needs_a_person() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply("{apiVersion: v1, kind: Secret, metadata: {name: pump-7-tokens}}").await;
    let said = flux(&world, &manifest(&world, json!({})), false).await;
    assert!(said.err.contains("failed early due to stalled resources"), "{}", said.err);
}

/// Presses a button of Argo CD: what its script changes is sent as Argo CD sends it.
async fn press(world: &World, button: &str) -> Tunnel {
    let rules = repository().join("deploy/gitops/argo-cd/resource_customizations/opentunnel.dev/Tunnel");
    let said = world.kubectl(&["get", "tunnel", "pump-7", "-o", "json"]).await;
    let said = gitops(&["argocd", rules.to_str().expect("a path"), button], &said.out).await;
    assert!(said.ok, "{}", said.err);
    let patch: Value = serde_json::from_str(&said.out).expect("a patch");
    let sent = world.tunnels().patch("pump-7", &PatchParams::default(), &Patch::Merge(&patch)).await;
    sent.unwrap_or_else(|e| panic!("{button}: {patch}: {e}"))
}

#[tokio::test]
async fn each_button_of_argo_cd_does_what_it_says() {
    let world = World::new().await;
    let _operator = world.operator().await;
    // Empty lists and maps, which Lua cannot tell apart.
    let secret = json!({"name": "a", "labels": {}, "annotations": {}});
    world.apply(&manifest(&world, json!({"tags": [], "timeout": {}, "secrets": [secret]}))).await;
    let spec = world.wait_ready("pump-7").await.spec;
    let first = id(&world).await;

    let rotated = press(&world, "rotate").await;
    assert_eq!(rotated.spec, spec, "nothing else is changed");
    let done = |t: &Tunnel| status(t).token_generation == Some(2) && status(t).last_handled_rotate_at.is_some();
    world.wait_for("pump-7", "new tokens", done).await;
    world.wait_ready("pump-7").await;
    assert_eq!((id(&world).await, world.calls_of("RotateTunnelAccessToken")), (first.clone(), 1));

    press(&world, "suspend").await;
    world.wait_condition("pump-7", ("Ended", "True", "Suspended")).await;
    let resumed = press(&world, "resume").await;
    assert_eq!(resumed.spec, spec);
    world.wait_ready("pump-7").await;
    let second = id(&world).await;
    assert_ne!(second, first);

    // After an end: once by suspend and resume, for ever by reopen.
    world.aws.close(&second).expect("it is open");
    world.wait_condition("pump-7", ("Ended", "True", "Closed")).await;
    press(&world, "suspend").await;
    world.wait_condition("pump-7", ("Ended", "True", "Suspended")).await;
    assert_eq!(press(&world, "resume").await.spec, spec);
    world.wait_ready("pump-7").await;
    let third = id(&world).await;
    world.aws.close(&third).expect("it is open");
    world.wait_condition("pump-7", ("Ended", "True", "Closed")).await;
    press(&world, "reopen").await;
    world.wait_ready("pump-7").await;
    assert_ne!(id(&world).await, third);
    assert_eq!((open_tunnels(&world), world.calls_of("OpenTunnel")), (1, 4));
}

#[tokio::test]
async fn an_expired_tunnel_is_reopened_by_the_button() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest(&world, json!({"timeout": {"maxLifetimeTimeoutMinutes": 1}}))).await;
    world.wait_ready("pump-7").await;
    world.aws.advance_clock(std::time::Duration::from_secs(61));
    world.wait_condition("pump-7", ("Ended", "True", "Expired")).await;
    let first = id(&world).await;
    press(&world, "reopen").await;
    let another = |t: &Tunnel| status(t).tunnel_id.as_ref().is_some_and(|id| *id != first);
    world.wait_for("pump-7", "another tunnel", another).await;
}

/// A copy of the example, with a checkout in place of the operator's URL; kustomize takes relative paths alone.
fn example(world: &World) -> PathBuf {
    fn copy(from: &Path, to: &Path, change: &impl Fn(String) -> String) {
        fs::create_dir(to).expect("a directory can be made");
        for entry in fs::read_dir(from).expect("the example") {
            let from = entry.expect("a file").path();
            let to = to.join(from.file_name().expect("a name"));
            match from.is_dir() {
                true => copy(&from, &to, change),
                false => fs::write(to, change(fs::read_to_string(from).expect("text"))).expect("a file can be written"),
            }
        }
    }
    let dir = world.file("example");
    let real = |path: &Path| path.canonicalize().expect("it is there");
    let parent = real(dir.parent().expect("a parent"));
    // From the folder `opentunnel` of it up to the root.
    let up = "../".repeat(parent.components().count() + 1);
    let deploy = format!("{up}{}", real(&repository().join("deploy")).display().to_string().trim_start_matches('/'));
    let url = "https://your.git/opentunnel-operator//deploy?ref=v0.1.0";
    copy(&repository().join("deploy/gitops/example"), &dir, &|text| text.replace(url, &deploy));
    dir
}

/// YAML as values: kubectl reads it, and asks nobody for a namespace.
fn parsed(world: &World, args: &[&str]) -> Vec<Value> {
    let mut kubectl = world.plane.kubectl();
    let output =
        kubectl.args(["create", "--dry-run=client", "-o", "json"]).args(args).output().expect("kubectl can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    values.map(|value| value.expect("JSON")).collect()
}

/// All objects of a folder, as Kustomize builds them.
fn built(world: &World, folder: &Path) -> Vec<Value> {
    parsed(world, &["-k", folder.to_str().expect("a path")])
}

#[tokio::test]
async fn the_example_has_its_waves_in_order_and_works() {
    let world = World::new().await;
    let _operator = world.operator().await;
    // Argo CD takes it as a whole, Flux in parts.
    let wave = |object: &Value| {
        let wave = &object["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"];
        wave.as_str().map_or(0, |wave| wave.parse::<i32>().expect("a number"))
    };
    let example = example(&world);
    let all = built(&world, &example);
    let mut parts = Vec::new();
    for (number, folder) in ["opentunnel", "edge/tunnels", "edge/apps"].into_iter().enumerate() {
        let objects = built(&world, &example.join(folder));
        for object in &objects {
            let early = object["kind"] == "Namespace";
            assert_eq!(wave(object), if early { 0 } else { number as i32 }, "{object}");
        }
        parts.extend(objects);
    }
    let key = |o: &Value| (o["kind"].to_string(), o["metadata"]["name"].to_string());
    let keys = |objects: &[Value]| {
        let mut keys: Vec<_> = objects.iter().map(key).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&all), keys(&parts));

    let ours = async |folder: &str| {
        let mut objects = built(&world, &example.join(folder));
        objects.retain(|object| object["kind"] != "Namespace");
        objects.iter_mut().for_each(|object| object["metadata"]["namespace"] = json!(world.name));
        json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
    };
    let said = flux(&world, &ours("edge/tunnels").await, false).await;
    assert!(said.ok, "{}", said.err);
    let tunnel = world.wait_ready("pump-7").await;
    let apps = ours("edge/apps").await;
    let secret = &status(&tunnel).secrets.as_ref().expect("Secrets")[0].name;
    assert!(apps.contains(&format!(r#""secretName":"{secret}""#)), "the Pod uses the Tunnel's Secret");
    let said = world.kubectl_with(&apps, &["apply", "--dry-run=server", "-f", "-"]).await;
    assert!(said.ok && said.err.is_empty(), "{}", said.err);
}

/// The samples that both tools are tried with are objects that the API server has: none of their fields is refused or
/// dropped.
#[tokio::test]
async fn each_sample_of_a_state_is_an_object_of_the_api_server() {
    let world = World::new().await;
    let dir = repository().join("deploy/gitops/argo-cd/resource_customizations/opentunnel.dev/Tunnel/testdata");
    for entry in fs::read_dir(dir).expect("samples") {
        let file = entry.expect("a file").path();
        let mut samples = parsed(&world, &["-f", file.to_str().expect("a path")]);
        let sample: Tunnel = serde_json::from_value(samples.remove(0)).expect("a Tunnel");
        let mut new = sample.clone();
        (new.metadata, new.status) = (Default::default(), None);
        new.metadata.generate_name = Some("sample-".into());
        let made = world.tunnels().create(&Default::default(), &new).await.expect("it is accepted");
        assert_eq!(made.spec, sample.spec);
        let name = made.metadata.name.expect("a name");
        let patch = Patch::Merge(json!({"status": sample.status}));
        let stored = world.tunnels().patch_status(&name, &PatchParams::default(), &patch).await;
        assert_eq!(stored.expect("its status is accepted").status, sample.status);
    }
}
