//! An emulator with a tunnel, of which a test starts the ends.

use super::PATIENCE;
use super::directory::Directory;
use super::interop::Program;
use super::proxy::Start;
use opentunnel_proxy::Side;
use secure_tunneling_emulator::{Config, ConnectionStatus, Connections, DataTls, Emulator, LiveTokens, Quotas};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub struct Tunnel {
    pub emulator: Emulator,
    pub id: String,
    services: Vec<&'static str>,
    /// What both ends must trust, in a file `ca.pem`. `None`: there is no TLS.
    trusted: Option<Directory>,
}

impl Tunnel {
    /// With `ws://`, if both ends can speak it.
    pub async fn open(services: &[&'static str]) -> Self {
        Self::open_with(services, if Program::all_ours() { DataTls::Off } else { DataTls::SelfSigned }).await
    }

    pub async fn open_with(services: &[&'static str], data_tls: DataTls) -> Self {
        let config = Config { quotas: Quotas::none(), data_tls, ..Config::default() };
        let emulator = Emulator::start(config).await.expect("an emulator");
        let trusted = emulator.data_ca_pem().map(|pem| Directory::with(&[("ca.pem", pem)]));
        let body = match services {
            [] => json!({}),
            services => json!({ "destinationConfig": { "services": services } }),
        };
        let opened = call(&emulator, "OpenTunnel", &body).await;
        let id = opened["tunnelId"].as_str().expect("an ID").to_owned();
        Self { emulator, id, services: services.to_vec(), trusted }
    }

    pub fn services(&self) -> &[&'static str] {
        &self.services
    }

    pub fn trusted(&self) -> Option<&Directory> {
        self.trusted.as_ref()
    }

    /// The value of `-e`. AWS's program takes no scheme.
    pub fn endpoint(&self) -> String {
        let address = self.emulator.data_addr();
        if self.trusted.is_some() { address.to_string() } else { format!("ws://{address}") }
    }

    pub fn tokens(&self) -> LiveTokens {
        self.emulator.live_tokens(&self.id).expect("an open tunnel")
    }

    pub fn token(&self, side: Side) -> String {
        let LiveTokens { source, destination } = self.tokens();
        match side {
            Side::Source => source,
            Side::Destination => destination,
        }
    }

    /// A source that listens for every service of the tunnel, on ports that it chooses.
    pub fn source(&self) -> Start<'_> {
        Start::new(self, Side::Source, &[])
    }

    /// A source that listens on these ports, in the order that the tunnel was opened with.
    pub fn source_on(&self, ports: &[u16]) -> Start<'_> {
        Start::new(self, Side::Source, ports)
    }

    /// A destination whose services have these ports, in the order that the tunnel was opened with.
    pub fn destination(&self, ports: &[u16]) -> Start<'_> {
        Start::new(self, Side::Destination, ports)
    }

    pub async fn is(&self, side: Side, status: ConnectionStatus) {
        let wanted = match side {
            Side::Source => Connections { source: Some(status), destination: None },
            Side::Destination => Connections { source: None, destination: Some(status) },
        };
        let waited = timeout(PATIENCE, self.emulator.wait_connections(&self.id, wanted)).await;
        assert!(waited.is_ok(), "the {side} is not {status:?}");
    }

    /// Both ends are.
    pub async fn connected(&self) {
        self.is(Side::Source, ConnectionStatus::Connected).await;
        self.is(Side::Destination, ConnectionStatus::Connected).await;
    }

    /// `mode`: SOURCE, DESTINATION or ALL.
    pub async fn rotate(&self, mode: &str) {
        call(&self.emulator, "RotateTunnelAccessToken", &json!({ "tunnelId": self.id, "clientMode": mode })).await;
    }
}

/// A call of AWS's API that is answered as it should be.
async fn call(emulator: &Emulator, operation: &str, body: &Value) -> Value {
    let body = body.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: emulator\r\nX-Amz-Target: IoTSecuredTunneling.{operation}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(emulator.addr()).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer").expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.starts_with("HTTP/1.1 200 "), "{operation}: {head} {body}");
    serde_json::from_str(body).expect("JSON")
}
