//! The way through an HTTP proxy.

use crate::directory::Directory;
use crate::server::{Authority, Peer, Server, connect, header, trust};
use opentunnel_proxy::config::{Invocation, Scheme};
use opentunnel_proxy::connect::{Connector, WebProxy};
use opentunnel_proxy::link::Keepalive;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// As a company has it. With credentials it wants user:p@ss.
async fn proxy(tls: Option<TlsAcceptor>, credentials: bool) -> Server {
    Server::start("127.0.0.1:0", tls, move |mut peer: Peer| async move {
        if credentials && peer.header("proxy-authorization") != Some("Basic dXNlcjpwQHNz") {
            let answer = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 9\r\n\r\nwho's\tit?";
            return peer.answer(answer).await;
        }
        let target = peer.head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).expect("CONNECT");
        let mut target = TcpStream::connect(target).await.expect("the service");
        peer.answer("HTTP/1.1 200 Connection established\r\n\r\n").await;
        let _ = copy_bidirectional(&mut peer.stream, &mut target).await;
    })
    .await
}

/// As the environment names it.
fn web_proxy(url: &str, endpoint: &str) -> Option<WebProxy> {
    let arguments = ["opentunnel-proxy", "-t", "a", "-s", "1", "-e", endpoint].map(OsString::from);
    let environment = HashMap::from([("HTTPS_PROXY", url)]);
    let variable = |name: &str| environment.get(name).map(OsString::from);
    match Invocation::load(arguments, &variable, Path::new("/nonexistent")).expect("a configuration") {
        Invocation::Run(config) => config.web_proxy,
        Invocation::ExportDefaultSettings { .. } => None,
    }
}

#[tokio::test]
async fn the_service_is_reached_through_an_http_proxy() {
    let authority = Authority::new();
    let files = Directory::new();
    let trust = trust(Some(&files.write("ca.pem", &authority.pem)));
    let accept = |peer: Peer| async { drop(peer.websocket().await) };
    let service = Server::start("127.0.0.1:0", Some(authority.acceptor("127.0.0.1")), accept).await;
    let endpoint = service.endpoint(Scheme::Wss, "127.0.0.1");
    let inside_tls = Some(authority.acceptor("localhost"));
    for (proxy, url, authorization) in [
        (proxy(None, false).await, "http://127.0.0.1", None),
        (proxy(None, true).await, "http://user:p%40ss@127.0.0.1", Some("Basic dXNlcjpwQHNz")),
        (proxy(inside_tls, true).await, "https://user:p%40ss@localhost", Some("Basic dXNlcjpwQHNz")),
    ] {
        let web_proxy = web_proxy(&format!("{url}:{}", proxy.address.port()), &endpoint.authority());
        let connector = Connector::new(endpoint.clone(), web_proxy, &trust, Keepalive::default()).expect("a connector");
        assert!(!format!("{connector:?}").contains("p@ss"));
        connect(&connector).await.expect("a link");
        let [head] = &proxy.heads()[..] else { panic!("one request") };
        assert!(head.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", endpoint.authority())), "{head}");
        assert_eq!(header(head, "host"), Some(&*endpoint.authority()));
        assert_eq!(header(head, "proxy-authorization"), authorization);
        assert_eq!(header(head, "access-token"), None);
    }
    assert_eq!(service.heads().len(), 3);
}

#[tokio::test]
async fn what_an_http_proxy_says_is_not_awss_word() {
    let cut = Server::saying("HTTP/1.1 200 Conn").await;
    for (proxy, url, reason) in [
        (proxy(None, true).await, "http://127.0.0.1", "it answers CONNECT with 407: who's it?"),
        (cut, "http://user:secret@127.0.0.1", "there is no whole HTTP answer"),
    ] {
        let port = proxy.address.port();
        let endpoint = "data.tunneling.iot.us-east-1.amazonaws.com";
        let web_proxy = web_proxy(&format!("{url}:{port}"), endpoint);
        let service = proxy.endpoint(Scheme::Wss, endpoint);
        let connector = Connector::new(service, web_proxy, &trust(None), Keepalive::default()).expect("a connector");
        let error = connect(&connector).await.expect_err("no way").to_string();
        assert!(
            error.contains(&format!("the HTTP proxy http://127.0.0.1:{port} does not let through: {reason}")),
            "{error}"
        );
        assert!(!error.contains("secret"));
    }
}

#[tokio::test]
async fn an_http_proxy_that_never_answers_is_given_up() {
    let silent = |peer: Peer| async move {
        let _open = peer;
        std::future::pending().await
    };
    let proxy = Server::start("127.0.0.1:0", None, silent).await;
    let web_proxy = web_proxy(&proxy.address.to_string(), "host.invalid");
    let service = proxy.endpoint(Scheme::Wss, "host.invalid");
    let connector = Connector::new(service, web_proxy, &trust(None), Keepalive::default()).expect("a connector");
    let error = connect(&connector.with_time_limit(Duration::from_millis(100))).await.expect_err("no answer");
    assert!(error.to_string().ends_with("the HTTP proxy's answer did not come in time"), "{error}");
}
