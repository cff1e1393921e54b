//! Bounds, back pressure, turns, and readers that stand still.

use super::*;
use std::collections::BTreeMap;

static PAYLOAD: [u8; MAX_PAYLOAD] = [7; MAX_PAYLOAD];

fn small() -> Bounds {
    Bounds {
        send_connection: MAX_PAYLOAD,
        send_total: 4 * MAX_PAYLOAD,
        receive_connection: 100_000,
        receive_total: 300_000,
        connections: 10,
        control: 8,
    }
}

fn open_all(source: &mut Session, count: usize) -> Vec<ConnectionKey> {
    (0..count).map(|_| source.open(FIRST).expect("open")).collect()
}

#[test]
fn a_connection_that_has_enough_to_send_waits_and_goes_on() {
    let mut source = session_with(SOURCE, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let key = open_all(&mut source, 1)[0];
    say(&mut source, key, &PAYLOAD);
    assert_eq!(source.request(key), RequestAnswer::Wait);
    assert_eq!(source.request(key), RequestAnswer::Wait, "asking twice changes nothing");
    assert_eq!(events(&mut source), []);
    assert_eq!(sent(&mut source).len(), 2);
    assert_eq!(events(&mut source), [Event::MaySend(key)]);
    source.send(key, Bytes::from_static(b"more"));
    assert_eq!(source.held(), (4, 0));
}

#[test]
fn what_waits_to_be_sent_is_bounded_and_room_goes_round() {
    let mut source = session_with(SOURCE, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let keys = open_all(&mut source, 8);
    sent(&mut source);
    events(&mut source);
    let mut granted: BTreeMap<_, usize> = BTreeMap::new();
    let mut wanting: VecDeque<_> = keys.iter().copied().collect();
    for _ in 0..400 {
        for key in std::mem::take(&mut wanting) {
            if source.request(key) == RequestAnswer::Granted {
                source.send(key, Bytes::from_static(&PAYLOAD));
                *granted.entry(key).or_default() += 1;
                wanting.push_back(key);
            }
        }
        assert!(source.held().0 <= 4 * MAX_PAYLOAD, "{:?}", source.held());
        let frame = frame(&mut source).expect("there is something");
        assert!(frame.len() <= MAX_FRAME && messages(&frame).len() == 2);
        for event in events(&mut source) {
            let Event::MaySend(key) = event else { panic!("{event:?}") };
            source.send(key, Bytes::from_static(&PAYLOAD));
            *granted.entry(key).or_default() += 1;
            wanting.push_back(key);
        }
    }
    let (least, most) = (granted.values().min().expect("some"), granted.values().max().expect("some"));
    assert!(granted.len() == 8 && most - least <= 2, "{granted:?}");
}

#[test]
fn room_that_is_not_used_goes_to_others() {
    let bounds = Bounds { send_total: MAX_PAYLOAD, ..small() };
    let mut source = session_with(SOURCE, Config { bounds, ..config(&["SSH"]) }, &["SSH"]);
    let keys = open_all(&mut source, 4);
    assert_eq!(source.request(keys[0]), RequestAnswer::Granted);
    keys[1..].iter().for_each(|key| assert_eq!(source.request(*key), RequestAnswer::Wait));
    source.decline(keys[0]);
    assert_eq!(events(&mut source), [Event::MaySend(keys[1])]);
    // One that is closed, and one that the peer has ended, with what was granted.
    source.close(keys[1]);
    assert_eq!(events(&mut source), [Event::MaySend(keys[2])]);
    give(&mut source, &message(MessageType::ConnectionReset, "SSH", 1, 3));
    assert_eq!(source.request(keys[2]), RequestAnswer::Ended);
    assert_eq!(source.request(keys[3]), RequestAnswer::Granted);
}

#[test]
fn turns_go_round_whoever_has_more() {
    let mut source = session(SOURCE, &["SSH"]);
    let keys = open_all(&mut source, 3);
    sent(&mut source);
    (0..2).for_each(|_| say(&mut source, keys[0], &PAYLOAD));
    say(&mut source, keys[1], b"small");
    say(&mut source, keys[2], &PAYLOAD);
    let order: Vec<_> =
        sent(&mut source).iter().map(|message| (message.connection_id, message.payload.len())).collect();
    assert_eq!(order, [(1, MAX_PAYLOAD), (2, 5), (3, MAX_PAYLOAD), (1, MAX_PAYLOAD)]);
}

#[test]
fn what_does_not_fit_into_a_frame_goes_into_the_next() {
    let mut source = session(SOURCE, &["SSH"]);
    let keys = open_all(&mut source, 2);
    keys.iter().for_each(|key| say(&mut source, *key, &PAYLOAD));
    let key = keys[0];
    say(&mut source, key, &PAYLOAD[..40_000]);
    // Each connection's start ends its frame.
    let lengths: Vec<_> = std::iter::from_fn(|| frame(&mut source)).map(|frame| messages(&frame).len()).collect();
    assert_eq!(lengths, [1, 1, 2, 1]);
}

/// AWS's local proxy as the destination leaves what follows a start in its frame until another frame comes.
#[test]
fn nothing_follows_a_start_in_its_frame() {
    for version in [Version::V1, Version::V2, Version::V3] {
        let mut source = session_with(SOURCE, Config { peer: Some(version), ..config(&["SSH"]) }, &["SSH"]);
        let key = source.open(FIRST).expect("open");
        say(&mut source, key, b"request");
        let kinds: Vec<Vec<_>> = std::iter::from_fn(|| frame(&mut source))
            .map(|frame| messages(&frame).into_iter().map(|message| message.kind).collect())
            .collect();
        assert_eq!(kinds, [[MessageType::StreamStart], [MessageType::Data]], "{version:?}");
    }
}

#[test]
fn a_full_buffer_pauses_reading_until_it_is_half_empty() {
    let mut source = session_with(SOURCE, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let keys = open_all(&mut source, 2);
    sent(&mut source);
    let piece = [1; 20_000];
    for _ in 0..4 {
        give(&mut source, &data("SSH", 1, 1, &piece));
    }
    assert!(!source.is_paused());
    give(&mut source, &data("SSH", 1, 1, &piece));
    assert!(source.is_paused());
    // What came in the same frame is not lost, and not looked at.
    assert_eq!(give(&mut source, &data("SSH", 1, 2, b"other")), []);
    for _ in 0..2 {
        assert!(matches!(source.take(keys[0]), Taken::Data(_)));
        assert_eq!(events(&mut source), []);
    }
    assert!(matches!(source.take(keys[0]), Taken::Data(_)));
    assert_eq!(events(&mut source), [Event::Resume, Event::Readable(keys[1])]);
    assert_eq!(take_all(&mut source, keys[1]).0, b"other");
}

#[test]
fn what_is_held_for_all_is_bounded_too() {
    let mut source = session_with(SOURCE, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let keys = open_all(&mut source, 8);
    sent(&mut source);
    for connection_id in (1..=8).cycle() {
        if source.is_paused() {
            break;
        }
        give(&mut source, &data("SSH", 1, connection_id, &[2; 9_000]));
    }
    assert!(source.held().1 >= 300_000 && source.held().1 < 300_000 + MAX_PAYLOAD);
    let total: usize = keys.iter().map(|key| take_all(&mut source, *key).0.len()).sum();
    assert!(total > 300_000 && !source.is_paused());
    assert_eq!(events(&mut source), [Event::Resume]);
}

#[test]
fn a_reader_that_stands_still_is_given_up_alone() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut source = session_with(SOURCE, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let keys = open_all(&mut source, 2);
    sent(&mut source);
    // One that holds nobody up may stand still as long as it likes.
    give(&mut source, &data("SSH", 1, 1, &[1; 60_000]));
    source.tick(at(0));
    source.tick(at(1000));
    give(&mut source, &data("SSH", 1, 1, &[1; 60_000]));
    source.receive(encoded(&data("SSH", 1, 2, b"waits")));
    assert!(source.is_paused() && events(&mut source).is_empty());
    source.tick(at(1001));
    // Slowly is not still.
    assert!(matches!(source.take(keys[0]), Taken::Data(_)));
    give(&mut source, &data("SSH", 1, 1, &[1; 60_000]));
    source.tick(at(1020));
    source.tick(at(1049));
    assert_eq!(sent(&mut source), []);
    source.tick(at(1050));
    assert_eq!(sent(&mut source), [message(MessageType::ConnectionReset, "SSH", 1, 1)]);
    assert_eq!(take_all(&mut source, keys[0]), (vec![], Some(End::Stalled)));
    assert_eq!(events(&mut source)[0], Event::Resume);
    assert_eq!(take_all(&mut source, keys[1]), (b"waits".to_vec(), None));
    // What still comes for it is dropped.
    give(&mut source, &data("SSH", 1, 1, &[1; 60_000]));
    assert_eq!(source.held(), (0, 0));
}

#[test]
fn a_reader_that_stands_still_at_the_end_is_given_up_too() {
    let begin = Instant::now();
    let mut source = session_with(SOURCE, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let key = open_all(&mut source, 1)[0];
    sent(&mut source);
    (0..2).for_each(|_| drop(give(&mut source, &data("SSH", 1, 1, &[1; 60_000]))));
    source.receive(encoded(&message(MessageType::ConnectionReset, "SSH", 1, 1)));
    source.tick(begin);
    source.tick(begin + Duration::from_secs(30));
    assert_eq!(source.take(key), Taken::End(End::Stalled));
    assert_eq!(source.held(), (0, 0));
}

#[test]
fn connections_are_bounded() {
    let mut source = session_with(SOURCE, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let keys = open_all(&mut source, 8);
    assert_eq!(source.open(FIRST), Err(NotNow), "too many wait to be told to the peer");
    sent(&mut source);
    assert_eq!(events(&mut source), [Event::Resume, Event::MayOpen(FIRST)]);
    open_all(&mut source, 2);
    assert_eq!(source.open(FIRST), Err(NotNow));
    source.close(keys[3]);
    assert_eq!(events(&mut source), [Event::MayOpen(FIRST)]);

    let mut destination = session_with(DESTINATION, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    connect(&give(&mut destination, &message(MessageType::StreamStart, "SSH", 1, 1)));
    for connection_id in 2..11 {
        connect(&give(&mut destination, &message(MessageType::ConnectionStart, "SSH", 1, connection_id)));
    }
    assert_eq!(give(&mut destination, &message(MessageType::ConnectionStart, "SSH", 1, 11)), []);
    assert_eq!(sent(&mut destination), [message(MessageType::ConnectionReset, "SSH", 1, 11)]);
}

#[test]
fn a_flood_of_what_must_be_answered_is_not_read_on() {
    let mut destination = session_with(DESTINATION, Config { bounds: small(), ..config(&["SSH"]) }, &["SSH"]);
    let mut flood = BytesMut::new();
    for stream_id in 1..1000 {
        flood.extend(encoded(&message(MessageType::StreamStart, "WEB", stream_id, 1)));
    }
    destination.receive(flood.freeze());
    let mut refused = events(&mut destination).len();
    assert!(destination.control.len() == 8 && refused == 8);
    while !sent(&mut destination).is_empty() {
        assert!(destination.control.len() <= 8);
        refused += events(&mut destination).iter().filter(|event| **event != Event::Resume).count();
    }
    assert_eq!(refused, 999);
}

#[test]
fn small_pieces_do_not_keep_large_buffers() {
    let mut source = session(SOURCE, &["SSH"]);
    let key = open_all(&mut source, 1)[0];
    for _ in 0..3000 {
        give(&mut source, &data("SSH", 1, 1, &[3; 40]));
    }
    let Taken::Data(first) = source.take(key) else { panic!("data") };
    assert!(first.len() >= 32 << 10, "{}", first.len());
}
