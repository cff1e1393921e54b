//! A source and a destination with real local sockets, joined by a service in memory.

mod ends;
mod flow;
mod links;
mod pings;
mod service;

use super::*;
use crate::config::{ListenAddress, SourceDefaults, Target};
use crate::tokens::AccessToken;
use service::TestService;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Long enough for a slow machine; who waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("soon")
}

fn tokens() -> TokenSource {
    TokenSource::Fixed(Tokens { access: AccessToken::new("token").expect("a token"), client: None })
}

fn options() -> Options {
    Options { session: session::Config::default(), drain: Duration::from_secs(5) }
}

fn listen(host: &str, port: u16) -> ListenAddress {
    ListenAddress { host: host.to_owned(), port }
}

fn target(address: SocketAddr) -> Target {
    Target::Tcp { host: address.ip().to_string(), port: address.port() }
}

fn source(services: Services<ListenAddress>) -> Ends {
    Ends::Source(services, SourceDefaults { bind: "127.0.0.1".to_owned() })
}

fn destination(targets: Services<Target>) -> Ends {
    Ends::Destination { targets, bind: None }
}

/// A proxy that runs. It is stopped when this is dropped.
struct Running {
    stats: Arc<Stats>,
    stop: watch::Sender<bool>,
    /// As it was told first.
    listening: Vec<Listening>,
    /// What it tells later.
    told: mpsc::UnboundedReceiver<Vec<Listening>>,
    task: JoinHandle<Result<(), ProxyError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    async fn start(service: &Arc<TestService>, ends: Ends, options: Options) -> Self {
        Self::start_with(service, ends, options, tokens()).await
    }

    async fn start_with(service: &Arc<TestService>, ends: Ends, options: Options, tokens: TokenSource) -> Self {
        let stats = Arc::new(Stats::new());
        let side = ends.side();
        let proxy = Proxy::bind(ends, options, Arc::clone(&stats)).await.expect("it listens");
        let (stop, stopped) = watch::channel(false);
        let (tell, mut told) = mpsc::unbounded_channel();
        let service = Arc::clone(service);
        let task = tokio::spawn(async move {
            // Mostly nobody wants to know more than the first.
            let announce = move |listening: &[Listening]| drop(tell.send(listening.to_vec()));
            proxy.run(&service, tokens, stopped, announce).await
        });
        let listening = match side {
            Side::Source => soon(told.recv()).await.expect("it listens"),
            Side::Destination => Vec::new(),
        };
        Self { stats, stop, listening, told, task }
    }

    fn services(&self) -> Vec<&str> {
        let mut services: Vec<_> = self.listening.iter().map(|listening| listening.service.as_str()).collect();
        services.sort_unstable();
        services
    }

    fn address(&self, service: &str) -> SocketAddr {
        self.listening.iter().find(|listening| listening.service == service).expect("it is listened for").address
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.listening[0].address).await.expect("a connection")
    }

    async fn connected(&self) {
        let stats = &self.stats;
        soon(async move {
            while !stats.is_connected() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn stopped(mut self) -> Result<(), ProxyError> {
        self.stop.send_replace(true);
        soon(&mut self.task).await.expect("no panic")
    }
}

impl Connect for Arc<TestService> {
    async fn connect(&self, side: Side, tokens: &Tokens) -> Result<(LinkReader, LinkWriter), ConnectError> {
        TestService::connect(self, side, tokens)
    }
}

/// A tunnel with one service, behind which somebody listens.
struct Tunnel {
    service: Arc<TestService>,
    source: Running,
    destination: Running,
    server: TcpListener,
}

impl Tunnel {
    async fn new() -> Self {
        Self::with(TestService::new(&["SSH"]), options()).await
    }

    async fn with(service: Arc<TestService>, options: Options) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = server.local_addr().expect("an address");
        let ends = destination(Services::Only(target(address)));
        let destination = Running::start(&service, ends, options.clone()).await;
        let source = Running::start(&service, source(Services::Only(listen("127.0.0.1", 0))), options).await;
        destination.connected().await;
        source.connected().await;
        Self { service, source, destination, server }
    }

    /// A client and what the server has for it.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.source.client().await;
        let (server, _) = soon(self.server.accept()).await.expect("a connection");
        (client, server)
    }
}

async fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    soon(stream.read_exact(&mut bytes)).await.expect("bytes");
    bytes
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.expect("an end");
    bytes
}

/// That a connection was cut, and not closed.
async fn assert_reset(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    let error = soon(stream.read_to_end(&mut bytes)).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
