//! An emulator for a test, and two clients: the SDK and a TCP stream.

use std::net::SocketAddr;
use std::time::Duration;

use aws_sdk_iotsecuretunneling::config::retry::RetryConfig;
use aws_sdk_iotsecuretunneling::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_iotsecuretunneling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_iotsecuretunneling::operation::open_tunnel::OpenTunnelOutput;
use aws_sdk_iotsecuretunneling::primitives::DateTime;
use aws_sdk_iotsecuretunneling::types::Tunnel;
use aws_sdk_iotsecuretunneling::{Client, Config as SdkConfig};
use secure_tunneling_emulator::{Config, Emulator, Quotas};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than anything here takes; ends a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An emulator without quotas on a port of its own.
pub async fn emulator() -> Emulator {
    start(Config { quotas: Quotas::none(), ..Config::default() }).await
}

pub async fn start(config: Config) -> Emulator {
    Emulator::start(config).await.expect("a free port")
}

/// The real SDK with retries off, signing for us-east-1.
pub fn sdk(emulator: &Emulator) -> Client {
    sdk_in(emulator, "us-east-1")
}

pub fn sdk_in(emulator: &Emulator, region: &'static str) -> Client {
    Client::from_conf(
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(emulator.endpoint())
            .region(Region::new(region))
            .credentials_provider(Credentials::new("AKIDEXAMPLE", "secret", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .build(),
    )
}

pub async fn open(client: &Client) -> OpenTunnelOutput {
    client.open_tunnel().send().await.expect("OpenTunnel")
}

pub async fn open_id(client: &Client) -> String {
    open(client).await.tunnel_id().expect("an ID").to_owned()
}

pub async fn describe(client: &Client, tunnel_id: &str) -> Tunnel {
    let answer = client.describe_tunnel().tunnel_id(tunnel_id).send().await.expect("DescribeTunnel");
    answer.tunnel().expect("a tunnel").clone()
}

pub fn millis(at: Option<&DateTime>) -> i64 {
    at.expect("a time").to_millis().expect("in range")
}

/// AWS's name of a service error and its message; anything else fails the test.
pub fn refusal<T: std::fmt::Debug, E, R>(result: Result<T, SdkError<E, R>>) -> (String, String)
where
    E: ProvideErrorMetadata + std::fmt::Debug,
    R: std::fmt::Debug,
{
    match result.expect_err("a refusal") {
        SdkError::ServiceError(error) => {
            let meta = error.err().meta();
            (meta.code().unwrap_or_default().to_owned(), meta.message().unwrap_or_default().to_owned())
        }
        other => panic!("not a service error: {other:?}"),
    }
}

/// An HTTP answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// `__type` and `message` of an error that is told in all three places.
    pub fn error(&self) -> (&str, &str) {
        assert_eq!(self.header("x-amzn-errortype"), self.body["__type"].as_str());
        assert_eq!(self.header("content-type"), Some("application/x-amz-json-1.1"));
        (self.body["__type"].as_str().expect("__type"), self.body["message"].as_str().expect("message"))
    }
}

/// A call of an operation by raw HTTP.
pub async fn call(emulator: &Emulator, operation: &str, body: impl ToString) -> Answer {
    let target = format!("X-Amz-Target: IoTSecuredTunneling.{operation}\r\n");
    http(emulator, "POST", "/", &target, &body.to_string()).await
}

/// A call of the control API.
pub async fn control(emulator: &Emulator, method: &str, path: &str, body: impl ToString) -> Answer {
    http(emulator, method, &format!("/_emulator{path}"), "", &body.to_string()).await
}

pub async fn http(emulator: &Emulator, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let bytes = send(emulator.addr(), method, path, headers, body).await;
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    let body = serde_json::from_str(body).expect("a JSON body");
    Answer { status, head: head.to_owned(), body }
}

/// Sends a request and returns every byte that comes before the connection is closed.
pub async fn send(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let mut stream = request(addr, method, path, headers, body).await;
    tokio::time::timeout(PATIENCE, until_closed(&mut stream)).await.expect("the connection to be closed")
}

/// Sends a request and leaves the answer unread.
pub async fn request(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.expect("a connection");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// Everything until the peer closes; a reset counts as closing.
pub async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes).await {
        Ok(_) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("reading the answer: {error}"),
    }
}
