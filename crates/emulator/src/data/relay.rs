//! One side's WebSocket: what it sends goes to the other side, what the other side sends goes to it. As one future, so
//! that neither direction waits for the other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Sink, SinkExt, Stream as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use opentunnel_proxy::codec;
use opentunnel_proxy::message::{Message, MessageType};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::PollSender;
use tokio_websockets::{CloseCode, Config, Error, Limits, Message as Frame, ServerBuilder, WebSocketStream};

use super::faults::{ActiveFault, DataFault, Strike};
use super::link::{Change, Command, Event, Place, Route, Stream};
use super::messages::Incoming;
use crate::shared::Shared;

/// Bytes of a frame's payload at most, both ways, by AWS's protocol guide.
const MAX_FRAME: usize = 131_076;
/// What waits to be sent is written when it has this many bytes, if not earlier because nothing comes.
const WRITE_AT_ONCE: usize = 128 << 10;
/// Pings whose pongs wait to be sent. Beyond them nothing is read: a client that never reads would fill the memory.
const MAX_PINGS: u32 = 64;
/// Bytes of the service's own messages that wait to be sent. Beyond them nothing is read either.
const MAX_OWN: usize = 64 << 10;
/// Bytes of a close frame's reason at most (RFC 6455, 5.5).
const MAX_REASON: usize = 123;
/// How long a client may take to answer a close frame.
const CLOSING: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A client that was let in.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) place: Place,
    pub(super) tunnel_id: String,
    pub(super) services: Vec<String>,
    /// Whether its version of the protocol has a serviceId.
    pub(super) knows_services: bool,
    pub(super) fault: Option<DataFault>,
}

/// How a connection ends.
#[derive(Debug)]
enum End {
    /// With a close frame.
    Close(CloseCode, String),
    /// Without one.
    Cut,
    /// The client is gone, or has closed.
    Gone,
}

impl End {
    fn violation(reason: impl ToString) -> Self {
        Self::Close(CloseCode::PROTOCOL_ERROR, reason.to_string())
    }
}

/// Serves a client that was let in until the connection ends, then gives its seat up.
pub(super) async fn run(upgrade: OnUpgrade, joined: Joined, shared: Arc<Shared>) {
    let tunnel_id = joined.tunnel_id.clone();
    let (place, ended) = match upgrade.await {
        Ok(upgraded) => {
            let socket = ServerBuilder::new()
                .config(Config::default().frame_size(MAX_FRAME).flush_threshold(WRITE_AT_ONCE))
                .limits(Limits::default().max_payload_len(Some(MAX_FRAME)))
                .serve(TokioIo::new(upgraded));
            let mut relay = Relay::new(socket, joined);
            let end = std::future::poll_fn(|cx| relay.poll(cx)).await;
            // The lanes are let go of here: the other side reads its own to the end.
            let Relay { socket, place, .. } = relay;
            (place, Some((socket, end)))
        }
        // The client has gone before it was answered.
        Err(_) => (joined.place, None),
    };
    shared.change(|state| {
        let now = state.service.clock.now();
        if let Some(tunnel) = state.service.store.get_mut(&tunnel_id, now) {
            tunnel.leave(&place, now);
        }
    });
    if let Some((socket, end)) = ended {
        // A client that does not answer is left alone.
        let _ = timeout(CLOSING, close(socket, end)).await;
    }
}

async fn close(mut socket: Socket, end: End) -> Result<(), Error> {
    match end {
        End::Cut => return socket.flush().await,
        End::Close(code, reason) => {
            // The socket has closed by itself where the frames were wrong, not the messages.
            let most = reason.floor_char_boundary(MAX_REASON);
            let _ = socket.send(Frame::close(Some(code), &reason[..most])).await;
        }
        End::Gone => {}
    }
    socket.close().await?;
    // What is closed with bytes unread is reset, and the client may lose the close frame by that.
    let mut stream = socket.into_inner();
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

struct Relay {
    socket: Socket,
    place: Place,
    knows_services: bool,
    fault: Option<ActiveFault>,
    /// Messages of the service itself.
    own: BytesMut,
    own_session_reset: bool,
    /// The part of a batch that is not sent yet.
    rest: Bytes,
    lane: Option<mpsc::Receiver<Bytes>>,
    incoming: Incoming,
    peer: Option<PollSender<Bytes>>,
    /// Of the route to the peer.
    version: u64,
    /// Whether the batch that goes next has its route.
    is_routed: bool,
    /// Pings since all was written.
    pings: u32,
    /// How it will end, when what came before is delivered.
    end: Option<End>,
}

impl Relay {
    fn new(socket: Socket, joined: Joined) -> Self {
        let Joined { place, services, knows_services, fault, .. } = joined;
        let mut own = BytesMut::new();
        let first = Message {
            available_service_ids: services,
            // V1 does not know it.
            ignorable: !knows_services,
            ..Message::new(MessageType::ServiceIds)
        };
        let end = codec::encode(&first, &mut own).err().map(|_| {
            End::Close(CloseCode::INTERNAL_SERVER_ERROR, "SERVICE_IDS does not fit into a message".to_owned())
        });
        Self {
            socket,
            incoming: Incoming::new(place.side()),
            place,
            knows_services,
            fault: fault.map(ActiveFault::new),
            own,
            own_session_reset: false,
            rest: Bytes::new(),
            lane: None,
            peer: None,
            version: 0,
            is_routed: false,
            pings: 0,
            end,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if let Some(end) = self.poll_commands(cx) {
                return Poll::Ready(end);
            }
            if let Some(fault) = &mut self.fault {
                match fault.poll(cx) {
                    Some(Strike::Disconnect) => return Poll::Ready(End::Cut),
                    Some(Strike::SessionReset) => self.own_session_reset = true,
                    None => ready!(fault.poll_stall(cx)),
                }
            }
            if let Poll::Ready(end) = self.poll_read(cx) {
                return Poll::Ready(end);
            }
            let was_paused = self.is_paused();
            if let Err(error) = self.poll_write(cx) {
                // What came before is still delivered.
                self.end = Some(end_by(&error));
                continue;
            }
            // A fault may happen at the byte that was just written, and reading go on when all is.
            let is_due = self.fault.as_ref().is_some_and(ActiveFault::is_due);
            if !is_due && (!was_paused || self.is_paused()) {
                return Poll::Pending;
            }
        }
    }

    fn poll_commands(&mut self, cx: &mut Context<'_>) -> Option<End> {
        while let Poll::Ready(Some(command)) = self.place.commands.poll_recv(cx) {
            match command {
                Command::End(goodbye) => {
                    let (code, reason) = goodbye.close();
                    return Some(End::Close(code, reason.to_owned()));
                }
                Command::Fault(fault) => self.fault = fault.map(ActiveFault::new),
            }
        }
        None
    }

    /// Reads what there is and delivers it. Ready: the connection ends, and all that came before is delivered.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            while self.incoming.next().is_some() {
                ready!(self.poll_deliver(cx));
            }
            if let Some(end) = self.end.take() {
                return Poll::Ready(end);
            }
            let paced = self.fault.as_mut().is_some_and(|fault| fault.poll_read(cx).is_pending());
            let next = match paced || self.is_paused() {
                true => Poll::Pending,
                false => Pin::new(&mut self.socket).poll_next(cx),
            };
            match next {
                // Nothing more for now: what came is not held back.
                Poll::Pending if self.incoming.finish_batch() => continue,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => self.read(frame),
                Poll::Ready(Some(Err(error))) => self.end = Some(end_by(&error)),
                Poll::Ready(None) => self.end = Some(End::Gone),
            }
            if self.end.is_some() {
                self.incoming.finish_batch();
            }
        }
    }

    /// Whether so much of the service's own waits to be sent that no more may come of it.
    fn is_paused(&self) -> bool {
        self.pings >= MAX_PINGS || self.own.len() >= MAX_OWN
    }

    fn read(&mut self, frame: Frame) {
        if frame.is_binary() {
            let payload = Bytes::from(frame.into_payload());
            if let Some(fault) = &mut self.fault {
                fault.read(payload.len());
            }
            self.end = self.incoming.push(payload).err().map(End::violation);
        } else if frame.is_text() {
            self.end = Some(End::Close(CloseCode::UNSUPPORTED_DATA, "frames must be binary".to_owned()));
        } else if frame.is_ping() {
            // The socket answers it.
            self.pings += 1;
        }
    }

    /// Brings the batch that goes next to the other side.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_routed {
            self.route();
            self.is_routed = true;
        }
        let room = match &mut self.peer {
            Some(peer) => ready!(peer.poll_reserve(cx)).is_ok(),
            None => false,
        };
        let batch = self.incoming.take_next();
        self.is_routed = false;
        match (&mut self.peer, batch) {
            (Some(peer), Some(batch)) if room => {
                // There is room.
                let _ = peer.send_item(batch.bytes);
            }
            // The other side has left, and with it all that was on the way to it.
            _ => self.peer = None,
        }
        Poll::Ready(())
    }

    fn route(&mut self) {
        let Some(batch) = self.incoming.next() else { return };
        if batch.changes.is_empty() && self.version == self.place.version() {
            return;
        }
        match self.place.route(&batch.changes, &mut self.version) {
            Route::Same => {}
            Route::Lane(lane) => self.peer = Some(PollSender::new(lane)),
            Route::Nowhere => {
                self.peer = None;
                for change in &batch.changes {
                    if let Change::Start(stream) = change {
                        put_reset(stream, self.knows_services, &mut self.own);
                    }
                }
            }
            Route::TooManyStreams => {
                self.peer = None;
                self.end = Some(End::violation("there are more streams than services"));
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.end.is_some() {
            return Ok(());
        }
        loop {
            if let Some(fault) = &mut self.fault
                && (fault.is_due() || fault.poll_write(cx).is_pending())
            {
                break;
            }
            if Pin::new(&mut self.socket).poll_ready(cx)?.is_pending() {
                return Ok(());
            }
            let joins = self.fault.as_ref().is_some_and(ActiveFault::joins);
            if self.rest.is_empty() || joins {
                match self.poll_messages(cx) {
                    Poll::Ready(messages) if self.rest.is_empty() => self.rest = messages,
                    Poll::Ready(messages) => self.rest = [&self.rest[..], &messages].concat().into(),
                    Poll::Pending if self.rest.is_empty() => break,
                    Poll::Pending => {}
                }
            }
            let length = self.rest.len().min(MAX_FRAME);
            let length = self.fault.as_mut().map_or(length, |fault| fault.piece(length));
            if let Some(fault) = &mut self.fault {
                fault.wrote(length);
            }
            Pin::new(&mut self.socket).start_send(Frame::binary(self.rest.split_to(length)))?;
        }
        if Pin::new(&mut self.socket).poll_flush(cx)?.is_ready() {
            self.pings = 0;
        }
        Ok(())
    }

    /// The messages that go next to this side.
    fn poll_messages(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        // Not within a message.
        if self.own_session_reset && self.rest.is_empty() {
            self.own_session_reset = false;
            self.place.reset_streams();
            // What goes to the other side from here on goes behind its STREAM_RESETs.
            (self.peer, self.version, self.is_routed) = (None, 0, false);
            put(&Message::new(MessageType::SessionReset), &mut self.own);
        }
        if !self.own.is_empty() {
            return Poll::Ready(self.own.split().freeze());
        }
        loop {
            if let Some(lane) = &mut self.lane {
                match ready!(lane.poll_recv(cx)) {
                    Some(messages) => return Poll::Ready(messages),
                    None => self.lane = None,
                }
            }
            match self.place.events.poll_recv(cx) {
                Poll::Ready(Some(Event::Lane(lane))) => self.lane = Some(lane),
                Poll::Ready(Some(Event::Reset(streams))) => {
                    let mut resets = BytesMut::new();
                    streams.iter().for_each(|stream| put_reset(stream, self.knows_services, &mut resets));
                    return Poll::Ready(resets.freeze());
                }
                // Without a seat there is nothing more to come but a command.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn put_reset(stream: &Stream, knows_services: bool, out: &mut BytesMut) {
    let service_id = if knows_services { stream.service_id.clone() } else { String::new() };
    put(&Message { stream_id: stream.id, service_id, ..Message::new(MessageType::StreamReset) }, out);
}

/// Writes a message that is short enough.
fn put(message: &Message, out: &mut BytesMut) {
    let written = codec::encode(message, out);
    debug_assert!(written.is_ok(), "a message of the service is too long");
}

fn end_by(error: &Error) -> End {
    match error {
        Error::Protocol(error) => End::violation(error),
        Error::PayloadTooLong { .. } => {
            End::Close(CloseCode::MESSAGE_TOO_BIG, format!("a frame's payload has more than {MAX_FRAME} bytes"))
        }
        _ => End::Gone,
    }
}
