//! What the data plane is told to do wrong.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::StreamExt;
use opentunnel_proxy::message::{Message, MessageType};
use secure_tunneling_emulator::{DataFault, DataFaultKind, Emulator, Side};
use serde_json::json;
use tokio_websockets::Message as Frame;

use super::client::{
    Ask, Client, Numbers, Pair, bytes_of, data, reset, start, tunnel, wait_connected, with_client_token,
};
use crate::client::{control, emulator};

fn fault(side: Side, kind: DataFaultKind) -> DataFault {
    DataFault::new(side, kind)
}

const REFUSED: &str = "A fault of the emulator refuses this connection";

#[tokio::test]
async fn handshakes_are_refused_as_often_as_told_and_no_token_is_used_up() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    emulator.set_data_faults([
        fault(Side::Source, DataFaultKind::Refuse4xx).times(1),
        fault(Side::Source, DataFaultKind::Refuse5xx).times(2).delay_ms(50),
    ]);
    let ask = || Ask::new(Side::Source, &tokens.source);
    assert_eq!(Ask::new(Side::Destination, &tokens.destination).send(&emulator).await.status, 101);
    assert_eq!(ask().send(&emulator).await.refusal().await, (400, REFUSED.to_owned()));
    for _ in 0..2 {
        let asked = Instant::now();
        assert_eq!(ask().send(&emulator).await.refusal().await, (503, REFUSED.to_owned()));
        assert!(asked.elapsed() >= Duration::from_millis(50));
    }
    assert_eq!(ask().send(&emulator).await.status, 101);
}

#[tokio::test]
async fn a_connection_is_cut_at_any_byte() {
    let emulator = emulator().await;
    let (id, tokens) = tunnel(&emulator, &["SSH"]).await;
    let first = Message { available_service_ids: vec!["SSH".to_owned()], ..Message::new(MessageType::ServiceIds) };
    let mut source = Client::join(&emulator, Side::Source, &tokens.source).await;
    let whole = bytes_of(&[first, start("SSH", 1), data("SSH", 1, &b"payload"[..])]);
    for after in 0..whole.len() {
        emulator
            .set_data_faults([fault(Side::Destination, DataFaultKind::Disconnect).times(1).after_bytes(after as u64)]);
        let mut destination = with_client_token(Side::Destination, &tokens.destination).connect(&emulator).await;
        source.send(&[start("SSH", 1), data("SSH", 1, &b"payload"[..])]).await;
        let mut read = BytesMut::new();
        while let Some(frame) = destination.frame().await {
            assert!(!frame.is_close());
            read.extend_from_slice(frame.as_payload());
        }
        assert_eq!(read, whole[..after], "cut after {after}");
        wait_connected(&emulator, &id, true, false).await;
    }
    // It happens once: the next connection stays.
    let mut destination = with_client_token(Side::Destination, &tokens.destination).connect(&emulator).await;
    destination.message().await;
    source.send(&[start("SSH", 99)]).await;
    while destination.message().await != start("SSH", 99) {}
}

#[tokio::test]
async fn who_is_connected_meets_a_fault_when_it_is_set() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    emulator.set_data_faults([fault(Side::Source, DataFaultKind::Disconnect).times(1).delay_ms(50)]);
    let set = Instant::now();
    assert!(pair.source.frame().await.is_none());
    assert!(set.elapsed() >= Duration::from_millis(40));
    assert_eq!(pair.destination.message().await, reset("SSH", 7));
    let mut source = with_client_token(Side::Source, &pair.tokens.source).connect(&emulator).await;
    source.message().await;
    source.is_silent().await;
}

#[tokio::test]
async fn a_session_reset_tells_this_side_so_and_the_other_what_was_open() {
    let emulator = emulator().await;
    for side in [Side::Source, Side::Destination] {
        let mut pair = Pair::open(&emulator).await;
        emulator.set_data_faults([fault(side, DataFaultKind::SessionReset).times(1)]);
        let (this, other) = match side {
            Side::Source => (&mut pair.source, &mut pair.destination),
            Side::Destination => (&mut pair.destination, &mut pair.source),
        };
        assert_eq!(this.message().await, Message::new(MessageType::SessionReset));
        assert_eq!(other.message().await, reset("SSH", 7));
        // Both are there as before.
        pair.source.send(&[start("SSH", 8)]).await;
        assert_eq!(pair.destination.message().await, start("SSH", 8));
        pair.destination.send(&[data("SSH", 8, &b"x"[..])]).await;
        assert_eq!(pair.source.message().await, data("SSH", 8, &b"x"[..]));
    }
}

#[tokio::test]
async fn a_session_reset_comes_between_messages() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    emulator.set_data_faults([fault(Side::Destination, DataFaultKind::SessionReset).times(1).after_bytes(3)]);
    let message = data("SSH", 7, &b"whole"[..]);
    pair.source.send(std::slice::from_ref(&message)).await;
    assert_eq!(pair.destination.message().await, message);
    assert_eq!(pair.destination.message().await, Message::new(MessageType::SessionReset));
}

#[tokio::test]
async fn a_stall_holds_everything_until_it_is_over() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    emulator.set_data_faults([fault(Side::Destination, DataFaultKind::Stall).after_bytes(5)]);
    let message = data("SSH", 7, &b"held"[..]);
    pair.source.send(std::slice::from_ref(&message)).await;
    let half = pair.destination.frame().await.expect("a frame");
    assert_eq!(half.as_payload()[..], bytes_of(std::slice::from_ref(&message))[..5]);
    pair.destination.send(&[data("SSH", 7, &b"back"[..])]).await;
    futures_util::SinkExt::send(&mut pair.destination.socket, Frame::ping("x")).await.expect("sent");
    let silence = tokio::time::timeout(super::client::SILENCE, pair.destination.socket.next()).await;
    assert!(silence.is_err(), "no pong and no byte");
    pair.source.is_silent().await;
    emulator.set_data_faults([]);
    let rest = loop {
        let frame = pair.destination.frame().await.expect("a frame");
        if frame.is_binary() {
            break frame;
        }
    };
    assert_eq!(rest.as_payload()[..], bytes_of(std::slice::from_ref(&message))[5..]);
    assert_eq!(pair.source.message().await.payload, &b"back"[..]);
}

#[tokio::test]
async fn a_stall_may_end_by_itself() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    emulator.set_data_faults([fault(Side::Destination, DataFaultKind::Stall).times(1).delay_ms(300)]);
    let sent = Instant::now();
    pair.source.send(&[data("SSH", 7, &b"held"[..])]).await;
    pair.destination.message().await;
    assert!(sent.elapsed() >= Duration::from_millis(250));
    pair.source.send(&[data("SSH", 7, &b"free"[..])]).await;
    pair.destination.message().await;
}

#[tokio::test]
async fn a_stalled_side_is_still_closed_with_its_tunnel() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    emulator.set_data_faults([fault(Side::Source, DataFaultKind::Stall)]);
    emulator.close(&pair.id).expect("closed");
    assert_eq!(pair.source.closed().await.0, 1000);
}

#[tokio::test]
async fn reframing_cuts_and_joins_messages_anywhere_and_loses_nothing() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    emulator.set_data_faults([fault(Side::Destination, DataFaultKind::Reframe)]);
    let mut numbers = Numbers(42);
    let messages: Vec<_> = (0..2000)
        .map(|number| {
            let most = if number % 500 == 250 { 64_512 } else { 60 };
            let length = 1 + numbers.below(most);
            data("SSH", 7, numbers.bytes(length))
        })
        .collect();
    let stream = bytes_of(&messages);
    // Where each message begins in the stream.
    let mut begin = 0;
    let begins: Vec<_> = messages
        .iter()
        .map(|message| {
            let end = begin + bytes_of(std::slice::from_ref(message)).len();
            std::mem::replace(&mut begin, end)
        })
        .collect();
    let sending = async {
        for message in &messages {
            pair.source.send(std::slice::from_ref(message)).await;
        }
    };
    let reading = async {
        let (mut read, mut ends) = (BytesMut::new(), Vec::new());
        while read.len() < stream.len() {
            read.extend_from_slice(pair.destination.frame().await.expect("a frame").as_payload());
            ends.push(read.len());
        }
        (read, ends)
    };
    let ((), (read, ends)) = tokio::join!(sending, reading);
    assert!(read == stream);
    let within_length = ends.iter().filter(|end| begins.contains(&(**end - 1))).count();
    let within_message = ends.iter().filter(|end| !begins.contains(*end)).count();
    assert!(within_length > 0, "no length was cut");
    assert!(within_message > 100, "{within_message} messages were cut");
    // A frame with the end of one message and the beginning of another.
    let joined = ends.windows(2).filter(|frame| {
        !begins.contains(&frame[0]) && begins.iter().any(|begin| frame[0] < *begin && *begin < frame[1])
    });
    assert!(joined.count() > 0, "nothing was joined");
}

#[tokio::test]
async fn bandwidth_holds_both_directions_back() {
    let emulator = emulator().await;
    let mut pair = Pair::open(&emulator).await;
    emulator.set_data_faults([fault(Side::Source, DataFaultKind::Bandwidth).bytes_per_second(100_000)]);
    let message = data("SSH", 7, vec![1; 10_000]);
    for up in [true, false] {
        let begun = Instant::now();
        for _ in 0..5 {
            let (from, to) = match up {
                true => (&mut pair.source, &mut pair.destination),
                false => (&mut pair.destination, &mut pair.source),
            };
            from.send(std::slice::from_ref(&message)).await;
            assert!(to.message().await == message);
        }
        // The last one is waited for afterwards.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(380), "up {up}: {took:?}");
    }
    emulator.set_data_faults([]);
    let begun = Instant::now();
    for _ in 0..20 {
        pair.source.send(std::slice::from_ref(&message)).await;
        pair.destination.message().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
}

async fn put(emulator: &Emulator, faults: serde_json::Value) -> (u16, String) {
    let answer = control(emulator, "PUT", "/data-faults", faults).await;
    (answer.status, answer.body["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn faults_are_set_over_http_all_at_once_and_wrong_ones_change_nothing() {
    let emulator = emulator().await;
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    let refuse = json!([{"side": "source", "kind": "Refuse4xx"}]);
    assert_eq!(put(&emulator, refuse).await, (200, String::new()));
    for (faults, reason) in [
        (json!([{"side": "source", "kind": "Bandwidth"}]), "needs bytesPerSecond"),
        (json!([{"side": "source", "kind": "Bandwidth", "bytesPerSecond": 0}]), "needs bytesPerSecond"),
        (json!([{"side": "source", "kind": "Stall", "bytesPerSecond": 1}]), "is for faults of kind Bandwidth"),
        (json!([{"side": "source", "kind": "Refuse5xx", "afterBytes": 1}]), "afterBytes is not for faults"),
        (json!([{"side": "SOURCE", "kind": "Stall"}]), "unknown variant `SOURCE`"),
        (json!([{"side": "source", "kind": "Explode"}]), "unknown variant `Explode`"),
        (json!([{"side": "source", "kind": "Stall", "when": 1}]), "unknown field `when`"),
        (json!([{"kind": "Stall"}]), "missing field `side`"),
        (json!({}), "expected a sequence"),
    ] {
        let (status, message) = put(&emulator, faults).await;
        assert_eq!(status, 400);
        assert!(message.contains(reason), "{message}");
    }
    assert_eq!(control(&emulator, "GET", "/data-faults", "").await.status, 405);
    let ask = || Ask::new(Side::Source, &tokens.source);
    assert_eq!(ask().send(&emulator).await.status, 400, "the first list is still there");
    let all = json!([
        {"side": "destination", "kind": "Disconnect", "times": 1, "afterBytes": 10, "delayMs": 5},
        {"side": "source", "kind": "Bandwidth", "bytesPerSecond": 1_000_000},
    ]);
    assert_eq!(put(&emulator, all).await, (200, String::new()));
    assert_eq!(ask().send(&emulator).await.status, 101);
}

#[tokio::test]
async fn a_reset_ends_the_faults() {
    let emulator = emulator().await;
    emulator.set_data_faults([fault(Side::Source, DataFaultKind::Refuse4xx)]);
    emulator.reset();
    let (_, tokens) = tunnel(&emulator, &["SSH"]).await;
    assert_eq!(Ask::new(Side::Source, &tokens.source).send(&emulator).await.status, 101);
}
