//! The life of one WebSocket, seen from one end of the tunnel: which connections there are, what they have to send, and
//! what was received for them. Plain values: no I/O, no clock (time comes in as a value), no task.
//!
//! Whoever drives a [`Session`] gives it the bytes of the WebSocket ([`Session::receive`]) and asks it what they mean
//! ([`Session::poll_event`]). Local bytes go in by [`Session::send`], after [`Session::request`] has granted the room for
//! them, and leave as the payload of WebSocket frames ([`Session::poll_transmit`]).
//!
//! # Ends of a connection
//! The protocol has no half-close: a connection ends by one message, for both directions. So:
//! - What was received before the end is handed to the local side first ([`Session::take`]), then the [`End`].
//! - A destination whose service has closed its side ([`Session::finish`]) sends what the service sent, then the end: a
//!   client that reads to the end of a reply must not wait. What the client sends afterwards is dropped.
//! - A source whose client has closed its side keeps the connection, so that the reply is not lost. It ends when the peer
//!   ends it, or when nothing was received for [`Config::half_close`]: only then does the service see the client's end.
//!   Towards a V1 or V2 peer, which takes one connection of a service, a fifth of that is enough where the next client
//!   waits.
//!
//! # Bounds
//! Each buffer has a bound, which stands beside it in [`Bounds`]. The protocol has no flow control: where the bytes that
//! were received for a connection reach its bound, no more messages are read for any ([`Session::is_paused`]), until its
//! local side takes some, or has taken none for [`Config::stall`] and is given up alone.

mod config;
mod connection;
mod error;
mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

use crate::Side;
use crate::codec::Decoder;
use crate::message::{MAX_PAYLOAD, Message, MessageType};
use bytes::Bytes;
pub use config::{Bounds, Config, Mapped, Version};
use connection::{Connection, Local, Permit};
pub use error::{ServicesError, SessionError};
pub use outgoing::{NotNow, RequestAnswer};
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// Bytes of a WebSocket frame's payload at most, by AWS's protocol guide.
pub const MAX_FRAME: usize = 131_076;

/// A connection, for as long as its session. It is never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey(u64);

/// A service: its place in [`Session::services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceIndex(pub usize);

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The services are known: [`Session::services`]. A source listens from now on.
    Services,
    /// To a destination: connect to a service. What the peer sends meanwhile is kept.
    Connect(ConnectionKey, ServiceIndex),
    /// [`Session::take`] has something: it is called until it has nothing.
    Readable(ConnectionKey),
    /// The room that [`Session::request`] asked for is there: [`Session::send`] or [`Session::decline`] follows at once.
    MaySend(ConnectionKey),
    /// [`Session::open`], which could not open a connection to this service, can.
    MayOpen(ServiceIndex),
    /// The session takes bytes again: it is paused no longer.
    Resume,
    /// To a destination: the peer asked for a service that is not mapped here, and was refused.
    Refused(String),
}

/// How a connection ended for its local side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has ended it, and all that it sent was taken.
    Closed,
    /// It was cut: what was received may not be all that was sent.
    Reset,
    /// Its local side took nothing for [`Config::stall`]. What it had not taken is lost.
    Stalled,
}

/// What [`Session::take`] has for a connection's local side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Bytes.
    Data(Bytes),
    /// Nothing until the next [`Event::Readable`].
    Nothing,
    /// The connection is over. Its key is known no longer.
    End(End),
}

struct Service {
    id: String,
    /// What its peer speaks, as far as it is known.
    version: Option<Version>,
    stream: Option<Stream>,
    /// A connection could not be opened: [`Event::MayOpen`] is owed.
    refused_open: bool,
}

struct Stream {
    id: i32,
    version: Version,
    /// As the peer sends it.
    service_id: String,
    /// The peer has used connection IDs.
    numbered: bool,
    highest_connection_id: u32,
    /// By connection ID; 0 in V1 and V2. At most [`Bounds::connections`].
    connections: BTreeMap<u32, ConnectionKey>,
}

/// One end of a tunnel, for the life of one WebSocket.
pub struct Session {
    side: Side,
    config: Config,
    services: Vec<Service>,
    services_known: bool,
    failed: Option<SessionError>,
    next_stream_id: i32,
    next_key: u64,
    /// At most [`Bounds::connections`].
    connections: BTreeMap<ConnectionKey, Connection>,
    /// Less than a message, and what was received while the session was not paused.
    decoder: Decoder,
    /// At most [`Bounds::control`], one message for each connection, and one.
    control: VecDeque<Message>,
    /// Connections that have something to send, in turn. Each is there once.
    ready: VecDeque<ConnectionKey>,
    /// Connections that wait for room in [`Bounds::send_total`], in turn. Each is there once.
    waiting: VecDeque<ConnectionKey>,
    /// At most two for each connection, and two for each service.
    events: VecDeque<Event>,
    queued: usize,
    granted: usize,
    held: usize,
    full_connections: usize,
    full: bool,
    paused: bool,
    resume_due: bool,
}

impl Session {
    /// A session at the moment when its WebSocket is open.
    pub fn new(side: Side, config: Config) -> Self {
        Self {
            side,
            services: Vec::new(),
            services_known: false,
            failed: None,
            next_stream_id: config.first_stream_id.max(1),
            next_key: 0,
            connections: BTreeMap::new(),
            decoder: Decoder::default(),
            control: VecDeque::new(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
            queued: 0,
            granted: 0,
            held: 0,
            full_connections: 0,
            full: false,
            paused: false,
            resume_due: false,
            config,
        }
    }

    /// IDs of the services, once they are known: those of [`Mapped::Exactly`] in its order, else in the tunnel's.
    /// `""`: the tunnel's one service has no ID.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|service| service.id.as_str())
    }

    /// What the peer speaks, as far as its messages or [`Config::peer`] tell: of several services the latest version.
    pub fn peer(&self) -> Option<Version> {
        self.services.iter().filter_map(|service| service.version).max()
    }

    /// The connections that there are, those included that are over, whose [`End`] was not taken.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// For [`Config::first_stream_id`] of the next session.
    pub fn next_stream_id(&self) -> i32 {
        self.next_stream_id
    }

    /// Bytes of payload that it holds: not sent yet, and not taken yet.
    pub fn held(&self) -> (usize, usize) {
        (self.queued, self.held)
    }

    /// What was received for a connection, in order; then its end, if it has ended. A key that is over is reset.
    pub fn take(&mut self, key: ConnectionKey) -> Taken {
        let Some(connection) = self.connections.get_mut(&key) else { return Taken::End(End::Reset) };
        if let Some(bytes) = connection.received.pop() {
            connection.still_since = None;
            self.held -= bytes.len();
            self.update_pause(key);
            return Taken::Data(bytes);
        }
        connection.signalled = false;
        let Some(end) = connection.ended else { return Taken::Nothing };
        self.forget(key);
        Taken::End(end)
    }

    /// Whether a connection was given up, so that what was taken for it needs not be delivered either.
    pub fn is_given_up(&self, key: ConnectionKey) -> bool {
        self.connections.get(&key).is_none_or(|connection| connection.ended == Some(End::Stalled))
    }

    /// Ends what has been quiet for too long. Called a few times within [`Config::stall`] and [`Config::half_close`],
    /// once a second for instance: they are measured from the call that first sees the quiet.
    pub fn tick(&mut self, now: Instant) {
        let keys: Vec<_> = self.connections.keys().copied().collect();
        for key in keys {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            let holds_up = connection.full || self.full && !connection.received.is_empty();
            if !holds_up {
                connection.still_since = None;
            } else if now.duration_since(*connection.still_since.get_or_insert(now)) >= self.config.stall {
                self.cut(key, End::Stalled);
                continue;
            }
            let lingers = connection.local == Local::Finished && connection.ended.is_none();
            if lingers && connection.queue.is_empty() && connection.received.is_empty() {
                let since = *connection.quiet_since.get_or_insert(now);
                let awaited = self.services[connection.service.0].refused_open;
                let half_close = if awaited { self.config.half_close / 5 } else { self.config.half_close };
                if now.duration_since(since) >= half_close {
                    self.end_finished(key);
                }
            }
        }
    }

    fn push_control(&mut self, message: Message) {
        self.control.push_back(message);
        self.update_paused();
    }

    /// The message that ends a connection; in V1 and V2 that is its stream's.
    fn push_end(&mut self, key: ConnectionKey) {
        let Some(message) = self.end_message(key) else { return };
        self.push_control(message);
    }

    fn end_message(&self, key: ConnectionKey) -> Option<Message> {
        let connection = self.connections.get(&key)?;
        let stream = self.services[connection.service.0].stream.as_ref()?;
        let kind = if stream.version == Version::V3 { MessageType::ConnectionReset } else { MessageType::StreamReset };
        Some(stream.message(kind, connection.connection_id))
    }

    /// The peer knows the connection no longer, or will not after the message that was just written.
    fn detach(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if std::mem::replace(&mut connection.detached, true) {
            return;
        }
        self.queued -= connection.queue.clear();
        if std::mem::replace(&mut connection.permit, Permit::None) == Permit::Granted {
            self.granted -= MAX_PAYLOAD;
        }
        let service = &mut self.services[connection.service.0];
        if let Some(stream) = &mut service.stream {
            stream.connections.remove(&connection.connection_id);
            if stream.version < Version::V3 {
                service.stream = None;
            }
        }
        self.grant();
        self.offer_opens();
    }

    /// A connection is over for its local side, which is told so once it has taken what was received.
    fn end(&mut self, key: ConnectionKey, end: End) {
        self.detach(key);
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.local == Local::Gone {
            self.forget(key);
            return;
        }
        connection.ended.get_or_insert(end);
        self.signal(key);
    }

    /// A connection's local side has closed its direction, all was sent, and nothing more is awaited.
    fn end_finished(&mut self, key: ConnectionKey) {
        self.push_end(key);
        self.end(key, End::Closed);
    }

    /// A connection is given up at both ends. What it holds is dropped.
    fn cut(&mut self, key: ConnectionKey, end: End) {
        if self.connections.get(&key).is_some_and(|connection| !connection.detached) {
            self.push_end(key);
        }
        self.end(key, end);
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.ended = Some(end);
            self.held -= connection.received.clear();
            self.update_pause(key);
        }
    }

    /// The stream of a service, with all its connections, is over.
    fn end_stream(&mut self, service: ServiceIndex, end: End) {
        let Some(stream) = self.services[service.0].stream.take() else { return };
        // What has not been sent yet would begin it anew.
        self.control.retain(|message| message.stream_id != stream.id || message.service_id != stream.service_id);
        for key in stream.connections.into_values() {
            self.end(key, end);
        }
        self.update_paused();
        self.offer_opens();
    }

    fn forget(&mut self, key: ConnectionKey) {
        self.detach(key);
        let Some(mut connection) = self.connections.remove(&key) else { return };
        self.held -= connection.received.clear();
        self.full_connections -= usize::from(connection.full);
        self.update_full();
        self.offer_opens();
    }

    fn signal(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if !std::mem::replace(&mut connection.signalled, true) {
            self.events.push_back(Event::Readable(key));
        }
    }

    /// Full at the bound, and no longer at half of it: a buffer that is emptied slowly does not pause all for each piece.
    fn update_pause(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(&key) {
            let (held, bound) = (connection.received.len(), self.config.bounds.receive_connection);
            let full = if connection.full { held > bound / 2 } else { held >= bound };
            self.full_connections += usize::from(full);
            self.full_connections -= usize::from(std::mem::replace(&mut connection.full, full));
        }
        self.update_full();
    }

    fn update_full(&mut self) {
        let bound = self.config.bounds.receive_total;
        self.full = if self.full { self.held > bound / 2 } else { self.held >= bound };
        self.update_paused();
    }

    fn update_paused(&mut self) {
        let paused = self.full_connections > 0 || self.full || self.control.len() >= self.config.bounds.control;
        if std::mem::replace(&mut self.paused, paused) != paused {
            self.resume_due = !paused;
        }
    }
}

impl Stream {
    fn message(&self, kind: MessageType, connection_id: u32) -> Message {
        let service_id = self.service_id.clone();
        let connection_id = if kind == MessageType::StreamReset { 0 } else { connection_id };
        Message { stream_id: self.id, service_id, connection_id, ..Message::new(kind) }
    }
}
