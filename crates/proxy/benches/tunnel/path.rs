//! The ways from a client to a server that are compared, each of three processes.

use crate::load::{Ask, Server, client_within};
use crate::process::{Process, cpu, rss};
use crate::relay;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long it may take until a way can be used.
const PATIENCE: Duration = Duration::from_secs(10);
/// The tunnel's only service.
const SERVICE: &str = "SSH";
/// A client token of each side, so that a proxy that was cut may come back with its access token.
const CLIENT_TOKENS: [&str; 2] = ["benchmark-of-the-source-0123456789", "benchmark-of-the-destination-0123456789"];

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    /// `opentunnel-proxy`, both sides.
    Ours,
    /// Relays of the same hops, with TLS where the proxies have it.
    TlsRelay,
    /// Relays of the same hops, without TLS.
    TcpRelay,
    /// AWS's own program, both sides.
    Aws,
}

impl Peer {
    /// For people and for JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::TlsRelay => "TLS relay",
            Self::TcpRelay => "TCP relay",
            Self::Aws => "AWS's",
        }
    }
}

/// A way that can be used. Its processes end with it.
pub struct Way {
    /// Where clients connect to.
    pub address: SocketAddr,
    source: Process,
    destination: Process,
    relay: Option<Process>,
    emulator: u32,
}

impl Way {
    fn middle(&self) -> u32 {
        self.relay.as_ref().map_or(self.emulator, Process::id)
    }

    /// Processor time used so far, in seconds: source, middle, destination.
    pub fn cpu(&self) -> [f64; 3] {
        [self.source.id(), self.middle(), self.destination.id()].map(cpu)
    }

    /// Resident memory in MiB: source, destination.
    pub fn rss(&self) -> Vec<f64> {
        [self.source.id(), self.destination.id()].map(rss).to_vec()
    }

    /// Which of its processes has ended, and why.
    pub fn ended(&mut self) -> Option<String> {
        let source = self.source.ended().map(|why| format!("source: {why}"));
        source.or_else(|| self.destination.ended().map(|why| format!("destination: {why}")))
    }
}

/// The emulator, and what else all ways need.
pub struct Lab {
    directory: PathBuf,
    emulator: Process,
    /// Of its API.
    api: SocketAddr,
    /// Of its data plane.
    data: String,
    ca: String,
    ours: PathBuf,
    aws: Option<PathBuf>,
}

/// Labs and logs are numbered.
static NUMBER: AtomicU32 = AtomicU32::new(0);

fn number() -> u32 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

impl Drop for Lab {
    fn drop(&mut self) {
        // It is in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Lab {
    /// Starts the emulator. `aws`: AWS's program.
    pub fn start(emulator: &Path, ours: &Path, aws: Option<&Path>) -> Result<Self, String> {
        let directory = std::env::temp_dir().join(format!("opentunnel-bench-{}-{}", std::process::id(), number()));
        let failed = |error| format!("{}: {error}", directory.display());
        fs::create_dir_all(&directory).and_then(|()| relay::certify(&directory)).map_err(failed)?;
        let mut command = Command::new(emulator);
        command.args(["--listen=127.0.0.1:0", "--data-listen=127.0.0.1:0", "--data-tls=self-signed", "--quotas=none"]);
        // Its CA certificate is removed with the rest.
        command.env("TMPDIR", &directory);
        let failed = |error| format!("{}: {error}", emulator.display());
        let mut emulator = Process::start(&mut command, directory.join("emulator.log"), true).map_err(failed)?;
        let mut lines = BufReader::new(emulator.stdout().map_err(failed)?).lines();
        let mut told = |what: &str| {
            let line = lines.next().and_then(Result::ok).unwrap_or_default();
            let told = line.strip_prefix(what).map(str::to_owned);
            told.ok_or_else(|| format!("the emulator says \"{line}\" instead of where it is"))
        };
        let api = told("listening on http://")?.parse().map_err(|error| format!("the emulator's address: {error}"))?;
        let data = told("data plane on wss://")?;
        let ca = told("data plane's CA certificate in ")?;
        Ok(Self { directory, emulator, api, data, ca, ours: ours.to_owned(), aws: aws.map(Path::to_owned) })
    }

    /// Makes a way to a server, and waits until it can be used.
    pub async fn way(&self, peer: Peer, server: &Server) -> Result<Way, String> {
        let mut way = match peer {
            Peer::Ours => self.tunnel(&self.ours, server.address)?,
            Peer::Aws => self.tunnel(self.aws.as_deref().ok_or("LOCALPROXY is not set")?, server.address)?,
            Peer::TlsRelay => self.relays("tls", server.address)?,
            Peer::TcpRelay => self.relays("tcp", server.address)?,
        };
        let begin = Instant::now();
        while let Err(error) = client_within(Duration::from_secs(1), way.address, Ask::Echo).await {
            if let Some(why) = way.ended() {
                return Err(why);
            }
            if begin.elapsed() > PATIENCE {
                return Err(error);
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(way)
    }

    fn process(&self, command: &mut Command, answers: bool) -> Result<Process, String> {
        let log = self.directory.join(format!("{}.log", number()));
        let started = Process::start(command.current_dir(&self.directory), log, answers);
        started.map_err(|error| format!("{} cannot be started: {error}", command.get_program().display()))
    }

    fn tunnel(&self, program: &Path, server: SocketAddr) -> Result<Way, String> {
        let services = json!({ "destinationConfig": { "services": [SERVICE] } });
        let opened = self.control("POST", "/", Some("IoTSecuredTunneling.OpenTunnel"), &services)?;
        let proxy = |side: usize, argument: [String; 2]| {
            let token = &opened[["sourceAccessToken", "destinationAccessToken"][side]];
            let mut command = Command::new(program);
            command.args(["-e", &self.data, "-v", "1", "-b", "127.0.0.1"]).args(argument);
            command.env("AWSIOT_TUNNEL_ACCESS_TOKEN", token.as_str().unwrap_or_default());
            command.env("AWSIOT_TUNNEL_CLIENT_TOKEN", CLIENT_TOKENS[side]);
            command.env("SSL_CERT_FILE", &self.ca);
            for name in ["HTTPS_PROXY", "https_proxy", "SSL_CERT_DIR"] {
                command.env_remove(name);
            }
            self.process(&mut command, false)
        };
        let address = free_address()?;
        Ok(Way {
            address,
            destination: proxy(1, ["-d".to_owned(), format!("{SERVICE}={server}")])?,
            source: proxy(0, ["-s".to_owned(), format!("{SERVICE}={}", address.port())])?,
            relay: None,
            emulator: self.emulator.id(),
        })
    }

    fn relays(&self, between: &str, server: SocketAddr) -> Result<Way, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let relay = |accept: &str, connect: &str, to: SocketAddr| {
            let mut command = Command::new(&program);
            command.args(["relay", accept, connect, &to.to_string()]).arg(&self.directory);
            let mut process = self.process(&mut command, true)?;
            let mut line = String::new();
            let read = process.stdout().and_then(|stdout| BufReader::new(stdout).read_line(&mut line));
            read.map_err(|error| error.to_string())?;
            let address = line.trim().parse().map_err(|_| format!("a relay says: {line}"))?;
            Ok::<_, String>((process, address))
        };
        let (destination, address) = relay(between, "tcp", server)?;
        let (middle, address) = relay(between, between, address)?;
        let (source, address) = relay("tcp", between, address)?;
        Ok(Way { address, source, destination, relay: Some(middle), emulator: self.emulator.id() })
    }

    /// The service cuts the connection of a side, without a word. There is one tunnel in this lab.
    pub fn cut(&self, side: &str) -> Result<(), String> {
        let fault = json!([{ "side": side, "kind": "Disconnect", "times": 1 }]);
        self.control("PUT", "/_emulator/data-faults", None, &fault).map(drop)
    }

    fn control(&self, method: &str, path: &str, target: Option<&str>, body: &Value) -> Result<Value, String> {
        let failed = |error: std::io::Error| format!("the emulator: {error}");
        let body = body.to_string();
        let target = target.map(|target| format!("X-Amz-Target: {target}\r\n")).unwrap_or_default();
        let mut stream = TcpStream::connect(self.api).map_err(failed)?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.api);
        let request = format!("{head}{target}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("the emulator answers {path} with: {answer}"));
        }
        serde_json::from_str(body).map_err(|error| format!("the emulator's answer: {error}"))
    }
}

/// AWS's program takes no port 0.
fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    listener.and_then(|listener| listener.local_addr()).map_err(|error| error.to_string())
}
