//! Any bytes, and any messages: no panic, nothing beyond the bounds, a named error or the right continuation.

use super::*;
use proptest::prelude::*;

fn bounds() -> Bounds {
    Bounds {
        send_connection: 2 * MAX_PAYLOAD,
        send_total: 4 * MAX_PAYLOAD,
        // Two of the longest messages are too much for one connection, and one for each of two.
        receive_connection: 70_000,
        receive_total: 80_000,
        connections: 6,
        control: 6,
    }
}

/// A message of any type, with numbers and services that are likely to be those of another one.
fn any_message() -> impl Strategy<Value = Message> {
    let kinds = [
        MessageType::Data,
        MessageType::Data,
        MessageType::StreamStart,
        MessageType::StreamReset,
        MessageType::SessionReset,
        MessageType::ServiceIds,
        MessageType::ConnectionStart,
        MessageType::ConnectionStart,
        MessageType::ConnectionReset,
    ];
    let id = prop::sample::select(&["", "SSH", "WEB"][..]);
    let length = prop_oneof![4 => 0usize..50, 1 => Just(4_000), 1 => Just(MAX_PAYLOAD)];
    (prop::sample::select(kinds.to_vec()), 0i32..4, 0u32..5, id, length).prop_map(
        |(kind, stream_id, connection_id, id, length)| match kind {
            MessageType::ServiceIds => service_ids(&["SSH"]),
            MessageType::Data => data(id, stream_id, connection_id, &vec![1; length]),
            _ => message(kind, id, stream_id, connection_id),
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Receive(Message),
    Bytes(Vec<u8>),
    Open,
    Send(usize, usize),
    Finish(usize),
    Close(usize),
    Abort(usize),
    Take(usize),
    Transmit,
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_message().prop_map(Step::Receive),
        1 => prop::collection::vec(any::<u8>(), 0..6).prop_map(Step::Bytes),
        2 => Just(Step::Open),
        3 => (any::<usize>(), 1..MAX_PAYLOAD).prop_map(|(nth, length)| Step::Send(nth, length)),
        1 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Close),
        1 => any::<usize>().prop_map(Step::Abort),
        3 => any::<usize>().prop_map(Step::Take),
        2 => Just(Step::Transmit),
        1 => Just(Step::Tick),
    ]
}

/// What must hold whatever happens.
fn check(session: &Session) {
    let bounds = bounds();
    let (queued, held) = session.held();
    let sum = |of: fn(&Connection) -> usize| session.connections.values().map(of).sum::<usize>();
    assert_eq!(queued, sum(|connection| connection.queue.len()));
    assert_eq!(held, sum(|connection| connection.received.len()));
    assert_eq!(session.granted, sum(|connection| usize::from(connection.permit == Permit::Granted)) * MAX_PAYLOAD);
    assert_eq!(session.full_connections, sum(|connection| usize::from(connection.full)));
    assert!(queued + session.granted <= bounds.send_total);
    assert!(held < bounds.receive_total + MAX_PAYLOAD);
    assert!(session.connections.len() <= bounds.connections);
    assert!(session.control.len() <= bounds.control + 2 * bounds.connections + 2, "{:?}", session.control);
    assert!(
        session.events.len() <= 2 * bounds.connections + 2 * session.services.len() + session.events.capacity().min(64)
    );
    for (index, service) in session.services.iter().enumerate() {
        for (connection_id, key) in service.stream.iter().flat_map(|stream| &stream.connections) {
            let connection = &session.connections[key];
            assert!(!connection.detached && connection.service.0 == index);
            assert_eq!(connection.connection_id, *connection_id);
        }
        if let Some(stream) = &service.stream {
            assert!(stream.version == Version::V3 || stream.connections.len() == 1);
        }
    }
    let attached = session.connections.values().filter(|connection| !connection.detached).count();
    let streams = session.services.iter().filter_map(|service| service.stream.as_ref());
    assert_eq!(attached, streams.map(|stream| stream.connections.len()).sum::<usize>());
}

fn run(side: Side, peer: Option<Version>, steps: Vec<Step>) {
    let config = Config { bounds: bounds(), peer, ..config(&["SSH"]) };
    let mut session = Session::new(side, config);
    let begin = Instant::now();
    let mut keys = Vec::new();
    let nth = |keys: &[ConnectionKey], nth: usize| keys.get(nth % keys.len().max(1)).copied();
    session.receive(encoded(&service_ids(&["SSH"])));
    for (count, step) in steps.into_iter().enumerate() {
        match step {
            // Whoever drives it reads nothing while it is paused.
            Step::Receive(message) if !session.is_paused() => session.receive(encoded(&message)),
            Step::Bytes(bytes) if !session.is_paused() => session.receive(bytes.into()),
            Step::Receive(_) | Step::Bytes(_) => {}
            Step::Open => keys.extend(session.open(FIRST)),
            Step::Send(which, length) => {
                if let Some(key) = nth(&keys, which).filter(|key| session.request(*key) == RequestAnswer::Granted) {
                    session.send(key, vec![0; length].into());
                }
            }
            Step::Finish(which) => nth(&keys, which).into_iter().for_each(|key| session.finish(key)),
            Step::Close(which) => nth(&keys, which).into_iter().for_each(|key| session.close(key)),
            Step::Abort(which) => nth(&keys, which).into_iter().for_each(|key| session.abort(key)),
            Step::Take(which) => nth(&keys, which).into_iter().for_each(|key| drop(session.take(key))),
            Step::Transmit => drop(frame(&mut session)),
            Step::Tick => session.tick(begin + Duration::from_secs(10 * count as u64)),
        }
        while let Ok(Some(event)) = session.poll_event() {
            match event {
                Event::Connect(key, index) => {
                    assert_eq!((side, index), (DESTINATION, FIRST));
                    keys.push(key);
                }
                Event::MaySend(key) => session.decline(key),
                _ => {}
            }
        }
        check(&session);
    }
    // In the end nothing is kept for anybody.
    session.abort_all();
    keys.into_iter().for_each(|key| while matches!(session.take(key), Taken::Data(_)) {});
    check(&session);
    assert_eq!((session.connections(), session.held()), (0, (0, 0)));
    while frame(&mut session).is_some() {}
    assert!(!session.has_to_send());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4 * ProptestConfig::default().cases))]

    #[test]
    fn any_messages_at_any_time_keep_the_bounds(
        source in any::<bool>(),
        peer in prop::sample::select(&[None, Some(Version::V1), Some(Version::V2), Some(Version::V3)][..]),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        run(if source { SOURCE } else { DESTINATION }, peer, steps);
    }

    #[test]
    fn any_bytes_end_in_a_named_error_or_go_on(
        source in any::<bool>(),
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..10),
    ) {
        let steps = pieces.into_iter().map(Step::Bytes).collect();
        run(if source { SOURCE } else { DESTINATION }, None, steps);
    }

    #[test]
    fn messages_with_one_byte_changed_end_in_a_named_error_or_go_on(
        messages in prop::collection::vec(any_message(), 1..10),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes: Vec<u8> = messages.iter().flat_map(encoded).collect();
        *at.get_mut(&mut bytes) = byte;
        run(DESTINATION, None, bytes.chunks(1000).map(|piece| Step::Bytes(piece.to_vec())).collect());
    }
}

#[test]
fn an_error_says_what_came() {
    let mut source = Session::new(SOURCE, config(&["SSH"]));
    source.receive(Bytes::from_static(&[0, 1, 0xff]));
    let error = source.poll_event().expect_err("no message");
    assert_eq!(
        error.to_string(),
        "the service sent bytes that are no message of the protocol: a message ends within a field"
    );
    source.receive(Bytes::from_static(&[0; 1000]));
    assert_eq!((source.poll_event(), source.decoder.buffered()), (Err(error), 0), "nothing is kept after it");
}
