//! The handshake: who asks to be which side of which tunnel, and with what words that is refused.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::sleep;
use uuid::Uuid;

use super::Side;
use super::faults::{self, DataFault, DataFaultKind};
use super::link::Place;
use super::relay::{self, Joined};
use crate::shared::{Shared, State};

/// The longest request by AWS's protocol guide.
const MAX_REQUEST: usize = 4096;
/// The longest that is read: one that is longer than allowed is to be refused with words.
pub(super) const READ_REQUEST: usize = 16 << 10;

/// The versions of the protocol, the latest first.
const SUBPROTOCOLS: [&str; 3] =
    ["aws.iot.securetunneling-3.0", "aws.iot.securetunneling-2.0", "aws.iot.securetunneling-1.0"];

const ACCESS_TOKEN: HeaderName = HeaderName::from_static("access-token");
const CLIENT_TOKEN: HeaderName = HeaderName::from_static("client-token");
const CHANNEL_ID: HeaderName = HeaderName::from_static("channel-id");
const STATUS_REASON: HeaderName = HeaderName::from_static("x-status-reason");
const TOKEN_COOKIE: &str = "awsiot-tunnel-token";

/// What lets a client use an access token again. Debug prints nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClientToken(String);

impl ClientToken {
    /// `^[a-zA-Z0-9-]{32,128}$`
    fn new(text: &str) -> Option<Self> {
        let valid = (32..=128).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        valid.then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientToken(..)")
    }
}

/// A handshake that is refused, with the words of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    status: StatusCode,
    reason: Cow<'static, str>,
}

impl Refusal {
    fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason: reason.into() }
    }

    /// AWS's words (IoT developer guide, "Resolving connectivity issues by rotating client access tokens").
    pub(crate) fn used() -> Self {
        Self::new("Invalid access token: The access token was previously used and cannot be used again")
    }

    /// AWS's words (as above).
    pub(crate) fn other_client_token() -> Self {
        Self::new(
            "Invalid client token: The provided client token does not match the client token that was previously set.",
        )
    }

    /// AWS's words, as its clients have seen them.
    pub(crate) fn closed() -> Self {
        Self::new("Tunnel is closed")
    }

    fn unknown_token() -> Self {
        Self::new("Invalid access token")
    }

    fn by_fault(fault: &DataFault) -> Self {
        let status = match fault.kind {
            DataFaultKind::Refuse5xx => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self { status, ..Self::new("A fault of the emulator refuses this connection") }
    }
}

/// What a client asks for. It has tokens: there is no Debug.
struct Asked {
    side: Side,
    access_token: String,
    client_token: Option<ClientToken>,
    subprotocol: &'static str,
    /// Of the answer to Sec-WebSocket-Key.
    accept: String,
}

/// Answers a request, and goes on with the WebSocket where it is let in.
pub(super) async fn respond(
    mut request: Request<Incoming>,
    shared: &Arc<Shared>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let channel = Uuid::new_v4().to_string();
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, _) = request.into_parts();
    let admitted = match read(&head) {
        Ok(asked) => admit(shared, &asked).await.map(|joined| (asked, joined)),
        Err(refusal) => Err(refusal),
    };
    let mut response = match admitted {
        Ok((asked, joined)) => {
            shared.tasks.spawn(relay::run(upgrade, joined, Arc::clone(shared)));
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(asked.subprotocol));
            insert(&mut response, SEC_WEBSOCKET_ACCEPT, &asked.accept);
            response
        }
        Err(Refusal { status, reason }) => {
            let mut response = Response::new(Full::from(reason.to_string()));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            insert(&mut response, STATUS_REASON, &reason);
            response
        }
    };
    insert(&mut response, CHANNEL_ID, &channel);
    Ok(response)
}

fn insert(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Reads a request as AWS's protocol guide has it ("WebSocket handshake").
fn read(head: &Parts) -> Result<Asked, Refusal> {
    let line = head.method.as_str().len() + head.uri.to_string().len() + "  HTTP/1.1\r\n\r\n".len();
    let headers = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    if line + headers.sum::<usize>() > MAX_REQUEST {
        let reason = format!("The request is longer than {MAX_REQUEST} bytes");
        return Err(Refusal { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ..Refusal::new(reason) });
    }
    if head.uri.path() != "/tunnel" || head.method != Method::GET {
        return Err(Refusal::new("The data plane answers GET /tunnel only"));
    }
    let is_websocket = listed(head, &UPGRADE).any(|word| word.eq_ignore_ascii_case("websocket"))
        && listed(head, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"))
        && listed(head, &SEC_WEBSOCKET_VERSION).any(|version| version == "13");
    let key = single(head, &SEC_WEBSOCKET_KEY).ok().flatten();
    let Some(key) = key.filter(|_| is_websocket) else {
        return Err(Refusal::new("The request is no WebSocket handshake of version 13"));
    };
    let mut modes = head.uri.query().unwrap_or_default().split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name == "local-proxy-mode").then_some(value)
    });
    let side = match (modes.next(), modes.next()) {
        (Some("source"), None) => Side::Source,
        (Some("destination"), None) => Side::Destination,
        _ => return Err(Refusal::new("Invalid local-proxy-mode: it must be source or destination")),
    };
    let offered: Vec<_> = listed(head, &SEC_WEBSOCKET_PROTOCOL).collect();
    let Some(subprotocol) = SUBPROTOCOLS.into_iter().find(|known| offered.contains(known)) else {
        return Err(Refusal::new(
            "Invalid Sec-WebSocket-Protocol: no version of aws.iot.securetunneling that is known",
        ));
    };
    let cookies = head.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies = cookies.flat_map(|value| value.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    let cookies = cookies.filter_map(|(name, value)| (name == TOKEN_COOKIE).then_some(value));
    let in_headers = head.headers.get_all(ACCESS_TOKEN).iter().map(|value| value.to_str().unwrap_or_default());
    let mut tokens = in_headers.chain(cookies);
    let access_token = match (tokens.next(), tokens.next()) {
        (Some(token), None) => token.to_owned(),
        (None, _) => return Err(Refusal::new("Invalid access token: The request has none")),
        (Some(_), Some(_)) => return Err(Refusal::new("Invalid access token: The request has more than one")),
    };
    let client_token = match single(head, &CLIENT_TOKEN) {
        Ok(None) => None,
        Ok(Some(text)) => {
            let invalid = || Refusal::new("Invalid client token: It does not match ^[a-zA-Z0-9-]{32,128}$");
            Some(ClientToken::new(text).ok_or_else(invalid)?)
        }
        Err(()) => return Err(Refusal::new("Invalid client token: The request has more than one")),
    };
    Ok(Asked { side, access_token, client_token, subprotocol, accept: accept(key) })
}

/// The elements of a header that is a list.
fn listed<'a>(head: &'a Parts, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = head.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// The value of a header that is not repeated.
fn single<'a>(head: &'a Parts, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = head.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(value.to_str().unwrap_or_default())),
        (Some(_), Some(_)) => Err(()),
    }
}

/// RFC 6455, 4.2.2.
fn accept(key: &str) -> String {
    let key = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()))
}

async fn admit(shared: &Shared, asked: &Asked) -> Result<Joined, Refusal> {
    let fault = shared.change(|state| faults::take_of_handshake(&mut state.data_faults, asked.side));
    if let Some(fault) = fault {
        sleep(Duration::from_millis(fault.delay_ms)).await;
        return Err(Refusal::by_fault(&fault));
    }
    let joined = shared.change(|state| join(state, asked))?;
    shared.expiries.notify_one();
    Ok(joined)
}

fn join(state: &mut State, asked: &Asked) -> Result<Joined, Refusal> {
    let now = state.service.clock.now();
    let found = state.service.store.by_token(&asked.access_token, now);
    let (tunnel, side) = found.ok_or_else(Refusal::unknown_token)?;
    if side != asked.side {
        let mode = asked.side.name();
        return Err(Refusal::new(format!("Invalid access token: It is not for local-proxy-mode {mode}")));
    }
    let place: Place = tunnel.admit(side, asked.client_token.as_ref(), now)?;
    Ok(Joined {
        place,
        tunnel_id: tunnel.id.clone(),
        services: tunnel.services().to_vec(),
        knows_services: asked.subprotocol != "aws.iot.securetunneling-1.0",
        fault: faults::take_of_connection(&mut state.data_faults, side),
    })
}
