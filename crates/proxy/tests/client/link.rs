//! The open WebSocket: bytes both ways, pings, and its ends.

use crate::server::{Peer, Server, Stream, connect, connect_plain, soon, trust};
use bytes::Bytes;
use futures_core::Stream as _;
use futures_sink::Sink;
use opentunnel_proxy::connect::Connector;
use opentunnel_proxy::link::{CloseReason, Keepalive, LinkError, LinkReader, MAX_FRAME};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_websockets::{CloseCode, Message, WebSocketStream};

type Socket = WebSocketStream<Stream>;

async fn receive(socket: &mut Socket) -> Option<Result<Message, tokio_websockets::Error>> {
    poll_fn(|context| Pin::new(&mut *socket).poll_next(context)).await
}

async fn send(socket: &mut Socket, message: Message) {
    poll_fn(|context| Pin::new(&mut *socket).poll_ready(context)).await.expect("ready");
    Pin::new(&mut *socket).start_send(message).expect("open");
    poll_fn(|context| Pin::new(&mut *socket).poll_flush(context)).await.expect("sent");
}

/// A service that does what is asked of it once the WebSocket is open.
async fn service<F, R>(serve: F) -> Server
where
    F: Fn(Socket) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    Server::start("127.0.0.1:0", None, move |peer: Peer| {
        let serve = serve.clone();
        async move { serve(peer.websocket().await).await }
    })
    .await
}

async fn echo(mut socket: Socket) {
    while let Some(Ok(message)) = receive(&mut socket).await {
        if message.is_binary() {
            send(&mut socket, message).await;
        }
    }
}

async fn read(reader: &mut LinkReader, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        bytes.extend(soon(reader.next()).await.expect("a link").expect("open"));
    }
    bytes
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|n| (n * 31 + n / 251) as u8).collect()
}

#[tokio::test]
async fn bytes_come_back_as_they_were_sent_whatever_their_number() {
    let server = service(echo).await;
    let (mut reader, mut writer) = connect_plain(&server).await.expect("a link");
    for length in [1, 125, 126, 65_535, 65_536, MAX_FRAME, MAX_FRAME + 1, 3 * MAX_FRAME + 7] {
        let sent = pattern(length);
        soon(writer.send(sent.clone())).await.expect("sent");
        assert!(read(&mut reader, length).await == sent, "{length}");
    }
    // Nothing to send is nothing.
    soon(writer.send(Bytes::new())).await.expect("sent");
}

/// Both directions are full at once: a half that held up the other would stop for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_run_at_the_same_time_in_two_tasks() {
    let server = service(echo).await;
    let (mut reader, mut writer) = connect_plain(&server).await.expect("a link");
    let (rounds, block) = (60, pattern(100_003));
    let length = block.len();
    let sending = tokio::spawn(async move {
        for round in 0..rounds {
            let bytes = Bytes::copy_from_slice(&block);
            match round % 3 {
                0 => writer.send(bytes).await.expect("sent"),
                _ => writer.feed(bytes).await.expect("taken"),
            }
        }
        writer.flush().await.expect("sent");
        (writer, block)
    });
    let received = read(&mut reader, rounds * length).await;
    let (_writer, block) = sending.await.expect("all is sent");
    assert!(received.chunks(length).all(|chunk| chunk == block));
}

#[tokio::test]
async fn what_comes_in_the_same_packet_as_the_answer_is_not_lost() {
    let server = Server::start("127.0.0.1:0", None, |mut peer: Peer| async move {
        let mut answer = peer.switching("Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n").into_bytes();
        // One message in three frames, a ping between them.
        answer.extend([0x02, 2, b'a', b'b', 0x89, 0, 0x00, 1, b'c', 0x80, 1, b'd']);
        peer.answer(answer).await;
        let mut pong = [0; 6];
        peer.stream.read_exact(&mut pong).await.expect("a pong");
        assert_eq!(pong[..2], [0x8a, 0x80]);
        peer.answer([0x82, 1, b'e']).await;
        let _ = peer.stream.read_u8().await;
    })
    .await;
    let (mut reader, _writer) = connect_plain(&server).await.expect("a link");
    assert_eq!(read(&mut reader, 5).await, b"abcde");
}

#[tokio::test]
async fn a_ping_is_answered_with_what_it_carries() {
    let server = service(|mut socket| async move {
        send(&mut socket, Message::ping("1700000000123")).await;
        let pong = receive(&mut socket).await.expect("open").expect("a message");
        assert!(pong.is_pong() && **pong.as_payload() == *b"1700000000123");
        send(&mut socket, Message::binary("well")).await;
        let _ = receive(&mut socket).await;
    })
    .await;
    let (mut reader, _writer) = connect_plain(&server).await.expect("a link");
    assert_eq!(read(&mut reader, 4).await, b"well");
}

async fn connect_with(server: &Server, keepalive: Keepalive) -> (LinkReader, opentunnel_proxy::link::LinkWriter) {
    let connector = Connector::new(server.plain(), None, &trust(None), keepalive).expect("a connector");
    connect(&connector).await.expect("a link")
}

fn keepalive(interval: u64, answer: u64, answer_behind_data: u64) -> Keepalive {
    Keepalive {
        interval: Duration::from_millis(interval),
        answer: Duration::from_millis(answer),
        answer_behind_data: Duration::from_millis(answer_behind_data),
    }
}

#[tokio::test]
async fn pings_carry_the_time_as_awss_do() {
    let pings: Arc<Mutex<Vec<u128>>> = Arc::default();
    let noted = Arc::clone(&pings);
    let server = service(move |mut socket| {
        let noted = Arc::clone(&noted);
        async move {
            while let Some(Ok(message)) = receive(&mut socket).await {
                assert!(message.is_ping(), "{message:?}");
                let text = std::str::from_utf8(message.as_payload()).expect("text").to_owned();
                noted.lock().expect("whole").push(text.parse().expect("a number"));
                if noted.lock().expect("whole").len() == 3 {
                    return send(&mut socket, Message::binary("enough")).await;
                }
            }
        }
    })
    .await;
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let (mut reader, _writer) = connect_with(&server, keepalive(20, 5000, 5000)).await;
    assert_eq!(read(&mut reader, 6).await, b"enough");
    let pings = pings.lock().expect("whole").clone();
    assert!(pings.is_sorted() && pings[0] >= begin && pings[2] - pings[0] >= 30, "{pings:?} from {begin}");
}

/// It takes what comes, and says nothing.
async fn dumb(mut peer: Peer) {
    let switching = peer.switching("Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n");
    peer.answer(switching).await;
    let _ = tokio::io::copy(&mut peer.stream, &mut tokio::io::sink()).await;
}

#[tokio::test]
async fn a_service_that_answers_no_ping_is_taken_for_dead() {
    let server = Server::start("127.0.0.1:0", None, dumb).await;
    let (mut reader, _writer) = connect_with(&server, keepalive(50, 100, 5000)).await;
    let begin = Instant::now();
    let error = soon(reader.next()).await.expect_err("dead");
    assert!(matches!(error, LinkError::Silent(after) if after == Duration::from_millis(100)), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(150), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn behind_data_the_answer_of_a_ping_has_more_time() {
    let server = Server::start("127.0.0.1:0", None, dumb).await;
    let (mut reader, mut writer) = connect_with(&server, keepalive(50, 100, 600)).await;
    soon(writer.send(Bytes::from_static(b"data"))).await.expect("sent");
    let begin = Instant::now();
    let error = soon(reader.next()).await.expect_err("dead");
    assert!(matches!(error, LinkError::Silent(after) if after == Duration::from_millis(600)), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn who_still_sends_is_not_dead() {
    let server = service(|mut socket| async move {
        // Never read: no ping is answered.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            send(&mut socket, Message::binary("x")).await;
        }
        send(&mut socket, Message::close(Some(CloseCode::NORMAL_CLOSURE), "")).await;
        let _ = receive(&mut socket).await;
    })
    .await;
    let (mut reader, _writer) = connect_with(&server, keepalive(20, 1500, 1500)).await;
    assert_eq!(read(&mut reader, 20).await, [b'x'; 20]);
    assert_eq!(soon(reader.next()).await.expect("closed"), None);
}

#[tokio::test]
async fn a_long_message_on_a_slow_line_is_no_silence() {
    let server = Server::start("127.0.0.1:0", None, |mut peer: Peer| async move {
        let switching = peer.switching("Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n");
        peer.answer(switching).await;
        peer.answer([0x82, 30]).await;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(70)).await;
            peer.answer(b"x").await;
        }
        let _ = tokio::io::copy(&mut peer.stream, &mut tokio::io::sink()).await;
    })
    .await;
    let (mut reader, _writer) = connect_with(&server, keepalive(20, 1500, 1500)).await;
    assert_eq!(read(&mut reader, 30).await, [b'x'; 30]);
}

#[tokio::test]
async fn how_the_service_ends_a_link_is_told() {
    for (code, words) in [(Some(1000), "Tunnel is closed"), (Some(1001), ""), (Some(4000), "why"), (None, "")] {
        let server = service(move |mut socket| async move {
            let code = code.map(|code: u16| CloseCode::try_from(code).expect("a code"));
            send(&mut socket, Message::close(code, words)).await;
            // The goodbye is said back.
            assert!(receive(&mut socket).await.expect("open").expect("a message").is_close());
        })
        .await;
        let (mut reader, mut writer) = connect_plain(&server).await.expect("a link");
        assert_eq!(soon(reader.next()).await.expect("closed"), None);
        assert_eq!(reader.close_reason(), Some(&CloseReason { code, words: words.to_owned() }));
        assert!(matches!(soon(writer.send(Bytes::from_static(b"late"))).await, Err(LinkError::Closed)));
    }
}

#[tokio::test]
async fn our_goodbye_is_answered_after_what_was_on_the_way() {
    let server = service(echo).await;
    let (mut reader, mut writer) = connect_plain(&server).await.expect("a link");
    soon(writer.send(Bytes::from_static(b"last"))).await.expect("sent");
    assert_eq!(read(&mut reader, 4).await, b"last");
    soon(writer.close()).await.expect("said");
    assert_eq!(soon(reader.next()).await.expect("closed"), None);
}

#[tokio::test]
async fn what_is_no_websocket_is_named() {
    let too_long = (MAX_FRAME as u64 + 1).to_be_bytes();
    for (name, bytes, expected) in [
        ("nothing more", vec![], "is lost"),
        ("half a frame", vec![0x82, 5, b'a'], "is lost"),
        ("text", vec![0x81, 2, b'h', b'i'], "it sent text"),
        ("a frame of the largest length", [&[0x82, 127][..], &[0x7f; 8]].concat(), "more than 131076 bytes"),
        ("a frame that is one byte too long", [&[0x82, 127][..], &too_long].concat(), "more than 131076 bytes"),
        ("a masked frame", vec![0x82, 0x81, 1, 2, 3, 4, 5], "breaks the WebSocket protocol"),
        ("an unknown frame", vec![0x83, 0], "breaks the WebSocket protocol"),
        ("a continuation of nothing", vec![0x80, 0], "breaks the WebSocket protocol"),
        ("a goodbye with no code that there is", vec![0x88, 2, 0, 1], "breaks the WebSocket protocol"),
    ] {
        let server = Server::start("127.0.0.1:0", None, move |mut peer: Peer| {
            let bytes = bytes.clone();
            async move {
                let switching = peer.switching("Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n");
                peer.answer(switching).await;
                peer.answer(bytes).await;
                let _ = peer.stream.shutdown().await;
                let _ = tokio::io::copy(&mut peer.stream, &mut tokio::io::sink()).await;
            }
        })
        .await;
        let (mut reader, _writer) = connect_plain(&server).await.expect("a link");
        let error = soon(reader.next()).await.expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// A message in many frames is as bounded as one in one frame.
#[tokio::test]
async fn many_frames_make_no_longer_message() {
    let server = Server::start("127.0.0.1:0", None, |mut peer: Peer| async move {
        let switching = peer.switching("Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n");
        peer.answer(switching).await;
        peer.answer([0x02, 0]).await;
        let frame = [&[0x00, 126, 0x10, 0x00][..], &[7; 4096]].concat();
        for _ in 0..1000 {
            peer.answer(&frame).await;
        }
    })
    .await;
    let (mut reader, _writer) = connect_plain(&server).await.expect("a link");
    assert!(matches!(soon(reader.next()).await, Err(LinkError::TooLong)));
}
