//! Small servers, as the services of a device.

use super::exchange;
use super::proxy::End;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinSet;

pub struct Service {
    port: u16,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Service {
    /// Serves each connection so.
    pub fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        // Thousands may come at once.
        let listener = socket.listen(4096).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket");
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port, accepted, _tasks: tasks }
    }

    /// Sends back what comes, to its end.
    pub fn echo() -> Self {
        Self::telling().0
    }

    /// Sends back what comes, and tells how each connection ends.
    pub fn telling() -> (Self, UnboundedReceiver<End>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let service = Self::start(move |stream| {
            let sender = sender.clone();
            async move {
                // A test that has ended asks no more.
                let _ = sender.send(echo(stream).await);
            }
        });
        (service, receiver)
    }

    /// Takes part in [`exchange`]s as this service.
    pub fn exchanging(name: &'static str) -> Self {
        Self::start(move |stream| exchange::serve(stream, name))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections have come.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn echo(mut stream: TcpStream) -> End {
    let mut bytes = vec![0; 16 << 10];
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) => return End::Closed,
            Ok(length) => {
                if stream.write_all(&bytes[..length]).await.is_err() {
                    return End::Reset;
                }
            }
            Err(_) => return End::Reset,
        }
    }
}

/// A port where nobody listens.
pub fn unused_port() -> u16 {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("an address").port()
}
