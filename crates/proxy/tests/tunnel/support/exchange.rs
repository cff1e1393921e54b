//! A connection whose every byte is known beforehand: what is lost, doubled, changed, or comes to somebody else, is seen
//! where it comes.
//!
//! The client sends a head with the service's name, a seed, and how many bytes follow each way; both sides then send at
//! the same time. At the end the service sends the SHA-256 of all that it has received, and closes.

use super::PATIENCE;
use super::interop::Program;
use aws_lc_rs::digest::{Context, SHA256};
use futures_util::future::join_all;
use opentunnel_proxy::Side;
use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

/// A prime, so that no stream repeats at a size of a frame or a buffer.
const PATTERN: usize = 1_048_573;
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; PATTERN];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes
});
const PIECE: usize = 32 << 10;
const NAME: usize = 8;
const HEAD: usize = NAME + 24;
const DIGEST: usize = 32;

/// What one connection sends and receives.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub service: &'static str,
    /// Another one for each connection.
    pub seed: u64,
    /// Bytes towards the service.
    pub up: usize,
    /// Bytes of the service.
    pub down: usize,
}

/// How it went.
#[derive(Debug)]
pub enum Outcome {
    Complete,
    /// The connection ended before its time; what came was right.
    Cut(io::Error),
}

/// Bytes of a way, from a place on.
fn bytes(seed: u64, way: u64, place: usize, most: usize) -> &'static [u8] {
    let start = (seed.wrapping_mul(2).wrapping_add(way).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) as usize;
    let start = (start + place) % PATTERN;
    &BYTES[start..PATTERN.min(start + most)]
}

async fn send(stream: &mut OwnedWriteHalf, seed: u64, way: u64, length: usize) -> io::Result<()> {
    let mut place = 0;
    while place < length {
        let piece = bytes(seed, way, place, PIECE.min(length - place));
        stream.write_all(piece).await?;
        place += piece.len();
    }
    Ok(())
}

/// Compares all that comes with what should. Gives its SHA-256.
async fn receive(stream: &mut OwnedReadHalf, seed: u64, way: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut digest = Context::new(&SHA256);
    let mut buffer = vec![0; PIECE.min(length)];
    let mut place = 0;
    while place < length {
        let most = PIECE.min(length - place);
        let read = stream.read(&mut buffer[..most]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        digest.update(&buffer[..read]);
        let mut compared = 0;
        while compared < read {
            let expected = bytes(seed, way, place, read - compared);
            let found = &buffer[compared..compared + expected.len()];
            assert!(found == expected, "wrong bytes between {place} and {} of seed {seed}", place + found.len());
            compared += expected.len();
            place += expected.len();
        }
    }
    Ok(digest.finish().as_ref().to_vec())
}

fn sha256(seed: u64, way: u64, length: usize) -> Vec<u8> {
    let mut digest = Context::new(&SHA256);
    let mut place = 0;
    while place < length {
        let piece = bytes(seed, way, place, length - place);
        digest.update(piece);
        place += piece.len();
    }
    digest.finish().as_ref().to_vec()
}

/// The service's side. What is wrong is told to the client as a digest that does not fit.
pub async fn serve(stream: TcpStream, name: &'static str) {
    // Whoever goes away before the end says so to the client, not here.
    let _ = try_serve(stream, name).await;
}

async fn try_serve(stream: TcpStream, name: &'static str) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut head = [0; HEAD];
    reader.read_exact(&mut head).await?;
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    let (seed, up, down) = (number(NAME), number(NAME + 8) as usize, number(NAME + 16) as usize);
    if head[..NAME] != padded(name) {
        return writer.write_all(&[0xFF; DIGEST]).await;
    }
    let digest = tokio::spawn(async move { (receive(&mut reader, seed, 0, up).await, reader) });
    send(&mut writer, seed, 1, down).await?;
    match digest.await {
        Ok((digest, reader)) => {
            writer.write_all(&digest?).await?;
            writer.shutdown().await?;
            // Not before the client has closed: a socket that is closed with bytes unread is reset.
            let _ = timeout(PATIENCE, drain(reader)).await;
            Ok(())
        }
        // Wrong bytes: it has said which.
        Err(_) => writer.write_all(&[0xEE; DIGEST]).await,
    }
}

async fn drain(mut reader: OwnedReadHalf) {
    while matches!(reader.read(&mut [0; 64]).await, Ok(1..)) {}
}

fn padded(name: &str) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// All at once, and all complete. AWS's program is given a moment for each: a client that comes while it is busy with the
/// one before waits for a second, or is cut.
pub async fn all(exchanges: impl Iterator<Item = (Exchange, SocketAddr)>) {
    let pace = if Program::at(Side::Source) == Program::Ours { Duration::ZERO } else { Duration::from_millis(40) };
    let paced = exchanges.enumerate().map(async |(nth, (exchange, address))| {
        sleep(pace * nth as u32).await;
        exchange.complete(address).await;
    });
    join_all(paced).await;
}

impl Exchange {
    /// The client's side. Wrong bytes fail the test.
    pub async fn run(self, address: SocketAddr) -> Outcome {
        match timeout(PATIENCE, self.attempt(address)).await {
            Ok(Ok(())) => Outcome::Complete,
            Ok(Err(error)) => Outcome::Cut(error),
            Err(_) => panic!("it hangs: {self:?}"),
        }
    }

    /// The client's side; it must be complete.
    pub async fn complete(self, address: SocketAddr) {
        match self.run(address).await {
            Outcome::Complete => {}
            Outcome::Cut(error) => panic!("{self:?}: {error}"),
        }
    }

    async fn attempt(self, address: SocketAddr) -> io::Result<()> {
        let Self { service, seed, up, down } = self;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = stream.into_split();
        let mut head = padded(service).to_vec();
        for number in [seed, up as u64, down as u64] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        writer.write_all(&head).await?;
        let (sent, received) = tokio::join!(send(&mut writer, seed, 0, up), receive(&mut reader, seed, 1, down));
        received?;
        sent?;
        let mut digest = [0; DIGEST];
        reader.read_exact(&mut digest).await?;
        assert!(digest != [0xFF; DIGEST], "it came to another service: {self:?}");
        assert!(digest[..] == sha256(seed, 0, up), "the service has received something else: {self:?}");
        assert!(reader.read(&mut [0]).await? == 0, "too many bytes: {self:?}");
        Ok(())
    }
}
