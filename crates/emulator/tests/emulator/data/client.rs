//! A client of the data plane: an HTTP handshake by hand, then messages.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use opentunnel_proxy::codec;
use opentunnel_proxy::message::{Message, MessageType};
use secure_tunneling_emulator::{ConnectionStatus, Connections, Emulator, LiveTokens, Side};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_websockets::{ClientBuilder, Message as Frame, WebSocketStream};

use crate::client::{PATIENCE, call};

pub const V1: &str = "aws.iot.securetunneling-1.0";
pub const V3: &str = "aws.iot.securetunneling-3.0";
pub const CLIENT_TOKEN: &str = "0d66a7f9-1920-437c-946f-65a22e39ef98";
/// How long is waited for what must not come.
pub const SILENCE: Duration = Duration::from_millis(200);

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An open tunnel's ID and tokens.
pub async fn tunnel(emulator: &Emulator, services: &[&str]) -> (String, LiveTokens) {
    let body = match services {
        [] => json!({}),
        services => json!({"destinationConfig": {"services": services}}),
    };
    let opened = call(emulator, "OpenTunnel", body).await.body;
    let id = opened["tunnelId"].as_str().expect("an ID").to_owned();
    let tokens = emulator.live_tokens(&id).expect("tokens");
    (id, tokens)
}

/// An HTTP answer's head, and the connection behind it.
pub struct Answer {
    pub status: u16,
    head: String,
    pub stream: Box<dyn Io>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// Status and AWS's words, which the body and the header say alike.
    pub async fn refusal(mut self) -> (u16, String) {
        let length = self.header("content-length").expect("a length").parse().expect("a number");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.expect("the body");
        let body = String::from_utf8(body).expect("UTF-8");
        assert_eq!(self.header("x-status-reason"), Some(body.as_str()));
        assert!(self.header("channel-id").is_some());
        (self.status, body)
    }
}

/// What a client asks for.
pub struct Ask {
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
}

impl Ask {
    pub fn new(side: Side, token: &str) -> Self {
        let mode = if side == Side::Source { "source" } else { "destination" };
        let headers = [
            ("Host", "localhost"),
            ("Upgrade", "websocket"),
            ("Connection", "upgrade"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Protocol", V3),
            ("access-token", token),
        ];
        let headers = headers.map(|(name, value)| (name, value.to_owned())).to_vec();
        Self { path: format!("/tunnel?local-proxy-mode={mode}"), headers }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self
    }

    pub fn speaking(self, subprotocol: &str) -> Self {
        self.without("Sec-WebSocket-Protocol").with("Sec-WebSocket-Protocol", subprotocol)
    }

    pub async fn send(self, emulator: &Emulator) -> Answer {
        let stream = TcpStream::connect(emulator.data_addr()).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        self.send_on(stream).await
    }

    pub async fn send_on(self, stream: impl Io + 'static) -> Answer {
        let mut stream: Box<dyn Io> = Box::new(stream);
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET {} HTTP/1.1\r\n{headers}\r\n", self.path);
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        // Not a byte of what follows.
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, stream.read_u8()).await.expect("an answer").expect("all of it"));
        }
        let head = String::from_utf8(head).expect("UTF-8");
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        Answer { status, head, stream }
    }

    pub async fn connect(self, emulator: &Emulator) -> Client {
        Client::on(self.send(emulator).await)
    }
}

/// One side, connected.
pub struct Client {
    pub socket: WebSocketStream<Box<dyn Io>>,
    buffered: BytesMut,
}

impl Client {
    pub fn on(answer: Answer) -> Self {
        assert_eq!(answer.status, 101, "{}", answer.head);
        Self { socket: ClientBuilder::new().take_over(answer.stream), buffered: BytesMut::new() }
    }

    /// A client of V3 that has its first message behind it.
    pub async fn join(emulator: &Emulator, side: Side, token: &str) -> Self {
        let mut client = Ask::new(side, token).connect(emulator).await;
        assert_eq!(client.message().await.kind, MessageType::ServiceIds);
        client
    }

    /// The next frame. `None`: closed without a close frame.
    pub async fn frame(&mut self) -> Option<Frame> {
        let next = timeout(PATIENCE, self.socket.next()).await.expect("a frame or an end");
        next.and_then(Result::ok)
    }

    /// The next message.
    pub async fn message(&mut self) -> Message {
        loop {
            if let Some(message) = self.buffered_message() {
                return message;
            }
            let frame = self.frame().await.expect("a frame");
            assert!(frame.is_binary() || frame.is_pong(), "not a frame of messages: {:?}", frame.as_close());
            if frame.is_binary() {
                assert!(frame.as_payload().len() <= 131_076);
                self.buffered.extend_from_slice(frame.as_payload());
            }
        }
    }

    fn buffered_message(&mut self) -> Option<Message> {
        let length = usize::from(u16::from_be_bytes(*self.buffered.first_chunk()?));
        if self.buffered.len() < 2 + length {
            return None;
        }
        let mut bytes = self.buffered.split_to(2 + length).freeze();
        bytes.advance(2);
        Some(Message::decode(bytes).expect("a message").expect("of a type that is known"))
    }

    /// Nothing comes.
    pub async fn is_silent(&mut self) {
        assert_eq!(self.buffered_message(), None);
        assert!(timeout(SILENCE, self.socket.next()).await.is_err(), "something came");
    }

    pub async fn send(&mut self, messages: &[Message]) {
        self.send_bytes(&bytes_of(messages)).await;
    }

    /// Sends a frame.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let frame = Frame::binary(Bytes::copy_from_slice(bytes));
        timeout(PATIENCE, self.socket.send(frame)).await.expect("room").expect("sent");
    }

    /// Closes as the protocol has it.
    pub async fn close(&mut self) {
        self.socket.send(Frame::close(None, "")).await.expect("sent");
        assert!(self.frame().await.expect("an answer").is_close());
    }

    /// The close frame, which must come, though other messages may come first.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            let frame = self.frame().await.expect("a close frame");
            if let Some((code, reason)) = frame.as_close() {
                return (code.into(), reason.to_owned());
            }
        }
    }
}

pub fn bytes_of(messages: &[Message]) -> BytesMut {
    let mut bytes = BytesMut::new();
    messages.iter().for_each(|message| codec::encode(message, &mut bytes).expect("it fits"));
    bytes
}

pub fn of_stream(kind: MessageType, service: &str, stream_id: i32) -> Message {
    Message { stream_id, service_id: service.to_owned(), ..Message::new(kind) }
}

pub fn start(service: &str, stream_id: i32) -> Message {
    Message { connection_id: 1, ..of_stream(MessageType::StreamStart, service, stream_id) }
}

pub fn reset(service: &str, stream_id: i32) -> Message {
    of_stream(MessageType::StreamReset, service, stream_id)
}

pub fn data(service: &str, stream_id: i32, payload: impl Into<Bytes>) -> Message {
    Message { connection_id: 1, payload: payload.into(), ..of_stream(MessageType::Data, service, stream_id) }
}

/// A tunnel with the service SSH, and both its sides.
pub struct Pair {
    pub id: String,
    pub tokens: LiveTokens,
    pub source: Client,
    pub destination: Client,
}

impl Pair {
    pub async fn new(emulator: &Emulator) -> Self {
        let (id, tokens) = tunnel(emulator, &["SSH"]).await;
        let source = Client::on(with_client_token(Side::Source, &tokens.source).send(emulator).await);
        let destination = Client::on(with_client_token(Side::Destination, &tokens.destination).send(emulator).await);
        let mut pair = Self { id, tokens, source, destination };
        for client in [&mut pair.source, &mut pair.destination] {
            assert_eq!(client.message().await.available_service_ids, ["SSH"]);
        }
        pair
    }

    /// A pair with a stream of SSH that is open, with the ID 7.
    pub async fn open(emulator: &Emulator) -> Self {
        let mut pair = Self::new(emulator).await;
        pair.source.send(&[start("SSH", 7)]).await;
        assert_eq!(pair.destination.message().await, start("SSH", 7));
        pair
    }
}

pub fn with_client_token(side: Side, token: &str) -> Ask {
    Ask::new(side, token).with("client-token", CLIENT_TOKEN)
}

pub fn connected(source: bool, destination: bool) -> Connections {
    let status = |is| Some(if is { ConnectionStatus::Connected } else { ConnectionStatus::Disconnected });
    Connections { source: status(source), destination: status(destination) }
}

pub async fn wait_connected(emulator: &Emulator, id: &str, source: bool, destination: bool) {
    let waiting = emulator.wait_connections(id, connected(source, destination));
    timeout(PATIENCE, waiting).await.expect("the connections");
}

/// Numbers that are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    /// One of 0 to `below` - 1.
    pub fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}
