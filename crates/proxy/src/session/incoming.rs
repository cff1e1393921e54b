//! What the peer and the service send: bytes in, events out.

use super::{
    Connection, ConnectionKey, End, Event, Local, Mapped, ServiceIndex, ServicesError, Session, SessionError, Side,
    Stream, Version,
};
use crate::message::{Message, MessageType};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// How a message stands to the stream of its service.
enum Found {
    /// It is for this service's stream.
    Stream(ServiceIndex),
    /// It is for a stream that is over, or for none: it came too late, and is dropped.
    Stale,
}

impl Session {
    /// Whether nothing is read from the WebSocket until [`Event::Resume`]: what is held has reached a bound.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The payload of a WebSocket frame has come. While the session [is paused](Session::is_paused) none is given to it:
    /// it would be kept beyond the bounds.
    pub fn receive(&mut self, bytes: Bytes) {
        if self.failed.is_none() {
            self.decoder.push(bytes);
        }
    }

    /// What has happened: because of what was received, of what was sent, or of time. It is asked after each of them,
    /// until there is nothing.
    ///
    /// # Errors
    /// The session cannot go on, and says so each time.
    pub fn poll_event(&mut self) -> Result<Option<Event>, SessionError> {
        loop {
            if let Some(event) = self.pop_event() {
                return Ok(Some(event));
            }
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            if self.paused {
                return Ok(None);
            }
            let handled = match self.decoder.next_message() {
                Ok(None) => return Ok(None),
                Ok(Some(message)) => self.handle(message),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = handled {
                self.decoder = Default::default();
                self.failed = Some(error);
            }
        }
    }

    /// What has happened already: as [`Session::poll_event`], but it reads no message, so no connection begins.
    pub fn pop_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.resume_due) {
            return Some(Event::Resume);
        }
        self.events.pop_front()
    }

    fn handle(&mut self, message: Message) -> Result<(), SessionError> {
        match message.kind {
            MessageType::ServiceIds => return self.handle_services(message.available_service_ids),
            MessageType::StreamStart | MessageType::ConnectionStart if !self.services_known => {
                return Err(SessionError::BeforeServices(message.kind));
            }
            MessageType::StreamStart if self.side == Side::Source => return Err(SessionError::StartedAtSource),
            // Its refusal would have none either, and the service takes no such message.
            MessageType::StreamStart | MessageType::ConnectionStart if message.stream_id == 0 => {
                return Err(SessionError::NoStreamId(message.kind));
            }
            MessageType::StreamStart => self.handle_stream_start(message),
            MessageType::ConnectionStart => self.handle_connection_start(message),
            MessageType::Data => self.handle_data(message),
            MessageType::ConnectionReset => self.handle_connection_reset(&message),
            MessageType::StreamReset => self.handle_stream_reset(&message),
            MessageType::SessionReset => {
                (0..self.services.len()).for_each(|index| self.end_stream(ServiceIndex(index), End::Reset));
            }
        }
        Ok(())
    }

    fn handle_services(&mut self, tunnel: Vec<String>) -> Result<(), SessionError> {
        let services = match &self.config.services {
            Mapped::Only if tunnel.len() > 1 => return Err(ServicesError::Several { tunnel }.into()),
            Mapped::Exactly(mapped) => {
                let sorted = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
                if sorted(mapped) != sorted(&tunnel) {
                    return Err(ServicesError::Differ { mapped: mapped.clone(), tunnel }.into());
                }
                mapped.clone()
            }
            Mapped::Among(mapped) if self.side == Side::Destination => {
                let both: Vec<_> = tunnel.iter().filter(|id| mapped.contains(id)).cloned().collect();
                if both.is_empty() {
                    return Err(ServicesError::NoneMapped { tunnel }.into());
                }
                both
            }
            Mapped::Only | Mapped::Among(_) if tunnel.is_empty() => vec![String::new()],
            Mapped::Only | Mapped::Among(_) => tunnel.clone(),
        };
        if self.services_known {
            // AWS's service may send them again; streams go by a service's place, so they stay.
            let same = self.services.iter().map(|service| &service.id).eq(&services);
            return if same { Ok(()) } else { Err(ServicesError::Changed { tunnel }.into()) };
        }
        let version = if self.side == Side::Source { self.config.peer } else { None };
        let service = |id| super::Service { id, version, stream: None, refused_open: false };
        self.services = services.into_iter().map(service).collect();
        self.services_known = true;
        self.events.push_back(Event::Services);
        self.offer_opens();
        Ok(())
    }

    /// A V1 peer sends no service's ID: then it is the one that there is.
    fn service(&self, id: &str) -> Option<ServiceIndex> {
        let position = self.services.iter().position(|service| service.id == id);
        position.or_else(|| (id.is_empty() && self.services.len() == 1).then_some(0)).map(ServiceIndex)
    }

    fn find(&self, message: &Message) -> Found {
        let found = self.service(&message.service_id).filter(|index| {
            let stream = self.services[index.0].stream.as_ref();
            stream.is_some_and(|stream| stream.id == message.stream_id)
        });
        found.map_or(Found::Stale, Found::Stream)
    }

    fn stream(&self, index: ServiceIndex) -> Option<&Stream> {
        self.services[index.0].stream.as_ref()
    }

    fn handle_stream_start(&mut self, message: Message) {
        let Some(index) = self.service(&message.service_id) else {
            self.refuse_stream(&message);
            self.events.push_back(Event::Refused(message.service_id));
            return;
        };
        self.end_stream(index, End::Reset);
        let version = match (message.connection_id, message.service_id.is_empty()) {
            (0, true) => Version::V1,
            (0, false) => Version::V2,
            _ => Version::V3,
        };
        let service = &mut self.services[index.0];
        service.version = Some(version);
        service.stream = Some(Stream {
            id: message.stream_id,
            version,
            service_id: message.service_id,
            numbered: version == Version::V3,
            highest_connection_id: message.connection_id,
            connections: BTreeMap::new(),
        });
        self.connect(index, message.connection_id);
    }

    fn handle_connection_start(&mut self, message: Message) {
        if self.side == Side::Source {
            // The guide's answer: the connection that it would begin anew is over.
            self.refuse_connection(&message);
            return;
        }
        let Found::Stream(index) = self.find(&message) else {
            // Of an old stream, which the peer has replaced itself; or of one that was reset, what it does not know yet.
            let known = self.service(&message.service_id);
            if known.is_none_or(|index| self.stream(index).is_none()) {
                self.refuse_stream(&message);
            }
            return;
        };
        let numbered = self.stream(index).is_some_and(|stream| stream.numbered);
        if !numbered || message.connection_id == 0 {
            self.break_stream(index);
        } else if !self.refuse_connection(&message) {
            self.connect(index, message.connection_id);
        }
    }

    /// Ends the connection that a message begins although there is one already. False: there is none.
    fn refuse_connection(&mut self, message: &Message) -> bool {
        let Found::Stream(index) = self.find(message) else { return false };
        let key = self.stream(index).and_then(|stream| stream.connections.get(&message.connection_id));
        let Some(key) = key.copied() else { return false };
        self.cut(key, End::Reset);
        true
    }

    fn refuse_stream(&mut self, message: &Message) {
        let Message { stream_id, service_id, .. } = message.clone();
        self.push_control(Message { stream_id, service_id, ..Message::new(MessageType::StreamReset) });
    }

    /// The peer has broken the rules of a stream in a way that leaves open which connection it means.
    fn break_stream(&mut self, index: ServiceIndex) {
        let message = self.stream(index).map(|stream| stream.message(MessageType::StreamReset, 0));
        self.end_stream(index, End::Reset);
        message.into_iter().for_each(|message| self.push_control(message));
    }

    fn connect(&mut self, index: ServiceIndex, connection_id: u32) {
        if self.connections.len() >= self.config.bounds.connections {
            let Some(stream) = &mut self.services[index.0].stream else { return };
            if stream.version == Version::V3 {
                let message = stream.message(MessageType::ConnectionReset, connection_id);
                self.push_control(message);
            } else {
                self.break_stream(index);
            }
            return;
        }
        let key = self.insert(index, connection_id);
        self.events.push_back(Event::Connect(key, index));
    }

    pub(super) fn insert(&mut self, index: ServiceIndex, connection_id: u32) -> ConnectionKey {
        let key = ConnectionKey(self.next_key);
        self.next_key += 1;
        self.connections.insert(key, Connection::new(index, connection_id));
        if let Some(stream) = &mut self.services[index.0].stream {
            stream.connections.insert(connection_id, key);
        }
        key
    }

    fn handle_data(&mut self, message: Message) {
        let Found::Stream(index) = self.find(&message) else { return };
        let Some(stream) = &mut self.services[index.0].stream else { return };
        let connection_id = match stream.version {
            Version::V3 if message.connection_id == 0 && stream.numbered => return self.break_stream(index),
            Version::V3 if message.connection_id == 0 => {
                self.fall_back(index, message.service_id.is_empty());
                0
            }
            Version::V3 => {
                stream.numbered = true;
                self.services[index.0].version = Some(Version::V3);
                message.connection_id
            }
            // What a V1 or V2 peer says of connections is ignored.
            Version::V1 | Version::V2 => 0,
        };
        let Some(key) = self.stream(index).and_then(|stream| stream.connections.get(&connection_id)).copied() else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.local == Local::Gone || message.payload.is_empty() {
            return;
        }
        connection.quiet_since = None;
        self.held += message.payload.len();
        connection.received.push(message.payload);
        self.signal(key);
        self.update_pause(key);
    }

    /// A source has begun a stream as in V3, and the peer's first answer names no connection: it speaks V2, or V1 where it
    /// names no service either. It has one connection, the first.
    fn fall_back(&mut self, index: ServiceIndex, unnamed: bool) {
        let version = if unnamed { Version::V1 } else { Version::V2 };
        self.services[index.0].version = Some(version);
        let Some(stream) = &mut self.services[index.0].stream else { return };
        let Some(first) = stream.connections.remove(&1) else {
            // The peer does not know yet that it is over.
            return self.break_stream(index);
        };
        // The peer knows none of the others.
        let others = std::mem::take(&mut stream.connections);
        let (id, service_id) = (stream.id, stream.service_id.clone());
        self.control.retain(|message| message.stream_id != id || message.service_id != service_id);
        others.into_values().for_each(|key| self.end(key, End::Reset));
        let Some(stream) = &mut self.services[index.0].stream else { return };
        stream.version = version;
        if unnamed {
            stream.service_id.clear();
        }
        stream.connections.insert(0, first);
        if let Some(connection) = self.connections.get_mut(&first) {
            connection.connection_id = 0;
        }
        self.update_paused();
    }

    fn handle_connection_reset(&mut self, message: &Message) {
        let Found::Stream(index) = self.find(message) else { return };
        let Some(stream) = &mut self.services[index.0].stream else { return };
        if stream.version < Version::V3 {
            return self.break_stream(index);
        }
        if message.connection_id != 0 {
            stream.numbered = true;
            self.services[index.0].version = Some(Version::V3);
        }
        let key = self.stream(index).and_then(|stream| stream.connections.get(&message.connection_id)).copied();
        key.into_iter().for_each(|key| self.end(key, End::Closed));
    }

    fn handle_stream_reset(&mut self, message: &Message) {
        let Found::Stream(index) = self.find(message) else { return };
        // Where a stream is one connection, this is how it ends. In V3 something has cut all at once, or a peer whose
        // version is not known yet has ended one without having sent anything.
        let one = self.stream(index).is_some_and(|stream| stream.version < Version::V3);
        self.end_stream(index, if one { End::Closed } else { End::Reset });
    }
}
