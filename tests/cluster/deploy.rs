//! `deploy/`, `deploy/examples` and the Dockerfile: what a platform team applies, and that it fits the operator.

use crate::support::World;
use crate::support::control_plane::{SYSTEM_NAMESPACE, repository};
use crate::support::namespace::status;
use crate::support::operator::http_status;
use clap::Parser;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodSpec};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::PostParams;
use opentunnel_operator::config::{Command, Run};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Runs `kubectl ARGS deploy/`; returns what it prints.
async fn kubectl_deploy(world: &World, args: &[&str]) -> String {
    let deploy = repository().join("deploy");
    let said = world.kubectl(&[args, &["-n", SYSTEM_NAMESPACE, "-k", deploy.to_str().expect("a path")]].concat()).await;
    assert!(said.ok, "{}", said.err);
    said.out
}

async fn versions(world: &World) -> Vec<String> {
    let list: Value = serde_json::from_str(&kubectl_deploy(world, &["get", "-o", "json"]).await).expect("JSON");
    let items = list["items"].as_array().expect("a list");
    assert!(items.len() >= 8, "{list}");
    items.iter().map(|o| format!("{} {}", o["kind"], o["metadata"]["resourceVersion"])).collect()
}

#[tokio::test]
async fn applied_again_deploy_is_unchanged_with_and_without_server_side_apply() {
    let world = World::new().await;
    let before = versions(&world).await;
    let said = kubectl_deploy(&world, &["apply"]).await;
    for line in said.lines() {
        // kubectl always sends a PodDisruptionBudget's selector (its patchStrategy is `replace`), and says so.
        let sent = line == "poddisruptionbudget.policy/opentunnel-operator configured";
        assert!(sent || line.ends_with(" unchanged"), "{said}");
    }
    assert_eq!(versions(&world).await, before);
    let server_side = ["apply", "--server-side"];
    kubectl_deploy(&world, &server_side).await;
    let before = versions(&world).await;
    kubectl_deploy(&world, &server_side).await;
    assert_eq!(versions(&world).await, before);
}

async fn deployment(world: &World) -> Deployment {
    let api: Api<Deployment> = Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
    api.get("opentunnel-operator").await.expect("deploy/ is applied")
}

async fn pod_spec(world: &World) -> PodSpec {
    let template = deployment(world).await.spec.template;
    template.spec.expect("a Pod's spec")
}

async fn container(world: &World) -> Container {
    pod_spec(world).await.containers.into_iter().next().expect("a container")
}

/// A server-side dry run of a Pod in the operator's namespace.
async fn try_pod(world: &World, spec: PodSpec) -> Result<Pod, kube::Error> {
    let api: Api<Pod> = Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
    let pod = Pod {
        metadata: serde_json::from_value(json!({"name": "try"})).expect("metadata"),
        spec: Some(spec),
        status: None,
    };
    api.create(&PostParams { dry_run: true, field_manager: None }, &pod).await
}

#[tokio::test]
async fn the_operators_namespace_takes_restricted_pods_alone_and_the_operators_is_one() {
    let world = World::new().await;
    let mut spec = pod_spec(&world).await;
    try_pod(&world, spec.clone()).await.expect("the operator's Pod is restricted");
    let context = spec.containers[0].security_context.as_ref().expect("a security context");
    assert_eq!(context.read_only_root_filesystem, Some(true));
    spec.containers[0].security_context = None;
    let error = try_pod(&world, spec).await.expect_err("it is not restricted").to_string();
    assert!(error.contains(r#"violates PodSecurity "restricted"#), "{error}");
}

/// The flags of `run`, where none is given.
fn defaults() -> Run {
    match Command::parse_from(["opentunnel-operator", "run"]) {
        Command::Run(run) => *run,
        Command::Crd => unreachable!(),
    }
}

#[tokio::test]
async fn the_deployments_probes_port_and_grace_are_the_operators() {
    let world = World::new().await;
    let mut operator = world.operator().await;
    let address = operator.address().await;
    let container = container(&world).await;
    let port = &container.ports.as_ref().expect("a port")[0];
    assert_eq!(port.container_port, i32::from(defaults().http_addr.port()));
    assert_eq!(port.name.as_deref(), Some("http"));
    for (probe, path) in [(&container.liveness_probe, "/healthz"), (&container.readiness_probe, "/readyz")] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a probe");
        assert_eq!((get.path.as_deref(), json!(get.port)), (Some(path), json!("http")));
        assert_eq!(http_status(address, path).await, Some(200));
    }
    assert_eq!(container.args, Some(vec!["run".into()]));
    // A call in flight, then a close of what is surplus; and time for the API server.
    let grace = pod_spec(&world).await.termination_grace_period_seconds.expect("it is given");
    assert!(grace >= 2 * defaults().aws_timeout.as_secs() as i64 + 10, "{grace}");
}

/// A node's drain, and who looks for the reason.
#[tokio::test]
async fn an_operator_that_cannot_start_holds_up_no_drain_and_shows_why() {
    let world = World::new().await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), SYSTEM_NAMESPACE);
    let budget = budgets.get("opentunnel-operator").await.expect("deploy/ is applied").spec.expect("a spec");
    assert_eq!(budget.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
    assert_eq!(container(&world).await.termination_message_policy.as_deref(), Some("FallbackToLogsOnError"));
}

/// What docs/install.md has a team do, "For single namespaces". (dev/install compares the rights with what the page says.)
#[tokio::test]
async fn an_operator_with_the_rights_of_its_own_namespace_works_there_and_leaves_the_namespace() {
    let world = World::new().await;
    let api: Api<Namespace> = Api::all(world.client.clone());
    let before = api.get(&world.name).await.expect("it is there");
    let page = fs::read_to_string(repository().join("docs/install.md")).expect("a page");
    let text = page.split("```yaml\n").find(|block| block.contains("//deploy/namespaced?")).expect("one");
    let text = text.split("```").next().expect("its end").replace("team-a", &world.name);
    let dir = overlay(&world, &text, "deploy/namespaced");
    let dir = dir.to_str().expect("a path");
    let said = world.kubectl(&["apply", "-k", dir]).await;
    assert!(said.ok, "{}", said.err);

    let kubeconfig = world.file("kubeconfig");
    world.plane.write_kubeconfig(&world.name, "opentunnel-operator", &kubeconfig).expect("it has a token");
    let settings = world.settings().env("KUBECONFIG", kubeconfig).env("POD_NAMESPACE", &world.name);
    let settings = settings.flag("--leader-elect", "true").flag("--cluster-id", "given");
    let operator = world.operator_with(&settings).await;
    world.apply("{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}").await;
    let tunnel = world.wait_ready("plain").await;
    // The watch of Secrets is this namespace's.
    world.secrets().delete("plain-tokens", &Default::default()).await.expect("it is there");
    let generation = status(&tunnel).token_generation;
    let renewed = |t: &opentunnel_api::Tunnel| status(t).token_generation > generation;
    world.wait_for("plain", "new tokens", renewed).await;
    let tunnel = world.wait_ready("plain").await;
    world.assert_live(&tunnel, "plain-tokens").await;
    world.wait_event("plain", "Normal Opened").await;
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    operator.terminate().await;

    let said = world.kubectl(&["delete", "-k", dir]).await;
    assert!(said.ok, "{}", said.err);
    let after = api.get(&world.name).await.expect("it is there still");
    assert_eq!(after.metadata.uid, before.metadata.uid);
    assert_eq!((after.metadata.deletion_timestamp, after.metadata.labels), (None, before.metadata.labels));
}

#[tokio::test]
async fn the_image_is_the_deployments() {
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).expect("a Dockerfile");
    let last = |instruction: &str| {
        let mut values = dockerfile.lines().filter_map(|line| line.strip_prefix(instruction)).map(str::trim);
        values.next_back().unwrap_or_else(|| panic!("no {instruction}")).to_owned()
    };
    // A name would not do for runAsNonRoot: the kubelet could not tell that it is not root's.
    let user = last("USER ");
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user}");
    assert_eq!(last("ENTRYPOINT "), r#"["/opentunnel-operator"]"#);
    let toolchain = fs::read_to_string(repository().join("rust-toolchain.toml")).expect("a toolchain");
    let rust = last("ARG RUST=");
    assert!(toolchain.contains(&format!("channel = \"{rust}\"")), "the Dockerfile has Rust {rust}:\n{toolchain}");
    let world = World::new().await;
    let image = format!("opentunnel-operator:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(container(&world).await.image, Some(image));
}

#[tokio::test]
async fn each_example_is_accepted_in_a_namespace_with_the_baseline_of_pod_security() {
    let world = World::new().await;
    let label = ["label", "namespace", &world.name, "pod-security.kubernetes.io/enforce=baseline"];
    assert!(world.kubectl(&label).await.ok);
    // Pods need it.
    let account = ["wait", "--for=create", "serviceaccount/default", "--timeout=60s"];
    assert!(world.kubectl(&account).await.ok);
    let mut seen = 0;
    for entry in fs::read_dir(repository().join("deploy/examples")).expect("examples") {
        let path = entry.expect("a file").path();
        let text = fs::read_to_string(&path).expect("text");
        let ours = text.replace("namespace: edge", &format!("namespace: {}", world.name));
        assert_ne!(ours, text, "{} has another namespace", path.display());
        let said = world.kubectl_with(&ours, &["apply", "--dry-run=server", "-f", "-"]).await;
        assert!(said.ok && said.err.is_empty(), "{}: {}", path.display(), said.err);
        seen += 1;
    }
    assert!(seen >= 5, "{seen} examples");
}

#[tokio::test]
async fn pods_with_our_proxy_are_admitted_where_restricted_is_enforced() {
    let world = World::new().await;
    let labels = ["pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted"];
    assert!(world.kubectl(&[&["label", "namespace", &world.name], &labels[..]].concat()).await.ok);
    for file in ["pump-7-pod.yaml", "pump-7-deployment.yaml"] {
        let text = fs::read_to_string(repository().join("deploy/examples").join(file)).expect("an example");
        let ours = text.replace("namespace: edge", &format!("namespace: {}", world.name));
        let apply = ["apply", "--dry-run=server", "-f", "-"];
        let said = world.kubectl_with(&ours, &apply).await;
        assert!(said.ok && said.err.is_empty(), "{file}: {}", said.err);
        // What the rules are for is refused.
        let root = ours.replace("runAsNonRoot: true, runAsUser: 65532, ", "");
        assert_ne!(root, ours);
        let said = world.kubectl_with(&root, &apply).await;
        assert!(said.err.contains("PodSecurity"), "{file} as root: {}", said.err);
    }
}

#[test]
fn the_pods_in_the_docs_are_the_examples() {
    for (page, file) in [("README.md", "pump-7-pod.yaml"), ("docs/consumers.md", "sensor-42-pod.yaml")] {
        let text = fs::read_to_string(repository().join(page)).expect("a page");
        let example = fs::read_to_string(repository().join("deploy/examples").join(file)).expect("an example");
        assert!(text.contains(&format!("```yaml\n{example}```")), "{page} does not show {file} as it is");
    }
}

/// A folder with a Kustomization that the docs show, with a checkout in the place of the URL of one of our folders.
fn overlay(world: &World, text: &str, ours: &str) -> PathBuf {
    let dir = world.file("d");
    fs::create_dir(&dir).expect("a directory can be made");
    // kustomize takes relative paths alone.
    let real = |path: &Path| path.canonicalize().expect("it is there");
    let up = "../".repeat(real(&dir).components().count() - 1);
    let ours_here = real(&repository().join(ours)).display().to_string();
    let url = format!("https://your.git/opentunnel-operator//{ours}?ref=v0.1.0");
    assert!(text.contains(&url), "no {url} in {text}");
    let text = text.replace(&url, &format!("{up}{}", ours_here.trim_start_matches('/')));
    fs::write(dir.join("kustomization.yaml"), text).expect("a file can be written");
    dir
}

#[tokio::test]
async fn the_kustomization_in_the_readme_sets_the_image_and_the_region() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let text = readme.split("```yaml\n").find(|block| block.starts_with("apiVersion: kustomize")).expect("one");
    let text = text.split("```").next().expect("its end");
    let world = World::new().await;
    let dir = overlay(&world, text, "deploy");
    let apply = ["apply", "--dry-run=server", "-o", "json", "-n", SYSTEM_NAMESPACE, "-k"];
    let said = world.kubectl(&[&apply[..], &[dir.to_str().expect("a path")]].concat()).await;
    assert!(said.ok, "{}", said.err);
    let list: Value = serde_json::from_str(&said.out).expect("JSON");
    let items = list["items"].as_array().expect("a list");
    let of = |kind: &str| items.iter().find(|o| o["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    assert_eq!(of("ConfigMap")["data"]["AWS_REGION"], "eu-central-1");
    let container = &of("Deployment")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example.com/opentunnel-operator:0.1.0");
    assert_eq!(container["env"][0]["valueFrom"]["configMapKeyRef"]["name"], of("ConfigMap")["metadata"]["name"]);
}
