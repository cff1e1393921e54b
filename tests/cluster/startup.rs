//! Start and end of the operator: what is missing is told with what to do about it.

use crate::support::World;
use crate::support::api_proxy::{ApiProxy, Point, Request, failure};
use crate::support::control_plane::repository;
use crate::support::namespace::Namespace;
use crate::support::operator::{Settings, http_status};
use axum::http::StatusCode;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// The end takes no longer than this where nothing is in flight.
const PROMPT: Duration = Duration::from_secs(5);

/// Starts an operator that must end by itself with an error. Returns its words.
async fn refused(world: &World, settings: &Settings) -> String {
    let mut operator = world.spawn(settings);
    let status = operator.end().await;
    let log = operator.log();
    assert!(status.code().is_some_and(|code| code != 0), "exit status {status}: {log}");
    log
}

fn assert_told(log: &str, parts: &[&str]) {
    for part in parts {
        assert!(log.contains(part), "{part:?} is not told:\n{log}");
    }
}

fn is_crd(request: &Request) -> bool {
    request.path.ends_with("/customresourcedefinitions/tunnels.opentunnel.dev")
}

fn lists_tunnels(request: &Request) -> bool {
    request.method == "GET" && request.path.ends_with("/tunnels")
}

fn via(world: &World, proxy: &ApiProxy) -> Settings {
    world.settings().via(proxy)
}

#[tokio::test]
async fn without_a_cluster_it_says_how_to_name_one() {
    let world = World::new().await;
    let log = refused(&world, &world.settings().without_env("KUBECONFIG").env("HOME", "/nonexistent")).await;
    assert_told(&log, &["no Kubernetes cluster is configured", "in a Pod", "KUBECONFIG"]);
}

#[tokio::test]
async fn a_cluster_that_cannot_be_reached_is_named() {
    let world = World::new().await;
    let kubeconfig = repository().join("tests/manifests/unreachable.kubeconfig");
    let log = refused(&world, &world.settings().env("KUBECONFIG", kubeconfig)).await;
    assert_told(&log, &["http://127.0.0.1:1", "cannot be reached", "is the cluster up", "KUBECONFIG"]);
}

#[tokio::test]
async fn an_older_crd_is_told_with_what_it_lacks() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut old = json!(opentunnel_api::definition());
    let schema = &mut old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let status = schema["status"]["properties"].as_object_mut().expect("a schema");
    assert!(status.remove("tokenGeneration").is_some());
    proxy.answer(StatusCode::OK, old, is_crd);
    let log = refused(&world, &via(&world, &proxy)).await;
    assert_told(&log, &["too old", "status.tokenGeneration", "kubectl apply -f crds/tunnels.yaml"]);
}

#[tokio::test]
async fn rights_that_lack_are_told_with_the_other_way() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let denied = failure(StatusCode::FORBIDDEN, "namespaces \"kube-system\" is forbidden");
    proxy.answer(StatusCode::FORBIDDEN, denied, |r| r.path == "/api/v1/namespaces/kube-system");
    let settings = via(&world, &proxy);
    let log = refused(&world, &settings).await;
    assert_told(&log, &["kube-system", "forbidden", "--cluster-id"]);
    let _operator = world.operator_with(&settings.flag("--cluster-id", "mine")).await;
}

#[tokio::test]
async fn an_api_server_that_is_busy_at_start_is_asked_again() {
    let of_the_cluster = |r: &Request| r.path == "/api/v1/namespaces/kube-system";
    for (code, first) in [
        (StatusCode::TOO_MANY_REQUESTS, is_crd as fn(&Request) -> bool),
        (StatusCode::SERVICE_UNAVAILABLE, is_crd),
        (StatusCode::TOO_MANY_REQUESTS, of_the_cluster),
        (StatusCode::INTERNAL_SERVER_ERROR, of_the_cluster),
    ] {
        let world = World::new().await;
        let proxy = world.api_proxy().await;
        proxy.answer(code, failure(code, "come again"), first);
        let mut operator = world.spawn(&via(&world, &proxy).without_flag("--cluster-id"));
        proxy.more_than(1, first).await;
        assert!(operator.runs(), "{}", operator.log());
        proxy.answer_no_more();
        operator.ready().await;
        assert!(!operator.log().contains("grant"), "it has all its rights: {}", operator.log());
    }
}

#[tokio::test]
async fn without_the_right_to_list_secrets_it_says_how_to_do_without() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let denied = failure(StatusCode::FORBIDDEN, "secrets is forbidden: cannot list");
    proxy.answer(StatusCode::FORBIDDEN, denied, |r| r.method == "GET" && r.path.ends_with("/secrets"));
    let log = refused(&world, &via(&world, &proxy)).await;
    assert_told(&log, &["secrets is forbidden", "grant list and watch", "--watch-secrets=false"]);
    let _operator = world.operator_with(&via(&world, &proxy).flag("--watch-secrets", "false")).await;
}

#[tokio::test]
async fn without_a_region_it_says_how_to_set_one() {
    let world = World::new().await;
    let log = refused(&world, &world.settings().without_env("AWS_REGION")).await;
    assert_told(&log, &["no AWS region is configured", "AWS_REGION"]);
}

#[tokio::test]
async fn a_bad_flag_is_named_with_what_it_takes() {
    let world = World::new().await;
    let bad = [
        ("--open-rate", "fast", "calls per second, a number"),
        ("--aws-timeout", "20", "a time with a unit"),
        ("--recovery-grace", "5s", "must be longer than 5s + --aws-timeout"),
        ("--watch-namespace", "A", "the name of a namespace"),
        ("--http-addr", "8080", "--http-addr"),
        ("--log-filter", "=,=", "--log-filter"),
        ("--no-such-flag", "1", "--help"),
    ];
    for (flag, value, words) in bad {
        let log = refused(&world, &world.settings().flag(flag, value)).await;
        assert_told(&log, &[flag, words]);
    }
}

#[tokio::test]
async fn a_flag_may_stand_in_the_environment() {
    let world = World::new().await;
    let settings = world.settings().without_flag("--aws-timeout").env("OPENTUNNEL_AWS_TIMEOUT", "7s");
    let log = refused(&world, &settings).await;
    assert_told(&log, &["must be longer than 5s + --aws-timeout (7s)"]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let world = World::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let log = refused(&world, &world.settings().flag("--http-addr", &address)).await;
    assert_told(&log, &["--http-addr", &address, "choose another"]);
}

#[tokio::test]
async fn it_is_healthy_at_once_and_ready_when_its_watch_is_synced() {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut list = proxy.hold(Point::AfterCommit, lists_tunnels);
    let mut operator = world.spawn(&via(&world, &proxy));
    let address = operator.address().await;
    list.reached().await;
    assert_eq!(http_status(address, "/healthz").await, Some(200));
    assert_eq!(http_status(address, "/readyz").await, Some(503));
    list.pass();
    operator.ready().await;
    assert_eq!(http_status(address, "/readyz").await, Some(200));
    assert_eq!(http_status(address, "/healthz").await, Some(200));
}

#[tokio::test]
async fn with_several_namespaces_it_is_ready_when_all_are_synced_and_serves_each() {
    let world = World::new().await;
    let other = Namespace::new().await;
    let both = format!("{},{}", world.name, other.name);
    let proxy = world.api_proxy().await;
    let path = format!("/namespaces/{}/tunnels", other.name);
    let mut list = proxy.hold(Point::AfterCommit, move |r| lists_tunnels(r) && r.path.ends_with(&path));
    let mut operator = world.spawn(&via(&world, &proxy).flag("--watch-namespace", &both));
    let address = operator.address().await;
    list.reached().await;
    assert_eq!(http_status(address, "/readyz").await, Some(503));
    list.pass();
    operator.ready().await;
    let plain = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
    for namespace in [&*world, &other] {
        namespace.apply(plain).await;
        namespace.wait_ready("plain").await;
    }
}

#[tokio::test]
async fn a_namespace_that_is_not_watched_is_left_alone() {
    let world = World::new().await;
    let other = Namespace::new().await;
    let _operator = world.operator().await;
    let plain = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
    other.apply(plain).await;
    world.apply(plain).await;
    world.wait_ready("plain").await;
    assert_eq!(world.aws.tunnels().len(), 1);
    assert_eq!(other.writes().await, []);
}

#[tokio::test]
async fn sigterm_ends_it_with_success_whatever_it_waits_for() {
    let world = World::new().await;
    let operator = world.operator().await;
    let begun = Instant::now();
    assert_eq!(operator.terminate().await.code(), Some(0));
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());

    // While it starts, and the API server does not answer.
    for holds in [is_crd, lists_tunnels] {
        let proxy = world.api_proxy().await;
        let mut held = proxy.hold(Point::BeforeForward, holds);
        let operator = world.spawn(&via(&world, &proxy));
        held.reached().await;
        let begun = Instant::now();
        assert_eq!(operator.terminate().await.code(), Some(0));
        assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    }
}

/// Holds the first request that matches for ever; a Tunnel must become Ready all the same.
async fn gets_over_the_loss_of(matches: fn(&Request) -> bool) {
    let world = World::new().await;
    let proxy = world.api_proxy().await;
    let mut held = proxy.hold(Point::BeforeForward, matches);
    let _operator = world.spawn(&via(&world, &proxy));
    held.reached().await;
    world.apply("{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}").await;
    world.wait_ready("plain").await;
}

#[tokio::test]
async fn a_list_that_is_never_answered_is_made_anew() {
    gets_over_the_loss_of(|r| lists_tunnels(r) && !r.query.contains("watch=")).await;
}

#[tokio::test]
async fn a_watch_that_is_never_answered_is_begun_anew() {
    gets_over_the_loss_of(|r| lists_tunnels(r) && r.query.contains("watch=")).await;
}
