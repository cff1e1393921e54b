//! docs/consumers.md: its manifests are taken from the page itself, and what a reloader goes by is as the page says.

use crate::support::control_plane::{ControlPlane, repository};
use crate::support::namespace::{main_condition, secret_names, status};
use crate::support::{LIMIT, World};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PodSpec, Secret};
use kube::api::DeleteParams;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use opentunnel_api::Tunnel;
use secure_tunneling_emulator::Call;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Of a Tunnel with a thing: its Secret has the source's tokens alone.
const ONE_SIDE: &str = "pump-7-source";
/// The other Tunnel's: both sides.
const BOTH_SIDES: &str = "sensor-42-tokens";
const GENERATION: &str = "opentunnel.dev/token-generation";
const RELOADER: &str = "secret.reloader.stakater.com/reload";
const WAVE: &str = "wave.pusher.com/update-on-config-change";

fn page() -> String {
    fs::read_to_string(repository().join("docs/consumers.md")).expect("the page")
}

/// The page's manifests, in the namespace of a test.
fn manifests(world: &World) -> Vec<String> {
    let page = page();
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().expect("its end"));
    blocks.map(|text| here(world, text)).collect()
}

fn here(world: &World, text: &str) -> String {
    let here = text.replace("namespace: edge", &format!("namespace: {}", world.name));
    assert_ne!(here, text, "it has another namespace");
    here
}

/// The Tunnel of `deploy/examples` whose Secrets the page's Pods read.
fn example(world: &World, tunnel: &str) -> String {
    let path = repository().join("deploy/examples").join(format!("{tunnel}.yaml"));
    here(world, &fs::read_to_string(path).expect("an example"))
}

/// Applies a manifest, which nobody may warn of; returns what the API server made of it.
async fn apply(world: &World, manifest: &str) -> Value {
    let said = world.kubectl_with(manifest, &["apply", "-o", "json", "-f", "-"]).await;
    assert!(said.ok && said.err.is_empty(), "{}", said.err);
    serde_json::from_str(&said.out).expect("JSON")
}

/// Pods, and what warns of them, need these.
async fn prepare(world: &World) {
    let label = ["label", "namespace", &world.name, "pod-security.kubernetes.io/warn=baseline"];
    assert!(world.kubectl(&label).await.ok);
    assert!(world.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=60s"]).await.ok);
}

/// Both Tunnels, Ready.
async fn open(world: &World) -> [Tunnel; 2] {
    let mut tunnels = Vec::new();
    for name in ["pump-7", "sensor-42"] {
        world.apply(&example(world, name)).await;
        tunnels.push(world.wait_ready(name).await);
    }
    tunnels.try_into().expect("two")
}

/// The Secrets that a Pod reads, each with the keys that it names.
fn read_by(spec: &PodSpec) -> Vec<(String, Vec<String>)> {
    let mut read = Vec::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for from in container.env_from.iter().flatten().filter_map(|from| from.secret_ref.as_ref()) {
            read.push((from.name.clone(), vec![]));
        }
        let refs = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()?.secret_key_ref.as_ref());
        read.extend(refs.map(|key| (key.name.clone(), vec![key.key.clone()])));
    }
    for volume in spec.volumes.iter().flatten() {
        let secret = volume.secret.iter().map(|s| (s.secret_name.clone().expect("a name"), &s.items));
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let projected = projected.filter_map(|source| source.secret.as_ref()).map(|s| (s.name.clone(), &s.items));
        for (name, items) in secret.chain(projected) {
            read.push((name, items.iter().flatten().map(|item| item.key.clone()).collect()));
        }
    }
    read
}

#[tokio::test]
async fn the_pages_manifests_are_accepted_and_read_secrets_and_keys_that_the_operator_writes() {
    let world = World::new().await;
    let _operator = world.operator().await;
    prepare(&world).await;
    let tunnels = open(&world).await;
    let (page, mut kinds) = (page(), BTreeSet::new());
    for manifest in manifests(&world) {
        let object = apply(&world, &manifest).await;
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        let spec = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        let read = read_by(&serde_json::from_value(spec.clone()).expect("a Pod's spec"));
        assert!(!read.is_empty(), "{kind}: no Secret");
        for (secret, keys) in &read {
            assert!(tunnels.iter().any(|t| secret_names(t).contains(&secret.as_str())), "{kind}: whose is {secret}?");
            let data = world.secret_data(secret).await.expect("it is there");
            assert!(keys.iter().all(|key| data.contains_key(key)), "{kind}: {keys:?}, but {:?}", data.keys());
            // AWS's local proxy gets its tokens by these names.
            assert!(!keys.is_empty() || data.contains_key("AWSIOT_TUNNEL_ACCESS_TOKEN"), "{:?}", data.keys());
        }
        if kind == "Deployment" {
            let annotations = &object["metadata"]["annotations"];
            let named = annotations[RELOADER].as_str().expect("for Reloader").split(',').map(str::trim);
            assert_eq!(named.collect::<BTreeSet<_>>(), read.iter().map(|(name, _)| name.as_str()).collect());
            assert_eq!(annotations[WAVE], "true");
        }
        kinds.insert(kind);
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["Deployment", "Pod"]);
    for annotation in [format!("`{RELOADER}: \"{ONE_SIDE}\"`"), format!("`{WAVE}: \"true\"`")] {
        assert!(page.contains(&annotation), "the page's table has no {annotation}");
    }
}

/// A Secret's name, and what it is from then on; `None`: it is gone.
type Version = (String, Option<Secret>);

/// What a watch shows of a namespace's token Secrets, in its order.
struct Sight {
    seen: Arc<Mutex<Vec<Version>>>,
    watch: JoinHandle<()>,
}

impl Sight {
    fn new(world: &World) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let config = watcher::Config::default().labels("opentunnel.dev/secret=tokens");
        let mut events = watcher(world.secrets(), config).default_backoff().boxed();
        let noted = seen.clone();
        let watch = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let version = match event {
                    Ok(Event::Apply(secret) | Event::InitApply(secret)) => (secret.name_any(), Some(secret)),
                    Ok(Event::Delete(secret)) => (secret.name_any(), None),
                    // A watch that broke off is made anew, and shows what is there once more.
                    Ok(Event::Init | Event::InitDone) | Err(_) => continue,
                };
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(version);
            }
        });
        Self { seen, watch }
    }

    /// A Secret's life so far, from its first version to that of now, each with its token generation: it is `new`, has
    /// other `data`, which is what reloaders go by, or only other `metadata`; or it is `gone`.
    async fn life(&self, world: &World, name: &str) -> Vec<String> {
        let now = world.secrets().get(name).await.expect("it is there").resource_version();
        let deadline = Instant::now() + LIMIT;
        let versions = loop {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let versions = seen.into_iter().filter_map(|(of, version)| (of == name).then_some(version));
            let mut versions: Vec<_> = versions.collect();
            versions.dedup_by_key(|version| version.as_ref().map(|secret| secret.resource_version()));
            if versions.iter().flatten().any(|secret| secret.resource_version() == now) {
                break versions;
            }
            assert!(Instant::now() < deadline && !self.watch.is_finished(), "{name}: the watch does not show it");
            sleep(Duration::from_millis(20)).await;
        };
        let (mut life, mut before) = (Vec::new(), None);
        for version in &versions {
            let what = match (before, version) {
                (_, None) => "gone".to_owned(),
                (None, Some(secret)) => format!("new {}", secret.annotations()[GENERATION]),
                (Some(old), Some(secret)) => {
                    let what = if old == &secret.data { "metadata" } else { "data" };
                    format!("{what} {}", secret.annotations()[GENERATION])
                }
            };
            life.push(what);
            before = version.as_ref().map(|secret| &secret.data);
        }
        life
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Returns once the operator has looked at its tunnels a few times more.
async fn rests(world: &World) {
    let polls = |calls: &[Call]| calls.iter().filter(|call| call.operation == "ListTunnels").count();
    let before = polls(&world.aws.calls());
    timeout(LIMIT, world.aws.wait_calls(|calls| polls(calls) >= before + 3)).await.expect("the poller polls");
}

/// New tokens of a side; returns once they are in the Secrets. A side may be `ALL`.
async fn rotate(world: &World, tunnel: &str, side: &str) {
    let before = status(&world.tunnel(tunnel).await).token_generation.expect("it was opened");
    let at = format!("opentunnel.dev/rotate-at=after {before}");
    let side = format!("opentunnel.dev/rotate-client-mode={side}");
    let said = world.kubectl(&["annotate", "--overwrite", "tun", tunnel, &at, &side]).await;
    assert!(said.ok, "{}", said.err);
    wait_generation(world, tunnel, before + 1).await;
}

async fn wait_generation(world: &World, tunnel: &str, generation: i64) {
    let is = |t: &Tunnel| {
        status(t).token_generation == Some(generation) && main_condition(t).is_some_and(|c| c.reason == "Open")
    };
    world.wait_for(tunnel, &format!("Ready with tokens of generation {generation}"), is).await;
}

/// Another label in `spec.secrets[]` of pump-7; returns once its Secret has it.
async fn relabel(world: &World, site: &str) {
    let text = example(world, "pump-7");
    let labelled = text.replace("clientMode: SOURCE}", &format!("clientMode: SOURCE, labels: {{site: {site}}}}}"));
    assert_ne!(labelled, text);
    world.apply(&labelled).await;
    let observed = |t: &Tunnel| status(t).observed_generation == t.metadata.generation;
    world.wait_for("pump-7", "the label observed", observed).await;
    assert_eq!(world.secrets().get(ONE_SIDE).await.expect("it is there").labels()["site"], site);
}

async fn lose_secret(world: &World) {
    let before = status(&world.tunnel("pump-7").await).token_generation.expect("it was opened");
    world.secrets().delete(ONE_SIDE, &DeleteParams::default()).await.expect("it is there");
    wait_generation(world, "pump-7", before + 1).await;
}

#[tokio::test]
async fn a_secrets_data_changes_once_with_new_tokens_of_its_side_and_with_nothing_else() {
    let world = World::new().await;
    let sight = Sight::new(&world);
    let operator = world.operator().await;
    open(&world).await;
    rests(&world).await;
    assert_eq!(sight.life(&world, ONE_SIDE).await, ["new 1"]);

    relabel(&world, "Bern").await;
    rotate(&world, "pump-7", "ALL").await;
    // The device's token is in no Secret of this Tunnel: what follows is the generation alone.
    rotate(&world, "pump-7", "DESTINATION").await;
    rotate(&world, "pump-7", "SOURCE").await;
    operator.kill();
    let _operator = world.operator().await;
    rests(&world).await;
    let mut life = vec!["new 1", "metadata 1", "data 2", "metadata 3", "data 4"];
    assert_eq!(sight.life(&world, ONE_SIDE).await, life);

    // A Secret that was lost is another object: a reloader that looks at updates alone does not see it.
    lose_secret(&world).await;
    life.extend(["gone", "new 5"]);
    rests(&world).await;
    assert_eq!(sight.life(&world, ONE_SIDE).await, life);
    assert_eq!(sight.life(&world, BOTH_SIDES).await, ["new 1"], "it is another Tunnel's");

    // In a Secret of both sides, either side's tokens are a change of the data, also for whom reads the other's.
    let before = world.secret_data(BOTH_SIDES).await.expect("a Secret");
    rotate(&world, "sensor-42", "DESTINATION").await;
    let after = world.secret_data(BOTH_SIDES).await.expect("a Secret");
    assert!(after["sourceAccessToken"] == before["sourceAccessToken"], "the source's token stays");
    assert_eq!(sight.life(&world, BOTH_SIDES).await, ["new 1", "data 2"]);
    assert_eq!(sight.life(&world, ONE_SIDE).await, life);
}

/// A tool that starts workloads anew, and how it differs from others.
struct Tool {
    /// This variable has the path of its program.
    variable: &'static str,
    /// The flag that names the namespace; Reloader takes a variable, too, and its older releases that alone.
    namespaces: Option<&'static str>,
    /// Its annotation, with a value that leaves the workload in peace.
    off: (&'static str, &'static str),
    /// It compares with what a workload was started with, so it sees what came while it did not look, too: a Secret that
    /// is new, a rotation while it did not run.
    remembers: bool,
}

const TOOLS: [Tool; 2] = [
    Tool { variable: "OPENTUNNEL_RELOADER", namespaces: None, off: (RELOADER, "other-tokens"), remembers: false },
    Tool { variable: "OPENTUNNEL_WAVE", namespaces: Some("--namespaces"), off: (WAVE, "false"), remembers: true },
];

/// A running tool. Dropping it kills it.
struct Running {
    process: Child,
    pid: u32,
}

impl Running {
    /// Starts it as an administrator, and returns once it does its work.
    async fn new(world: &World, tool: &Tool, program: &OsString) -> Self {
        let log = File::create(world.file("log")).expect("a log can be written");
        let mut command = Command::new(program);
        command.args(tool.namespaces.map(|flag| format!("{flag}={}", world.name)));
        command.env_clear().env("KUBECONFIG", &world.plane.kubeconfig).env("KUBERNETES_NAMESPACE", &world.name);
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file can be opened twice")).stderr(log).kill_on_drop(true);
        let process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", tool.variable));
        let pid = process.id().expect("it was not waited for");
        ControlPlane::get().adopt(pid);
        let mut running = Self { process, pid };
        // A change of a Secret is followed once its watches are there.
        let (before, deadline) = (starts(world, "warm-up").await, Instant::now() + LIMIT);
        while starts(world, "warm-up").await == before {
            let data = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "warm-up"},
                "stringData": {"now": uuid::Uuid::new_v4().to_string()}});
            world.apply(&data.to_string()).await;
            assert!(matches!(running.process.try_wait(), Ok(None)), "{} has ended", tool.variable);
            assert!(Instant::now() < deadline, "{} follows no Secret", tool.variable);
            sleep(Duration::from_millis(200)).await;
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        while let Ok(None) = self.process.try_wait() {
            std::thread::sleep(Duration::from_millis(1));
        }
        ControlPlane::get().forget(self.pid);
    }
}

/// How often a Deployment's Pods had cause to start: a generation of its spec is one, since nobody changes anything but
/// the template.
async fn starts(world: &World, name: &str) -> i64 {
    let api: Api<Deployment> = Api::namespaced(world.client.clone(), &world.name);
    api.get(name).await.expect("it is there").metadata.generation.expect("a generation")
}

async fn wait_starts(world: &World, name: &str, count: i64, after: &str) {
    let deadline = Instant::now() + LIMIT;
    while starts(world, name).await < count {
        assert!(Instant::now() < deadline, "{after}: {name} is not started anew");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(starts(world, name).await, count, "{after}: {name}");
}

async fn tried(tool: &Tool, program: &OsString) {
    let world = World::new().await;
    let _operator = world.operator().await;
    prepare(&world).await;
    open(&world).await;
    let mut page = None;
    for manifest in manifests(&world) {
        let object = apply(&world, &manifest).await;
        if object["kind"] == "Deployment" {
            page = Some(object);
        }
    }
    let page = page.expect("a Deployment on the page");
    let documented = page["metadata"]["name"].as_str().expect("a name");
    let like_it = |name: &str, annotations: Value| {
        let mut object = json!({"apiVersion": page["apiVersion"], "kind": page["kind"], "spec": page["spec"]});
        object["metadata"] = json!({"name": name, "annotations": annotations});
        object
    };
    let others = ["off", "without"];
    world.apply(&like_it("off", json!({tool.off.0: tool.off.1})).to_string()).await;
    world.apply(&like_it("without", json!({})).to_string()).await;
    let mut warm_up = like_it("warm-up", json!({RELOADER: "warm-up", WAVE: "true"}));
    warm_up["spec"]["template"]["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "warm-up"}}]);
    world.apply(&warm_up.to_string()).await;

    let running = Running::new(&world, tool, program).await;
    // What compares notes first what there is, on the template.
    let mut count = if tool.remembers { 2 } else { 1 };
    wait_starts(&world, documented, count, "the tool's start").await;
    let first = count;
    for n in 1..=3 {
        relabel(&world, &format!("n{n}")).await;
        rotate(&world, "pump-7", "DESTINATION").await;
        rotate(&world, "sensor-42", "ALL").await;
        rotate(&world, "pump-7", "SOURCE").await;
        count += 1;
        wait_starts(&world, documented, count, "a rotation").await;
    }
    lose_secret(&world).await;
    if tool.remembers {
        count += 1;
        wait_starts(&world, documented, count, "a Secret that was lost").await;
    }
    rotate(&world, "pump-7", "ALL").await;
    count += 1;
    wait_starts(&world, documented, count, "a rotation after a Secret was lost").await;

    drop(running);
    rotate(&world, "pump-7", "ALL").await;
    let _running = Running::new(&world, tool, program).await;
    if tool.remembers {
        count += 1;
        wait_starts(&world, documented, count, "a rotation while it did not run").await;
    }
    rotate(&world, "pump-7", "ALL").await;
    count += 1;
    wait_starts(&world, documented, count, "a rotation after it ran again").await;
    for other in others {
        assert_eq!(starts(&world, other).await, 1, "{other} is none of its business");
    }
    println!("{}: {documented} was started anew {} times, others never", tool.variable, count - first);
}

/// `make reloaders`. They are not built here: each variable that is set names one.
#[tokio::test]
#[ignore = "wants programs of others"]
async fn reloaders_start_workloads_anew_as_the_page_says() {
    let given = TOOLS.iter().filter_map(|tool| Some((tool, env::var_os(tool.variable)?)));
    let given: Vec<_> = given.filter(|(_, program)| !program.is_empty()).collect();
    assert!(!given.is_empty(), "set OPENTUNNEL_RELOADER or OPENTUNNEL_WAVE to the path of a program");
    for (tool, program) in given {
        tried(tool, &program).await;
    }
}
