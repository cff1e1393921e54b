//! Pings of the service while nothing is taken of what it sends.

use super::*;
use crate::codec;
use crate::link::{self, Keepalive};
use crate::message::{Message, MessageType};
use crate::session::Bounds;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use std::sync::Mutex;
use tokio_websockets::{Message as Frame, ServerBuilder};

/// A service that is one link, whose other end the test has.
struct OneLink(Mutex<Option<(LinkReader, LinkWriter)>>);

impl Connect for OneLink {
    async fn connect(&self, _side: Side, _tokens: &Tokens) -> Result<(LinkReader, LinkWriter), ConnectError> {
        Ok(self.0.lock().expect("no panic").take().expect("connected once"))
    }
}

fn frame(message: &Message) -> Frame {
    let mut bytes = BytesMut::new();
    codec::encode(message, &mut bytes).expect("it fits");
    Frame::binary(bytes.freeze())
}

/// A server that takes no connection any more: whoever connects waits. What it has taken is kept for it.
#[cfg(target_os = "linux")]
async fn full_server() -> (TcpListener, Vec<TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let server = socket.listen(0).expect("a server");
    let address = server.local_addr().expect("an address");
    let mut taken = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        taken.push(stream.expect("a connection"));
    }
    (server, taken)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn pings_are_answered_while_a_connection_s_buffer_is_full() {
    let (server, _taken) = full_server().await;
    let ends = destination(Services::Only(target(server.local_addr().expect("an address"))));
    let bounds = Bounds { receive_connection: 10, ..Bounds::default() };
    let session = session::Config { bounds, ..session::Config::default() };
    let proxy = Proxy::bind(ends, Options { session, ..options() }, Arc::default()).await.expect("nothing to bind");
    let (near, far) = tokio::io::duplex(64 << 10);
    let (_stop, stopped) = watch::channel(false);
    let link = OneLink(Mutex::new(Some(link::open(near, Keepalive::default()))));
    let running = tokio::spawn(async move { proxy.run(&link, tokens(), stopped, |_| {}).await });
    let mut socket = ServerBuilder::new().serve(far);
    let of_stream = |kind| Message { stream_id: 1, service_id: "SSH".into(), connection_id: 1, ..Message::new(kind) };
    let payload = Bytes::from_static(b"more than ten bytes");
    for message in [
        Message { available_service_ids: vec!["SSH".into()], ..Message::new(MessageType::ServiceIds) },
        of_stream(MessageType::StreamStart),
        Message { payload, ..of_stream(MessageType::Data) },
    ] {
        socket.send(frame(&message)).await.expect("sent");
    }
    socket.send(Frame::ping("1700000000123")).await.expect("sent");
    // Sooner than its connect to the server has taken too long, which would empty the buffer.
    let answer = timeout(Duration::from_secs(5), socket.next()).await.expect("a pong").expect("open").expect("a frame");
    assert!(answer.is_pong() && **answer.as_payload() == *b"1700000000123", "{answer:?}");
    running.abort();
}
