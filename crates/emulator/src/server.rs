//! HTTP/1.1: connections in, answers (or none) out.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::api::{self, Answer};
use crate::control;
use crate::error::ApiError;
use crate::shared::Shared;

/// The longest request: room for all that the constraints allow, with everything
/// escaped in JSON.
const MAX_BODY_BYTES: usize = 2 << 20;

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("a fault closes the connection")]
    Fault,
    #[error("the request did not arrive whole")]
    Request,
}

/// Accepts connections for ever.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => shared.tasks.spawn(connection(stream, Arc::clone(&shared))),
            // Out of file descriptors, most likely: they come back as connections end.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Without it an answer waits for the client's delayed ACK; harmless where refused.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| respond(request, &shared));
    // An error ends this connection: the client's doing, or a fault's.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(request: Request<Incoming>, shared: &Arc<Shared>) -> Result<Response<Full<Bytes>>, Unanswered> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(aws(Err(ApiError::too_large(MAX_BODY_BYTES))));
        }
        Err(_) => return Err(Unanswered::Request),
    };
    let path = head.uri.path();
    if let Some(rest) = path.strip_prefix("/_emulator") {
        return Ok(match control::answer(shared, &head.method, rest, &body) {
            Ok(value) => json_response(StatusCode::OK, "application/json", &value),
            Err(error) => {
                let message = json!({"message": error.to_string()});
                json_response(error.status(), "application/json", &message)
            }
        });
    }
    if path != "/" || head.method != Method::POST {
        let message = format!("{} {path}: the service answers POST / only", head.method);
        let mut error = ApiError::unknown_operation(message);
        error.status = StatusCode::NOT_FOUND;
        return Ok(aws(Err(error)));
    }
    match api::answer(shared, &head.headers, &body).await {
        Answer::Reply(result) => Ok(aws(result)),
        Answer::Drop => Err(Unanswered::Fault),
        Answer::Hang => std::future::pending().await,
    }
}

/// An answer of the service.
fn aws(result: Result<Value, ApiError>) -> Response<Full<Bytes>> {
    let (status, name, body) = match result {
        Ok(value) => (StatusCode::OK, None, value),
        Err(ApiError { status, name, message }) => (status, Some(name), json!({"__type": name, "message": message})),
    };
    let mut response = json_response(status, "application/x-amz-json-1.1", &body);
    if let Ok(id) = HeaderValue::try_from(Uuid::new_v4().to_string()) {
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    if let Some(name) = name {
        response.headers_mut().insert("x-amzn-errortype", HeaderValue::from_static(name));
    }
    response
}

fn json_response(status: StatusCode, content_type: &'static str, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
