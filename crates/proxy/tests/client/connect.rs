//! The request to the service, and what comes of each answer.

use crate::server::{ACCESS, CLIENT, Peer, Server, connect, connect_plain, header, soon, tokens, trust};
use opentunnel_proxy::Side;
use opentunnel_proxy::config::{Endpoint, Scheme};
use opentunnel_proxy::connect::{ConnectError, Connector, Unreachable};
use opentunnel_proxy::link::{Keepalive, LinkError};
use opentunnel_proxy::tokens::Tokens;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

#[tokio::test]
async fn the_request_is_as_awss_service_wants_it() {
    let server = Server::start("127.0.0.1:0", None, |peer: Peer| async { drop(peer.websocket().await) }).await;
    let connector = Connector::new(server.plain(), None, &trust(None), Keepalive::default()).expect("a connector");
    let without = Tokens { client: None, ..tokens() };
    for (side, tokens) in [(Side::Source, tokens()), (Side::Destination, without)] {
        soon(connector.connect(side, &tokens)).await.expect("a link");
    }
    let [source, destination] = &server.heads()[..] else { panic!("two requests") };
    assert!(source.starts_with("GET /tunnel?local-proxy-mode=source HTTP/1.1\r\n"), "{source}");
    assert!(destination.starts_with("GET /tunnel?local-proxy-mode=destination HTTP/1.1\r\n"), "{destination}");
    let authority = server.address.to_string();
    for (name, value) in [
        ("host", &*authority),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "aws.iot.securetunneling-3.0"),
        ("access-token", ACCESS),
    ] {
        assert_eq!((header(source, name), header(destination, name)), (Some(value), Some(value)), "{name}");
    }
    assert_eq!((header(source, "client-token"), header(destination, "client-token")), (Some(CLIENT), None));
    assert_ne!(header(source, "sec-websocket-key"), header(destination, "sec-websocket-key"));
}

#[tokio::test]
async fn all_addresses_of_a_host_are_tried() {
    let server = Server::start("127.0.0.1:0", None, |peer: Peer| async { drop(peer.websocket().await) }).await;
    // Nobody listens on its IPv6 address, where it has one.
    let endpoint = server.endpoint(Scheme::Ws, "localhost");
    let connector = Connector::new(endpoint, None, &trust(None), Keepalive::default()).expect("a connector");
    connect(&connector).await.expect("a link");
    assert_eq!(header(&server.heads()[0], "host"), Some(&*format!("localhost:{}", server.address.port())));
}

#[tokio::test]
async fn an_ipv6_address_is_in_brackets() {
    let server = Server::start("[::1]:0", None, |peer: Peer| async { drop(peer.websocket().await) }).await;
    connect_plain(&server).await.expect("a link");
    assert_eq!(header(&server.heads()[0], "host"), Some(&*format!("[::1]:{}", server.address.port())));
}

#[tokio::test]
async fn a_refusal_has_awss_words() {
    let html = "<html><body>Forbidden</body></html>";
    let long = "x".repeat(5000);
    let echo = format!("token {ACCESS} of {CLIENT} is wrong");
    let answer = |status: &str, headers: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let used = "Invalid access token: The access token was previously used and cannot be used again";
    for (answer, refused, words) in [
        (answer("400 Bad Request", "X-Status-Reason: Tunnel is closed\r\n", "other"), true, "Tunnel is closed"),
        (answer("400 Bad Request", "", used), true, used),
        (answer("400 Bad Request", "", "  two\r\nlines\x1b[31m \u{7}"), true, "two lines [31m"),
        (answer("401 Unauthorized", "X-Status-Reason: \r\n", ""), true, "Unauthorized"),
        (answer("403 Forbidden", "Content-Type: text/html\r\n", html), true, "Forbidden"),
        (answer("400 Bad Request", "", &echo), true, "token (access token) of (client token) is wrong"),
        (answer("400 Bad Request", "", &long), true, &*format!("{}…", "x".repeat(300))),
        (
            "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno\n\r\n1\r\n!\r\n0\r\n\r\n".into(),
            true,
            "no !",
        ),
        // Cut off: what has come is said.
        ("HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\nTunnel is".into(), true, "Tunnel is"),
        (answer("499 ", "", ""), true, "it does not say why"),
        (answer("500 Internal Server Error", "X-Status-Reason: try later\r\n", ""), false, "try later"),
        (answer("503 Service Unavailable", "", ""), false, "Service Unavailable"),
        (answer("429 Too Many Requests", "", "slower"), false, "slower"),
    ] {
        let server = Server::saying(answer.clone()).await;
        let error = connect_plain(&server).await.expect_err("refused");
        let printed = format!("{error} {error:?}");
        assert!(!printed.contains(ACCESS) && !printed.contains(CLIENT), "{printed}");
        match (error, refused) {
            (ConnectError::Refused { words: said, .. }, true) | (ConnectError::NotNow { words: said, .. }, false) => {
                assert_eq!(said, words, "{answer}");
            }
            (error, _) => panic!("{answer}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_not_awss_service_is_called_so() {
    let switching = |headers: &'static str, accept: bool| {
        Server::start("127.0.0.1:0", None, move |mut peer: Peer| async move {
            let answer = peer.switching(headers);
            let answer =
                if accept { answer } else { answer.replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x") };
            peer.answer(answer).await;
        })
    };
    let protocol = "Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n";
    for (server, reason) in [
        (Server::saying("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await, "it answers 200: hello"),
        (Server::saying("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n").await, "it answers 302: Found"),
        (switching("", true).await, "without one of AWS's protocols"),
        (switching("Sec-WebSocket-Protocol: chat\r\n", true).await, "without one of AWS's protocols"),
        (switching(protocol, false).await, "Sec-WebSocket-Accept does not belong"),
        (Server::saying("HTTP/1.1 101 Switching Protocols\r\n\r\n").await, "without Upgrade: websocket"),
        (Server::saying("SSH-2.0-OpenSSH_9.6\r\n").await, "there is no whole HTTP answer"),
        (Server::saying("").await, "there is no whole HTTP answer"),
        (Server::saying([0; 1000]).await, "there is no whole HTTP answer"),
        (
            Server::saying(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20))).await,
            "no whole HTTP answer",
        ),
    ] {
        let error = connect_plain(&server).await.expect_err(reason);
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(reason) && text.starts_with(&format!("{} cannot be reached: ", server.plain())),
            "{text}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_at_any_byte_is_an_error_with_a_name() {
    let whole = 200;
    for at in 0..whole {
        let server = Server::start("127.0.0.1:0", None, move |mut peer: Peer| async move {
            let answer = peer.switching("Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n");
            peer.answer(&answer.as_bytes()[..at.min(answer.len())]).await;
        })
        .await;
        match connect_plain(&server).await {
            Err(ConnectError::Unreachable { reason: Unreachable::Exchange(_), .. }) => {}
            // All of it: the WebSocket ends at once.
            Ok((mut reader, _writer)) => {
                assert!(matches!(soon(reader.next()).await, Err(LinkError::Lost(_))));
                assert!(at > 150, "{at}");
                return;
            }
            other => panic!("{at}: {other:?}"),
        }
    }
    panic!("the answer has more than {whole} bytes");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    // It takes connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("an address").port();
    for (scheme, what) in [(Scheme::Ws, "the service's answer"), (Scheme::Wss, "the TLS handshake")] {
        let endpoint = Endpoint { scheme, host: "127.0.0.1".to_owned(), port };
        let connector = Connector::new(endpoint, None, &trust(None), Keepalive::default()).expect("a connector");
        let begin = Instant::now();
        let error = connect(&connector.with_time_limit(Duration::from_millis(100))).await.expect_err("no answer");
        assert!(error.to_string().ends_with(&format!("{what} did not come in time")), "{error}");
        assert!(begin.elapsed() >= Duration::from_millis(100));
    }
    // Nor is one whose refusal does not end.
    let server = Server::start("127.0.0.1:0", None, |mut peer: Peer| async move {
        peer.answer("HTTP/1.1 400 Bad Request\r\nContent-Length: 10\r\n\r\nx").await;
        std::future::pending::<()>().await;
    })
    .await;
    let connector = Connector::new(server.plain(), None, &trust(None), Keepalive::default()).expect("a connector");
    let error = connect(&connector.with_time_limit(Duration::from_millis(100))).await.expect_err("no answer");
    assert!(matches!(error, ConnectError::Unreachable { reason: Unreachable::Timeout(_), .. }), "{error:?}");
}

#[tokio::test]
async fn who_cannot_be_reached_is_said() {
    // Nobody listens there any more.
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port();
    for (host, reason) in [
        ("127.0.0.1", format!("no connection to 127.0.0.1: 127.0.0.1:{port}: ")),
        ("nobody.invalid", "the name nobody.invalid cannot be resolved: ".to_owned()),
    ] {
        let endpoint = Endpoint { scheme: Scheme::Ws, host: host.to_owned(), port };
        let connector = Connector::new(endpoint, None, &trust(None), Keepalive::default()).expect("a connector");
        let error = connect(&connector).await.expect_err("nobody").to_string();
        assert!(error.contains(&reason), "{error}");
    }
}
