//! Clients that send what they must not.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use opentunnel_proxy::message::{MAX_PAYLOAD, MAX_SERVICES, Message, MessageType};
use secure_tunneling_emulator::Side;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_websockets::Message as Frame;

use super::client::{Client, Pair, bytes_of, data, of_stream, reset, start, tunnel, with_client_token};
use crate::client::{PATIENCE, emulator};

#[tokio::test]
async fn what_a_side_must_not_send_ends_it_with_the_reason_and_resets_the_other() {
    let emulator = emulator().await;
    let payload_too_long = {
        // By hand: nobody's encoder writes it.
        let payload = vec![0; MAX_PAYLOAD + 1];
        let message = [&[0x08, 1, 0x10, 7, 0x22, 0x81, 0xf8, 0x03], &payload[..]].concat();
        [&u16::try_from(message.len()).expect("a length").to_be_bytes(), &message[..]].concat()
    };
    let bytes = |message: Message| bytes_of(&[message]).to_vec();
    for (side, bytes, reason) in [
        (Side::Source, bytes(Message::new(MessageType::SessionReset)), "a client must not send SESSION_RESET"),
        (Side::Source, bytes(Message::new(MessageType::ServiceIds)), "a client must not send SERVICE_IDS"),
        (Side::Destination, bytes(start("SSH", 9)), "a destination must not send STREAM_START"),
        (Side::Source, bytes(start("SSH", 0)), "a message of a stream has the stream ID 0"),
        (Side::Source, bytes(data("SSH", 0, &b"x"[..])), "a message of a stream has the stream ID 0"),
        (Side::Source, payload_too_long, "a message's payload has more than 64512 bytes"),
        (Side::Source, vec![0, 0], "a message has the type 0, which this version does not know"),
        (Side::Destination, vec![0, 2, 8, 99], "a message has the type 99, which this version does not know"),
        (Side::Source, vec![0, 1, 8], "a message ends within a field"),
    ] {
        let mut pair = Pair::open(&emulator).await;
        let (client, other) = match side {
            Side::Source => (&mut pair.source, &mut pair.destination),
            Side::Destination => (&mut pair.destination, &mut pair.source),
        };
        // What came before is good.
        let before = data("SSH", 7, &b"good"[..]);
        client.send_bytes(&[&bytes_of(std::slice::from_ref(&before))[..], &bytes].concat()).await;
        assert_eq!(client.closed().await, (1002, reason.to_owned()), "{side:?}");
        assert_eq!(other.message().await, before, "{reason}");
        assert_eq!(other.message().await, reset("SSH", 7), "{reason}");
    }
}

#[tokio::test]
async fn frames_that_are_too_long_or_text_end_the_connection_with_the_reason() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    pair.source.socket.send(Frame::text("hello")).await.expect("sent");
    assert_eq!(pair.source.closed().await, (1003, "frames must be binary".to_owned()));

    // As long as it may be: two messages, and what is left of the third.
    let whole = bytes_of(&[data("SSH", 7, vec![1; MAX_PAYLOAD]), data("SSH", 7, vec![2; MAX_PAYLOAD])]);
    let more = bytes_of(&[data("SSH", 7, vec![3; 10_000])]);
    let stream = [&whole[..], &more].concat();
    let mut pair = Pair::open(&emulator).await;
    pair.source.send_bytes(&stream[..131_076]).await;
    pair.source.send_bytes(&stream[131_076..]).await;
    for length in [MAX_PAYLOAD, MAX_PAYLOAD, 10_000] {
        assert_eq!(pair.destination.message().await.payload.len(), length);
    }
    let mut frame = bytes_of(&[data("SSH", 7, vec![1; MAX_PAYLOAD])]).to_vec();
    frame.extend_from_within(..);
    frame.resize(131_077, 0);
    pair.source.send_bytes(&frame).await;
    let (code, reason) = pair.source.closed().await;
    assert_eq!(code, 1009, "{reason}");
}

#[tokio::test]
async fn more_streams_than_services_end_the_connection() {
    let emulator = emulator().await;
    let mut pair = Pair::new(&emulator).await;
    for number in 0..=MAX_SERVICES {
        pair.source.send(&[start(&format!("service {number}"), 1)]).await;
    }
    assert_eq!(pair.source.closed().await, (1002, "there are more streams than services".to_owned()));
    // As many as there may be are reset.
    let mut resets = 0;
    while resets < MAX_SERVICES {
        let message = pair.destination.message().await;
        resets += usize::from(message.kind == MessageType::StreamReset);
    }
}

#[tokio::test]
async fn a_byte_that_is_wrong_anywhere_ends_the_connection_or_passes_and_nothing_else() {
    let emulator = emulator().await;
    let mut pair = Pair::new(&emulator).await;
    let valid = bytes_of(&[
        start("SSH", 1),
        data("SSH", 1, &b"payload"[..]),
        Message { connection_id: 2, ..of_stream(MessageType::ConnectionStart, "SSH", 1) },
        reset("SSH", 1),
    ]);
    let (mut ended, mut passed) = (0, 0);
    for at in 0..valid.len() {
        for byte in [0x00, 0xff, valid[at] ^ 0x01, valid[at] ^ 0x80, b'\n'] {
            let mut bytes = valid.clone();
            bytes[at] = byte;
            let mut client = with_client_token(Side::Source, &pair.tokens.source).connect(&emulator).await;
            client.message().await;
            client.send_bytes(&bytes).await;
            // A ping comes back behind whatever became of them.
            client.socket.send(Frame::ping("there?")).await.expect("sent");
            loop {
                let frame = client.frame().await.expect("a pong or a close frame");
                if let Some((code, reason)) = frame.as_close() {
                    assert_eq!(u16::from(code), 1002, "byte {at} as {byte:#x}: {reason}");
                    ended += 1;
                    break;
                } else if frame.is_pong() {
                    passed += 1;
                    break;
                }
            }
        }
    }
    assert!(ended > 100 && passed > 20, "{ended} ended, {passed} passed");
    // The other side reads messages, whatever they are, and the tunnel is as good as before.
    let mut source = with_client_token(Side::Source, &pair.tokens.source).connect(&emulator).await;
    source.message().await;
    source.send(&[start("last", 77)]).await;
    while pair.destination.message().await != start("last", 77) {}
}

#[tokio::test]
async fn raw_bytes_instead_of_frames_are_survived() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let ask = || with_client_token(Side::Source, &tokens.source);
    let good = [0x82, 0x84, 1, 2, 3, 4, 1, 0, 0x0b, 0x67];
    for at in 0..good.len() {
        for byte in 0..=255 {
            if byte % 5 != 0 {
                continue;
            }
            let mut bytes = good;
            bytes[at] = byte;
            let mut answer = ask().send(&emulator).await;
            answer.stream.write_all(&bytes).await.expect("sent");
        }
    }
    let mut answer = ask().send(&emulator).await;
    // Not masked.
    answer.stream.write_all(&[0x82, 0x02, 0, 0]).await.expect("sent");
    let mut client = Client::on(answer);
    client.message().await;
    assert_eq!(client.closed().await.0, 1002);
    for length in 0..64 {
        let mut stream = tokio::net::TcpStream::connect(emulator.data_addr()).await.expect("a connection");
        stream.write_all(&vec![0x16; length]).await.expect("sent");
    }
    assert_eq!(ask().send(&emulator).await.status, 101);
}

#[tokio::test]
async fn a_client_that_starts_streams_for_nobody_and_never_reads_is_held_back() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let mut source = Client::join(&emulator, Side::Source, &tokens.source).await;
    let many: Vec<_> = (1..5000).map(|id| start("SSH", id)).collect();
    let frame = bytes_of(&many).freeze();
    let mut sent = 0;
    while timeout(Duration::from_secs(1), source.socket.send(Frame::binary(frame.clone()))).await.is_ok() {
        sent += frame.len();
        assert!(sent < 32 << 20, "nothing holds it back");
    }
    let first = timeout(PATIENCE, source.socket.next()).await.expect("a frame").expect("a frame");
    assert!(first.expect("a frame").is_binary());
}
