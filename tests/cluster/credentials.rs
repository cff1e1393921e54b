//! Credentials as people have them: files that are replaced, a program that gives them out, none yet, and STS that is
//! away. What they are is told, and no secret with it.

use crate::support::api_proxy::Request;
use crate::support::aws_proxy::AwsProxy;
use crate::support::credentials::{Credentials, Manner, key_id};
use crate::support::namespace::status;
use crate::support::operator::{Operator, Settings, http_get};
use crate::support::{LIMIT, World};
use opentunnel_api::Tunnel;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";

fn without_keys(world: &World) -> Settings {
    world.settings().without_env("AWS_ACCESS_KEY_ID").without_env("AWS_SECRET_ACCESS_KEY")
}

/// A profile with this key.
fn profile(key: &str) -> String {
    format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = s3cret-of-{key}\n")
}

/// A directory as kubelet mounts a Secret: what it shows is replaced as a whole, by one rename.
fn publish(mount: &Path, version: &str, credentials: &str) {
    let data = mount.join(format!("..{version}"));
    fs::create_dir_all(&data).expect("a directory can be made");
    fs::write(data.join("credentials"), credentials).expect("a file can be written");
    let (link, new) = (mount.join("..data"), mount.join("..data_tmp"));
    symlink(format!("..{version}"), &new).expect("a link can be made");
    fs::rename(new, link).expect("a link can be replaced");
    let _ = symlink("..data/credentials", mount.join("credentials"));
}

fn is_signed_with(request: &Request, key: &str) -> bool {
    request.header("authorization").is_some_and(|header| header.contains(&format!("Credential={key}/")))
}

/// Returns once a call is signed with this key: how long it took.
async fn signed_with(recorder: &AwsProxy, key: &str) -> Duration {
    let begun = Instant::now();
    while recorder.count(|request| is_signed_with(request, key)) == 0 {
        assert!(begun.elapsed() < LIMIT, "no call is signed with {key}");
        sleep(Duration::from_millis(100)).await;
    }
    begun.elapsed()
}

/// What `/readyz` says, with its status line.
async fn readyz(operator: &mut Operator) -> String {
    http_get(operator.address().await, "/readyz").await.expect("an answer")
}

fn is_stalled(tunnel: &Tunnel) -> bool {
    status(tunnel).conditions.iter().flatten().any(|c| c.type_ == "Stalled" && c.status == "True")
}

#[tokio::test]
async fn a_credentials_file_that_is_replaced_is_used_within_two_minutes() {
    let world = World::new().await;
    let recorder = AwsProxy::start(&world.aws, None).await;
    let mount = world.file("mount");
    publish(&mount, "first", &profile("AKIAFIRST"));
    let settings = without_keys(&world).env("AWS_SHARED_CREDENTIALS_FILE", mount.join("credentials"));
    let mut operator = world.operator_with(&settings.env("AWS_ENDPOINT_URL", recorder.endpoint())).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    signed_with(&recorder, "AKIAFIRST").await;
    publish(&mount, "second", &profile("AKIASECOND"));
    let took = signed_with(&recorder, "AKIASECOND").await;
    println!("figure: a credentials file that is replaced | used after {:.0} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(120), "{took:?}");

    // A file that cannot be read, for a moment or for ever: those that are there are used.
    publish(&mount, "third", "[default\n");
    let begun = Instant::now();
    while !operator.log().contains("AWS credentials cannot be loaded") {
        assert!(begun.elapsed() < LIMIT, "the broken file is not told");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(readyz(&mut operator).await.ends_with("\r\n\r\nok"));
    world.delete("plain").await;
    world.wait_no_tunnel("plain").await;
    assert_eq!(world.calls_of("CloseTunnel"), 1);
    assert!(!operator.log().contains("s3cret"), "no secret is logged");
}

#[tokio::test]
async fn a_profiles_program_gives_out_credentials() {
    let world = World::new().await;
    let recorder = AwsProxy::start(&world.aws, None).await;
    let (config, answer) = (world.file("config"), world.file("json"));
    fs::write(&answer, r#"{"Version": 1, "AccessKeyId": "AKIAPROGRAM", "SecretAccessKey": "s3cret"}"#).expect("a file");
    let program = format!("[default]\ncredential_process = cat {}\n", answer.display());
    fs::write(&config, program).expect("a file");
    let settings = without_keys(&world).env("AWS_CONFIG_FILE", &config).env("PATH", "/usr/bin:/bin");
    let operator = world.operator_with(&settings.env("AWS_ENDPOINT_URL", recorder.endpoint())).await;
    world.apply(PLAIN).await;
    world.wait_ready("plain").await;
    signed_with(&recorder, "AKIAPROGRAM").await;
    assert!(operator.log().contains("the credential_process of a profile"), "{}", operator.log());
}

/// What a program writes to its standard error may hold anything.
#[tokio::test]
async fn what_a_profiles_program_complains_of_is_for_the_log_alone() {
    let world = World::new().await;
    let config = world.file("config");
    fs::write(&config, "[default]\ncredential_process = echo s3cret >&2; exit 3\n").expect("a file");
    let settings = without_keys(&world).env("AWS_CONFIG_FILE", &config).env("PATH", "/usr/bin:/bin");
    let mut operator = world.operator_with(&settings).await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "AwsUnavailable")).await;
    let (said, shown) = (readyz(&mut operator).await, format!("{:?}", status(&tunnel).conditions));
    for words in [&said, &shown] {
        assert!(words.contains("exited with code") && !words.contains("s3cret"), "{words}");
    }
    assert!(operator.log().contains("s3cret"));
}

#[tokio::test]
async fn without_credentials_it_runs_and_says_so_and_goes_on_when_they_come() {
    let world = World::new().await;
    let file: PathBuf = world.file("credentials");
    let settings = without_keys(&world).env("AWS_SHARED_CREDENTIALS_FILE", &file);
    let mut operator = world.operator_with(&settings).await;
    let said = readyz(&mut operator).await;
    for words in ["HTTP/1.1 200", "ok, but AWS cannot be called", "no AWS credentials", "IRSA", "AWS_ACCESS_KEY_ID"] {
        assert!(said.contains(words), "{words:?} is not told: {said}");
    }
    world.apply(PLAIN).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "AccessDenied")).await;
    assert!(is_stalled(&tunnel), "a person has to see to it");
    fs::write(&file, profile("AKIALATE")).expect("a file can be written");
    let begun = Instant::now();
    world.wait_ready("plain").await;
    println!("figure: credentials that come late | used after {:.0} s", begun.elapsed().as_secs_f64());
    assert!(readyz(&mut operator).await.ends_with("\r\n\r\nok"));
    world.wait_event("plain", "Normal Opened").await;
    assert_eq!(world.events("plain").await, ["Warning AccessDenied", "Normal Opened"]);
    assert_eq!(world.calls_of("OpenTunnel"), 1);
    assert!(operator.log().contains("AWS credentials are loaded"), "{}", operator.log());
}

#[tokio::test]
async fn while_sts_is_away_tunnels_wait_for_aws_and_a_refusal_needs_a_person() {
    let world = World::new().await;
    let sts = Credentials::start().await;
    sts.behaves(Manner::Fails);
    let token = world.file("token");
    fs::write(&token, "the-service-accounts-token").expect("a file can be written");
    let settings = without_keys(&world)
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/opentunnel")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", token)
        .env("AWS_ENDPOINT_URL_STS", &sts.url);
    let mut operator = world.operator_with(&settings).await;
    assert!(readyz(&mut operator).await.contains("AWS credentials cannot be loaded now"));
    world.apply(PLAIN).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "AwsUnavailable")).await;
    assert!(!is_stalled(&tunnel), "it is tried again, and nobody has to do anything");
    sts.behaves(Manner::Refuses);
    let tunnel = world.wait_condition("plain", ("Ready", "False", "AccessDenied")).await;
    assert!(is_stalled(&tunnel));
    sts.behaves(Manner::Gives);
    world.wait_ready("plain").await;
    let log = operator.log();
    for words in [
        "STS, for the ServiceAccount's token (IRSA)",
        r#"account="123456789012""#,
        r#"role="arn:aws:iam::123456789012:role/opentunnel""#,
    ] {
        assert!(log.contains(words), "{words} is not told:\n{log}");
    }
    assert!(!log.contains("session-") && !log.contains(&key_id(0)), "no secret is logged");
    assert_eq!(world.calls_of("OpenTunnel"), 1);
}

#[tokio::test]
async fn an_agent_that_refuses_needs_a_person_and_one_that_fails_does_not() {
    for (manner, reason) in [(Manner::Refuses, "AccessDenied"), (Manner::Fails, "AwsUnavailable")] {
        let world = World::new().await;
        let agent = Credentials::start().await;
        agent.behaves(manner);
        let token = world.file("token");
        fs::write(&token, "the-service-accounts-token").expect("a file can be written");
        let settings = without_keys(&world)
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", agent.url))
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token);
        let operator = world.operator_with(&settings).await;
        world.apply(PLAIN).await;
        world.wait_condition("plain", ("Ready", "False", reason)).await;
        agent.behaves(Manner::Gives);
        world.wait_ready("plain").await;
        assert!(operator.log().contains("the container agent (EKS Pod Identity)"), "{}", operator.log());
    }
}

#[tokio::test]
async fn after_a_restart_without_credentials_a_deletion_waits_no_longer_than_the_tunnel_lives() {
    let world = World::new().await;
    let operator = world.operator().await;
    world.apply(&PLAIN.replacen('{', "{spec: {timeout: {maxLifetimeTimeoutMinutes: 1}}, ", 1)).await;
    let tunnel = world.wait_ready("plain").await;
    operator.kill();
    world.delete("plain").await;
    let mut operator = world.operator_with(&without_keys(&world)).await;
    world.wait_condition("plain", ("Ready", "False", "AccessDenied")).await;
    world.wait_no_tunnel("plain").await;
    world.wait_no_secret("plain-tokens").await;
    let expires_at = status(&tunnel).expires_at.expect("it was open");
    assert!(k8s_openapi::jiff::Timestamp::now() >= expires_at, "AWS has not closed it before");
    assert_eq!(world.calls_of("CloseTunnel"), 0);
    assert!(operator.runs());
}
