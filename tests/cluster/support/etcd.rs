//! What only another CRD, or somebody with etcd's keys, could store: an object is written past the API server.

use super::control_plane::ControlPlane;
use super::namespace::Namespace;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Stores a Tunnel as it is given; the API server validates nothing.
pub async fn store_tunnel(namespace: &Namespace, name: &str, tunnel: &Value) {
    let key = format!("/registry/opentunnel.dev/tunnels/{}/{name}", namespace.name);
    let body = json!({"key": base64(key.as_bytes()), "value": base64(tunnel.to_string().as_bytes())}).to_string();
    let socket = ControlPlane::get().dir.parent().expect("the control plane's").join("etcd.sock");
    let mut etcd = UnixStream::connect(socket).await.expect("etcd listens");
    let head = "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Type: application/json\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    etcd.write_all(request.as_bytes()).await.expect("etcd reads");
    let mut answer = String::new();
    etcd.read_to_string(&mut answer).await.expect("etcd answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// As etcd's JSON gateway has its bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| (bits << 8) | u32::from(chunk.get(at).copied().unwrap_or_default()));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at > chunk.len() { '=' } else { char::from(digit) });
        }
    }
    text
}
