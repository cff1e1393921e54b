//! Which messages each version sends, and every pair of versions in one tunnel.

use super::*;

/// What becomes of a message on its way to a peer of another version.
type View = fn(Message) -> Message;

fn as_is(message: Message) -> Message {
    message
}

/// What a V2 peer makes of a message: it knows no connections.
fn as_v2(message: Message) -> Message {
    Message { connection_id: 0, ..message }
}

fn as_v1(message: Message) -> Message {
    Message { service_id: String::new(), ..as_v2(message) }
}

#[test]
fn v3_starts_a_stream_and_further_connections_in_it() {
    use MessageType::{ConnectionReset, ConnectionStart, StreamStart};
    let mut source = session(SOURCE, &["SSH", "WEB"]);
    let first = source.open(FIRST).expect("open");
    let second = source.open(FIRST).expect("open");
    let other = source.open(ServiceIndex(1)).expect("open");
    say(&mut source, second, b"two");
    source.close(first);
    source.close(second);
    assert_eq!(
        sent(&mut source),
        [
            message(StreamStart, "SSH", 1, 1),
            message(ConnectionStart, "SSH", 1, 2),
            message(StreamStart, "WEB", 2, 1),
            message(ConnectionReset, "SSH", 1, 1),
            data("SSH", 1, 2, b"two"),
            message(ConnectionReset, "SSH", 1, 2),
        ]
    );
    // The stream stays when its last connection ends.
    source.open(FIRST).expect("open");
    assert_eq!(sent(&mut source), [message(ConnectionStart, "SSH", 1, 3)]);
    // It is begun anew when it was reset.
    give(&mut source, &message(MessageType::StreamReset, "SSH", 1, 0));
    source.open(FIRST).expect("open");
    assert_eq!(sent(&mut source), [message(StreamStart, "SSH", 3, 1)]);
    assert_eq!(source.take(other), Taken::Nothing);
    assert_eq!(source.next_stream_id(), 4);
}

#[test]
fn v2_and_v1_have_one_connection_and_no_number_for_it() {
    for (peer, id) in [(Version::V2, "SSH"), (Version::V1, "")] {
        let mut source = session_with(SOURCE, Config { peer: Some(peer), ..config(&["SSH"]) }, &["SSH"]);
        let first = source.open(FIRST).expect("open");
        assert_eq!(source.open(FIRST), Err(NotNow));
        say(&mut source, first, b"one");
        source.close(first);
        let all = [
            message(MessageType::StreamStart, id, 1, 0),
            data(id, 1, 0, b"one"),
            message(MessageType::StreamReset, id, 1, 0),
        ];
        assert_eq!(sent(&mut source), all);
        assert_eq!(events(&mut source), [Event::MayOpen(FIRST)]);
        source.open(FIRST).expect("the next one's turn");
        assert_eq!(sent(&mut source), [message(MessageType::StreamStart, id, 2, 0)]);
        assert_eq!(source.peer(), Some(peer));
    }
}

#[test]
fn a_request_and_its_reply_pass_in_every_pair_of_versions_wherever_the_stream_is_cut() {
    let views: [(View, Version); 3] = [(as_is, Version::V3), (as_v2, Version::V2), (as_v1, Version::V1)];
    for (peer, tunnel) in [None, Some(Version::V1), Some(Version::V2), Some(Version::V3)]
        .into_iter()
        .flat_map(|peer| [(peer, &["SSH"][..]), (peer, &[])])
    {
        for (view, seen_as) in views {
            // A source that was told V3 wants what V3 says.
            if peer == Some(Version::V3) && seen_as < Version::V3 || peer == Some(Version::V1) && seen_as == Version::V2
            {
                continue;
            }
            for cut in (1..40).chain([MAX_FRAME]) {
                let mut source = session_with(SOURCE, Config { peer, ..Config::default() }, tunnel);
                let mut destination = session_with(DESTINATION, Config::default(), tunnel);
                for round in 0..3 {
                    let here = source.open(FIRST).unwrap_or_else(|_| panic!("{peer:?} {seen_as:?} {cut} {round}"));
                    say(&mut source, here, b"request");
                    let there = connect(&pass(&mut source, &mut destination, cut, view));
                    assert_eq!(take_all(&mut destination, there), (b"request".to_vec(), None));
                    say(&mut destination, there, b"reply");
                    pass(&mut destination, &mut source, cut, as_is);
                    assert_eq!(take_all(&mut source, here), (b"reply".to_vec(), None), "{peer:?} {seen_as:?}");
                    // Each side ends one.
                    if round == 1 {
                        say(&mut destination, there, b"bye");
                        destination.finish(there);
                        pass(&mut destination, &mut source, cut, as_is);
                        assert_eq!(take_all(&mut source, here), (b"bye".to_vec(), Some(End::Closed)));
                        assert_eq!(take_all(&mut destination, there), (vec![], Some(End::Closed)));
                    } else {
                        say(&mut source, here, b"bye");
                        source.close(here);
                        pass(&mut source, &mut destination, cut, view);
                        assert_eq!(take_all(&mut destination, there), (b"bye".to_vec(), Some(End::Closed)));
                    }
                    assert_eq!((source.connections(), destination.connections()), (0, 0));
                    assert_eq!((source.held(), destination.held()), ((0, 0), (0, 0)));
                }
                // Where there is no ID to send, V2 looks like V1.
                let unnamed = tunnel.is_empty() && seen_as < Version::V3;
                let expected = peer.unwrap_or(if unnamed { Version::V1 } else { seen_as });
                assert_eq!(source.peer(), Some(expected), "{tunnel:?}");
            }
        }
    }
}

#[test]
fn a_v2_peer_is_noticed_and_further_connections_are_told() {
    let mut source = session(SOURCE, &["SSH"]);
    let mut destination = session(DESTINATION, &["SSH"]);
    let first = source.open(FIRST).expect("open");
    let there = connect(&pass(&mut source, &mut destination, 9, as_v2));
    say(&mut destination, there, b"welcome");
    let second = source.open(FIRST).expect("it is not known yet");
    pass(&mut destination, &mut source, 9, as_is);
    assert_eq!(take_all(&mut source, first), (b"welcome".to_vec(), None));
    assert_eq!(take_all(&mut source, second), (vec![], Some(End::Reset)));
    assert_eq!(sent(&mut source), [], "the second one's beginning is not sent any more");
    assert_eq!(source.open(FIRST), Err(NotNow));
    say(&mut source, first, b"more");
    assert_eq!(sent(&mut source), [data("SSH", 1, 0, b"more")]);
}

#[test]
fn a_peer_that_has_named_a_connection_is_no_v2_peer() {
    let mut source = session(SOURCE, &["SSH"]);
    let (first, second) = (source.open(FIRST).expect("open"), source.open(FIRST).expect("open"));
    sent(&mut source);
    give(&mut source, &message(MessageType::ConnectionReset, "SSH", 1, 2));
    assert_eq!(source.take(second), Taken::End(End::Closed));
    assert_eq!(source.peer(), Some(Version::V3));
    give(&mut source, &data("SSH", 1, 0, b"for which one?"));
    assert_eq!(sent(&mut source), [message(MessageType::StreamReset, "SSH", 1, 0)]);
    assert_eq!(source.take(first), Taken::End(End::Reset));
}

#[test]
fn a_v2_peer_that_answers_too_late_is_told() {
    let mut source = session(SOURCE, &["SSH"]);
    let first = source.open(FIRST).expect("open");
    source.close(first);
    sent(&mut source);
    give(&mut source, &data("SSH", 1, 0, b"welcome"));
    assert_eq!(sent(&mut source), [message(MessageType::StreamReset, "SSH", 1, 0)]);
    source.open(FIRST).expect("open");
    assert_eq!(sent(&mut source), [message(MessageType::StreamStart, "SSH", 2, 0)]);
}

#[test]
fn services_must_be_the_tunnels() {
    let told = |side: Side, services: Mapped, tunnel: &[&str]| {
        let mut session = Session::new(side, Config { services, ..Config::default() });
        session.receive(encoded(&service_ids(tunnel)));
        let events = session.poll_event().map_err(|error| error.to_string())?;
        assert_eq!(events, Some(Event::Services));
        Ok(session.services().collect::<Vec<_>>().join(" "))
    };
    let exactly = |ids: &[&str]| Mapped::Exactly(owned(ids));
    let among = |ids: &[&str]| Mapped::Among(owned(ids));
    for side in [SOURCE, DESTINATION] {
        assert_eq!(told(side, Mapped::Only, &["SSH"]), Ok("SSH".into()));
        assert_eq!(told(side, Mapped::Only, &[]), Ok("".into()));
        let several = "the tunnel has the services A, B: give each its address, as in SERVICE=ADDRESS";
        assert_eq!(told(side, Mapped::Only, &["A", "B"]), Err(several.into()));
        assert_eq!(told(side, exactly(&["B", "A"]), &["A", "B"]), Ok("B A".into()));
        for (mapped, tunnel, text) in [
            (&["ssh"][..], &["SSH"][..], "the tunnel has the service SSH, not the service ssh"),
            (&["A"], &["A", "B"], "the tunnel has the services A, B, not the service A"),
            (&["A"], &[], "the tunnel has one service without an ID, not the service A"),
        ] {
            let text = format!("{text}: give each its address, its ID written just so");
            assert_eq!(told(side, exactly(mapped), tunnel), Err(text));
        }
    }
    assert_eq!(told(SOURCE, among(&["B"]), &["A", "B"]), Ok("A B".into()));
    assert_eq!(told(SOURCE, among(&["B"]), &[]), Ok("".into()));
    assert_eq!(told(DESTINATION, among(&["C", "B"]), &["A", "B"]), Ok("B".into()));
    let none = "the tunnel has the services A, B: no address is known for any of them";
    assert_eq!(told(DESTINATION, among(&["C"]), &["A", "B"]), Err(none.into()));
}

#[test]
fn ids_wrap_without_meeting_those_in_use() {
    let mut source = session_with(SOURCE, Config { first_stream_id: i32::MAX, ..config(&["SSH"]) }, &["SSH"]);
    source.open(FIRST).expect("open");
    source.open(FIRST).expect("open");
    if let Some(stream) = &mut source.services[0].stream {
        stream.highest_connection_id = u32::MAX - 1;
    }
    source.open(FIRST).expect("open");
    source.open(FIRST).expect("open");
    let numbers: Vec<_> = sent(&mut source).iter().map(|message| (message.stream_id, message.connection_id)).collect();
    assert_eq!(numbers, [(i32::MAX, 1), (i32::MAX, 2), (i32::MAX, u32::MAX), (i32::MAX, 3)]);
    give(&mut source, &Message::new(MessageType::SessionReset));
    source.open(FIRST).expect("open");
    assert_eq!(sent(&mut source), [message(MessageType::StreamStart, "SSH", 1, 1)]);
}
