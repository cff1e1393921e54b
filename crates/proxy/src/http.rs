//! `/healthz`, `/readyz` and `/metrics`, for Kubernetes and Prometheus.

use crate::stats::{CONTENT_TYPE, Stats};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at the same time; more wait. Kubelet and Prometheus have one each.
const MAX_CONNECTIONS: usize = 16;
/// Time for a request's head; also how long an idle connection is kept.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Serves for ever. When this is dropped, its connections end, too.
pub async fn serve(listener: TcpListener, stats: Arc<Stats>) -> Infallible {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // It is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let stats = Arc::clone(&stats);
                connections.spawn(async move {
                    serve_connection(stream, &stats).await;
                    drop(place);
                });
            }
            // Out of file descriptors, most likely: they come back as connections end.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, stats: &Stats) {
    // Without it an answer waits for the client's delayed ACK; harmless where refused.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(&request, stats)) });
    // An error is the client's doing.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(8192)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer<B>(request: &Request<B>, stats: &Stats) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return response(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/healthz" => response(StatusCode::OK, "ok\n"),
        "/readyz" if stats.is_connected() => response(StatusCode::OK, "connected\n"),
        "/readyz" => response(StatusCode::SERVICE_UNAVAILABLE, "not connected to the service\n"),
        "/metrics" => match stats.render() {
            Ok(text) => {
                let mut response = response(StatusCode::OK, text);
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
                response
            }
            Err(_) => response(StatusCode::INTERNAL_SERVER_ERROR, "a number is too large\n"),
        },
        _ => response(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n"),
    }
}

fn response(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("{request} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        text
    }

    #[tokio::test]
    async fn probes_and_metrics_are_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stats = Arc::new(Stats::new());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&stats)));
        for (connected, request, status, text) in [
            (false, "GET /healthz", "200", "ok"),
            (false, "GET /readyz", "503", "not connected"),
            (true, "GET /readyz", "200", "connected"),
            (false, "GET /readyz", "503", "not connected"),
            (true, "GET /metrics", "200", "opentunnel_proxy_connected 1"),
            (true, "HEAD /healthz", "200", ""),
            (true, "GET /", "404", "/metrics"),
            (true, "POST /metrics", "405", "GET only"),
        ] {
            stats.set_connected(connected);
            let answer = get(address, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text), "{request}: {answer}");
            assert_eq!(answer.to_lowercase().contains(CONTENT_TYPE), request == "GET /metrics", "{answer}");
        }
        // Silent clients take no place from the others for ever, and the others wait.
        let silent: Vec<_> = futures(MAX_CONNECTIONS - 1, address).await;
        assert!(get(address, "GET /healthz").await.contains("ok"));
        drop(silent);
    }

    async fn futures(count: usize, address: std::net::SocketAddr) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(TcpStream::connect(address).await.expect("a connection"));
        }
        streams
    }
}
