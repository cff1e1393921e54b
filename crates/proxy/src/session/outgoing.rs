//! What the local side sends: connections and bytes in, messages out.

use super::connection::Permit;
use super::{ConnectionKey, Event, Local, MAX_FRAME, MAX_PAYLOAD, ServiceIndex, Session, Side, Stream, Version};
use crate::codec;
use crate::message::{MAX_SERVICE_ID, Message, MessageType};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// A message is at most so much longer than its payload: its length, and seven fields with a key each.
const MAX_HEAD: usize = 2 + MAX_SERVICE_ID + 40;

/// Bytes of a frame, at most: two messages with the largest payload. From 128 KiB on, which [`MAX_FRAME`] would be, memory
/// allocators ask the system for each buffer.
const FRAME: usize = 127 << 10;
const _: () = assert!(FRAME < MAX_FRAME && 2 * (MAX_HEAD + MAX_PAYLOAD) <= FRAME);

/// No connection can be opened now. [`Event::MayOpen`] says when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no connection can be opened to this service now")]
pub struct NotNow;

/// Whether there is room for a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestAnswer {
    /// There is: [`Session::send`] or [`Session::decline`] follows at once, before anything else is waited for.
    Granted,
    /// There is none. [`Event::MaySend`] says when, and is a grant.
    Wait,
    /// Nothing is sent for this connection any more.
    Ended,
}

impl Session {
    /// A source's client wants a connection to a service.
    ///
    /// # Errors
    /// Not now: the services are not known yet, the peer takes one connection and has one, or a bound is reached.
    pub fn open(&mut self, index: ServiceIndex) -> Result<ConnectionKey, NotNow> {
        if !self.may_open(index) {
            if let Some(service) = self.services.get_mut(index.0) {
                service.refused_open = true;
            }
            return Err(NotNow);
        }
        let version = self.spoken(index);
        let service = &mut self.services[index.0];
        let (kind, connection_id) = match &mut service.stream {
            Some(stream) => (MessageType::ConnectionStart, stream.next_connection_id()),
            none => {
                let connection_id = u32::from(version == Version::V3);
                *none = Some(Stream {
                    id: self.next_stream_id,
                    version,
                    service_id: if version == Version::V1 { String::new() } else { service.id.clone() },
                    numbered: self.config.peer == Some(Version::V3),
                    highest_connection_id: connection_id,
                    connections: BTreeMap::new(),
                });
                self.next_stream_id = self.next_stream_id.checked_add(1).unwrap_or(1);
                (MessageType::StreamStart, connection_id)
            }
        };
        let start = service.stream.as_ref().map(|stream| stream.message(kind, connection_id));
        let key = self.insert(index, connection_id);
        start.into_iter().for_each(|message| self.push_control(message));
        Ok(key)
    }

    fn spoken(&self, index: ServiceIndex) -> Version {
        self.config.peer.or(self.services[index.0].version).unwrap_or(Version::V3)
    }

    fn only_connection(&self, index: ServiceIndex) -> Option<ConnectionKey> {
        self.services[index.0].stream.as_ref()?.connections.values().next().copied()
    }

    fn may_open(&self, index: ServiceIndex) -> bool {
        let free = self.side == Side::Source
            && self.services.get(index.0).is_some()
            && self.connections.len() < self.config.bounds.connections
            && self.control.len() < self.config.bounds.control;
        free && (self.spoken(index) == Version::V3 || self.only_connection(index).is_none())
    }

    pub(super) fn offer_opens(&mut self) {
        for index in (0..self.services.len()).map(ServiceIndex) {
            if self.services[index.0].refused_open && self.may_open(index) {
                self.services[index.0].refused_open = false;
                self.events.push_back(Event::MayOpen(index));
            }
        }
    }

    /// Asks for room for up to [`MAX_PAYLOAD`] bytes of a connection's local side, before they are read.
    pub fn request(&mut self, key: ConnectionKey) -> RequestAnswer {
        let Some(connection) = self.connections.get_mut(&key) else { return RequestAnswer::Ended };
        if connection.detached || connection.local != Local::Open {
            return RequestAnswer::Ended;
        }
        if connection.permit == Permit::None {
            if connection.queue.len() >= self.config.bounds.send_connection {
                connection.permit = Permit::Blocked;
            } else if self.queued + self.granted + MAX_PAYLOAD <= self.config.bounds.send_total {
                // Nobody waits while there is room.
                connection.permit = Permit::Granted;
                self.granted += MAX_PAYLOAD;
            } else {
                connection.permit = Permit::Waiting;
                self.waiting.push_back(key);
            }
        }
        if connection.permit == Permit::Granted { RequestAnswer::Granted } else { RequestAnswer::Wait }
    }

    /// Bytes of a connection's local side, at most [`MAX_PAYLOAD`], for which room was granted. They are dropped if the
    /// connection has ended.
    pub fn send(&mut self, key: ConnectionKey, bytes: Bytes) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.detached || connection.local != Local::Open || bytes.is_empty() {
            return self.decline(key);
        }
        debug_assert!(connection.permit == Permit::Granted && bytes.len() <= MAX_PAYLOAD, "room was granted");
        self.queued += bytes.len();
        connection.queue.push(bytes);
        self.schedule(key);
        self.decline(key);
    }

    /// The room that was granted is not needed.
    pub fn decline(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.permit == Permit::Granted {
            connection.permit = Permit::None;
            self.granted -= MAX_PAYLOAD;
            self.grant();
        }
    }

    pub(super) fn grant(&mut self) {
        while self.queued + self.granted + MAX_PAYLOAD <= self.config.bounds.send_total {
            let Some(key) = self.waiting.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            if connection.permit == Permit::Waiting {
                connection.permit = Permit::Granted;
                self.granted += MAX_PAYLOAD;
                self.events.push_back(Event::MaySend(key));
            }
        }
    }

    fn schedule(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if !std::mem::replace(&mut connection.scheduled, true) {
            self.ready.push_back(key);
        }
    }

    /// A connection's local side sends nothing more, but may receive: see the module about what that means.
    pub fn finish(&mut self, key: ConnectionKey) {
        self.decline(key);
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.local != Local::Open {
            return;
        }
        connection.local = Local::Finished;
        connection.quiet_since = None;
        if connection.detached {
            return;
        }
        self.sent_all(key);
    }

    /// A connection's local side is gone. What it had sent is sent still, then the end; what comes is dropped.
    pub fn close(&mut self, key: ConnectionKey) {
        self.decline(key);
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.local = Local::Gone;
        self.held -= connection.received.clear();
        let over = connection.detached;
        self.update_pause(key);
        if over {
            self.forget(key);
        } else {
            self.sent_all(key);
        }
    }

    /// A connection's local side is gone, and what it had sent is dropped too.
    pub fn abort(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(&key) {
            self.queued -= connection.queue.clear();
            self.close(key);
        }
    }

    /// All connections end at once: the session is about to.
    pub fn abort_all(&mut self) {
        let keys: Vec<_> = self.connections.keys().copied().collect();
        keys.into_iter().for_each(|key| self.abort(key));
    }

    /// What follows once nothing of a connection waits to be sent.
    fn sent_all(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(&key) else { return };
        if !connection.queue.is_empty() || connection.detached {
            return;
        }
        match connection.local {
            Local::Open => {}
            Local::Finished if self.side == Side::Source => {}
            Local::Finished | Local::Gone => self.end_finished(key),
        }
    }

    /// Appends messages to the payload of a WebSocket frame, as long as they fit into [`MAX_FRAME`]: first what begins and ends connections, then one piece of each connection in turn. Returns how many.
    pub fn poll_transmit(&mut self, frame: &mut BytesMut) -> usize {
        let mut messages = 0;
        // At once for all that is there: the frame does not grow piece by piece.
        let expected = self.queued + (self.control.len() + self.ready.len()) * MAX_HEAD;
        frame.reserve(expected.min(FRAME.saturating_sub(frame.len())));
        'frame: loop {
            while let Some(message) = self.control.pop_front_if(|_| has_room(frame, 0)) {
                messages += write(&message, frame);
                if matches!(message.kind, MessageType::StreamStart | MessageType::ConnectionStart) {
                    // AWS's local proxy as the destination leaves what follows in the frame until another one comes.
                    break 'frame;
                }
            }
            // What is detached sends nothing any more.
            let next = |key: &ConnectionKey| self.connections.get(key).filter(|connection| !connection.detached);
            while self.ready.front().is_some_and(|key| next(key).is_none()) {
                self.ready.pop_front();
            }
            let Some(key) = self.ready.front().copied() else { break };
            let Some(connection) = self.connections.get_mut(&key) else { break };
            if !self.control.is_empty() || !has_room(frame, connection.queue.next_len().min(MAX_PAYLOAD)) {
                break;
            }
            self.ready.pop_front();
            connection.scheduled = false;
            let Some(payload) = connection.queue.pop_up_to(MAX_PAYLOAD) else { continue };
            self.queued -= payload.len();
            if connection.permit == Permit::Blocked && connection.queue.len() < self.config.bounds.send_connection {
                connection.permit = Permit::Waiting;
                self.waiting.push_back(key);
            }
            let more = !connection.queue.is_empty();
            if let Some(stream) = &self.services[connection.service.0].stream {
                let data = stream.message(MessageType::Data, connection.connection_id);
                messages += write(&Message { payload, ..data }, frame);
            }
            if more { self.schedule(key) } else { self.sent_all(key) }
        }
        if messages > 0 {
            self.grant();
            self.update_paused();
            self.offer_opens();
        }
        messages
    }

    /// Whether [`Session::poll_transmit`] has something.
    pub fn has_to_send(&self) -> bool {
        self.queued > 0 || !self.control.is_empty()
    }
}

impl Stream {
    /// The next one that is in use by no connection. 0 is none.
    fn next_connection_id(&mut self) -> u32 {
        loop {
            self.highest_connection_id = self.highest_connection_id.checked_add(1).unwrap_or(1);
            if !self.connections.contains_key(&self.highest_connection_id) {
                return self.highest_connection_id;
            }
        }
    }
}

/// Whether a message with such a payload goes into the frame.
fn has_room(frame: &BytesMut, payload: usize) -> bool {
    frame.len() + MAX_HEAD + payload <= FRAME
}

/// Messages that were written: what a session makes always fits, because its parts are bounded.
fn write(message: &Message, frame: &mut BytesMut) -> usize {
    usize::from(codec::encode(message, frame).is_ok())
}
