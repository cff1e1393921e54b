//! A side that leaves, or connects again.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use opentunnel_proxy::message::{MAX_PAYLOAD, Message, MessageType};
use secure_tunneling_emulator::{ConnectionStatus, Side};
use tokio::time::timeout;
use tokio_websockets::Message as Frame;

use super::client::{
    Ask, Client, Pair, V1, bytes_of, connected, data, of_stream, reset, start, tunnel, wait_connected,
    with_client_token,
};
use crate::client::emulator;

const REPLACED: (u16, &str) = (1008, "Replaced by another connection of this side");

async fn again(emulator: &secure_tunneling_emulator::Emulator, pair: &Pair, side: Side) -> Client {
    let token = if side == Side::Source { &pair.tokens.source } else { &pair.tokens.destination };
    let mut client = with_client_token(side, token).connect(emulator).await;
    assert_eq!(client.message().await.kind, MessageType::ServiceIds);
    client
}

#[tokio::test]
async fn a_destination_that_connects_again_replaces_itself_and_the_source_is_told() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    pair.destination.send(&[data("SSH", 7, &b"before"[..])]).await;
    assert_eq!(pair.source.message().await.payload, &b"before"[..]);
    let mut new = again(&emulator, &pair, Side::Destination).await;
    assert_eq!(pair.destination.closed().await, (REPLACED.0, REPLACED.1.to_owned()));
    assert_eq!(pair.source.message().await, reset("SSH", 7));
    assert_eq!(emulator.connections(&pair.id), Some(connected(true, true)));
    pair.source.send(&[start("SSH", 8)]).await;
    assert_eq!(new.message().await, start("SSH", 8));
    new.send(&[data("SSH", 8, &b"after"[..])]).await;
    assert_eq!(pair.source.message().await, data("SSH", 8, &b"after"[..]));
    // The old connection's end is not this one's.
    drop(pair.destination);
    pair.source.is_silent().await;
    assert_eq!(emulator.connections(&pair.id), Some(connected(true, true)));
}

#[tokio::test]
async fn a_source_that_connects_again_replaces_itself_and_the_destination_is_told() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    let mut new = again(&emulator, &pair, Side::Source).await;
    assert_eq!(pair.source.closed().await, (REPLACED.0, REPLACED.1.to_owned()));
    assert_eq!(pair.destination.message().await, reset("SSH", 7));
    new.send(&[start("SSH", 7)]).await;
    assert_eq!(pair.destination.message().await, start("SSH", 7));
}

#[tokio::test]
async fn only_what_is_open_is_reset() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["A", "B", "C", "D", "E"]).await;
    let mut source = Client::join(&emulator, Side::Source, &tokens.source).await;
    let mut destination = with_client_token(Side::Destination, &tokens.destination).connect(&emulator).await;
    destination.message().await;
    // B is closed by its source, C by its destination; D starts again, with another stream; E is closed without name.
    let sent =
        [start("A", 1), start("B", 2), start("C", 3), start("D", 4), start("E", 6), reset("B", 2), start("D", 5)];
    source.send(&sent).await;
    for message in sent {
        assert_eq!(destination.message().await, message);
    }
    // One of a stream that is no more.
    let closed = [reset("C", 3), reset("D", 4), reset("", 6), reset("A", 9)];
    destination.send(&closed).await;
    for message in closed {
        assert_eq!(source.message().await, message);
    }
    let _new = with_client_token(Side::Destination, &tokens.destination).connect(&emulator).await;
    assert_eq!(source.message().await, reset("A", 1));
    assert_eq!(source.message().await, reset("D", 5));
    source.is_silent().await;
}

#[tokio::test]
async fn a_side_that_leaves_resets_what_was_open_whether_it_says_so_or_not() {
    let emulator = emulator().await;
    for says_so in [true, false] {
        let mut pair = Pair::open(&emulator).await;
        if says_so {
            pair.source.close().await;
        }
        drop(pair.source);
        assert_eq!(pair.destination.message().await, reset("SSH", 7));
        wait_connected(&emulator, &pair.id, false, true).await;
    }
}

#[tokio::test]
async fn an_end_of_v1_is_told_without_a_service() {
    let emulator = emulator().await;
    let (id, tokens) = tunnel(&emulator, &["SSH"]).await;
    let mut source = with_client_token(Side::Source, &tokens.source).connect(&emulator).await;
    let mut destination = Ask::new(Side::Destination, &tokens.destination).speaking(V1).connect(&emulator).await;
    for client in [&mut source, &mut destination] {
        assert_eq!(client.message().await.available_service_ids, ["SSH"]);
    }
    wait_connected(&emulator, &id, true, true).await;
    source.send(&[start("SSH", 3)]).await;
    assert_eq!(destination.message().await, start("SSH", 3));
    let mut new = with_client_token(Side::Source, &tokens.source).connect(&emulator).await;
    assert_eq!(destination.message().await, reset("", 3));
    new.message().await;
    // The other way round, the service has the name that the source gave it.
    new.send(&[start("SSH", 4)]).await;
    destination.message().await;
    drop(destination);
    assert_eq!(new.message().await, reset("SSH", 4));
}

#[tokio::test]
async fn half_a_message_never_crosses() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    let (whole, half) = (data("SSH", 7, &b"whole"[..]), bytes_of(&[data("SSH", 7, &b"half"[..])]));
    for cut in [1, 2, 3, half.len() - 1] {
        let bytes = [&bytes_of(std::slice::from_ref(&whole))[..], &half[..cut]].concat();
        pair.destination.send_bytes(&bytes).await;
        assert_eq!(pair.source.message().await, whole);
        let new = again(&emulator, &pair, Side::Destination).await;
        pair.destination.closed().await;
        pair.destination = new;
        assert_eq!(pair.source.message().await, reset("SSH", 7));
        pair.source.send(&[start("SSH", 7)]).await;
        assert_eq!(pair.destination.message().await, start("SSH", 7));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_whole_comes_before_the_reset_however_slow_the_reader() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    // Half a MiB, which nobody reads before the side that sent it has left and come back.
    let messages: Vec<_> = (0..8).map(|n| data("SSH", 7, Bytes::from(vec![n; MAX_PAYLOAD]))).collect();
    let ended = Message { connection_id: 1, ..of_stream(MessageType::ConnectionReset, "SSH", 7) };
    for message in &messages {
        pair.destination.send(std::slice::from_ref(message)).await;
    }
    pair.destination.send(std::slice::from_ref(&ended)).await;
    pair.destination.close().await;
    drop(pair.destination);
    wait_connected(&emulator, &pair.id, true, false).await;
    let mut new = with_client_token(Side::Destination, &pair.tokens.destination).connect(&emulator).await;
    new.message().await;
    for message in &messages {
        assert!(pair.source.message().await == *message);
    }
    assert_eq!(pair.source.message().await, ended);
    assert_eq!(pair.source.message().await, reset("SSH", 7));
    pair.source.is_silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_connects_again_and_again_leaves_one_connection_and_no_stream_of_the_old_ones() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    for stream in 100..150 {
        let mut new = again(&emulator, &pair, Side::Destination).await;
        assert_eq!(pair.source.message().await.kind, MessageType::StreamReset);
        pair.source.send(&[start("SSH", stream)]).await;
        assert_eq!(new.message().await, start("SSH", stream));
        new.send(&[data("SSH", stream, &b"x"[..])]).await;
        assert_eq!(pair.source.message().await, data("SSH", stream, &b"x"[..]));
        pair.destination = new;
    }
    assert_eq!(emulator.connections(&pair.id), Some(connected(true, true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_while_the_other_side_connects_again_and_again_is_ended() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    let message = data("SSH", 7, Bytes::from(vec![9; MAX_PAYLOAD]));
    let frame = bytes_of(&[message]).freeze();
    // Until nothing has gone for a while: then the source is behind, and stays so.
    while timeout(Duration::from_millis(500), pair.destination.socket.send(Frame::binary(frame.clone()))).await.is_ok()
    {
    }
    let is_connected =
        || emulator.connections(&pair.id).and_then(|both| both.source) == Some(ConnectionStatus::Connected);
    let mut connects = 0;
    while is_connected() {
        connects += 1;
        assert!(connects < 50, "what waits for the source grows without a bound");
        let mut new = with_client_token(Side::Destination, &pair.tokens.destination).connect(&emulator).await;
        new.message().await;
        pair.destination = new;
    }
    assert!(connects > 5, "it is ended after {connects} already");
    // Both may go on afterwards.
    let mut source = again(&emulator, &pair, Side::Source).await;
    source.send(&[start("SSH", 8)]).await;
    assert_eq!(pair.destination.message().await, start("SSH", 8));
}
