//! Both ends as plain values, and between them a service in memory.

mod flow;
mod hostile;
mod integrity;
mod states;
mod versions;

use super::*;
use crate::codec;
use bytes::BytesMut;
use std::time::Duration;

const SOURCE: Side = Side::Source;
const DESTINATION: Side = Side::Destination;
const FIRST: ServiceIndex = ServiceIndex(0);

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn config(services: &[&str]) -> Config {
    Config { services: Mapped::Exactly(owned(services)), ..Config::default() }
}

fn service_ids(ids: &[&str]) -> Message {
    Message { available_service_ids: owned(ids), ..Message::new(MessageType::ServiceIds) }
}

fn message(kind: MessageType, service_id: &str, stream_id: i32, connection_id: u32) -> Message {
    Message { stream_id, service_id: service_id.into(), connection_id, ..Message::new(kind) }
}

fn data(service_id: &str, stream_id: i32, connection_id: u32, payload: &[u8]) -> Message {
    let payload = Bytes::copy_from_slice(payload);
    Message { payload, ..message(MessageType::Data, service_id, stream_id, connection_id) }
}

fn encoded(message: &Message) -> Bytes {
    let mut bytes = BytesMut::new();
    codec::encode(message, &mut bytes).expect("it fits");
    bytes.freeze()
}

/// A session to which the tunnel's services were told.
fn session_with(side: Side, config: Config, tunnel: &[&str]) -> Session {
    let mut session = Session::new(side, config);
    assert_eq!(give(&mut session, &service_ids(tunnel)), [Event::Services]);
    session
}

fn session(side: Side, services: &[&str]) -> Session {
    session_with(side, config(services), services)
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event().expect("no error")).collect()
}

fn give(session: &mut Session, message: &Message) -> Vec<Event> {
    session.receive(encoded(message));
    events(session)
}

fn frame(session: &mut Session) -> Option<BytesMut> {
    let mut frame = BytesMut::new();
    (session.poll_transmit(&mut frame) > 0).then_some(frame)
}

fn messages(bytes: &[u8]) -> Vec<Message> {
    let mut decoder = Decoder::default();
    decoder.push(Bytes::copy_from_slice(bytes));
    let messages = std::iter::from_fn(|| decoder.next_message().expect("messages")).collect();
    assert_eq!(decoder.buffered(), 0, "whole messages");
    messages
}

/// All that it has to send.
fn sent(session: &mut Session) -> Vec<Message> {
    let mut all = Vec::new();
    while let Some(frame) = frame(session) {
        assert!(frame.len() <= MAX_FRAME);
        all.extend(messages(&frame));
    }
    assert!(!session.has_to_send());
    all
}

fn say(session: &mut Session, key: ConnectionKey, bytes: &[u8]) {
    assert_eq!(session.request(key), RequestAnswer::Granted);
    session.send(key, Bytes::copy_from_slice(bytes));
}

fn take_all(session: &mut Session, key: ConnectionKey) -> (Vec<u8>, Option<End>) {
    let mut bytes = Vec::new();
    loop {
        match session.take(key) {
            Taken::Data(more) => bytes.extend_from_slice(&more),
            Taken::Nothing => return (bytes, None),
            Taken::End(end) => return (bytes, Some(end)),
        }
    }
}

/// The one connection that the events ask for.
fn connect(events: &[Event]) -> ConnectionKey {
    let keys: Vec<_> =
        events.iter().filter_map(|event| if let Event::Connect(key, _) = event { Some(*key) } else { None }).collect();
    assert_eq!(keys.len(), 1, "{events:?}");
    keys[0]
}

/// Moves all that there is from one to the other, in frames of at most `cut` bytes, and by way of what a peer of another
/// version would understand.
fn pass(from: &mut Session, to: &mut Session, cut: usize, as_seen: impl Fn(Message) -> Message) -> Vec<Event> {
    let mut stream = BytesMut::new();
    sent(from).into_iter().for_each(|message| codec::encode(&as_seen(message), &mut stream).expect("it fits"));
    let mut all = Vec::new();
    for piece in stream.chunks(cut) {
        to.receive(Bytes::copy_from_slice(piece));
        all.extend(events(to));
    }
    all
}
