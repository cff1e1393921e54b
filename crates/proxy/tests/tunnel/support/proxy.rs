//! One end of a tunnel: how it is started, and what it then is asked.

use super::interop::Program;
use super::process::Process;
use super::service::unused_port;
use super::tunnel::Tunnel;
use super::{PATIENCE, until};
use opentunnel_proxy::Side;
use secure_tunneling_emulator::{ConnectionStatus, LiveTokens};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Output;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

/// The client tokens of the two ends.
pub const CLIENT_TOKENS: [(Side, &str); 2] = [
    (Side::Source, "8cda1a4c-4b38-4a6c-9fb3-6c5bbd8ed0c3"),
    (Side::Destination, "0d66a7f9-1920-437c-946f-65a22e39ef98"),
];

pub fn client_token(side: Side) -> &'static str {
    CLIENT_TOKENS.iter().find(|(of, _)| *of == side).expect("of each side").1
}

/// The files of an operator's token Secret.
pub fn secret(tokens: &LiveTokens) -> [(&'static str, String); 5] {
    [
        ("sourceAccessToken", tokens.source.clone()),
        ("sourceClientToken", client_token(Side::Source).to_owned()),
        ("destinationAccessToken", tokens.destination.clone()),
        ("destinationClientToken", client_token(Side::Destination).to_owned()),
        ("region", "us-east-1".to_owned()),
    ]
}

/// What an end is started with.
pub struct Start<'a> {
    tunnel: &'a Tunnel,
    side: Side,
    command: Command,
    /// Where a source listens (0: where it likes), and where a destination connects to.
    ports: BTreeMap<&'static str, u16>,
}

impl<'a> Start<'a> {
    /// `ports`: a source may have none.
    pub fn new(tunnel: &'a Tunnel, side: Side, ports: &[u16]) -> Self {
        let program = Program::at(side);
        let mut command = Command::new(program.path());
        // What the machine has set must not be what is tested.
        for name in ["HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
            command.env_remove(name);
        }
        let services: &[&'static str] = if tunnel.services().is_empty() { &[""] } else { tunnel.services() };
        let any = || if program == Program::Ours { 0 } else { unused_port() };
        let ports: BTreeMap<_, _> = match ports {
            [] => services.iter().map(|service| (*service, any())).collect(),
            _ => services.iter().copied().zip(ports.iter().copied()).collect(),
        };
        let mapping: Vec<_> = ports
            .iter()
            .map(|(service, port)| if service.is_empty() { port.to_string() } else { format!("{service}={port}") })
            .collect();
        command.args(["-e", &tunnel.endpoint(), if side == Side::Source { "-s" } else { "-d" }, &mapping.join(",")]);
        match program {
            Program::Ours => command.args(["--format", "json"]),
            Program::Theirs(_) => command.args(["-b", "127.0.0.1"]),
        };
        if let Some(directory) = tunnel.trusted() {
            command.env("SSL_CERT_FILE", directory.path().join("ca.pem"));
        }
        command.env("AWSIOT_TUNNEL_ACCESS_TOKEN", tunnel.token(side));
        command.env("AWSIOT_TUNNEL_CLIENT_TOKEN", client_token(side));
        Self { tunnel, side, command, ports }
    }

    pub fn args<'b>(mut self, arguments: impl IntoIterator<Item = &'b str>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Without a variable of the environment.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn without_client_token(self) -> Self {
        self.without("AWSIOT_TUNNEL_CLIENT_TOKEN")
    }

    /// The tokens come from a directory alone.
    pub fn token_dir(self, directory: &Path) -> Self {
        let directory = directory.to_str().expect("UTF-8");
        self.without("AWSIOT_TUNNEL_ACCESS_TOKEN").without_client_token().args(["--token-dir", directory])
    }

    /// Starts it, without waiting for anything.
    pub fn spawn(mut self) -> Proxy {
        Proxy { process: Process::start(&mut self.command), side: self.side, ports: self.ports }
    }

    /// Starts it, and waits until the emulator says that it is connected, and that it listens.
    pub async fn run(self) -> Proxy {
        let (tunnel, side) = (self.tunnel, self.side);
        let mut proxy = self.spawn();
        proxy.listening().await;
        let connected = tunnel.is(side, ConnectionStatus::Connected);
        assert!(timeout(PATIENCE, connected).await.is_ok(), "{}", proxy.process.output());
        proxy
    }

    /// Its exit status and output, where it ends by itself.
    pub async fn outcome(mut self) -> Output {
        let output = timeout(PATIENCE, self.command.kill_on_drop(true).output()).await;
        output.expect("it does not end").expect("a program that can be started")
    }
}

/// A running end.
pub struct Proxy {
    pub process: Process,
    side: Side,
    ports: BTreeMap<&'static str, u16>,
}

impl Proxy {
    /// Waits until a source listens, and finds out where.
    pub async fn listening(&mut self) {
        if self.side != Side::Source {
            return;
        }
        if Program::at(self.side) == Program::Ours {
            let found: Vec<Value> = self
                .process
                .announced(|line| serde_json::from_str::<Value>(line).ok()?.get("listening")?.as_array().cloned())
                .await;
            for (service, port) in &mut self.ports {
                let of_service = found.iter().find(|entry| entry["service"] == **service).expect("it is listened for");
                let address = of_service["address"].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
                *port = address.expect("an address").port();
            }
        } else {
            // It listens once it is connected, and says so to nobody: who tries takes a connection through the tunnel.
            let process = &self.process;
            until("it listens", async || process.output().matches("Listening for new connection").count() > 0).await;
        }
    }

    /// Where a source listens for a service.
    pub fn address(&self, service: &str) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[service]))
    }

    /// Where a source listens for its only service.
    pub fn only_address(&self) -> SocketAddr {
        let mut ports = self.ports.values();
        let (Some(port), None) = (ports.next(), ports.next()) else { panic!("it has several services") };
        SocketAddr::from((Ipv4Addr::LOCALHOST, *port))
    }

    /// Where it serves probes and metrics.
    pub async fn http_address(&self) -> SocketAddr {
        let read = |line: &str| -> Option<SocketAddr> {
            let event: Value = serde_json::from_str(line).ok()?;
            event["message"].as_str()?.contains("/healthz").then_some(())?;
            event["address"].as_str()?.parse().ok()
        };
        self.process.read_log("the address of /healthz", read).await
    }
}

/// A client, connected.
pub async fn connect(address: SocketAddr) -> TcpStream {
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await.expect("it hangs").expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    stream
}

/// Sends bytes that an echo sends back.
pub async fn try_echo(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let exchange = async {
        stream.write_all(bytes).await?;
        let mut echo = vec![0; bytes.len()];
        stream.read_exact(&mut echo).await?;
        assert!(echo == bytes, "another echo");
        Ok(())
    };
    timeout(PATIENCE, exchange).await.expect("it hangs")
}

pub async fn echo(stream: &mut TcpStream, bytes: &[u8]) {
    try_echo(stream, bytes).await.expect("an echo");
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
}

/// What still comes, and the end.
pub async fn rest(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it hangs") {
        Ok(_) => (bytes, End::Closed),
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
            (bytes, End::Reset)
        }
    }
}

/// Waits until new connections are served again, from a moment on. While an end is away they may be reset.
pub async fn served(address: SocketAddr) -> Duration {
    let begin = tokio::time::Instant::now();
    until("new connections are served", async || match TcpStream::connect(address).await {
        Ok(mut stream) => try_echo(&mut stream, b"served?").await.is_ok(),
        Err(_) => false,
    })
    .await;
    begin.elapsed()
}
