//! Starting and stopping in a process.

use std::io::ErrorKind;

use secure_tunneling_emulator::{Config, Emulator, Fault, FaultKind, Operation};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{PATIENCE, emulator, open_id, request, sdk, start, until_closed};

#[tokio::test]
async fn a_stopped_emulator_frees_its_port_for_the_next() {
    let first = emulator().await;
    let addr = first.addr();
    assert_eq!(first.endpoint(), format!("http://{addr}"));
    let client = sdk(&first);
    open_id(&client).await;
    // The client's kept-alive connection is open at this moment.
    first.stop().await;
    let refused = TcpStream::connect(addr).await.expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    client.open_tunnel().send().await.expect_err("nobody listens");

    let second = start(Config { listen: addr, ..Config::default() }).await;
    assert!(second.tunnels().is_empty());
    open_id(&client).await;
}

#[tokio::test]
async fn stopping_closes_hanging_calls() {
    let emulator = emulator().await;
    emulator.set_faults([Fault::new(Operation::ListTunnels, FaultKind::HangBefore)]);
    let target = "X-Amz-Target: IoTSecuredTunneling.ListTunnels\r\n";
    let mut hanging = request(emulator.addr(), "POST", "/", target, "{}").await;
    timeout(PATIENCE, emulator.wait_calls(|calls| calls.len() == 1)).await.expect("the call");
    emulator.stop().await;
    let answer = timeout(PATIENCE, until_closed(&mut hanging)).await.expect("closed");
    assert!(answer.is_empty());
}

#[tokio::test]
async fn a_taken_port_is_an_error() {
    let taken = emulator().await;
    let error = Emulator::start(Config { listen: taken.addr(), ..Config::default() }).await.expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}

#[tokio::test]
async fn an_idle_client_or_half_a_request_holds_nobody_up() {
    let emulator = emulator().await;
    let _idle = TcpStream::connect(emulator.addr()).await.expect("a connection");
    let _half = request(emulator.addr(), "POST", "/", "Content-Length: 10\r\n", "").await;
    open_id(&sdk(&emulator)).await;
    timeout(PATIENCE, emulator.stop()).await.expect("stopped");
}
