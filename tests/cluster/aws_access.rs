//! The ways to AWS: where credentials come from on EKS, proxies and endpoints, and what an IAM policy has
//! to allow. As far as this can be tried without AWS.

use crate::support::api_proxy::Request;
use crate::support::aws_proxy::AwsProxy;
use crate::support::connect_proxy::ConnectProxy;
use crate::support::control_plane::repository;
use crate::support::credentials::{Credentials, key_id, session_token};
use crate::support::operator::Settings;
use crate::support::{LIMIT, World};
use secure_tunneling_emulator::{Call, Fault, FaultKind, Operation};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

fn without_keys(settings: Settings) -> Settings {
    settings.without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY")
}

/// A Tunnel gets Ready, each call signed with credentials of `source`; before these end, with newer ones.
async fn signs_with(world: &World, settings: Settings, source: &Credentials) {
    let recorder = AwsProxy::start(&world.aws, None).await;
    let settings = settings.env("AWS_ENDPOINT_URL_IOTSECURETUNNELING", recorder.endpoint());
    // The source fails first: that the SDK asks again may take it a second.
    let settings = settings.flag("--aws-timeout", "5s").flag("--recovery-grace", "11s");
    let _operator = world.operator_with(&settings).await;
    assert!(source.given() >= 1, "they are loaded at start");
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let is_signed_with = |r: &Request, number| {
        let key = format!("Credential={}/", key_id(number));
        r.header("authorization").is_some_and(|a| a.contains(&key))
            && r.header("x-amz-security-token") == Some(session_token(number).as_str())
    };
    let used = || (0..source.given()).filter(|n| recorder.count(|r| is_signed_with(r, *n)) > 0).count();
    let deadline = Instant::now() + LIMIT;
    while used() < 2 {
        assert!(Instant::now() < deadline, "the poll is never signed with newer credentials");
        sleep(Duration::from_millis(100)).await;
    }
    let foreign = recorder.count(|r| !(0..source.given()).any(|number| is_signed_with(r, number)));
    assert_eq!(foreign, 0, "calls that are signed with nothing that the source has given");
}

#[tokio::test]
async fn with_irsa_it_signs_with_the_role_that_sts_gives_for_the_service_accounts_token() {
    let world = World::new().await;
    let sts = Credentials::start().await;
    let token = world.file("token");
    fs::write(&token, "the-service-accounts-token").expect("a file can be written");
    // What EKS's webhook puts into the Pod.
    let settings = without_keys(world.settings())
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/opentunnel")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", token)
        .env("AWS_ENDPOINT_URL_STS", &sts.url);
    signs_with(&world, settings, &sts).await;
    let form = sts.shown();
    assert!(form.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fopentunnel"), "{form}");
    assert!(form.contains("WebIdentityToken=the-service-accounts-token"), "{form}");
}

#[tokio::test]
async fn with_pod_identity_it_signs_with_what_the_agent_gives() {
    let world = World::new().await;
    let agent = Credentials::start().await;
    let token = world.file("token");
    fs::write(&token, "the-service-accounts-token").expect("a file can be written");
    // What EKS's webhook puts into the Pod; its agent is at 169.254.170.23.
    let settings = without_keys(world.settings())
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", agent.url))
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token);
    signs_with(&world, settings, &agent).await;
    assert_eq!(agent.shown(), "the-service-accounts-token");
}

/// Through the proxy, a Tunnel gets Ready at the endpoint `host`.
async fn through_the_proxy(variables: &[(&str, &str)], host: &str) {
    let world = World::new().await;
    let proxy = ConnectProxy::start(world.aws.addr()).await;
    let authority = world.file("pem");
    fs::write(&authority, &proxy.authority).expect("a file can be written");
    let settings = world.settings().without_env("AWS_ENDPOINT_URL");
    let settings = settings.env("HTTPS_PROXY", &proxy.url).env("NO_PROXY", "127.0.0.1").env("SSL_CERT_FILE", authority);
    let settings = variables.iter().fold(settings, |settings, (name, value)| settings.env(name, *value));
    let _operator = world.operator_with(&settings.flag("--aws-timeout", "5s").flag("--recovery-grace", "11s")).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    assert_eq!(proxy.asked(), [format!("{host}:443")], "AWS goes through the proxy, the API server does not");
}

#[tokio::test]
async fn through_https_proxy_it_reaches_the_endpoint_of_its_region() {
    through_the_proxy(&[], "api.tunneling.iot.us-east-1.amazonaws.com").await;
    through_the_proxy(&[("AWS_REGION", "eu-central-1")], "api.tunneling.iot.eu-central-1.amazonaws.com").await;
}

#[tokio::test]
async fn fips_and_vpc_endpoints_are_reached_where_the_environment_names_them() {
    let fips = "api.tunneling.iot-fips.us-east-1.amazonaws.com";
    through_the_proxy(&[("AWS_USE_FIPS_ENDPOINT", "true")], fips).await;
    let vpc = "vpce-0a1b2c3d-4e5f.api.tunneling.iot.us-east-1.vpce.amazonaws.com";
    let url = format!("https://{vpc}");
    through_the_proxy(&[("AWS_ENDPOINT_URL_IOTSECURETUNNELING", &url)], vpc).await;
}

#[tokio::test]
async fn a_server_that_no_known_authority_vouches_for_gets_nothing() {
    let world = World::new().await;
    let proxy = ConnectProxy::start(world.aws.addr()).await;
    let settings = world.settings().without_env("AWS_ENDPOINT_URL").env("HTTPS_PROXY", &proxy.url);
    let _operator = world.operator_with(&settings.env("NO_PROXY", "127.0.0.1")).await;
    world.apply(PLAIN).await;
    world.wait_condition("plain", ("Ready", "False", "AwsUnavailable")).await;
    assert_eq!(proxy.asked(), ["api.tunneling.iot.us-east-1.amazonaws.com:443"]);
    assert_eq!(world.aws.calls().len(), 0);
}

#[tokio::test]
async fn what_no_proxy_names_is_reached_without_one_and_nothing_else() {
    let world = World::new().await;
    let proxy = ConnectProxy::start(world.aws.addr()).await;
    // The API server, and the emulator, which speaks plain HTTP.
    let settings = world.settings().env("HTTPS_PROXY", &proxy.url).env("HTTP_PROXY", &proxy.url);
    let settings = settings.env("NO_PROXY", "127.0.0.1");
    let operator = world.operator_with(&settings).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    assert!(proxy.asked().is_empty());
    operator.kill();

    // The API server of a kubeconfig goes through it, as with kubectl, where NO_PROXY does not name it.
    let mut operator = world.spawn(&settings.without_env("NO_PROXY"));
    assert!(!operator.end().await.success(), "behind this proxy there is no API server");
    let asked = proxy.asked();
    assert!(matches!(&asked[..], [one] if one.starts_with("127.0.0.1:")), "{asked:?}");
}

#[tokio::test]
async fn the_iam_policy_allows_what_the_operator_calls_and_no_more() {
    let world = World::new().await;
    // Opens (one answer is lost: it is searched for), rotates, closes, retains.
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::DropAfter).times(1)]);
    let _operator = world.operator().await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    let said = world.kubectl(&["annotate", "tun", "plain", "opentunnel.dev/rotate-at=now"]).await;
    assert!(said.ok, "{}", said.err);
    world.wait_event("plain", "Normal TokensRotated").await;
    let rotates = |c: &&Call| c.operation == "RotateTunnelAccessToken";
    let rotated = world.aws.wait_calls(|calls| calls.iter().filter(rotates).count() >= 2);
    timeout(LIMIT, rotated).await.expect("both are rotated");
    world.wait_ready("plain").await;
    let retained = PLAIN.replace("{name: plain}}", "{name: kept}, spec: {deletionPolicy: Retain}}");
    world.apply(&retained).await;
    world.wait_ready("kept").await;
    for name in ["plain", "kept"] {
        world.delete(name).await;
        world.wait_no_tunnel(name).await;
    }
    let called: BTreeSet<_> = world.aws.calls().into_iter().map(|call| format!("iot:{}", call.operation)).collect();

    let policy = fs::read_to_string(repository().join("deploy/aws/iam-policy.json")).expect("a policy");
    let policy: Value = serde_json::from_str(&policy).expect("JSON");
    let statements = policy["Statement"].as_array().expect("statements");
    let mut allowed = BTreeSet::new();
    for statement in statements {
        assert_eq!(statement["Effect"], "Allow");
        // A request tags the tunnel, not the thing: IAM could never find the condition met for a thing.
        let resources: Vec<&str> =
            statement["Resource"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        if statement["Condition"].to_string().contains("aws:RequestTag") {
            assert!(resources.iter().all(|resource| resource.contains(":tunnel/")), "{resources:?}");
        }
        match &statement["Action"] {
            Value::String(action) => allowed.extend([action.clone()]),
            actions => {
                allowed.extend(actions.as_array().expect("actions").iter().map(|a| a.as_str().expect("text").into()))
            }
        }
    }
    assert_eq!(allowed, called);
}
