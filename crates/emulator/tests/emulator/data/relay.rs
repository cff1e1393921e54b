//! What passes between two sides.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use opentunnel_proxy::message::{MAX_PAYLOAD, Message, MessageType};
use secure_tunneling_emulator::Side;
use tokio::time::timeout;
use tokio_websockets::Message as Frame;

use super::client::{
    Ask, Client, Numbers, Pair, V1, bytes_of, connected, data, of_stream, reset, start, tunnel, wait_connected,
};
use crate::client::{PATIENCE, describe, emulator, millis, sdk};

#[tokio::test]
async fn the_first_message_tells_the_services() {
    let emulator = emulator().await;
    for services in [&[][..], &["SSH"], &["Web", "SSH", "vnc:1"]] {
        let (_, tokens) = tunnel(&emulator, services).await;
        for (side, token) in [(Side::Source, &tokens.source), (Side::Destination, &tokens.destination)] {
            let mut client = Ask::new(side, token).connect(&emulator).await;
            let available_service_ids = services.iter().map(|id| (*id).to_owned()).collect();
            let expected = Message { available_service_ids, ..Message::new(MessageType::ServiceIds) };
            assert_eq!(client.message().await, expected);
        }
    }
}

#[tokio::test]
async fn a_client_of_v1_may_leave_the_services_out() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let mut client = Ask::new(Side::Destination, &tokens.destination).speaking(V1).connect(&emulator).await;
    let first = client.message().await;
    assert_eq!((first.kind, first.ignorable), (MessageType::ServiceIds, true));
}

#[tokio::test]
async fn services_that_fit_into_no_message_end_the_connection() {
    let emulator = emulator().await;
    let services: Vec<_> = (0..1000).map(|number| format!("{number:0128}")).collect();
    let services: Vec<_> = services.iter().map(String::as_str).collect();
    let (_, tokens) = tunnel(&emulator, &services).await;
    let mut client = Ask::new(Side::Source, &tokens.source).connect(&emulator).await;
    assert_eq!(client.closed().await, (1011, "SERVICE_IDS does not fit into a message".to_owned()));
}

#[tokio::test]
async fn messages_come_as_they_were_sent() {
    let emulator = emulator().await;
    let mut pair = Pair::new(&emulator).await;
    let messages = [
        start("SSH", 1),
        data("SSH", 1, &b"hello"[..]),
        Message { connection_id: 2, ..of_stream(MessageType::ConnectionStart, "SSH", 1) },
        Message { connection_id: 2, ..of_stream(MessageType::ConnectionReset, "SSH", 1) },
        data("SSH", 1, vec![7; MAX_PAYLOAD]),
        // As an end of V1 has them, whatever the other one speaks.
        data("", 1, &b"without a service"[..]),
        start("", -5),
        reset("SSH", 1),
    ];
    pair.source.send(&messages[..4]).await;
    pair.source.send(&messages[4..]).await;
    for message in &messages {
        assert_eq!(pair.destination.message().await, *message);
    }
    let back = [data("SSH", 1, &b"answer"[..]), reset("", -5)];
    pair.destination.send(&back).await;
    for message in &back {
        assert_eq!(pair.source.message().await, *message);
    }
}

#[tokio::test]
async fn a_message_of_a_later_version_passes_if_it_may_be_left_out() {
    let emulator = emulator().await;
    let mut pair = Pair::new(&emulator).await;
    // Type 99, ignorable.
    let later = [0, 4, 0x08, 99, 0x18, 1];
    let after = bytes_of(&[start("SSH", 1)]);
    pair.source.send_bytes(&[&later, &after[..]].concat()).await;
    let frame = pair.destination.frame().await.expect("a frame");
    assert_eq!(frame.as_payload()[..], [&later, &after[..]].concat());
}

/// Sends the messages as a stream that is cut anywhere, and returns what the other side reads.
async fn through(from: &mut Client, to: &mut Client, messages: &[Message], numbers: &mut Numbers) -> Vec<Message> {
    let stream = bytes_of(messages).freeze();
    let sending = async {
        let mut stream = stream.clone();
        while !stream.is_empty() {
            let most = [3, 200, 70_000, 131_076][numbers.below(4)];
            let cut = (1 + numbers.below(most)).min(stream.len());
            from.socket.feed(Frame::binary(stream.split_to(cut))).await.expect("sent");
        }
        from.socket.flush().await.expect("sent");
    };
    let reading = async {
        let mut read = Vec::new();
        while read.len() < messages.len() {
            read.push(to.message().await);
        }
        read
    };
    tokio::join!(sending, reading).1
}

fn some_messages(numbers: &mut Numbers, total: usize) -> Vec<Message> {
    let mut messages = vec![];
    let mut length = 0;
    while length < total {
        let most = [10, 1000, 64_512][numbers.below(3)];
        let size = 1 + numbers.below(most);
        messages.push(data("SSH", 7, numbers.bytes(size)));
        length += size;
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_both_ways_wherever_the_stream_is_cut() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    for seed in 1..=4 {
        let mut numbers = Numbers(seed * 7919);
        let (up, down) = (some_messages(&mut numbers, 2 << 20), some_messages(&mut numbers, 1 << 20));
        assert_eq!(through(&mut pair.source, &mut pair.destination, &up, &mut numbers).await, up, "seed {seed}");
        assert_eq!(through(&mut pair.destination, &mut pair.source, &down, &mut numbers).await, down, "seed {seed}");
    }
    // Both at once: neither direction waits for the other.
    let messages = some_messages(&mut Numbers(5), 4 << 20);
    let stream = bytes_of(&messages).freeze();
    let Pair { source, destination, .. } = pair;
    let ends = [source, destination].map(|client| {
        let (mut sink, mut frames) = futures_util::StreamExt::split(client.socket);
        let stream = stream.clone();
        tokio::spawn(async move {
            let sent = stream.clone();
            let sending = async move {
                let mut stream = stream;
                while !stream.is_empty() {
                    let cut = stream.len().min(100_000);
                    sink.send(Frame::binary(stream.split_to(cut))).await.expect("sent");
                }
                sink
            };
            let reading = async {
                let mut read = Vec::new();
                while read.len() < sent.len() {
                    let frame = futures_util::StreamExt::next(&mut frames).await.expect("more").expect("a frame");
                    read.extend_from_slice(frame.as_payload());
                }
                read
            };
            let (_sink, read) = tokio::join!(sending, reading);
            assert!(read == sent[..]);
        })
    });
    for end in ends {
        timeout(PATIENCE, end).await.expect("both to finish").expect("the same bytes");
    }
}

#[tokio::test]
async fn short_messages_come_at_once_and_in_order() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    for number in 0..2000u32 {
        pair.source.send(&[data("SSH", 7, number.to_be_bytes().to_vec())]).await;
        if number % 100 == 0 {
            // An echo, which nothing may hold back.
            for expected in number.saturating_sub(99)..=number {
                assert_eq!(pair.destination.message().await.payload[..], expected.to_be_bytes());
            }
        }
    }
}

#[tokio::test]
async fn nothing_passes_between_tunnels() {
    let emulator = emulator().await;
    let (mut one, mut two) = (Pair::open(&emulator).await, Pair::open(&emulator).await);
    one.source.send(&[data("SSH", 7, &b"one"[..])]).await;
    assert_eq!(one.destination.message().await.payload, &b"one"[..]);
    two.destination.is_silent().await;
    two.source.is_silent().await;
}

#[tokio::test]
async fn a_stream_that_starts_while_nobody_is_there_is_reset() {
    let emulator = emulator().await;
    let (id, tokens) = tunnel(&emulator, &["SSH", "Web"]).await;
    let mut source = Client::join(&emulator, Side::Source, &tokens.source).await;
    source.send(&[start("SSH", 1), data("SSH", 1, &b"lost"[..]), start("Web", 2)]).await;
    assert_eq!(source.message().await, reset("SSH", 1));
    assert_eq!(source.message().await, reset("Web", 2));
    source.send(&[data("SSH", 1, &b"lost as well"[..])]).await;
    source.is_silent().await;
    let mut destination = Client::join(&emulator, Side::Destination, &tokens.destination).await;
    wait_connected(&emulator, &id, true, true).await;
    source.send(&[start("SSH", 3)]).await;
    assert_eq!(destination.message().await, start("SSH", 3));
    // What was reset is not reset once more.
    source.is_silent().await;
}

#[tokio::test]
async fn pings_are_answered_also_when_nobody_reads_the_pongs() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    pair.source.socket.send(Frame::ping("20")).await.expect("sent");
    let pong = pair.source.frame().await.expect("a pong");
    assert!(pong.is_pong() && pong.as_payload()[..] == *b"20");
    for number in 0..20_000 {
        pair.source.socket.feed(Frame::ping(format!("{number}"))).await.expect("sent");
    }
    pair.source.send(&[data("SSH", 7, &b"behind them"[..])]).await;
    let mut pongs = 0;
    while pongs < 20_000 {
        let pong = pair.source.frame().await.expect("a pong");
        assert_eq!(pong.as_payload()[..], *pongs.to_string().as_bytes());
        pongs += 1;
    }
    assert_eq!(pair.destination.message().await.payload, &b"behind them"[..]);
}

#[tokio::test]
async fn a_pong_that_nobody_asked_for_does_nothing() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    pair.source.socket.send(Frame::pong("x")).await.expect("sent");
    pair.source.send(&[data("SSH", 7, &b"x"[..])]).await;
    assert_eq!(pair.destination.message().await.payload, &b"x"[..]);
    pair.source.is_silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_holds_the_other_side_back_within_a_bound() {
    // 1 MiB on the lane, as much again before and behind it, and what the kernel takes for two connections.
    const BOUND: usize = 32 << 20;
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    let message = data("SSH", 7, Bytes::from(vec![9; MAX_PAYLOAD]));
    let frame = bytes_of(std::slice::from_ref(&message)).freeze();
    let mut sent = 0;
    // Until nothing has gone for a while.
    while timeout(Duration::from_secs(1), pair.source.socket.send(Frame::binary(frame.clone()))).await.is_ok() {
        sent += 1;
        assert!(sent * MAX_PAYLOAD < BOUND, "nothing holds the sender back");
    }
    // The way back is free meanwhile.
    pair.destination.send(&[data("SSH", 7, &b"back"[..])]).await;
    let back = timeout(PATIENCE, futures_util::StreamExt::next(&mut pair.source.socket)).await.expect("the answer");
    assert!(back.expect("a frame").expect("a frame").is_binary());
    // And nothing is lost. The message that was held back went half, and comes to its end now.
    let flushing = async { pair.source.socket.flush().await.expect("sent") };
    let reading = async {
        for number in 0..=sent {
            assert!(pair.destination.message().await == message, "message {number}");
        }
    };
    tokio::join!(flushing, reading);
}

#[tokio::test]
async fn describe_tunnel_tells_who_is_connected_and_since_when() {
    let emulator = emulator().await;
    let sdk = sdk(&emulator);
    let (id, tokens) = tunnel(&emulator, &["SSH"]).await;
    let opened = describe(&sdk, &id).await;
    let since = |tunnel: &aws_sdk_iotsecuretunneling::types::Tunnel, side: Side| {
        let state = match side {
            Side::Source => tunnel.source_connection_state(),
            Side::Destination => tunnel.destination_connection_state(),
        };
        millis(state.expect("a state").last_updated_at())
    };
    assert_eq!(emulator.connections(&id), Some(connected(false, false)));
    tokio::time::sleep(Duration::from_millis(5)).await;
    let source = Client::join(&emulator, Side::Source, &tokens.source).await;
    assert_eq!(emulator.connections(&id), Some(connected(true, false)));
    let now = describe(&sdk, &id).await;
    assert!(since(&now, Side::Source) > since(&opened, Side::Source));
    assert_eq!(since(&now, Side::Destination), since(&opened, Side::Destination));
    assert_eq!(millis(now.last_updated_at()), since(&now, Side::Source));
    let _destination = Client::join(&emulator, Side::Destination, &tokens.destination).await;
    assert_eq!(emulator.connections(&id), Some(connected(true, true)));
    tokio::time::sleep(Duration::from_millis(5)).await;
    drop(source);
    wait_connected(&emulator, &id, false, true).await;
    let left = describe(&sdk, &id).await;
    assert_eq!(
        left.source_connection_state().and_then(|state| state.status()).map(|s| s.as_str()),
        Some("DISCONNECTED")
    );
    assert!(since(&left, Side::Source) > since(&now, Side::Source));
    assert_eq!(emulator.connections("no such tunnel"), None);
}
