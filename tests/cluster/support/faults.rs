//! What an operator gets in the place of an answer.

use super::api_proxy::{Cut, Point, Request, failure};
use axum::body::Body;
use axum::extract::connect_info::Connected;
use axum::http::{Response, StatusCode, header};
use axum::serve::IncomingStream;
use serde_json::json;
use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::{fmt, io};
use tokio::net::{TcpListener, TcpSocket};

/// The service's answer does not reach the operator, which lives. What comes, and whether the service has
/// carried the request out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instead {
    /// When.
    pub point: Point,
    /// What comes.
    pub comes: Comes,
}

/// What comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comes {
    /// The end of the connection.
    End,
    /// A reset of the connection.
    Reset,
    /// An error of the service's, with this HTTP status.
    Error(u16),
    /// Nothing, until the operator gives up.
    Nothing,
    /// A success whose body is no JSON.
    Garbage,
    /// A success whose body lacks what it must have.
    Empty,
}

/// Goes with an answer: the connection is reset in its place.
#[derive(Clone, Copy)]
pub struct Reset;

/// A connection of an operator's.
#[derive(Clone)]
pub struct Connection(Arc<OwnedFd>);

impl Connected<IncomingStream<'_, TcpListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(Arc::new(stream.io().as_fd().try_clone_to_owned().expect("a file descriptor is left")))
    }
}

impl Connection {
    /// Its end will be a reset.
    pub fn resets(&self) -> io::Result<()> {
        TcpSocket::from_std_stream(self.0.try_clone()?.into()).set_zero_linger()
    }
}

const fn before(comes: Comes) -> Instead {
    Instead { point: Point::BeforeForward, comes }
}

const fn after(comes: Comes) -> Instead {
    Instead { point: Point::AfterCommit, comes }
}

impl Instead {
    /// What the API server does.
    pub const OF_KUBERNETES: [Self; 8] = [
        after(Comes::End),
        before(Comes::Reset),
        before(Comes::Error(409)),
        after(Comes::Error(409)),
        before(Comes::Error(429)),
        before(Comes::Error(500)),
        after(Comes::Error(500)),
        before(Comes::Error(503)),
    ];

    /// What AWS does. (HTTP 400 is throttling there.)
    pub const OF_AWS: [Self; 8] = [
        before(Comes::Error(400)),
        after(Comes::Error(500)),
        before(Comes::Nothing),
        after(Comes::Nothing),
        after(Comes::Garbage),
        after(Comes::Empty),
        before(Comes::Reset),
        after(Comes::End),
    ];

    /// Whether the API server may do it to a request: a read commits nothing, and is in conflict with nobody.
    pub fn befalls(self, reads: bool) -> bool {
        !reads || !matches!((self.point, self.comes), (_, Comes::Error(409)) | (Point::AfterCommit, Comes::Error(_)))
    }

    /// What comes. It is told only when it has come: of nothing, when the operator has given up.
    pub async fn answer(self, request: &Request) -> Result<Response<Body>, Cut> {
        let aws = request.operation.is_some();
        let status = |code| StatusCode::from_u16(code).expect("an HTTP status");
        let (status, body) = match self.comes {
            Comes::End => return Err(Cut),
            Comes::Nothing => pending().await,
            Comes::Reset => {
                let mut answer = Response::new(Body::empty());
                answer.extensions_mut().insert(Reset);
                return Ok(answer);
            }
            Comes::Garbage => (StatusCode::OK, "{\"tunnelId\": \"half an ans".to_owned()),
            Comes::Empty => (StatusCode::OK, "{}".to_owned()),
            Comes::Error(code) if aws => {
                let name = if code == 400 { "ThrottlingException" } else { "InternalFailure" };
                (status(code), json!({"__type": name, "message": "made up by a test"}).to_string())
            }
            Comes::Error(code) => (status(code), failure(status(code), "made up by a test").to_string()),
        };
        let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
        let answer = if status.as_u16() == 429 { answer.header(header::RETRY_AFTER, "1") } else { answer };
        Ok(answer.body(Body::from(body)).expect("a response"))
    }
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.comes {
            Comes::End => f.write_str("cut"),
            Comes::Reset => f.write_str("reset"),
            Comes::Error(400) => f.write_str("throttled"),
            Comes::Error(code) => write!(f, "{code}"),
            Comes::Nothing => f.write_str("hangs"),
            Comes::Garbage => f.write_str("garbage"),
            Comes::Empty => f.write_str("empty"),
        }?;
        f.write_str(match self.point {
            Point::AfterCommit => " after",
            Point::BeforeForward => "",
        })
    }
}

#[tokio::test]
async fn each_fault_is_what_it_says_and_the_service_has_done_what_it_says() {
    use super::aws_proxy::AwsProxy;
    use super::tap::{Fault, Step, Tap};
    use secure_tunneling_emulator::{Config, Emulator};
    use std::io::ErrorKind;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    let request = "POST / HTTP/1.1\r\nHost: aws\r\nX-Amz-Target: IoTSecuredTunneling.OpenTunnel\r\n\
        Content-Type: application/x-amz-json-1.1\r\nContent-Length: 2\r\n\r\n{}";
    for instead in Instead::OF_KUBERNETES.into_iter().chain(Instead::OF_AWS) {
        let aws = Emulator::start(Config::default()).await.expect("the emulator starts");
        let tap = Tap::new(false);
        let proxy = AwsProxy::start(&aws, Some(tap.clone())).await;
        tap.count([(Step { request: "AWS OpenTunnel".into(), nth: 1 }, Fault::Aws(instead))]);
        let address = proxy.endpoint().replace("http://", "");
        let mut connection = TcpStream::connect(address).await.expect("the proxy listens");
        connection.write_all(request.as_bytes()).await.expect("it can be sent");
        let mut answer = vec![0; 4096];
        let wait = if instead.comes == Comes::Nothing { Duration::from_millis(500) } else { super::LIMIT };
        let came = timeout(wait, connection.read(&mut answer)).await;
        let text = |read: usize| String::from_utf8_lossy(&answer[..read]).into_owned();
        match (instead.comes, came) {
            (Comes::End, Ok(Ok(0))) | (Comes::Nothing, Err(_)) => {}
            (Comes::Reset, Ok(Err(error))) if error.kind() == ErrorKind::ConnectionReset => {}
            (Comes::Error(code), Ok(Ok(read))) if text(read).starts_with(&format!("HTTP/1.1 {code} ")) => {
                assert_eq!(text(read).contains("retry-after: 1"), code == 429, "{instead}");
            }
            (Comes::Garbage | Comes::Empty, Ok(Ok(read))) if text(read).starts_with("HTTP/1.1 200 ") => {}
            (_, came) => panic!("{instead}: {came:?}"),
        }
        drop(connection);
        tap.struck().await;
        assert_eq!(aws.tunnels().len(), usize::from(instead.point == Point::AfterCommit), "{instead}");
    }
}
