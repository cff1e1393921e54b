//! What Prometheus scrapes: the numbers are those of the call log and the API server, and the format is
//! the one that it expects.

use crate::support::api_proxy::{Point, failure};
use crate::support::namespace::status;
use crate::support::operator::{Operator, http_get};
use crate::support::{LIMIT, World, log};
use axum::http::StatusCode;
use kube::api::DeleteParams;
use secure_tunneling_emulator::{Fault, FaultKind, Operation, Quotas};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

/// A scrape: the value of each series.
struct Scrape {
    text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(operator: &mut Operator) -> Self {
        let answer = http_get(operator.address().await, "/metrics").await.expect("it answers");
        let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let media = "content-type: text/plain; version=0.0.4; charset=utf-8";
        assert!(head.to_lowercase().lines().any(|line| line == media), "{head}");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            (series.to_owned(), value.parse().expect("a number"))
        };
        Self { series: samples.map(sample).collect(), text: text.to_owned() }
    }

    /// A series, as `opentunnel_tunnels{reason="Open"}`; must be there.
    fn get(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("there is no {series} in\n{}", self.text))
    }

    /// All series of a metric that are not 0, without the metric's name.
    fn nonzero(&self, metric: &str) -> BTreeMap<String, f64> {
        let of = self.series.iter().filter_map(|(series, value)| Some((series.strip_prefix(metric)?, *value)));
        of.filter(|(labels, value)| labels.starts_with('{') && *value != 0.0).map(|(l, v)| (l.to_owned(), v)).collect()
    }
}

/// Returns the scrape once it is as `is` wants it.
async fn wait_scrape(operator: &mut Operator, what: &str, is: impl Fn(&Scrape) -> bool) -> Scrape {
    let deadline = Instant::now() + LIMIT;
    loop {
        let scrape = Scrape::of(operator).await;
        if is(&scrape) {
            return scrape;
        }
        assert!(Instant::now() < deadline, "no {what} after {LIMIT:?}:\n{}", scrape.text);
        sleep(Duration::from_millis(50)).await;
    }
}

fn plain(name: &str) -> String {
    format!("{{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {{name: {name}}}}}")
}

/// The call log as the metrics have it.
fn called(world: &World) -> BTreeMap<String, f64> {
    let mut called = BTreeMap::new();
    for call in world.aws.calls() {
        let outcome = match call.outcome.as_deref() {
            Some("ok") => "ok",
            Some("LimitExceededException") => "LimitExceeded",
            Some("ThrottlingException") => "Throttled",
            Some("AccessDeniedException") => "AccessDenied",
            Some("InternalFailure" | "DropAfter") => "Doubt",
            None => "not yet",
            other => panic!("{other:?} is not expected here"),
        };
        let labels = format!("{{operation=\"{}\",outcome=\"{outcome}\"}}", call.operation);
        *called.entry(labels).or_default() += 1.0;
    }
    called
}

/// What `promtool check metrics` says; empty: nothing.
async fn promtool(text: &str) -> String {
    let Some(program) = std::env::var_os("OPENTUNNEL_PROMTOOL") else {
        panic!("OPENTUNNEL_PROMTOOL is not set: `make test` sets it; for `cargo test`, `make promtool` prints the line")
    };
    let mut command = Command::new(&program);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.kill_on_drop(true).spawn().unwrap_or_else(|e| {
        panic!("OPENTUNNEL_PROMTOOL ({}) cannot be run ({e}): `make promtool` builds it", program.display())
    });
    let mut pipe = promtool.stdin.take().expect("a pipe");
    pipe.write_all(text.as_bytes()).await.expect("it reads");
    drop(pipe);
    let output = promtool.wait_with_output().await.expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    match (output.status.success(), said.is_empty()) {
        (true, true) => String::new(),
        (_, _) => format!("{}: {}", output.status, String::from_utf8_lossy(&said)),
    }
}

/// Opens, is refused by a limit, loses an answer and adopts, rotates, is denied, closes in a second try.
#[tokio::test]
async fn the_metrics_say_what_the_call_log_and_the_tunnels_say() {
    let world = World::new().await;
    world.aws.set_quotas(&Quotas::none().max_open_tunnels(2));
    // No round but the first: what is called is settled when all are at rest.
    let mut operator = world.operator_with(&world.settings().flag("--poll-interval", "1h")).await;
    let scrape = Scrape::of(&mut operator).await;
    assert_eq!(scrape.nonzero("opentunnel_tunnels"), BTreeMap::new());
    assert_eq!(scrape.nonzero("opentunnel_gate_shut"), BTreeMap::new());

    world.apply(&plain("first")).await;
    world.wait_ready("first").await;
    world.secrets().delete("first-tokens", &DeleteParams::default()).await.expect("it is there");
    world.wait_for("first", "rotated", |t| status(t).token_generation == Some(2)).await;
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::DropAfter).times(1)]);
    world.apply(&plain("lost")).await;
    world.wait_ready("lost").await;
    let foreign = "{apiVersion: v1, kind: Secret, metadata: {name: barred-tokens}}";
    world.apply(&format!("{foreign}\n---\n{}", plain("barred"))).await;
    world.wait_condition("barred", ("Ready", "False", "SecretConflict")).await;

    world.apply(&plain("second")).await;
    world.wait_condition("second", ("Ready", "False", "LimitExceeded")).await;
    let stand = |open: f64, third: &str| {
        let reason = |reason: &str, count| (format!("{{reason=\"{reason}\"}}"), count);
        BTreeMap::from([reason("Open", open), reason("SecretConflict", 1.0), reason(third, 1.0)])
    };
    let limited = stand(2.0, "LimitExceeded");
    let in_queue = "opentunnel_queue_depth{operation=\"OpenTunnel\"}"; // but for the moments of a probe
    let is = |s: &Scrape| s.get(in_queue) == 1.0 && s.nonzero("opentunnel_tunnels") == limited;
    let scrape = wait_scrape(&mut operator, "Tunnel that waits for room", is).await;
    let shut = BTreeMap::from([("{operation=\"OpenTunnel\",reason=\"LimitExceeded\"}".to_owned(), 1.0)]);
    assert_eq!(scrape.nonzero("opentunnel_gate_shut"), shut);

    world.aws.set_faults([
        Fault::new(Operation::CloseTunnel, FaultKind::InternalError).times(1),
        Fault::new(Operation::OpenTunnel, FaultKind::AccessDenied),
    ]);
    world.delete("first").await;
    world.wait_no_tunnel("first").await;
    world.wait_condition("second", ("Ready", "False", "AccessDenied")).await;
    let denied = stand(1.0, "AccessDenied");
    wait_scrape(&mut operator, "AccessDenied", |s| s.nonzero("opentunnel_tunnels") == denied).await;
    world.aws.set_faults([]);
    world.wait_ready("second").await;
    let settled = |s: &Scrape| {
        s.nonzero("opentunnel_aws_calls_total") == called(&world) && s.get("opentunnel_tunnels{reason=\"Open\"}") == 2.0
    };
    let scrape = wait_scrape(&mut operator, &format!("agreement with {:#?}", called(&world)), settled).await;
    assert_eq!(scrape.nonzero("opentunnel_gate_shut"), BTreeMap::new(), "it is open again");
    assert_eq!(scrape.nonzero("opentunnel_queue_depth"), BTreeMap::new());
    let totals = [
        ("opentunnel_tunnels_opened_total", 2.0), // the third's answer was lost
        ("opentunnel_tunnels_adopted_total", 1.0),
        ("opentunnel_token_rotations_total", 2.0),
        ("opentunnel_tunnels_closed_total", 1.0),
    ];
    for (name, total) in totals {
        assert_eq!(scrape.get(name), total, "{name}");
    }
    for operation in ["OpenTunnel", "CloseTunnel", "RotateTunnelAccessToken", "DescribeTunnel", "ListTunnels"] {
        let calls: f64 = called(&world).iter().filter(|(l, _)| l.contains(operation)).map(|(_, n)| n).sum();
        assert!(calls > 0.0, "{operation} was called");
        let series = |metric: &str| scrape.get(&format!("opentunnel_{metric}_count{{operation=\"{operation}\"}}"));
        assert_eq!(series("aws_call_duration_seconds"), calls, "{operation}");
        if !["DescribeTunnel", "ListTunnels"].contains(&operation) {
            assert_eq!(series("queue_wait_seconds"), calls, "{operation}");
        }
    }
    assert!(scrape.get("opentunnel_queue_wait_seconds_sum{operation=\"OpenTunnel\"}") >= 5.0, "second waited");
    assert!(scrape.get("opentunnel_reconcile_duration_seconds_count") >= 10.0);
    assert_eq!(scrape.nonzero("opentunnel_reconcile_errors_total"), BTreeMap::new());
    assert!(scrape.get("process_resident_memory_bytes") > 1e6 && scrape.get("process_open_fds") > 3.0);
    let now = k8s_openapi::jiff::Timestamp::now().as_second() as f64;
    let started = scrape.get("process_start_time_seconds");
    assert!(started <= now && started > now - 600.0, "{started} and {now}");
    assert!(!log::has_token(&scrape.text), "there is an access token in the metrics");
    assert!(!scrape.text.contains(&world.name), "no namespace is a label");
    assert_eq!(promtool(&scrape.text).await, "");
    println!("{} series after {} calls", scrape.series.len(), world.aws.calls().len());
}

#[tokio::test]
async fn reconciles_that_fail_are_counted_by_what_the_api_server_said() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut operator = world.operator_with(&world.settings().via(&proxy)).await;
    proxy.answer(StatusCode::FORBIDDEN, failure(StatusCode::FORBIDDEN, "no"), |r| r.is_secret_write_in_earnest());
    world.apply(&plain("plain")).await;
    let failed = |reason: &'static str| {
        let series = format!("opentunnel_reconcile_errors_total{{reason=\"{reason}\"}}");
        move |s: &Scrape| s.get(&series) >= 1.0
    };
    wait_scrape(&mut operator, "Api4xx", failed("Api4xx")).await;
    proxy.answer_no_more();
    let unavailable = failure(StatusCode::SERVICE_UNAVAILABLE, "no");
    proxy.answer(StatusCode::SERVICE_UNAVAILABLE, unavailable, |r| r.is_secret_write_in_earnest());
    wait_scrape(&mut operator, "Api5xx", failed("Api5xx")).await;
    proxy.answer_no_more();
    proxy.hold(Point::BeforeForward, |r| r.is_secret_write_in_earnest()).cut();
    wait_scrape(&mut operator, "ApiNoAnswer", failed("ApiNoAnswer")).await;
    world.wait_ready("plain").await;
}

#[tokio::test]
async fn before_the_tunnels_are_listed_it_does_not_say_that_there_are_none() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut list = proxy.hold(Point::AfterCommit, |r| r.method == "GET" && r.path.ends_with("/tunnels"));
    let mut operator = world.spawn(&world.settings().via(&proxy));
    list.reached().await;
    let scrape = Scrape::of(&mut operator).await;
    assert!(!scrape.text.contains("opentunnel_tunnels{"), "{}", scrape.text);
    assert_eq!(scrape.get("opentunnel_tunnels_opened_total"), 0.0);
    list.pass();
    operator.ready().await;
    assert_eq!(Scrape::of(&mut operator).await.get("opentunnel_tunnels{reason=\"Open\"}"), 0.0);
}
