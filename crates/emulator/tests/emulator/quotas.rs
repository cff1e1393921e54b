use std::time::{Duration, Instant};

use secure_tunneling_emulator::{Config, Operation, Quotas};
use tokio::task::JoinSet;

use crate::client::{emulator, open_id, refusal, sdk, start};

/// One call, and then none for longer than a test lasts.
const ONCE: f64 = 0.0001;

#[tokio::test]
async fn aws_s_defaults_are_1_and_10_calls_a_second() {
    let quotas = Quotas::aws();
    for operation in Operation::ALL {
        let rate = match operation {
            Operation::OpenTunnel | Operation::CloseTunnel => 1.0,
            _ => 10.0,
        };
        assert_eq!(quotas.rates.get(&operation), Some(&rate), "{operation:?}");
    }
    assert_eq!(quotas.max_open_tunnels, None);
    assert_eq!(Config::default().quotas, quotas);
}

#[tokio::test]
async fn over_the_rate_opening_answers_limit_exceeded_and_the_others_throttling() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    emulator.set_quotas(&Quotas::none().rate(Operation::OpenTunnel, ONCE).rate(Operation::CloseTunnel, ONCE));
    let id = open_id(&client).await;
    let (error, message) = refusal(client.open_tunnel().send().await);
    assert_eq!((error.as_str(), message.as_str()), ("LimitExceededException", "Rate exceeded"));
    client.close_tunnel().tunnel_id(&id).send().await.expect("CloseTunnel");
    let (error, message) = refusal(client.close_tunnel().tunnel_id(&id).send().await);
    assert_eq!((error.as_str(), message.as_str()), ("ThrottlingException", "Rate exceeded"));
    for _ in 0..20 {
        client.list_tunnels().send().await.expect("what is not named is unlimited");
    }
    assert_eq!(emulator.tunnels().len(), 1);
}

#[tokio::test]
async fn calls_beyond_the_rate_are_throttled_by_real_time() {
    let emulator = emulator().await;
    emulator.set_quotas(&Quotas::aws());
    let began = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..60 {
        let call = sdk(&emulator).list_tunnels();
        calls.spawn(async move { call.send().await });
    }
    let results = calls.join_all().await;
    let most = 10.0 + 10.0 * began.elapsed().as_secs_f64();
    let (ok, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert!(ok.len() >= 10 && ok.len() as f64 <= most, "{} of at most {most}", ok.len());
    for result in refused {
        assert_eq!(refusal(result).0, "ThrottlingException");
    }
    emulator.advance_clock(Duration::from_secs(60));
    emulator.set_quotas(&Quotas::none().rate(Operation::ListTunnels, ONCE));
    let client = sdk(&emulator);
    client.list_tunnels().send().await.expect("a fresh bucket is full");
    emulator.advance_clock(Duration::from_secs(360_000));
    assert_eq!(refusal(client.list_tunnels().send().await).0, "ThrottlingException");
}

#[tokio::test]
async fn no_more_than_the_maximum_are_open_at_once() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    emulator.set_quotas(&Quotas::none().max_open_tunnels(2));
    let (first, second) = (open_id(&client).await, open_id(&client).await);
    let (error, message) = refusal(client.open_tunnel().send().await);
    assert_eq!(error, "LimitExceededException");
    assert_eq!(message, "Tunnel limit exceeded: the account may have 2 open tunnels");
    client.close_tunnel().tunnel_id(&first).send().await.expect("CloseTunnel");
    open_id(&client).await;
    assert_eq!(refusal(client.open_tunnel().send().await).0, "LimitExceededException");
    client.close_tunnel().tunnel_id(&second).delete(true).send().await.expect("CloseTunnel");
    open_id(&client).await;
    emulator.advance_clock(Duration::from_secs(720 * 60));
    open_id(&client).await;
    emulator.set_quotas(&Quotas::none().max_open_tunnels(0));
    assert_eq!(refusal(client.open_tunnel().send().await).0, "LimitExceededException");
}

#[tokio::test]
async fn a_refused_request_counts_and_a_reset_restores_the_quotas_of_the_start() {
    let quotas = Quotas::none().rate(Operation::OpenTunnel, ONCE);
    let emulator = start(Config { quotas, ..Config::default() }).await;
    let client = sdk(&emulator);
    assert_eq!(refusal(client.open_tunnel().description("").send().await).0, "ValidationException");
    assert_eq!(refusal(client.open_tunnel().send().await).0, "LimitExceededException");
    emulator.set_quotas(&Quotas::none());
    open_id(&client).await;
    open_id(&client).await;
    emulator.reset();
    open_id(&client).await;
    assert_eq!(refusal(client.open_tunnel().send().await).0, "LimitExceededException");
}
