//! The CustomResourceDefinition: what kubectl apply takes, and what it refuses in which words.

use crate::support::World;
use crate::support::control_plane::repository;
use crate::support::manifests::manifest;
use crate::support::namespace::status;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use opentunnel_api::{TokenSecret, Tunnel};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;

#[test]
fn the_crd_in_the_repository_is_the_programs_own() {
    let program = env!("CARGO_BIN_EXE_opentunnel-operator");
    let output = std::process::Command::new(program).arg("crd").output().expect("it can be run");
    assert!(output.status.success());
    let committed = fs::read_to_string(repository().join("crds/tunnels.yaml")).expect("crds/tunnels.yaml");
    assert!(
        String::from_utf8_lossy(&output.stdout) == committed,
        "crds/tunnels.yaml is not what crates/api says: cargo run -- crd > crds/tunnels.yaml"
    );
}

#[tokio::test]
async fn a_manifest_that_breaks_a_rule_is_refused_with_words_that_name_the_field() {
    let world = World::new().await;
    let bad = manifest("bad.yaml");
    let documents: Vec<&str> = bad.split("\n---\n").skip(1).collect();
    assert!(documents.len() >= 30);
    let said = world.try_apply(&bad).await;
    assert!(!said.ok);
    assert_eq!(said.out, "", "nothing is accepted");
    // kubectl says of each what is wrong with it, in the order of the documents.
    let begins = |line: &str| line.starts_with("The Tunnel ") || line.starts_with("Error from server");
    let mut words: Vec<String> = Vec::new();
    for line in said.err.lines() {
        match words.last_mut() {
            Some(last) if !begins(line) => *last += line,
            _ => words.push(line.to_owned()),
        }
    }
    assert_eq!(words.len(), documents.len(), "each is refused once: {words:#?}");
    let typed = shows_types(&world).await;
    for (document, words) in documents.iter().zip(words) {
        let expected = document.strip_prefix("# ").and_then(|d| d.lines().next()).expect("what is said");
        for part in expected.split(" … ") {
            assert!(says(&words, part, typed), "\n{document}\nis refused in other words:\n{words}");
        }
    }
}

/// Whether kubectl says this. `typed`: this Kubernetes shows the type of a value that breaks a rule, in place of the value,
/// and writes an object as Go does.
fn says(words: &str, part: &str, typed: bool) -> bool {
    let types = ["\"string\"", "\"object\"", "\"array\"", "map[string]interface {}"];
    let shown = |at: usize| types.iter().any(|shown| words.contains(&format!("{}{shown}", &part[..at])));
    words.contains(part) || typed && part.find(VALUE).is_some_and(|at| shown(at + VALUE.len()))
}

const VALUE: &str = " value: ";

/// As 1.33 does, and 1.36 does not.
async fn shows_types(world: &World) -> bool {
    let version = world.client.apiserver_version().await.expect("a version");
    version.minor.trim_end_matches('+').parse::<u32>().expect("a number") < 36
}

#[tokio::test]
async fn the_longest_manifest_is_opened_as_it_is_written() {
    let world = World::new().await;
    let _operator = world.operator().await;
    world.apply(&manifest("longest.yaml")).await;
    let named = world.wait_ready(&("long.name-".repeat(25) + "end")).await;
    let unnamed = world.wait_ready(&("long.name-".repeat(24) + "longer")).await;

    let spec = &named.spec;
    let tunnels = world.aws.tunnels();
    let opened = |t: &Tunnel| {
        let id = status(t).tunnel_id.clone();
        tunnels.iter().find(|t| Some(&t.tunnel_id) == id.as_ref()).expect("it is open")
    };
    let tunnel = opened(&named);
    let destination = spec.destination.as_ref().expect("a destination");
    assert_eq!(tunnel.description, spec.description);
    assert_eq!(tunnel.thing_name, destination.thing_name);
    assert_eq!(tunnel.services, destination.services);
    let mut tags = tunnel.tags.clone();
    for own in ["opentunnel.dev/owner", "opentunnel.dev/generation"] {
        assert!(tags.remove(own).is_some(), "the operator's own tag");
    }
    let wanted = spec.tags.iter().flatten().map(|tag| (tag.key.clone(), tag.value.clone()));
    assert_eq!(tags, wanted.collect());
    let lifetime = tunnel.expires_at.duration_since(tunnel.created_at);
    assert_eq!(lifetime.as_mins(), 720);
    let sizes = (spec.description.as_ref().map(|d| d.chars().count()), tunnel.services.len(), tags.len());
    assert_eq!(sizes, (Some(2048), 100, 198), "it is the longest");

    for secret in spec.secrets.as_ref().expect("Secrets") {
        assert_eq!(secret.name.len(), 253);
        assert_decorated(&world, secret).await;
    }
    let last = spec.secrets.iter().flatten().next_back().expect("eight Secrets");
    let longest = |map: &Option<BTreeMap<String, String>>| {
        let map = map.as_ref().expect("there are some");
        (map.len(), map.keys().map(String::len).max(), map.values().map(|value| value.chars().count()).max())
    };
    assert_eq!(longest(&last.labels), (32, Some(317), Some(63)), "it is the longest");
    assert_eq!(longest(&last.annotations), (32, Some(317), Some(4096)), "it is the longest");
    let secret = format!("{}-tokens", unnamed.metadata.name.as_ref().expect("a name"));
    assert_eq!(secret.len(), 253);
    assert!(world.secret_data(&secret).await.is_some());
    assert_eq!((&opened(&unnamed).description, &opened(&unnamed).thing_name), (&None, &None));
}

/// The Secret is there, with the labels and annotations that the spec names.
async fn assert_decorated(world: &World, wanted: &TokenSecret) {
    let secret = world.secrets().get(&wanted.name).await.expect("it is there");
    for (key, value) in wanted.labels.iter().flatten() {
        assert_eq!(secret.labels().get(key), Some(value), "label {key} of {}", wanted.name);
    }
    for (key, value) in wanted.annotations.iter().flatten() {
        assert_eq!(secret.annotations().get(key), Some(value), "annotation {key} of {}", wanted.name);
    }
}

#[tokio::test]
async fn what_aws_cannot_change_is_not_changed_and_the_way_out_is_told() {
    let world = World::new().await;
    let full = manifest("full.yaml");
    world.apply(&full).await;
    let changes = [
        ("description", "ssh to sensor 42", "ssh to sensor 43"),
        ("description", "  description: ssh to sensor 42\n", ""),
        ("destination", "thingName: sensor-42", "thingName: sensor-43"),
        ("destination", "[SSH, HTTP]", "[SSH]"),
        ("timeout", "maxLifetimeTimeoutMinutes: 60", "maxLifetimeTimeoutMinutes: 61"),
        ("timeout", "  timeout:\n    maxLifetimeTimeoutMinutes: 60\n", ""),
    ];
    let typed = shows_types(&world).await;
    for (field, from, to) in changes {
        assert!(full.contains(from));
        let said = world.try_apply(&full.replace(from, to)).await;
        let words = format!(
            "spec.{field}: Invalid value: AWS cannot change {field} on an open tunnel: set spec.updatePolicy to Recreate (closes this tunnel and opens a new one), or delete the Tunnel and create it again"
        );
        let told = if typed { said.err.replace("\"object\": ", "") } else { said.err.clone() };
        assert!(!said.ok && told.contains(&words), "{from:?} to {to:?}: {}{}", said.out, said.err);
    }
    let before = world.tunnel("sensor-42").await.spec;
    for (from, to) in [
        ("deletionPolicy: Close", "deletionPolicy: Retain"),
        ("name: sensor-42-tokens", "name: others"),
        ("clientMode: SOURCE", "clientMode: ALL"),
        ("labels: {team: edge,", "labels: {team: core,"),
        ("annotations: {example.com/note", "annotations: {example.com/other"),
    ] {
        world.apply(&full.replace(from, to)).await;
        assert_ne!(world.tunnel("sensor-42").await.spec, before, "{from} may be changed to {to}");
    }
}

#[tokio::test]
async fn another_order_and_a_default_that_is_written_out_are_no_change() {
    let world = World::new().await;
    let full = manifest("full.yaml").replace("  timeout:\n    maxLifetimeTimeoutMinutes: 60\n", "");
    world.apply(&full).await;
    let (team, site) = ("    - {key: team, value: edge}\n", "    - {key: site, value: Zürich}\n");
    let reordered =
        full.replace("[SSH, HTTP]", "[HTTP, SSH]").replace(&format!("{team}{site}"), &format!("{site}{team}"));
    let with_default = format!("{reordered}  timeout: {{maxLifetimeTimeoutMinutes: 720}}\n");
    let with_empty = format!("{reordered}  timeout: {{}}\n");
    for same in [&reordered, &with_default, &with_empty, &full] {
        assert_ne!(*same, manifest("full.yaml"));
        world.apply(same).await;
    }
}

#[tokio::test]
async fn a_tunnel_without_a_spec_is_accepted_and_says_that_nobody_has_seen_it_yet() {
    let world = World::new().await;
    world.apply("{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: bare}}").await;
    world.apply("{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: empty}, spec: }").await;
    let listed = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: listed}}";
    world.apply(&format!("{{apiVersion: v1, kind: List, items: [{listed}]}}")).await;
    for name in ["bare", "empty", "listed"] {
        let tunnel = world.tunnel(name).await;
        assert_eq!(status(&tunnel).observed_generation, Some(-1));
        assert_eq!(status(&tunnel).conditions, None);
    }
}

#[tokio::test]
async fn server_side_apply_of_the_same_manifest_writes_nothing() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let full = manifest("full.yaml");
    let apply = ["apply", "--server-side", "-f", "-"];
    assert!(world.kubectl_with(&full, &apply).await.ok);
    let before = world.wait_ready("sensor-42").await.metadata.resource_version;
    assert!(world.kubectl_with(&full, &apply).await.ok);
    assert_eq!(world.tunnel("sensor-42").await.metadata.resource_version, before);
}

/// GitOps tools compare what is wanted with what is there: a default that the API server adds inside a list item is a
/// difference for ever.
#[tokio::test]
async fn a_manifest_that_is_applied_again_is_unchanged_whichever_fields_are_left_out() {
    let world = World::new().await;
    let _operator = world.operator().await;
    let specs = [
        "{}",
        "{description: ssh}",
        "{destination: {services: [SSH]}}",
        "{destination: {services: [SSH, HTTP], thingName: sensor-42}}",
        "{tags: [{key: team, value: edge}]}",
        "{tags: []}",
        "{timeout: {}}",
        "{timeout: {maxLifetimeTimeoutMinutes: 60}}",
        "{secrets: [{name: NAME}]}",
        "{secrets: [{name: NAME}, {name: NAME-2}]}",
        "{secrets: [{name: NAME, clientMode: ALL}]}",
        "{secrets: [{name: NAME, labels: {team: edge}}]}",
        "{secrets: [{name: NAME, annotations: {team: edge}}]}",
        "{secrets: [{name: NAME, labels: {}, annotations: {}}]}",
        "{deletionPolicy: Retain}",
    ];
    let mut manifests = vec!["{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: bare}}".to_owned()];
    for (n, spec) in specs.iter().enumerate() {
        let (name, spec) = (format!("t{n}"), spec.replace("NAME", &format!("s{n}")));
        manifests.push(format!(
            "{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: {name}}}, spec: {spec}}}"
        ));
    }
    manifests.push(manifest("full.yaml"));
    let all = manifests.join("\n---\n");
    world.apply(&all).await;
    // Before and after the operator has written its own.
    for ready in [false, true] {
        let names: Vec<_> = world.tunnels().list(&ListParams::default()).await.expect("a list").items;
        assert_eq!(names.len(), manifests.len());
        for tunnel in names.iter().filter(|_| ready) {
            world.wait_ready(&tunnel.name_any()).await;
        }
        let said = world.try_apply(&all).await;
        assert!(said.ok, "{}", said.err);
        let changed: Vec<_> = said.out.lines().filter(|line| !line.ends_with(" unchanged")).collect();
        assert_eq!(changed, [""; 0], "the same manifests, applied again");
        assert_eq!(said.out.lines().count(), manifests.len());
    }
}

#[tokio::test]
async fn tunnels_are_found_by_thing_name_and_by_tunnel_id() {
    let world = World::new().await;
    world.apply(&manifest("full.yaml")).await;
    world.apply(&manifest("full.yaml").replace("sensor-42", "sensor-43")).await;
    let id = json!({"status": {"tunnelId": "t-1"}});
    let patch = world.tunnels().patch_status("sensor-43", &PatchParams::default(), &Patch::Merge(id)).await;
    assert!(patch.is_ok());
    let selectors = [("spec.destination.thingName=sensor-42", "sensor-42"), ("status.tunnelId=t-1", "sensor-43")];
    for (selector, name) in selectors {
        let found = world.tunnels().list(&ListParams::default().fields(selector)).await.expect(selector);
        let names: Vec<_> = found.items.iter().filter_map(|t| t.metadata.name.as_deref()).collect();
        assert_eq!(names, [name], "{selector}");
    }
}

#[tokio::test]
async fn kubectl_get_shows_what_matters_in_columns() {
    let world = World::new().await;
    world.apply(&manifest("full.yaml")).await;
    let columns = |out: &str| -> Vec<String> {
        let header = out.lines().next().expect("a header");
        header.split("  ").map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()).collect()
    };
    let plain = world.kubectl(&["get", "tun"]).await;
    assert_eq!(columns(&plain.out), ["NAME", "THING", "STATE", "READY", "REASON", "EXPIRES", "AGE"]);
    let wide = world.kubectl(&["get", "tunnels", "-o", "wide"]).await;
    assert_eq!(columns(&wide.out)[7..], ["TUNNEL ID", "SERVICES", "SOURCE", "DESTINATION"]);
    assert!(wide.out.contains(r#"["SSH","HTTP"]"#), "{}", wide.out);
}
