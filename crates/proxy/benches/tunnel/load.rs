//! What passes through a tunnel: a server that does as its clients say, and clients.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Bytes that are written and read at once.
const CHUNK: usize = 64 << 10;
/// What is written.
static ZEROS: [u8; CHUNK] = [0; CHUNK];
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Connections that are made at a time where it is not this that is measured.
const AT_A_TIME: usize = 32;
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long it takes to fill the buffers of one connection, on all its hops.
const FILLED: Duration = Duration::from_millis(4);
/// Bytes of a message that is echoed.
const ECHO: usize = 64;

/// What a client wants: its first byte, which the server sends back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// That the server reads.
    Sink = b's' as isize,
    /// That it reads and writes.
    Both = b'b' as isize,
    /// That it sends back what it reads.
    Echo = b'e' as isize,
    /// That it reads nothing.
    StandStill = b'n' as isize,
}

/// Listens on a free port. `window`: SO_SNDBUF and SO_RCVBUF of its connections; `None`: as the system has it.
pub fn listen(window: Option<usize>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    if let Some(window) = window {
        socket.set_recv_buffer_size(window)?;
        socket.set_send_buffer_size(window)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The server behind the destination. It ends with its value.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    received: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Listens. `window`: as of [`listen`].
    pub fn start(window: Option<usize>) -> io::Result<Self> {
        let listener = listen(window)?;
        let address = listener.local_addr()?;
        let received = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let counted = Arc::clone(&received);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                // An error ends this connection: its client sees it.
                connections.spawn(async move { drop(serve(stream, &counted).await) });
            }
        });
        Ok(Self { address, received, _tasks: tasks })
    }
}

async fn serve(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let ask = stream.read_u8().await?;
    stream.write_u8(ask).await?;
    if ask == Ask::Sink as u8 {
        read(stream, received).await
    } else if ask == Ask::Both as u8 {
        let (reader, writer) = stream.split();
        tokio::try_join!(read(reader, received), write(writer)).map(drop)
    } else if ask == Ask::Echo as u8 {
        let mut message = [0; ECHO];
        loop {
            let length = stream.read(&mut message).await?;
            if length == 0 {
                return Ok(());
            }
            stream.write_all(&message[..length]).await?;
        }
    } else {
        sleep(Duration::MAX).await;
        Ok(())
    }
}

async fn read(mut reader: impl AsyncRead + Unpin, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => received.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        writer.write_all(&ZEROS).await?;
    }
}

/// A client that the server has answered.
pub async fn client(address: SocketAddr, ask: Ask, window: Option<usize>) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(window) = window.and_then(|window| u32::try_from(window).ok()) {
        socket.set_recv_buffer_size(window)?;
        socket.set_send_buffer_size(window)?;
    }
    let mut stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_u8(ask as u8).await?;
    match stream.read_u8().await? {
        answer if answer == ask as u8 => Ok(stream),
        _ => Err(io::Error::other("another connection's answer")),
    }
}

/// The same, within a time.
pub async fn client_within(time: Duration, address: SocketAddr, ask: Ask) -> Result<TcpStream, String> {
    match timeout(time, client(address, ask, None)).await {
        Ok(served) => served.map_err(|error| format!("a client was not served: {error}")),
        Err(_) => Err("a client was not served in time".to_owned()),
    }
}

/// So many clients that the server has answered, made a few at a time.
pub async fn clients(
    address: SocketAddr,
    ask: Ask,
    window: Option<usize>,
    count: usize,
) -> Result<Vec<TcpStream>, String> {
    let mut making: JoinSet<io::Result<TcpStream>> = JoinSet::new();
    let mut made = Vec::new();
    let all = async {
        for number in 0..count + AT_A_TIME {
            if number >= AT_A_TIME
                && let Some(Ok(client)) = making.join_next().await
            {
                made.push(client?);
            }
            if number < count {
                making.spawn(client(address, ask, window));
            }
        }
        io::Result::Ok(())
    };
    match timeout(PATIENCE, all).await {
        Ok(Ok(())) => Ok(made),
        Ok(Err(error)) => Err(format!("{} of {count} clients were served: {error}", made.len())),
        Err(_) => Err(format!("{} of {count} clients were served in time", made.len())),
    }
}

/// Bytes that pass in a time, each way by so many connections: what has arrived. `measured` is called at the beginning
/// and at the end of that time.
pub async fn throughput(
    address: SocketAddr,
    server: &Server,
    (ask, window, count): (Ask, usize, usize),
    time: Duration,
    mut measured: impl FnMut(),
) -> Result<f64, String> {
    let received = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for client in clients(address, ask, Some(window), count).await? {
        let received = Arc::clone(&received);
        tasks.spawn(async move {
            let (reader, writer) = client.into_split();
            match ask {
                Ask::Both => tokio::try_join!(read(reader, &received), write(writer)).map(drop),
                // Where it is not read for a while it must not be dropped: that closes it.
                _ => write(writer).await.map(|()| drop(reader)),
            }
        });
    }
    let arrived = || received.load(Ordering::Relaxed) + server.received.load(Ordering::Relaxed);
    // Until windows have grown and buffers are full: those of a connection have some MiB.
    sleep(time / 2 + FILLED * u32::try_from(count).unwrap_or(u32::MAX)).await;
    let (before, begin) = (arrived(), Instant::now());
    measured();
    sleep(time).await;
    let (bytes, elapsed) = (arrived() - before, begin.elapsed());
    measured();
    match tasks.try_join_next() {
        Some(Ok(Err(error))) => Err(format!("a connection ended: {error}")),
        _ if bytes == 0 => Err("nothing arrived".to_owned()),
        _ => Ok(bytes as f64 / elapsed.as_secs_f64()),
    }
}

/// How long a message and its echo take, one after the other.
pub async fn echo(address: SocketAddr, time: Duration) -> Result<Vec<Duration>, String> {
    let mut client = client_within(PATIENCE, address, Ask::Echo).await?;
    let mut times = Vec::new();
    let all = async {
        let mut message = [0; ECHO];
        // What comes first is not counted.
        let begin = Instant::now();
        while begin.elapsed() < time + time / 10 {
            let sent = Instant::now();
            client.write_all(&message).await?;
            client.read_exact(&mut message).await?;
            if begin.elapsed() > time / 10 {
                times.push(sent.elapsed());
            }
        }
        io::Result::Ok(())
    };
    match timeout(time + PATIENCE, all).await {
        Ok(Ok(())) => Ok(times),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("an echo did not come".to_owned()),
    }
}

/// So many clients connect at once, and stay. How many are served, and when the last of them was.
pub async fn at_once(address: SocketAddr, count: usize) -> (usize, Duration) {
    let begin = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn(client_within(PATIENCE, address, Ask::Echo));
    }
    let (mut served, mut last) = (Vec::new(), Duration::ZERO);
    while let Some(client) = clients.join_next().await {
        if let Ok(Ok(client)) = client {
            last = begin.elapsed();
            served.push(client);
        }
    }
    (served.len(), last)
}

/// Fills a connection whose server reads nothing, for a time.
pub async fn fill(client: &mut TcpStream, time: Duration) -> Result<(), String> {
    match timeout(time, write(client)).await {
        Ok(ended) => Err(ended.map_or_else(|error| format!("the connection ended: {error}"), |()| String::new())),
        Err(_) => Ok(()),
    }
}

/// Waits until a connection ends.
pub async fn ended(client: &mut TcpStream) -> Result<(), String> {
    // Ended in whatever way.
    timeout(PATIENCE, client.read_u8()).await.map(drop).map_err(|_| "a cut connection does not end".to_owned())
}
