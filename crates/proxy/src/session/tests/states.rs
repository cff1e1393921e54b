//! Every message in every state: the right continuation, or a named error.

use super::*;
use MessageType::{ConnectionReset, ConnectionStart, Data, ServiceIds, SessionReset, StreamReset, StreamStart};

const KINDS: [MessageType; 7] =
    [Data, StreamStart, StreamReset, SessionReset, ServiceIds, ConnectionStart, ConnectionReset];

/// What a message has led to.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    error: Option<SessionError>,
    connects: usize,
    /// What the connection that was there has received, and how it ended.
    taken: Vec<u8>,
    end: Option<End>,
    sent: Vec<Message>,
}

fn outcome(session: &mut Session, there: Option<ConnectionKey>, message: &Message) -> Outcome {
    let mut outcome = Outcome::default();
    session.receive(encoded(message));
    loop {
        match session.poll_event() {
            Ok(Some(Event::Connect(..))) => outcome.connects += 1,
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                assert_eq!(session.poll_event(), Err(error.clone()), "it says so each time");
                outcome.error = Some(error);
                return outcome;
            }
        }
    }
    if let Some(there) = there {
        (outcome.taken, outcome.end) = take_all(session, there);
    }
    outcome.sent = sent(session);
    outcome
}

/// A message of its kind, for the service's stream and a connection of it.
fn of(kind: MessageType, stream_id: i32, connection_id: u32) -> Message {
    match kind {
        Data => data("SSH", stream_id, connection_id, b"data"),
        SessionReset => Message::new(SessionReset),
        ServiceIds => service_ids(&["SSH"]),
        _ => message(kind, "SSH", stream_id, connection_id),
    }
}

fn nothing() -> Outcome {
    Outcome::default()
}

#[test]
fn before_the_services_are_known_nothing_begins() {
    for side in [SOURCE, DESTINATION] {
        for kind in KINDS {
            let mut session = Session::new(side, config(&["SSH"]));
            let error = matches!(kind, StreamStart | ConnectionStart).then_some(SessionError::BeforeServices(kind));
            assert_eq!(outcome(&mut session, None, &of(kind, 1, 1)), Outcome { error, ..nothing() });
        }
        assert_eq!(Session::new(side, config(&["SSH"])).open(FIRST), Err(NotNow));
    }
}

#[test]
fn without_a_stream_only_a_destination_is_begun_one() {
    for (side, kind) in [SOURCE, DESTINATION].into_iter().flat_map(|side| KINDS.map(|kind| (side, kind))) {
        let mut session = session(side, &["SSH"]);
        let expected = match (side, kind) {
            (SOURCE, StreamStart) => Outcome { error: Some(SessionError::StartedAtSource), ..nothing() },
            (DESTINATION, StreamStart) => Outcome { connects: 1, ..nothing() },
            // Its stream was reset, what the source does not know yet.
            (DESTINATION, ConnectionStart) => Outcome { sent: vec![of(StreamReset, 1, 0)], ..nothing() },
            _ => nothing(),
        };
        assert_eq!(outcome(&mut session, None, &of(kind, 1, 1)), expected, "{side:?} {kind:?}");
    }
}

fn with_connection(side: Side, version: Version) -> (Session, ConnectionKey) {
    let mut session = session_with(side, Config { peer: Some(version), ..config(&["SSH"]) }, &["SSH"]);
    let key = match side {
        SOURCE => session.open(FIRST).expect("open"),
        DESTINATION => {
            let start = of(StreamStart, 1, u32::from(version == Version::V3));
            connect(&give(&mut session, &start))
        }
    };
    sent(&mut session);
    (session, key)
}

#[test]
fn a_v3_connection_sees_what_is_meant_for_it() {
    for (side, kind) in [SOURCE, DESTINATION].into_iter().flat_map(|side| KINDS.map(|kind| (side, kind))) {
        let (mut session, key) = with_connection(side, Version::V3);
        let expected = match (side, kind) {
            (_, Data) => Outcome { taken: b"data".to_vec(), ..nothing() },
            (SOURCE, StreamStart) => Outcome { error: Some(SessionError::StartedAtSource), ..nothing() },
            // The new stream is the one that counts.
            (DESTINATION, StreamStart) => Outcome { connects: 1, end: Some(End::Reset), ..nothing() },
            // One that is there cannot begin.
            (_, ConnectionStart) => {
                Outcome { end: Some(End::Reset), sent: vec![of(ConnectionReset, 1, 1)], ..nothing() }
            }
            (_, ConnectionReset) => Outcome { end: Some(End::Closed), ..nothing() },
            (_, StreamReset | SessionReset) => Outcome { end: Some(End::Reset), ..nothing() },
            (_, ServiceIds) => nothing(),
        };
        assert_eq!(outcome(&mut session, Some(key), &of(kind, 1, 1)), expected, "{side:?} {kind:?}");
    }
}

#[test]
fn a_v3_connection_does_not_see_what_is_meant_for_another() {
    for (side, kind) in [SOURCE, DESTINATION].into_iter().flat_map(|side| KINDS.map(|kind| (side, kind))) {
        // Another connection; an older stream; another service.
        for (nth, other) in [of(kind, 1, 2), of(kind, 7, 1), Message { service_id: "WEB".into(), ..of(kind, 1, 1) }]
            .into_iter()
            .enumerate()
        {
            if matches!(kind, StreamStart | StreamReset | SessionReset | ServiceIds) && nth != 2 || kind == SessionReset
            {
                continue;
            }
            let (mut session, key) = with_connection(side, Version::V3);
            let error = (side == SOURCE && kind == StreamStart).then_some(SessionError::StartedAtSource);
            let refused = side == DESTINATION && nth == 2 && matches!(kind, StreamStart | ConnectionStart);
            let connects = usize::from(side == DESTINATION && nth == 0 && kind == ConnectionStart);
            let sent = if refused { vec![message(StreamReset, "WEB", 1, 0)] } else { vec![] };
            let expected = Outcome { error, connects, sent, ..nothing() };
            assert_eq!(outcome(&mut session, Some(key), &other), expected, "{side:?} {other:?}");
        }
    }
    // A reset of an older stream.
    let (mut session, key) = with_connection(SOURCE, Version::V3);
    assert_eq!(outcome(&mut session, Some(key), &of(StreamReset, 7, 0)), nothing());
}

#[test]
fn a_v2_connection_sees_what_is_meant_for_its_stream() {
    for (side, kind) in [SOURCE, DESTINATION].into_iter().flat_map(|side| KINDS.map(|kind| (side, kind))) {
        // What it says of connections is ignored.
        for connection_id in [0, 5] {
            let (mut session, key) = with_connection(side, Version::V2);
            let broken = || Outcome { end: Some(End::Reset), sent: vec![of(StreamReset, 1, 0)], ..nothing() };
            let expected = match (side, kind) {
                (_, Data) => Outcome { taken: b"data".to_vec(), ..nothing() },
                (SOURCE, StreamStart) => Outcome { error: Some(SessionError::StartedAtSource), ..nothing() },
                (DESTINATION, StreamStart) => Outcome { connects: 1, end: Some(End::Reset), ..nothing() },
                (_, StreamReset) => Outcome { end: Some(End::Closed), ..nothing() },
                (_, SessionReset) => Outcome { end: Some(End::Reset), ..nothing() },
                // V2 does not have them.
                (DESTINATION, ConnectionStart) | (_, ConnectionReset) => broken(),
                (SOURCE, ConnectionStart) if connection_id == 0 => broken(),
                (SOURCE, ConnectionStart) | (_, ServiceIds) => nothing(),
            };
            let message = of(kind, 1, connection_id);
            assert_eq!(outcome(&mut session, Some(key), &message), expected, "{side:?} {message:?}");
        }
    }
}

#[test]
fn what_comes_after_the_end_is_dropped() {
    for side in [SOURCE, DESTINATION] {
        // Ended here, and there.
        for here in [true, false] {
            for kind in [Data, ConnectionReset] {
                let (mut session, key) = with_connection(side, Version::V3);
                if here {
                    session.close(key);
                    sent(&mut session);
                } else {
                    give(&mut session, &of(ConnectionReset, 1, 1));
                }
                assert_eq!(outcome(&mut session, None, &of(kind, 1, 1)), nothing());
                assert_eq!(session.held(), (0, 0));
            }
        }
    }
}

#[test]
fn a_message_that_names_no_connection_among_several_ends_the_stream() {
    for kind in [Data, ConnectionStart] {
        let (mut session, key) = with_connection(DESTINATION, Version::V3);
        let expected = Outcome { end: Some(End::Reset), sent: vec![of(StreamReset, 1, 0)], ..nothing() };
        assert_eq!(outcome(&mut session, Some(key), &of(kind, 1, 0)), expected, "{kind:?}");
    }
    let (mut session, key) = with_connection(SOURCE, Version::V3);
    let expected = Outcome { end: Some(End::Reset), sent: vec![of(StreamReset, 1, 0)], ..nothing() };
    assert_eq!(outcome(&mut session, Some(key), &of(Data, 1, 0)), expected);
}

#[test]
fn what_was_received_before_the_end_is_delivered_before_it() {
    for (kind, end) in [(ConnectionReset, End::Closed), (StreamReset, End::Reset), (SessionReset, End::Reset)] {
        let (mut session, key) = with_connection(SOURCE, Version::V3);
        give(&mut session, &of(Data, 1, 1));
        give(&mut session, &of(kind, 1, 1));
        assert_eq!(take_all(&mut session, key), (b"data".to_vec(), Some(end)));
        assert_eq!(session.take(key), Taken::End(End::Reset), "it is known no longer");
    }
}

#[test]
fn a_stream_needs_an_id_and_services_stay() {
    for kind in [StreamStart, ConnectionStart] {
        let mut destination = session(DESTINATION, &["SSH"]);
        // A refusal would go without an ID, too: the service takes no such message.
        let expected = Outcome { error: Some(SessionError::NoStreamId(kind)), ..nothing() };
        assert_eq!(outcome(&mut destination, None, &of(kind, 0, 1)), expected);
    }
    let (mut destination, _) = with_connection(DESTINATION, Version::V3);
    let unknown = ServicesError::Differ { mapped: owned(&["SSH"]), tunnel: owned(&["WEB"]) };
    assert_eq!(outcome(&mut destination, None, &service_ids(&["WEB"])).error, Some(unknown.into()));
    let mut all = session_with(DESTINATION, Config::default(), &["SSH"]);
    let changed = ServicesError::Changed { tunnel: owned(&["WEB"]) };
    assert_eq!(outcome(&mut all, None, &service_ids(&["WEB"])).error, Some(changed.into()));
}

#[test]
fn a_service_that_is_not_mapped_is_refused() {
    let among = Config { services: Mapped::Among(owned(&["SSH"])), ..Config::default() };
    let mut destination = session_with(DESTINATION, among, &["SSH", "WEB"]);
    let start = message(StreamStart, "WEB", 9, 1);
    assert_eq!(give(&mut destination, &start), [Event::Refused("WEB".into())]);
    assert_eq!(sent(&mut destination), [message(StreamReset, "WEB", 9, 0)]);
    // Without an ID it is the one service only where there is one.
    let mut destination = session(DESTINATION, &["SSH", "WEB"]);
    assert_eq!(give(&mut destination, &message(StreamStart, "", 9, 0)), [Event::Refused(String::new())]);
    assert_eq!(sent(&mut destination), [message(StreamReset, "", 9, 0)]);
}

#[test]
fn a_destination_that_cannot_connect_says_so() {
    for (version, reset) in [(Version::V3, of(ConnectionReset, 1, 1)), (Version::V2, of(StreamReset, 1, 0))] {
        let (mut destination, key) = with_connection(DESTINATION, version);
        give(&mut destination, &of(Data, 1, 1));
        destination.close(key);
        assert_eq!(sent(&mut destination), [reset]);
        assert_eq!((destination.connections(), destination.held()), (0, (0, 0)));
    }
}

#[test]
fn a_source_whose_client_has_closed_its_side_waits_for_the_reply() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let (mut source, key) = with_connection(SOURCE, Version::V3);
    say(&mut source, key, b"request");
    source.finish(key);
    assert_eq!(source.request(key), RequestAnswer::Ended);
    source.tick(at(0));
    source.tick(at(60));
    assert_eq!(sent(&mut source), [data("SSH", 1, 1, b"request")], "time begins when all is sent");
    source.tick(at(61));
    source.tick(at(64));
    give(&mut source, &of(Data, 1, 1));
    source.tick(at(67));
    assert_eq!(take_all(&mut source, key), (b"data".to_vec(), None));
    source.tick(at(68));
    source.tick(at(72));
    assert_eq!(sent(&mut source), []);
    source.tick(at(73));
    assert_eq!(sent(&mut source), [of(ConnectionReset, 1, 1)]);
    assert_eq!(events(&mut source), [Event::Readable(key)]);
    assert_eq!(source.take(key), Taken::End(End::Closed));
}

#[test]
fn a_client_that_waits_for_a_v1_peer_shortens_the_wait_of_one_that_has_closed_its_side() {
    let begin = Instant::now();
    let (mut source, first) = with_connection(SOURCE, Version::V1);
    assert_eq!(source.open(FIRST), Err(NotNow));
    source.finish(first);
    source.tick(begin);
    source.tick(begin + Duration::from_millis(999));
    assert_eq!(source.open(FIRST), Err(NotNow));
    source.tick(begin + Duration::from_millis(1000));
    assert_eq!(events(&mut source), [Event::MayOpen(FIRST), Event::Readable(first)]);
    let second = source.open(FIRST).expect("open");
    assert_eq!(sent(&mut source), [message(StreamReset, "", 1, 0), message(StreamStart, "", 2, 0)]);
    assert_eq!(source.take(first), Taken::End(End::Closed));
    assert_eq!(source.take(second), Taken::Nothing);
}

#[test]
fn a_destination_whose_service_has_closed_its_side_ends_behind_the_reply() {
    let (mut destination, key) = with_connection(DESTINATION, Version::V3);
    give(&mut destination, &of(Data, 1, 1));
    say(&mut destination, key, b"reply");
    destination.finish(key);
    assert_eq!(sent(&mut destination), [data("SSH", 1, 1, b"reply"), of(ConnectionReset, 1, 1)]);
    assert_eq!(give(&mut destination, &of(Data, 1, 1)), []);
    assert_eq!(take_all(&mut destination, key), (b"data".to_vec(), Some(End::Closed)));
}

#[test]
fn a_session_reset_ends_what_was_not_sent_yet() {
    let mut source = session(SOURCE, &["SSH"]);
    let key = source.open(FIRST).expect("open");
    say(&mut source, key, b"request");
    give(&mut source, &Message::new(SessionReset));
    assert_eq!(sent(&mut source), [], "the peer would wait for a connection that is over");
    assert_eq!(source.take(key), Taken::End(End::Reset));
}

#[test]
fn all_connections_are_ended_at_once() {
    let mut source = session(SOURCE, &["SSH"]);
    let (first, second) = (source.open(FIRST).expect("open"), source.open(FIRST).expect("open"));
    sent(&mut source);
    say(&mut source, second, b"late");
    source.abort_all();
    assert_eq!(sent(&mut source), [of(ConnectionReset, 1, 1), of(ConnectionReset, 1, 2)]);
    assert_eq!((source.connections(), source.held()), (0, (0, 0)));
    assert_eq!(source.take(first), Taken::End(End::Reset));
}
