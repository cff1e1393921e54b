//! deploy/monitoring, by Prometheus' own promtool: the alerts fire when they should, and alerts and dashboard speak of
//! what is served. And docs/runbook.md has a section for each alert, and for each reason of a condition.

mod queries;

use crate::support::World;
use crate::support::control_plane::repository;
use crate::support::operator::http_get;
use opentunnel_api::Reason;
use opentunnel_proxy::stats::Stats;
use queries::{Query, Served, series};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::process::Command;

const TESTS: &str = "tests/cluster/monitoring/alerts.yaml";

fn text(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// What promtool takes for a file of rules.
fn rules() -> Value {
    yaml("deploy/monitoring/prometheusrule.yaml")["spec"].take()
}

fn alerts() -> Vec<Value> {
    let rules = rules();
    let groups = list(&rules["groups"]).iter();
    groups.flat_map(|group| list(&group["rules"]).to_vec()).collect()
}

fn names(alerts: &[Value]) -> BTreeSet<String> {
    alerts.iter().map(|alert| string(&alert["alert"]).to_owned()).collect()
}

/// A directory for promtool's files. Dropping it removes it.
struct Directory(PathBuf);

impl Directory {
    /// `files` are JSON, which is YAML, too.
    fn with(name: &str, files: &[(&str, &Value)]) -> Self {
        let path = std::env::temp_dir().join(format!("opentunnel-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        for (file, content) in files {
            fs::write(path.join(file), content.to_string()).expect("a file");
        }
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `promtool test rules`; panics with what it says where it finds fault.
async fn promtool_test(directory: &Directory) {
    let Some(program) = std::env::var_os("OPENTUNNEL_PROMTOOL") else {
        panic!("OPENTUNNEL_PROMTOOL is not set: `make test` sets it; for `cargo test`, `make promtool` prints the line")
    };
    let tests = directory.0.join("tests.yaml");
    let output = Command::new(&program).args(["test", "rules"]).arg(tests).kill_on_drop(true).output().await;
    let output = output.unwrap_or_else(|e| {
        panic!("OPENTUNNEL_PROMTOOL ({}) cannot be run ({e}): `make promtool` builds it", program.display())
    });
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
}

#[tokio::test]
async fn each_alert_fires_where_it_should_and_only_there() {
    let tests = yaml(TESTS);
    let directory = Directory::with("alerts", &[("rules.yaml", &rules()), ("tests.yaml", &tests)]);
    promtool_test(&directory).await;
    let (mut fires, mut does_not) = (BTreeSet::new(), BTreeSet::new());
    for test in list(&tests["tests"]) {
        let (alert, _) = string(&test["name"]).split_once(": ").expect("ALERT: what is the case");
        for case in list(&test["promql_expr_test"]) {
            assert_eq!(string(&case["expr"]), format!(r#"ALERTS{{alertname="{alert}", alertstate="firing"}}"#));
            let is = if list(&case["exp_samples"]).is_empty() { &mut does_not } else { &mut fires };
            is.insert(alert.to_owned());
        }
    }
    assert_eq!(fires, names(&alerts()), "each has a test in which it fires");
    assert_eq!(does_not, names(&alerts()), "each has a test in which it does not fire");
}

/// The headings of a section of docs/runbook.md.
fn runbook(section: &str) -> BTreeSet<String> {
    let docs = text("docs/runbook.md");
    let (_, section) = docs.split_once(&format!("\n## {section}\n")).expect("there is such a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    section.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect()
}

#[test]
fn the_runbook_has_each_alert_and_each_reason_and_each_alert_points_there() {
    let alerts = alerts();
    assert_eq!(runbook("Alerts"), names(&alerts));
    assert_eq!(runbook("Reasons"), Reason::ALL.iter().map(ToString::to_string).collect());
    for alert in &alerts {
        let (name, annotations) = (string(&alert["alert"]), &alert["annotations"]);
        let anchor = format!("/docs/runbook.md#{}", name.to_lowercase());
        assert!(string(&annotations["runbook_url"]).ends_with(&anchor), "{name}: {annotations}");
        assert!(annotations["summary"].is_string() && annotations["description"].is_string(), "{name}");
        assert!(["critical", "warning"].contains(&string(&alert["labels"]["severity"])), "{name}");
    }
}

/// What the operator serves, and the proxy: the program's server, with the numbers of one service.
async fn served(world: &World) -> Served {
    let mut operator = world.operator().await;
    operator.ready().await;
    let answer = http_get(operator.address().await, "/metrics").await.expect("the operator answers");
    let stats = Arc::new(Stats::new());
    stats.service("SSH");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(opentunnel_proxy::http::serve(listener, stats));
    let other = http_get(address, "/metrics").await.expect("the proxy answers");
    server.abort();
    let body = |answer: &str| answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned();
    Served::of(&[body(&answer), body(&other)])
}

#[tokio::test]
async fn alerts_and_dashboard_speak_of_what_is_served() {
    let world = World::new().await;
    let served = served(&world).await;
    // That the alerts fire is shown with these.
    for test in list(&yaml(TESTS)["tests"]) {
        for input in list(&test["input_series"]) {
            let (name, labels) = series(string(&input["series"]));
            served.has(name, &labels).unwrap_or_else(|e| panic!("{}: {e}", test["name"]));
        }
    }
    for alert in alerts() {
        let (name, expression) = (string(&alert["alert"]), string(&alert["expr"]));
        Query::of(expression, "").check(&served).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let dashboard: Value = serde_json::from_str(&text("deploy/monitoring/dashboard.json")).expect("JSON");
    let panels = list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row");
    let mut cases = Vec::new();
    for panel in panels {
        let title = string(&panel["title"]);
        let targets = list(&panel["targets"]);
        assert!(!targets.is_empty(), "{title} shows nothing");
        for target in targets {
            let query = Query::of(string(&target["expr"]), target["legendFormat"].as_str().unwrap_or_default());
            query.check(&served).unwrap_or_else(|e| panic!("{title}: {e}"));
            // One sample without labels, whatever the query finds; none, where it finds nothing.
            let expression = format!("group({})", query.expression());
            cases.push(json!({
                "expr": expression, "eval_time": "90m", "exp_samples": [{"labels": "{}", "value": 1}],
            }));
        }
    }
    assert!(cases.len() > 20, "{} queries", cases.len());
    println!("{} queries of the dashboard", cases.len());
    let input: Vec<_> = served.all().map(|series| json!({"series": series, "values": "1+1x90"})).collect();
    let test = json!({"name": "dashboard", "interval": "1m", "input_series": input, "promql_expr_test": cases});
    let directory = Directory::with("dashboard", &[("tests.yaml", &json!({"rule_files": [], "tests": [test]}))]);
    promtool_test(&directory).await;
}
