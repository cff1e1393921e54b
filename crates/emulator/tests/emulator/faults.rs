use std::time::{Duration, Instant};

use aws_sdk_iotsecuretunneling::config::timeout::TimeoutConfig;
use aws_sdk_iotsecuretunneling::error::SdkError;
use aws_sdk_iotsecuretunneling::types::ClientMode;
use secure_tunneling_emulator::{Call, Emulator, Fault, FaultKind, Operation, Quotas};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{PATIENCE, describe, emulator, open_id, refusal, request, sdk, send, until_closed};

/// How long is waited for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(200);

const OPEN: &str = "X-Amz-Target: IoTSecuredTunneling.OpenTunnel\r\n";

fn open_fault(kind: FaultKind) -> Fault {
    Fault::new(Operation::OpenTunnel, kind)
}

/// Calls OpenTunnel and leaves the answer unread.
async fn call_open(emulator: &Emulator) -> TcpStream {
    request(emulator.addr(), "POST", "/", OPEN, "{}").await
}

fn outcomes(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.outcome.as_deref().unwrap_or("pending")).collect()
}

async fn decided(emulator: &Emulator) {
    let all = emulator.wait_calls(|calls| !calls.is_empty() && calls.iter().all(|c| c.outcome.is_some()));
    timeout(PATIENCE, all).await.expect("the call to be decided");
}

#[tokio::test]
async fn error_faults_answer_in_aws_s_words_and_do_nothing() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let cases = [
        (FaultKind::LimitExceeded, "LimitExceededException", "Rate exceeded", 400),
        (FaultKind::Throttling, "ThrottlingException", "Rate exceeded", 400),
        (FaultKind::AccessDenied, "AccessDeniedException", "User is not authorized to perform: iot:OpenTunnel", 400),
        (FaultKind::InternalError, "InternalFailure", "An internal failure occurred", 500),
    ];
    for (kind, name, message, status) in cases {
        emulator.set_faults([open_fault(kind)]);
        let result = client.open_tunnel().send().await;
        let answered = result.as_ref().err().and_then(|error| error.raw_response());
        assert_eq!(answered.expect("an answer").status().as_u16(), status);
        assert_eq!(refusal(result), (name.to_owned(), message.to_owned()));
    }
    assert!(emulator.tunnels().is_empty());
    let expected = ["LimitExceededException", "ThrottlingException", "AccessDeniedException", "InternalFailure"];
    assert_eq!(outcomes(&emulator.calls()), expected);
}

#[tokio::test]
async fn drop_before_closes_the_connection_without_a_byte_and_does_nothing() {
    let emulator = emulator().await;
    emulator.set_faults([open_fault(FaultKind::DropBefore)]);
    assert!(send(emulator.addr(), "POST", "/", OPEN, "{}").await.is_empty());
    let result = sdk(&emulator).open_tunnel().send().await;
    assert!(matches!(result, Err(SdkError::DispatchFailure(_))), "{result:?}");
    assert!(emulator.tunnels().is_empty());
    let calls = emulator.calls();
    assert_eq!(outcomes(&calls), ["DropBefore", "DropBefore"]);
    assert!(calls.iter().all(|call| call.tunnel_id.is_none()));
}

#[tokio::test]
async fn drop_after_closes_the_connection_without_a_byte_when_all_is_done() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    emulator.set_faults([open_fault(FaultKind::DropAfter)]);
    assert!(send(emulator.addr(), "POST", "/", OPEN, "{}").await.is_empty());
    let result = client.open_tunnel().send().await;
    assert!(matches!(result, Err(SdkError::DispatchFailure(_))), "{result:?}");
    let calls = emulator.calls();
    assert_eq!(outcomes(&calls), ["DropAfter", "DropAfter"]);
    let opened: Vec<_> = calls.iter().rev().map(|call| call.tunnel_id.clone().expect("an ID")).collect();
    let tunnels: Vec<_> = emulator.tunnels().into_iter().map(|tunnel| tunnel.tunnel_id).collect();
    assert_eq!(opened, tunnels);

    let id = &tunnels[0];
    let before = emulator.live_tokens(id).expect("live tokens");
    emulator.set_faults([Fault::new(Operation::RotateTunnelAccessToken, FaultKind::DropAfter)]);
    let rotate = client.rotate_tunnel_access_token().tunnel_id(id).client_mode(ClientMode::All);
    rotate.send().await.expect_err("no answer");
    let live = emulator.live_tokens(id).expect("live tokens");
    assert!(live.source != before.source && live.destination != before.destination);
}

#[tokio::test]
async fn hanging_calls_never_answer_and_only_hang_after_does_anything() {
    for (kind, opened) in [(FaultKind::HangBefore, 0), (FaultKind::HangAfter, 1)] {
        let emulator = emulator().await;
        emulator.set_faults([open_fault(kind).times(1)]);
        let mut hanging = call_open(&emulator).await;
        decided(&emulator).await;
        assert_eq!(outcomes(&emulator.calls()), [format!("{kind:?}")]);
        assert_eq!(emulator.tunnels().len(), opened, "{kind:?}");
        // Neither by the fault's end, nor by other calls, nor by new faults.
        open_id(&sdk(&emulator)).await;
        emulator.set_faults([]);
        assert!(timeout(SILENCE, until_closed(&mut hanging)).await.is_err(), "{kind:?} was answered");
        drop(emulator);
        let rest = timeout(PATIENCE, until_closed(&mut hanging)).await.expect("closed with the emulator");
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn the_sdk_s_time_limit_ends_a_hanging_call() {
    let emulator = emulator().await;
    emulator.set_faults([open_fault(FaultKind::HangAfter)]);
    let limit = TimeoutConfig::builder().operation_timeout(Duration::from_secs(1)).build();
    let open = sdk(&emulator).open_tunnel().customize();
    let result = open.config_override(aws_sdk_iotsecuretunneling::Config::builder().timeout_config(limit)).send().await;
    assert!(matches!(result, Err(SdkError::TimeoutError(_))), "{result:?}");
    assert_eq!(emulator.tunnels().len(), 1);
}

#[tokio::test]
async fn delay_does_at_once_and_answers_later() {
    let emulator = emulator().await;
    emulator.set_faults([open_fault(FaultKind::Delay).delay_ms(300)]);
    let id = open_id(&sdk(&emulator)).await;
    let tunnel = &emulator.tunnels()[0];
    assert_eq!(tunnel.tunnel_id, id);
    let before_the_answer = emulator.now().duration_since(tunnel.created_at);
    assert!(before_the_answer.as_millis() >= 300, "opened {before_the_answer} before the answer");
    assert_eq!(outcomes(&emulator.calls()), ["ok"]);
}

#[tokio::test]
async fn other_faults_are_late_by_their_delay() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let delay = Duration::from_millis(150);
    for kind in [FaultKind::AccessDenied, FaultKind::DropBefore, FaultKind::DropAfter] {
        emulator.set_faults([open_fault(kind).delay_ms(150)]);
        let began = Instant::now();
        client.open_tunnel().send().await.expect_err("a failure");
        assert!(began.elapsed() >= delay, "{kind:?} after {:?}", began.elapsed());
    }
    assert_eq!(outcomes(&emulator.calls()), ["AccessDeniedException", "DropBefore", "DropAfter"]);
}

#[tokio::test]
async fn a_delayed_call_is_carried_out_though_its_client_has_gone() {
    let emulator = emulator().await;
    emulator.set_faults([open_fault(FaultKind::DropAfter).delay_ms(1000)]);
    let client = call_open(&emulator).await;
    timeout(PATIENCE, emulator.wait_calls(|calls| calls.len() == 1)).await.expect("the call");
    drop(client);
    assert!(emulator.tunnels().is_empty());
    assert_eq!(outcomes(&emulator.calls()), ["pending"]);
    timeout(PATIENCE, emulator.wait_tunnels(|tunnels| tunnels.len() == 1)).await.expect("a tunnel");
    assert_eq!(outcomes(&emulator.calls()), ["DropAfter"]);
}

#[tokio::test]
async fn a_delayed_call_from_before_a_reset_does_nothing() {
    let emulator = emulator().await;
    emulator.set_faults([open_fault(FaultKind::DropAfter).delay_ms(1000)]);
    let mut client = call_open(&emulator).await;
    timeout(PATIENCE, emulator.wait_calls(|calls| calls.len() == 1)).await.expect("the call");
    emulator.reset();
    let answer = timeout(PATIENCE, until_closed(&mut client)).await.expect("closed");
    assert!(answer.is_empty());
    assert!(emulator.tunnels().is_empty() && emulator.calls().is_empty());
}

#[tokio::test]
async fn the_first_fault_that_names_the_operation_and_has_times_left_happens() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    emulator.set_faults([
        Fault::new(Operation::CloseTunnel, FaultKind::AccessDenied).times(1),
        open_fault(FaultKind::HangBefore).times(0),
        open_fault(FaultKind::Throttling).times(2),
        open_fault(FaultKind::InternalError).times(1),
        open_fault(FaultKind::Throttling).times(1),
    ]);
    for expected in ["ThrottlingException", "ThrottlingException", "InternalFailure", "ThrottlingException"] {
        assert_eq!(refusal(client.open_tunnel().send().await).0, expected);
    }
    let id = open_id(&client).await;
    describe(&client, &id).await;
    assert_eq!(refusal(client.close_tunnel().tunnel_id(&id).send().await).0, "AccessDeniedException");
    client.close_tunnel().tunnel_id(&id).send().await.expect("CloseTunnel");
}

#[tokio::test]
async fn a_fault_without_times_lasts_until_the_faults_are_replaced() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    emulator.set_faults([open_fault(FaultKind::Throttling)]);
    for _ in 0..20 {
        assert_eq!(refusal(client.open_tunnel().send().await).0, "ThrottlingException");
    }
    emulator.set_faults([]);
    open_id(&client).await;
}

#[tokio::test]
async fn every_operation_can_fail() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let id = open_id(&client).await;
    let arn = emulator.tunnels()[0].tunnel_arn.clone();
    for operation in Operation::ALL {
        emulator.set_faults([Fault::new(operation, FaultKind::AccessDenied)]);
        let body = serde_json::json!({
            "tunnelId": id, "clientMode": "ALL", "resourceArn": arn, "tagKeys": [],
        });
        let answer = crate::client::call(&emulator, operation.name(), body).await;
        assert_eq!(answer.error().0, "AccessDeniedException", "{operation:?}");
    }
}

#[tokio::test]
async fn calls_that_a_fault_keeps_from_being_done_use_up_no_quota() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    emulator.set_quotas(&Quotas::none().rate(Operation::OpenTunnel, 0.0001));
    emulator.set_faults([
        open_fault(FaultKind::DropBefore).times(2),
        open_fault(FaultKind::DropAfter).times(1),
        open_fault(FaultKind::DropAfter).times(1),
    ]);
    for _ in 0..4 {
        client.open_tunnel().send().await.expect_err("no answer");
    }
    let opened: Vec<_> = emulator.calls().iter().map(|call| call.tunnel_id.is_some()).collect();
    assert_eq!(opened, [false, false, true, false]);
}
